"""The router without a shell: the core's state and decisions, called directly.

What ``slime_trio`` does between sockets and threads, this does between events of an agenda: commit
and let go, look up and encode, contact workers and poll them. It decides nothing by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from slime_core import openai
from slime_core.calls import Calls, wish_of
from slime_core.chat.canonical import conversation
from slime_core.chat.plans import ChatAsk, History
from slime_core.chat.retrieval import plan_chat_retrieval
from slime_core.decide import (
    Retrieval,
    find_call,
    health_change,
    next_gone,
    next_untold,
    place,
    plan_retrieval,
    tell,
)
from slime_core.errors import ClientError
from slime_core.health import Condition, Event, HealthLimits
from slime_core.policies import POLICIES, Placement
from slime_core.state import RouterState
from slime_core.trajectory import Trajectory, trajectory
from slime_core.transitions import (
    Retrieved,
    Transition,
    VersionSeen,
    WorkerAdded,
    WorkerRemoved,
)
from slime_core.types import CallId, Encoding, PackedIds, WorkerUrl, unpack_ids
from tests.simulate.knobs import Knobs
from tests.simulate.run import facts_of, fresh_state
from tests.simulate.story import Committed, Story
from tests.simulate.tokens import Tokens

__all__ = ["CoreRouter", "Watcher"]

_LIMITS: Final = HealthLimits()
_MODE: Final = "plain"
"""What becomes of special tokens that content spells."""

Watcher = Callable[[Transition, RouterState], None]


class CoreRouter:
    """One router. ``now`` tells the time; ``watchers`` see every transition once it is applied."""

    def __init__(
        self,
        knobs: Knobs,
        tokens: Tokens,
        story: Story,
        chance: random.Random,
        now: Callable[[], float],
    ) -> None:
        self.tokens: Final = tokens
        self.facts: Final = facts_of(tokens)
        self.state: Final = fresh_state(tokens)
        self.watchers: Final[list[Watcher]] = []
        self._limits: Final = knobs.limits()
        self._policy: Final = POLICIES[knobs.policy]
        self._story: Final = story
        self._chance: Final = chance
        self._now: Final = now
        self._history: Final[History] = "template" if knobs.history == "template" else "exact"
        self._ids = 0

    # -- the state -----------------------------------------------------------------------

    def commit(self, *facts: Transition) -> None:
        """Make ``facts`` true, then let go of what no longer fits."""
        for fact in facts:
            self._apply(fact)
        while (gone := next_gone(self.state, self._limits)) is not None:
            self._apply(gone)

    def _apply(self, fact: Transition) -> None:
        self.state.apply(fact)
        story = self._story
        story.journal.append(Committed(at=story.tick(), now=self._now(), fact=fact))
        story.marks[f"transition:{type(fact).__name__}"] += 1
        for watcher in self.watchers:
            watcher(fact, self.state)

    def new_id(self) -> CallId:
        """Call ids of one length, as the shell's are."""
        self._ids += 1
        return CallId(f"{self._ids:032x}")

    # -- one request ---------------------------------------------------------------------

    def calls(self, session: str | None, parent: str | None) -> Calls:
        """The books of a request. Raises ``ClientError`` for an unknown parent."""
        return Calls(
            self.state,
            self.facts,
            commit=self.commit,
            new_id=self.new_id,
            wish=wish_of(self.state, session, parent),
        )

    def encode(self, calls: Calls) -> list[PackedIds]:
        """Encode what is new; the whole ids of every prompt."""
        for number, prompt in calls.to_encode():
            ids = PackedIds(b"")
            if prompt.rest is not None:
                ids = self.tokens.tokenizer.encode_packed(
                    prompt.rest,
                    encoding=prompt.encoding,
                    first=prompt.is_first,
                    plain=prompt.plain,
                )
            calls.encoded(number, ids)
        return calls.prompts

    def choose_worker(self, session: str | None) -> WorkerUrl:
        """Raises ``WorkerError`` if none is fit."""
        placement = Placement(key=session, chance=self._chance.random())
        return place(self.state, self._policy, placement).url

    def tell_all(self) -> None:
        """Give every prompt that came as ids its text."""
        while (untold := next_untold(self.state)) is not None:
            self.commit(tell(untold, self.facts.vocabulary))

    # -- the fleet -----------------------------------------------------------------------

    def add_worker(self, url: str) -> None:
        """A worker joins; it gets work once it has been contacted."""
        self.commit(WorkerAdded(worker=WorkerUrl(url)))
        self.note_health(url, Event.REGISTERED)

    def remove_worker(self, url: str) -> None:
        """A worker leaves."""
        self.commit(WorkerRemoved(worker=WorkerUrl(url)))

    def contacted(self, url: str, version: str | None, sighting: int) -> None:
        """A probe that began at ``sighting`` has ended: with the version that the worker told, or
        without an answer."""
        known = self.state.fleet.workers.get(WorkerUrl(url))
        if known is None:
            return
        if version is not None and (known.version != version or known.confirmed < sighting):
            self.commit(VersionSeen(worker=known.url, version=version, sighting=sighting))
        if known.health.condition in (Condition.JOINING, Condition.QUARANTINED):
            self.note_health(url, Event.UNREACHABLE if version is None else Event.PROBE_PASSED)

    def note_health(self, url: str, event: Event) -> None:
        """Something was learnt of a worker."""
        change = health_change(self.state, WorkerUrl(url), event, self._now(), _LIMITS)
        if change is not None:
            self.commit(change)

    # -- retrieval -----------------------------------------------------------------------

    def retrieve(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What the retrieval endpoints answer, as far as a trainer reads it.

        Raises ``ClientError``.
        """
        self.tell_all()
        if path.startswith("/trajectories/"):
            return self._by_call(path.removeprefix("/trajectories/"))
        if path == "/retrieve_from_messages_template":
            return self._by_messages(asked)
        text = asked.get("text")
        if not isinstance(text, str):
            raise ClientError("Missing required parameter: 'text'.", param="text")
        return self._found(text, asked.get("id"), partial(self._plan, text))

    def _plan(self, text: str, call: CallId | None) -> Retrieval:
        return plan_retrieval(self.state, self.facts, text, call)

    def _by_messages(self, asked: dict[str, Any]) -> dict[str, Any]:
        template = self.tokens.chat
        generation = bool(asked.get("add_generation_prompt", False))
        tools, arguments = asked.get("tools") or (), asked.get("chat_template_kwargs") or {}
        messages = asked["messages"]
        rendered = template.rendered(
            messages, tools=tools, arguments=arguments, add_generation_prompt=generation
        )
        ask = ChatAsk(
            conversation=conversation(messages, tools=tools, arguments=arguments, mode=_MODE),
            add_generation_prompt=generation,
        )

        def plan(call: CallId | None) -> Retrieval:
            found = plan_chat_retrieval(self.state, self.facts, template, ask, call)
            return found or self._plan(rendered.text, call)

        return self._found(rendered.text, asked.get("id"), plan)

    def chat_ask(self, chat: openai.ChatRequest) -> ChatAsk:
        """The conversation of a request, and how it is to be gone on with."""
        return ChatAsk(
            conversation=conversation(
                chat.messages, tools=chat.tools, arguments=chat.template_kwargs, mode=_MODE
            ),
            history=self._history,
            continues=chat.continue_final_message,
        )

    def _found(
        self, text: str, name: str | None, plan_for: Callable[[CallId | None], Retrieval]
    ) -> dict[str, Any]:
        if not text:
            return _columns(trajectory(self.state.forest, None)) | {"matched_length": 0}
        call = None if name is None else find_call(self.state, name)
        plan = plan_for(call)
        tail = PackedIds(b"")
        if plan.rest:
            tail = self.tokens.tokenizer.encode_packed(
                plan.rest, encoding=Encoding.RENDERED, first=False, plain=plan.plain
            )
        found = plan.result(self.state.forest, tail)
        told = _columns(found) | {
            "response": text,
            "matched_length": plan.matched_length,
            "ambiguous": plan.ambiguous,
            "id": plan.call,
            "flags": list(plan.flags),
        }
        self.commit(plan.delivered)
        return told

    def _by_call(self, name: str) -> dict[str, Any]:
        call = find_call(self.state, name)
        segment = self.state.forest.calls[call]
        answer = segment.answer
        assert answer is not None
        told = _columns(trajectory(self.state.forest, segment)) | {
            "id": call,
            "answer_length": segment.tokens,
            "outcome": answer.outcome.value,
            "session_id": answer.session,
            "aliases": list(answer.aliases),
            "flags": list(answer.flags),
            "parent_id": next(
                (one.answer.call for one in segment.lineage()[-2::-1] if one.answer is not None),
                None,
            ),
            "response": None
            if segment.text_node is None
            else self.state.forest.texts[segment.encoding].key(segment.text_node),
        }
        self.commit(Retrieved(call=call))
        return told


def _columns(found: Trajectory) -> dict[str, Any]:
    return {
        "tokens": unpack_ids(found.ids),
        "loss_mask": list(found.mask),
        "rollout_logp": found.logprobs.tolist(),
        "generation_versions": found.versions.tolist(),
        "weight_versions": [
            {"version": run.version, "start": run.start, "end": run.end}
            for run in found.version_runs
        ],
        "token_length": len(found),
        "loss_mask_length": len(found.mask),
        "cut": found.cut,
    }
