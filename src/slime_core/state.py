"""The router's state, and ``apply``: the only way to change it.

Deciding (:mod:`slime_core.decide`) reads the state and returns transitions; applying makes them
true and decides nothing. The same transitions from the start give the same state, which
``digest`` states in one line: under any hash seed, in any process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, assert_never

from msgspec import Struct

from slime_core.chat.turn import BRANCH, SPELLED
from slime_core.errors import InvariantError
from slime_core.fleet import Fleet
from slime_core.forest import Forest
from slime_core.segments import Segment
from slime_core.session_book import SessionBook
from slime_core.transitions import (
    AnswerWithdrawn,
    CallCaptured,
    CallLost,
    CallOpened,
    LogprobsRead,
    Lookup,
    NewestUnheld,
    PromptKept,
    PromptTold,
    Retrieved,
    SegmentsGone,
    SessionCollected,
    SessionEnded,
    SessionFreed,
    SessionOpened,
    SessionSealed,
    SessionUsed,
    SlotsGiven,
    SlotsTaken,
    Transition,
    VersionFellBack,
    VersionSeen,
    WorkerAdded,
    WorkerFlushed,
    WorkerHealth,
    WorkerLoads,
    WorkerLogprobs,
    WorkerMismatch,
    WorkerPaused,
    WorkerRemoved,
)
from slime_core.types import CallId, Encoding
from slime_core.versions import VersionOrder
from slime_core.weights import judge, see

__all__ = ["Counters", "OpenCall", "RouterState"]


class OpenCall(Struct, kw_only=True):
    """A call that has begun and not ended."""

    parent: Segment | None
    session: str | None
    prompt: Segment | None = None
    """The new part of its prompt, once that is encoded."""


@dataclass(slots=True, kw_only=True)
class Counters:
    """Totals since the start."""

    lookups: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    calls_opened: int = 0
    calls_captured: int = 0
    calls_lost: int = 0
    """Also those that had been captured and were withdrawn."""
    branches: int = 0
    """Captured calls of chats whose last assistant turn was not continued exactly."""
    spelled_prompts: int = 0
    """Captured calls of chats whose content spells special tokens."""
    answers_not_captured: int = 0
    segments_evicted: int = 0
    segments_collected: int = 0
    answers_lost_unretrieved: int = 0
    retrievals: int = 0
    segments_freed: int = 0
    """Segments that left with a session that ended."""
    sessions_opened: int = 0
    sessions_deleted: int = 0
    sessions_expired: int = 0
    sessions_collected: int = 0
    """How often samples of a session were given."""


class RouterState:
    """Fleet, forest, versions, sessions and the calls in flight.

    ``fleet`` and ``versions`` may be those of another state: the tenants of one router have the
    workers in common and nothing else. What is applied to them through one state shows in all.
    """

    def __init__(
        self,
        *,
        one_text_root: bool = True,
        fleet: Fleet | None = None,
        versions: VersionOrder | None = None,
        tenant: str = "",
    ) -> None:
        self.tenant: Final = tenant
        """Whose state it is, for those who are told of transitions; ``""`` is the default's."""
        self.fleet: Final = Fleet() if fleet is None else fleet
        self.forest: Final = Forest(one_text_root=one_text_root)
        self.versions: Final = VersionOrder() if versions is None else versions
        self.sessions: Final = SessionBook()
        self.open_calls: Final[dict[CallId, OpenCall]] = {}
        self.counters: Final = Counters()

    def apply(self, fact: Transition) -> None:
        """Make ``fact`` true. Raises ``InvariantError`` if it cannot be: a bug of the caller."""
        _APPLY[type(fact)](self, fact)

    def _apply_to_weights(self, fact: VersionSeen | NewestUnheld | VersionFellBack) -> None:
        match fact:
            case VersionSeen():
                see(self.fleet, self.versions, fact)
            case NewestUnheld():
                self.versions.unheld_since = fact.since
            case VersionFellBack():
                self.versions.fall_back(fact.version)
                judge(self.fleet, self.versions)
            case _:
                assert_never(fact)

    def _apply_to_sessions(
        self,
        fact: (
            SessionOpened
            | SessionUsed
            | SessionSealed
            | SessionCollected
            | SessionEnded
            | SessionFreed
        ),
    ) -> None:
        book, counters = self.sessions, self.counters
        match fact:
            case SessionOpened():
                held = self.forest.sessions.get(fact.session, {}).values()
                book.open(fact, len(held), sum(one.tokens for one in held))
                counters.sessions_opened += 1
            case SessionUsed():
                book.use(fact)
            case SessionSealed():
                book.seal(fact)
            case SessionCollected():
                book.collect(fact)
                counters.sessions_collected += 1
            case SessionEnded():
                book.end(fact)
                if fact.reason == "expired":
                    counters.sessions_expired += 1
                else:
                    counters.sessions_deleted += 1
            case SessionFreed():
                book.free(fact)
            case _:
                assert_never(fact)

    def _open(self, fact: CallOpened) -> None:
        if fact.call in self.open_calls or fact.call in self.forest.calls:
            raise InvariantError("a call is opened once")
        parent = None if fact.parent is None else self.forest.find(fact.parent)
        self.open_calls[fact.call] = OpenCall(parent=parent, session=fact.session)
        self.counters.calls_opened += 1
        if parent is not None:
            self.forest.pin(parent, 1)

    def _keep_prompt(self, fact: PromptKept) -> None:
        opened = self.open_calls.get(fact.call)
        if opened is None or opened.prompt is not None:
            raise InvariantError("a prompt is kept once, and for a call in flight")
        opened.prompt = self.forest.keep_prompt(fact, opened.parent, self.versions.epoch)
        if opened.prompt is not None:
            self.forest.pin(opened.prompt, 1)

    def _close(self, call: CallId) -> OpenCall:
        opened = self.open_calls.pop(call, None)
        if opened is None:
            raise InvariantError("a call ends once, and after it began")
        if opened.prompt is not None:
            self.forest.pin(opened.prompt, -1)
        if opened.parent is not None:
            self.forest.pin(opened.parent, -1)
        if opened.session is not None:
            self.sessions.look_again(opened.session)
        return opened

    def _count_lookup(self, fact: Lookup) -> None:
        counters = self.counters
        counters.lookups += 1
        counters.hits += 1 if fact.reused else 0
        counters.prompt_tokens += fact.tokens
        counters.reused_tokens += fact.reused
        for number in fact.used:
            segment = self.forest.segments.get(number)
            if segment is not None:
                self.forest.touch(segment, self.versions.epoch)

    def _capture(self, fact: CallCaptured) -> None:
        self._close(fact.call)
        answer, counters = fact.answer, self.counters
        segment = self.forest.capture(fact, self.versions.epoch)
        if answer.session is not None:
            self.sessions.captured(answer.session, segment.tokens)
        counters.calls_captured += 1
        if answer.flags:
            counters.branches += BRANCH in answer.flags
            counters.spelled_prompts += SPELLED in answer.flags

    def _lose(self, fact: CallLost) -> None:
        opened = self._close(fact.call)
        if opened.prompt is not None:
            self.forest.drop_if_unused(opened.prompt)
        self.sessions.lost(opened.session, fact.reason)
        self.forest.gone.note_call(fact.call, fact.reason)
        if fact.text is not None:
            self.forest.gone.texts.note(fact.text, fact.reason)
        self.counters.calls_lost += 1
        self.counters.answers_not_captured += 1 if fact.sampled else 0

    def _settle(self, fact: LogprobsRead | AnswerWithdrawn) -> None:
        if fact.call not in self.forest.unread:
            raise InvariantError("only what is kept unread can be read")
        if isinstance(fact, LogprobsRead):
            self.forest.read(fact)
            return
        segment = self.forest.calls[fact.call]
        assert segment.answer is not None
        self.sessions.withdrawn(segment.answer.session, fact.reason, segment.tokens)
        self.forest.withdraw(segment, fact.reason)
        self.counters.calls_lost += 1
        self.counters.answers_not_captured += 1

    def _retrieve(self, fact: Retrieved) -> None:
        segment = self.forest.calls.get(fact.call)
        if segment is None:
            raise InvariantError("only what is kept can be retrieved")
        self.forest.retrieve(segment, self.versions.epoch, fact.token_end)
        self.counters.retrievals += 1

    def _forget(self, fact: SegmentsGone) -> None:
        for number in fact.segments:
            segment = self.forest.segments.get(number)
            if segment is not None and segment.answer is not None:
                self.sessions.gone(segment.answer.session, fact.reason, segment.tokens)
        self.forest.remove(fact)
        match fact.reason:
            case "collected":
                self.counters.segments_collected += len(fact.segments)
            case "evicted":
                self.counters.segments_evicted += len(fact.segments)
            case _:
                self.counters.segments_freed += len(fact.segments)
        self.counters.answers_lost_unretrieved += fact.unretrieved

    # -- for tests, replay and simulation ------------------------------------------------

    def digest(self) -> str:
        """One line that two states share exactly if they are equal."""
        forest = self.forest
        facts = (
            self.fleet.facts(),
            self.versions.facts(),
            self.sessions.facts(),
            tuple(self._open_facts(call, one) for call, one in self.open_calls.items()),
            self.counters,
            forest.gone.facts(),
            tuple(self._segment_facts(one) for one in forest.segments.values()),
            tuple(forest.aliases.items()),
        )
        return blake2b(repr(facts).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()

    @staticmethod
    def _open_facts(call: CallId, one: OpenCall) -> tuple[object, ...]:
        held = (one.parent, one.prompt)
        return (call, one.session, *(segment and segment.number for segment in held))

    def _segment_facts(self, one: Segment) -> tuple[object, ...]:
        forest = self.forest
        return (
            one.number,
            one.parent and one.parent.number,
            (one.origin.value, one.encoding.value, one.from_ids, one.hidden),
            (one.token_start, one.token_end, one.text_start, one.text_end, one.joint),
            forest.own_ids(one),
            None if one.text_node is None else forest.own_text(one),
            one.answer,
            (
                one.retrieved,
                one.unanswered,
                one.children,
                one.pins,
                one.wanted,
                one.used,
                one.epoch,
            ),
        )

    def check(self) -> None:
        """Raise ``InvariantError`` where a rule is broken: for tests and simulations."""
        forest = self.forest
        forest.ids.check()
        for encoding in Encoding:
            forest.texts[encoding].check()
        pins = [held for one in self.open_calls.values() for held in (one.parent, one.prompt)]
        for segment in forest.segments.values():
            self._check_segment(segment, pins.count(segment))

    def _check_segment(self, one: Segment, pins: int) -> None:
        children = [other for other in self.forest.segments.values() if other.parent is one]
        wanted = sum(1 for child in children if child.wanted)
        wanted += pins + (1 if one.is_sampled and not one.retrieved else 0)
        if (one.children, one.pins, one.wanted) != (len(children), pins, wanted):
            raise InvariantError(f"the books of segment #{one.number} are off")
        parent = one.parent
        if parent is not None and not parent.token_start <= one.token_start <= parent.token_end:
            raise InvariantError(f"segment #{one.number} does not begin within its parent")
        if one.is_sampled:
            answer = one.answer
            assert answer is not None
            sized = len(answer.logprobs) in (4 * one.tokens, 8 * one.tokens)
            if bool(answer.unread) != (answer.call in self.forest.unread):
                raise InvariantError(f"the books of what is unread are off at #{one.number}")
            sized = sized or (bool(answer.unread) and not answer.logprobs)
            if not sized or (answer.runs and answer.runs[-1].end != one.tokens):
                raise InvariantError(f"segment #{one.number} has columns of other lengths")


def _add_worker(state: RouterState, fact: WorkerAdded) -> None:
    state.fleet.add(
        fact.worker,
        id=fact.id,
        kind=fact.kind,
        bootstrap_port=fact.bootstrap_port,
        extras=fact.extras,
    )


_APPLY: Final[dict[type[Transition], Callable[[RouterState, Any], None]]] = {
    CallOpened: RouterState._open,
    Lookup: RouterState._count_lookup,
    PromptKept: RouterState._keep_prompt,
    CallCaptured: RouterState._capture,
    CallLost: RouterState._lose,
    PromptTold: lambda state, fact: state.forest.tell_prompt(fact),
    LogprobsRead: RouterState._settle,
    AnswerWithdrawn: RouterState._settle,
    Retrieved: RouterState._retrieve,
    SegmentsGone: RouterState._forget,
    SessionOpened: RouterState._apply_to_sessions,
    SessionUsed: RouterState._apply_to_sessions,
    SessionSealed: RouterState._apply_to_sessions,
    SessionCollected: RouterState._apply_to_sessions,
    SessionEnded: RouterState._apply_to_sessions,
    SessionFreed: RouterState._apply_to_sessions,
    VersionSeen: RouterState._apply_to_weights,
    NewestUnheld: RouterState._apply_to_weights,
    VersionFellBack: RouterState._apply_to_weights,
    WorkerAdded: _add_worker,
    WorkerRemoved: lambda state, fact: state.fleet.remove(fact.worker),
    WorkerHealth: lambda state, fact: state.fleet.set_health(fact.worker, fact.health),
    WorkerPaused: lambda state, fact: state.fleet.set_paused(fact.worker, fact.paused),
    WorkerMismatch: lambda state, fact: state.fleet.set_mismatch(fact.worker, fact.reason),
    WorkerLogprobs: lambda state, fact: state.fleet.set_logprob_kind(fact.worker, fact.kind),
    WorkerLoads: lambda state, fact: state.fleet.set_loads(fact.worker, fact.loads),
    WorkerFlushed: lambda state, fact: state.fleet.flushed(fact.worker),
    SlotsTaken: lambda state, fact: state.fleet.take(fact.worker, fact.calls, fact.key, fact.pages),
    SlotsGiven: lambda state, fact: state.fleet.give(fact.worker, fact.calls),
}
"""What makes a fact of each kind true. A table, since every request applies half a dozen facts and
a ``match`` asks of each kind in turn; that none is missing is a test's to check."""
