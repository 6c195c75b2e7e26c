"""Requests of prompts: which path, which body, which headers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

from slime_core.placing import TARGET_HEADER
from slime_core.weights import VERSION_HEADER
from tests.simulate.agents.habits import FORGED_FIELDS, FORGED_HEADERS, draw_conduct, spelled
from tests.simulate.agents.prompts import Prompt
from tests.simulate.agents.sampling import draw_sampling, for_openai
from tests.simulate.chance import derive
from tests.simulate.knobs import Knobs
from tests.simulate.story import Ask, Exchange
from tests.simulate.tokens import Tokens

__all__ = ["CHAT", "COMPLETIONS", "GENERATE", "Composer"]

GENERATE: Final = "/generate"
COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"

_NOBODYS_CALL: Final = "0123456789abcdef" * 2
_WISHES: Final = ("any", "latest-only", "min-version:1", "min-version:2", "max-staleness:1")
_MOST_STOPS: Final = 4
"""OpenAI's limit."""
_ROOM_TO_CALL: Final = 60
"""Tokens that thoughts and calls may need."""


class Composer:
    """One agent's requests. ``exchanges`` are all of the run: some calls are somebody else's."""

    def __init__(
        self,
        name: str,
        path: str,
        knobs: Knobs,
        tokens: Tokens,
        exchanges: Sequence[Exchange],
        chance: random.Random,
    ) -> None:
        self._name = name
        self._path = path
        self._knobs = knobs
        self._tokens = tokens
        self._exchanges = exchanges
        self._names_session = chance.random() < knobs.session_share
        self._session_header = chance.choice(("X-Session-ID", "X-SMG-Routing-Key"))
        self._shares_session = path == CHAT and chance.random() < 0.5
        self._count = 0
        self.names_parents = True
        """Whether it may name one; an agent gives that up once a parent is gone."""

    def ask(
        self, prompts: Sequence[Prompt], chance: random.Random, *, line: int = 0, n: int = 1
    ) -> Ask:
        """One request with these prompts, ``n`` samples of each; several prompts make a list.

        ``line`` is the rollout that a session would name. Chat takes one prompt.
        """
        self._count += 1
        knobs = self._knobs
        first = prompts[0]
        body = self._body(prompts, n, chance)
        headers: list[tuple[str, str]] = []
        # A list may go on with several rollouts, and a header names one.
        alike = all(prompt == first for prompt in prompts)
        # Of a harness with helpers all lines are one session.
        line = 0 if self._shares_session else line
        session = f"{self._name}-{line}" if self._names_session and alike else None
        if session is not None:
            headers.append((self._session_header, session))
        parent, malformed = self._parent(prompts, chance)
        if parent is not None:
            if self._path == GENERATE and chance.random() < 0.5:
                body["parent_id"] = parent
            else:
                headers.append(("x-slime-parent-id", parent))
        if chance.random() < knobs.retry * 0.5:
            headers.append(("Idempotency-Key", f"{self._name}-{self._count}"))
        headers += self._wishes()
        self._name_rid(body, prompts, chance)
        self._forge(body, headers, chance)
        return Ask(
            path=self._path,
            body=body,
            raw=spelled(body, escape=knobs.escape_json),
            headers=tuple(headers),
            **_facts(first),
            stream=body.get("stream", False),
            samples=len(prompts) * n,
            session=session,
            parent=parent,
            others=self._others(prompts, body),
            malformed=malformed,
            conduct=draw_conduct(knobs, chance),
        )

    def _others(self, prompts: Sequence[Prompt], body: dict[str, Any]) -> tuple[Ask, ...]:
        """All prompts but the first, unless they are all the same."""
        if all(prompt == prompts[0] for prompt in prompts):
            return ()
        return tuple(Ask(path=self._path, body=body, **_facts(prompt)) for prompt in prompts[1:])

    def _parent(
        self, prompts: Sequence[Prompt], chance: random.Random
    ) -> tuple[str | None, str | None]:
        """The call that is named as parent, and what is wrong with it."""
        names, wrong, unknown = (chance.random() for _ in range(3))
        stranger = chance.random()
        held, share = prompts[0].held, self._knobs.parent_share
        if len(prompts) > 1:
            return None, None
        if wrong < self._knobs.wrong_parent * 0.5:
            calls = [call for exchange in self._exchanges for call in exchange.calls]
            if unknown < 0.5 or not calls:
                return _NOBODYS_CALL, "unknown_parent"
            return calls[int(stranger * len(calls))], None
        if held is not None and held.call and self.names_parents and names < share:
            return held.call, None
        return None, None

    def _wishes(self) -> list[tuple[str, str]]:
        """What it asks of the fleet, drawn apart from all else."""
        chance = derive(self._knobs.seed, "agent", self._name, "wishes", self._count)
        wishes = []
        if chance.random() < self._knobs.wish_share:
            wishes.append((VERSION_HEADER, chance.choice(_WISHES)))
        if chance.random() < self._knobs.target_share:
            place = chance.randrange(self._knobs.workers)
            wishes.append((TARGET_HEADER, chance.choice((str(place), f"http://w{place}:30000"))))
        return wishes

    def _name_rid(
        self, body: dict[str, Any], prompts: Sequence[Prompt], chance: random.Random
    ) -> None:
        """A name of the client's own for the request, or for each prompt of a list."""
        names, again = chance.random() < self._knobs.rid_share, chance.random() < 0.2
        if not names:
            return
        number = self._count - 1 if again else self._count
        rid = f"{self._name}/{number}"
        if len(prompts) == 1:
            body["rid"] = rid
        elif self._path == GENERATE:
            body["rid"] = [f"{rid}.{place}" for place in range(len(prompts))]

    def _forge(
        self, body: dict[str, Any], headers: list[tuple[str, str]], chance: random.Random
    ) -> None:
        forges = chance.random() < self._knobs.forge
        fields, header = chance.choice(FORGED_FIELDS), chance.choice(FORGED_HEADERS)
        if forges:
            body.update(fields)
            headers.append(header)

    def _body(self, prompts: Sequence[Prompt], n: int, chance: random.Random) -> dict[str, Any]:
        seen = prompts[0].held.shown if prompts[0].held is not None else ""
        params = draw_sampling(self._knobs, self._tokens, chance, seen)
        streams = chance.random() < self._knobs.stream_share
        logprobs = chance.random() < self._knobs.logprob_share
        stream = {"stream": True} if streams else {}
        if self._path == GENERATE:
            return self._generate_body(prompts, params, n, logprobs=logprobs) | stream
        body = {"model": "policy", **for_openai(params), **stream}
        if isinstance(body.get("stop"), list):
            body["stop"] = body["stop"][:_MOST_STOPS]
        if n > 1:
            body["n"] = n
        if streams and chance.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
        if self._path == CHAT:
            chat = self._chat_body(prompts[0], params)
            return body | chat | ({"logprobs": True} if logprobs else {})
        given = [prompt.text if prompt.ids is None else list(prompt.ids) for prompt in prompts]
        body["prompt"] = given if len(given) > 1 else given[0]
        return body | ({"logprobs": 1} if logprobs else {})

    def _generate_body(
        self, prompts: Sequence[Prompt], params: dict[str, Any], n: int, *, logprobs: bool
    ) -> dict[str, Any]:
        if n > 1:
            params = params | {"n": n}
        by_ids = prompts[0].ids is not None
        given = [list(prompt.ids or ()) if by_ids else prompt.text for prompt in prompts]
        body: dict[str, Any] = {
            "input_ids" if by_ids else "text": given if len(given) > 1 else given[0],
            "sampling_params": params,
        }
        return body | ({"return_logprob": True} if logprobs else {})

    def _chat_body(self, prompt: Prompt, params: dict[str, Any]) -> dict[str, Any]:
        """The conversation, and what else chats ask for."""
        if prompt.ids is not None:
            return {"input_ids": list(prompt.ids), "messages": [{"role": "user", "content": "-"}]}
        chat = prompt.chat
        assert chat is not None
        body: dict[str, Any] = {"messages": list(chat.messages)}
        if chat.tools:
            body["tools"] = list(chat.tools)
        if chat.arguments:
            body["chat_template_kwargs"] = chat.arguments
        if chat.continues:
            body["continue_final_message"] = True
        if self._knobs.scripts and (chat.tools or params["max_new_tokens"] % 2):
            body["max_tokens"] = params["max_new_tokens"] + _ROOM_TO_CALL
        return body


def _facts(prompt: Prompt) -> dict[str, Any]:
    """What an ask tells of its prompt."""
    held = prompt.held
    return {
        "kind": prompt.kind,
        "text": prompt.text,
        "ids": prompt.ids,
        "chat": prompt.chat,
        "after": None if held is None else held.number,
        "after_sample": 0 if held is None else held.sample,
        "appended": prompt.appended,
    }
