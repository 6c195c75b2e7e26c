"""The router without a shell: the core's state and decisions, called directly.

What ``slime_trio`` does between sockets and threads, this does between events of an agenda: commit
and let go, look up and encode, contact workers and poll them. It decides nothing by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from slime_core.fleet import Loads
from slime_core.health import Event
from slime_core.placing import TARGET_HEADER, pages_for
from slime_core.policies import POLICIES, Placement
from slime_core.state import RouterState
from slime_core.trajectory import Trajectory, trajectory
from slime_core.transitions import (
    Retrieved,
    SlotsTaken,
    Transition,
    VersionSeen,
    WorkerAdded,
    WorkerLoads,
    WorkerPaused,
    WorkerRemoved,
)
from slime_core.types import CallId, Encoding, PackedIds, WorkerUrl, unpack_ids
from slime_core.unread import next_unread, read_unread
from slime_core.weights import (
    VERSION_HEADER,
    VersionWish,
    fall_back,
    fall_back_deadline,
    parse_version_wish,
)
from slime_trio.exchange import Inbound
from tests.simulate.chance import derive
from tests.simulate.knobs import Knobs
from tests.simulate.run import facts_of, fresh_state
from tests.simulate.story import Committed, Story
from tests.simulate.tokens import Tokens

__all__ = ["CoreRouter", "Told", "Watcher", "Wishes"]

_MODE: Final = "plain"
"""What becomes of special tokens that content spells."""

Watcher = Callable[[Transition, RouterState], None]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the head of a request says to the fleet."""

    session: str | None
    target: str | None
    versions: VersionWish

    @classmethod
    def of(cls, inbound: Inbound) -> Wishes:
        """Raises ``ClientError``."""
        wish = inbound.header(VERSION_HEADER.encode())
        wish = wish or inbound.header(b"x-slime-version-policy")
        return cls(
            inbound.session, inbound.header(TARGET_HEADER.encode()), parse_version_wish(wish)
        )


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker says of itself."""

    version: str
    paused: bool
    loads: Loads


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
        self.state: Final = fresh_state(tokens, knobs)
        self.watchers: Final[list[Watcher]] = []
        self._limits: Final = knobs.limits()
        self._policy: Final = POLICIES[knobs.policy]
        self._health: Final = knobs.health_limits()
        self._knobs: Final = knobs
        self._story: Final = story
        self._chance: Final = chance
        self._now: Final = now
        self._history: Final[History] = "template" if knobs.history == "template" else "exact"
        self._ids = 0
        # Half of the runs read logprobs when chance has it, or somebody looks.
        self._reading: Final = derive(knobs.seed, "reading")
        self.unread_from: Final = 0 if self._reading.random() < 0.5 else None

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

    def take(self, calls: Sequence[CallId], prompt: PackedIds, wishes: Wishes) -> WorkerUrl:
        """The worker that these calls occupy from now on. Raises ``WorkerError`` if none is fit,
        ``ClientError`` if there is none of that name."""
        if self._reading.random() < 0.5:
            self.settle()
        placement = Placement(
            key=wishes.session,
            sticky=self._knobs.affinity,
            chance=self._chance.random(),
            prompt=prompt,
            pages=pages_for(self._policy, prompt),
            target=wishes.target,
            versions=wishes.versions,
            now=self._now(),
        )
        worker = place(self.state, self._policy, placement).url
        pages, key = placement.pages, placement.key
        self.commit(SlotsTaken(worker=worker, calls=tuple(calls), key=key, pages=pages))
        return worker

    def tell_all(self) -> None:
        """Give every prompt that came as ids its text."""
        while (untold := next_untold(self.state)) is not None:
            self.commit(tell(untold, self.facts.vocabulary))

    def settle(self) -> None:
        """Read the logprobs that were kept unread."""
        while (unread := next_unread(self.state)) is not None:
            self.commit(read_unread(unread))

    # -- the fleet -----------------------------------------------------------------------

    def add_worker(self, url: str) -> None:
        """A worker joins; it gets work once it has been contacted."""
        self.commit(WorkerAdded(worker=WorkerUrl(url)))
        self.note_health(url, Event.REGISTERED)

    def remove_worker(self, url: str) -> None:
        """A worker leaves."""
        self.commit(WorkerRemoved(worker=WorkerUrl(url)))

    def is_due(self, url: str) -> bool:
        """Whether anybody looks at a worker now: not while its quarantine lasts."""
        known = self.state.fleet.workers.get(WorkerUrl(url))
        return known is not None and self._now() >= (known.health.until or 0.0)

    def contacted(self, url: str, told: Told | None, sighting: int) -> None:
        """A probe that began at ``sighting`` has ended; ``None``: without an answer."""
        known = self.state.fleet.workers.get(WorkerUrl(url))
        if known is None:
            return
        if told is None:
            self.note_health(url, Event.UNREACHABLE)
            return
        if known.version != told.version or known.confirmed < sighting:
            self.commit(VersionSeen(worker=known.url, version=told.version, sighting=sighting))
        if known.paused != told.paused:
            self.commit(WorkerPaused(worker=known.url, paused=told.paused))
        if self._knobs.policy == "least-load":
            self.commit(WorkerLoads(worker=known.url, loads=told.loads))
        self.note_health(url, Event.PROBE_PASSED)

    def note_health(self, url: str, event: Event) -> None:
        """Something was learnt of a worker."""
        change = health_change(self.state, WorkerUrl(url), event, self._now(), self._health)
        if change is not None:
            self.commit(change)

    def fall_back(self) -> float | None:
        """Follow a trainer that starts over, if it is time; when to ask again."""
        grace_s = self._knobs.grace_s
        while (fact := fall_back(self.state, self._now(), grace_s)) is not None:
            self.commit(fact)
        return fall_back_deadline(self.state, grace_s)

    # -- retrieval -----------------------------------------------------------------------

    def retrieve(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What the retrieval endpoints answer, as far as a trainer reads it.

        Raises ``ClientError``.
        """
        self.tell_all()
        self.settle()
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
