"""An agent whose requests are wrong: the router must refuse them, each with a 4xx."""

from __future__ import annotations

import json
from typing import Any, Final

from tests.simulate.agents.composing import CHAT, COMPLETIONS, GENERATE
from tests.simulate.agents.habits import draw_conduct
from tests.simulate.agents.script import Agent, Send, Step
from tests.simulate.chance import derive
from tests.simulate.knobs import Knobs
from tests.simulate.story import Ask, Exchange, Kind

__all__ = ["MALFORMED", "WRONG_HEADERS", "Vandal"]

_HELLO: Final = {"role": "user", "content": "hello"}
_CHAT: Final[dict[str, Any]] = {"model": "policy", "messages": [_HELLO], "max_tokens": 2}
_TEXT: Final[dict[str, Any]] = {"text": "hello", "sampling_params": {"max_new_tokens": 2}}
_PROMPT: Final[dict[str, Any]] = {"model": "policy", "prompt": "hello", "max_tokens": 2}

MALFORMED: Final[dict[str, tuple[str, bytes | dict[str, Any]]]] = {
    "half_json": (GENERATE, b'{"text": "hello", '),
    "no_json": (GENERATE, b"text=hello"),
    "no_object": (GENERATE, b'["hello"]'),
    "no_body": (GENERATE, b""),
    "two_values": (GENERATE, b'{"text": "hello"}{}'),
    "no_utf8": (GENERATE, b'{"text": "h\xff\xfello"}'),
    "nan": (GENERATE, b'{"text": "hello", "sampling_params": {"temperature": NaN}}'),
    "lone_surrogate": (GENERATE, b'{"text": "h\\ud83d"}'),
    "chat_surrogate": (CHAT, json.dumps(_CHAT).replace("hello", "\\ud83d").encode()),
    "prompt_surrogate": (COMPLETIONS, json.dumps(_PROMPT).replace("hello", "\\udc00").encode()),
    "empty_text": (GENERATE, _TEXT | {"text": ""}),
    "empty_text_in_list": (GENERATE, _TEXT | {"text": ["hello", ""]}),
    "empty_list": (GENERATE, _TEXT | {"text": []}),
    "empty_ids": (GENERATE, {"input_ids": []}),
    "no_prompt": (GENERATE, {"sampling_params": {}}),
    "two_prompts": (GENERATE, _TEXT | {"input_ids": [1, 2]}),
    "text_is_number": (GENERATE, {"text": 5}),
    "negative_id": (GENERATE, {"input_ids": [1, -2]}),
    "id_is_fraction": (GENERATE, {"input_ids": [1, 2.5]}),
    "n_is_zero": (GENERATE, {"text": "hello", "sampling_params": {"n": 0}}),
    "n_is_huge": (GENERATE, {"text": "hello", "sampling_params": {"n": 100_000}}),
    "n_differs": (GENERATE, {"text": ["a", "b"], "sampling_params": [{"n": 1}, {"n": 2}]}),
    "parent_is_number": (GENERATE, _TEXT | {"parent_id": 5}),
    "unknown_parent": (GENERATE, _TEXT | {"parent_id": "f" * 32}),
    "no_messages": (CHAT, _CHAT | {"messages": []}),
    "messages_missing": (CHAT, {"model": "policy"}),
    "no_model": (CHAT, {"messages": [_HELLO]}),
    "image": (CHAT, _CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
    "bad_role": (CHAT, _CHAT | {"messages": [{"role": "robot", "content": "hello"}]}),
    "too_hot": (CHAT, _CHAT | {"temperature": 3}),
    "chat_n": (CHAT, _CHAT | {"n": 1000}),
    "options_without_stream": (CHAT, _CHAT | {"stream_options": {"include_usage": True}}),
    "functions": (CHAT, _CHAT | {"functions": []}),
    "suffix": (COMPLETIONS, _PROMPT | {"suffix": "x"}),
    "empty_prompt": (COMPLETIONS, _PROMPT | {"prompt": []}),
    "foreign_ids": (COMPLETIONS, _PROMPT | {"prompt": [2**31 - 1]}),
    "no_tokens": (COMPLETIONS, _PROMPT | {"max_tokens": 0}),
}
"""What is wrong, by name: the path and the body, or the very bytes."""

WRONG_HEADERS: Final[dict[str, tuple[str, str]]] = {
    "senseless_wish": ("x-smg-version-policy", "newest"),
    "negative_staleness": ("x-slime-version-policy", "max-staleness:-1"),
    "unknown_target": ("x-smg-target-worker", "99"),
    "target_is_nobody": ("x-smg-target-worker", "http://nobody:1"),
}
"""Likewise, of a request that is well but for a field of its head."""

_REFUSED_BY_WORKERS: Final[tuple[dict[str, Any], ...]] = (
    _TEXT | {"sampling_params": {"max_tokens": 5}},
    _TEXT | {"sampling_params": {"temperature": -1.0}},
    _TEXT | {"sampling_params": {"max_new_tokens": -1}},
    _TEXT | {"text": "The quick brown fox. " * 2500},
)
"""The router leaves it to the worker to judge these; the last one fits most contexts."""


class Vandal(Agent):
    """Some such requests, one after the other."""

    def __init__(self, name: str, knobs: Knobs) -> None:
        super().__init__(name)
        self._knobs = knobs
        self._count = derive(knobs.seed, "agent", name).randint(2, 8)
        self._sent = 0

    def next(self) -> Step | None:
        """The next wrong request."""
        if self._sent >= self._count:
            return None
        chance = derive(self._knobs.seed, "agent", self.name, "turn", self._sent)
        self._sent += 1
        conduct = draw_conduct(self._knobs, chance)
        if chance.random() < 0.15:
            body = chance.choice(_REFUSED_BY_WORKERS)
            ask = Ask(path=GENERATE, body=body, kind=Kind.ROOT, text=body["text"], conduct=conduct)
        else:
            word = chance.choice([*MALFORMED, *WRONG_HEADERS])
            path, wrong = MALFORMED.get(word, (GENERATE, _TEXT))
            ask = Ask(
                path=path,
                body=wrong if isinstance(wrong, dict) else {},
                raw=wrong if isinstance(wrong, bytes) else None,
                headers=(WRONG_HEADERS[word],) if word in WRONG_HEADERS else (),
                kind=Kind.ROOT,
                text="",
                malformed=word,
                conduct=conduct,
            )
        think_s = round(chance.uniform(0, self._knobs.think_s), 4)
        return Send(asks=(ask,), think_s=think_s)

    def ended(self, exchange: Exchange) -> None:
        """Nothing: it learns nothing from it."""
