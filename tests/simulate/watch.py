"""What can only be seen while a run goes on: an observer of every committed fact.

It keeps its own plain books (who is fit, who occupies what, which calls are open) from the facts
alone and compares. What each capture became is noted at once, since it may be evicted later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from slime_core.decide import Limits, next_gone
from slime_core.errors import SlimeError
from slime_core.forest import SEGMENT_BYTES
from slime_core.lookup import TokenizerFacts, find_text
from slime_core.segments import Segment
from slime_core.state import RouterState
from slime_core.trajectory import Trajectory, trajectory
from slime_core.transitions import (
    AnswerWithdrawn,
    CallCaptured,
    CallLost,
    CallOpened,
    LogprobsRead,
    PromptKept,
    PromptTold,
    Retrieved,
    SegmentsGone,
    Transition,
)
from slime_core.types import CallId, unpack_ids
from tests.simulate.naive import Columns
from tests.simulate.story import Story
from tests.simulate.watch_fleet import FleetWatch

__all__ = ["Violation", "Watch", "columns_of"]


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken, and where."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


def columns_of(found: Trajectory, *, source: str, call: str) -> Columns:
    """A trajectory of the core as plain lists."""
    names: list[str | None] = [None] * len(found)
    for run in found.version_runs:
        names[run.start : run.end] = [run.version] * (run.end - run.start)
    return Columns(
        source=source,
        call=call,
        ids=unpack_ids(found.ids),
        mask=list(found.mask),
        logprobs=found.logprobs.tolist(),
        versions=found.versions.tolist(),
        names=names,
        cut=found.cut,
        origins=[(run.call, run.start, run.end) for run in found.origins],
    )


class Watch:
    """Call it with every fact after it was applied. ``violations`` and the rest are read later.

    ``every``: at each so many facts all invariants are checked, and that deciding changes nothing.
    ``tolerated`` and ``grace_s`` are the fleet's (:class:`tests.simulate.watch_fleet.FleetWatch`).
    """

    def __init__(
        self,
        story: Story,
        limits: Limits,
        facts: TokenizerFacts,
        *,
        every: int = 64,
        tolerated: int = 0,
        grace_s: float | None = None,
    ) -> None:
        self.violations: list[Violation] = []
        self.columns: dict[str, Columns] = {}
        """Every captured call's trajectory as it was right after the capture."""
        self.numbers: dict[int, str] = {}
        """The call of each answer's segment."""
        self.gone: dict[str, str] = {}
        """The calls that left memory, and why."""
        self.gone_at: dict[str, int] = {}
        self.unretrieved_gone = 0
        self._story = story
        self._limits = limits
        self._facts = facts
        self._every = every
        self._seen = 0
        self.fleet = FleetWatch(story, self.say, tolerated=tolerated, grace_s=grace_s)
        self._open: dict[str, CallOpened] = {}
        self._prompts: set[str] = set()
        self._retrieved: set[str] = set()
        self._epochs: dict[str, int] = {}
        self._costs: dict[str, int] = {}
        self._last_text = ""

    def __call__(self, fact: Transition, state: RouterState) -> None:
        match fact:
            case CallOpened() | PromptKept() | CallCaptured() | CallLost():
                self._note_call(fact, state)
            case Retrieved():
                self._note_retrieved(fact, state)
            case LogprobsRead():
                self._note_columns(fact.call, state)
            case AnswerWithdrawn():
                self._story.marks["lost:withdrawn"] += 1
                self.gone[fact.call] = fact.reason
                self.gone_at[fact.call] = self._story.journal[-1].at if self._story.journal else 0
            case SegmentsGone():
                for number in fact.segments:
                    self._check_gone(number, fact, state)
            case PromptTold():
                # What came as ids has text from now on, and so has what follows it.
                for call, segment in state.forest.calls.items():
                    self._costs[call] = _cost(segment)
            case _:
                pass
        self.fleet(fact, state)
        if isinstance(fact, CallLost | SegmentsGone):
            self._check_held(state)
        self._seen += 1
        if self._seen % self._every == 0:
            self.check(state)

    def say(self, rule: str, message: str) -> None:
        """A rule was broken."""
        self.violations.append(Violation(rule, message))

    # -- calls ---------------------------------------------------------------------------

    def _note_call(
        self, fact: CallOpened | PromptKept | CallCaptured | CallLost, state: RouterState
    ) -> None:
        if isinstance(fact, CallOpened):
            if fact.call in self._open:
                self.say("calls end once", f"call {fact.call} was opened twice")
            self._open[fact.call] = fact
            return
        if fact.call not in self._open:
            kind = type(fact).__name__
            self.say("calls end once", f"{kind} for call {fact.call}, which is not open")
        if isinstance(fact, PromptKept):
            if fact.call in self._prompts:
                self.say("calls end once", f"the prompt of call {fact.call} was kept twice")
            self._prompts.add(fact.call)
            self._last_text = fact.prompt_text or self._last_text
            return
        opened = self._open.pop(fact.call, None)
        if isinstance(fact, CallCaptured):
            self._story.marks[f"outcome:{fact.answer.outcome.value}"] += 1
            self._note_capture(fact, opened, state)
        else:
            self._story.marks[f"lost:{fact.reason}"] += 1

    def _note_capture(
        self, fact: CallCaptured, opened: CallOpened | None, state: RouterState
    ) -> None:
        segment = state.forest.calls.get(fact.call)
        if segment is None or segment.answer is None or segment.answer.call != fact.call:
            self.say("one segment per call", f"call {fact.call} was captured and has no segment")
            return
        if segment.number in self.numbers:
            other = self.numbers[segment.number]
            self.say("one segment per call", f"calls {other} and {fact.call} share a segment")
        if opened is not None and fact.parent != opened.parent:
            self.say(
                "order of commits",
                f"call {fact.call} was opened under segment {opened.parent} and captured under "
                f"{fact.parent}",
            )
        self.numbers[segment.number] = fact.call
        self._epochs[fact.call] = state.versions.epoch
        self._costs[fact.call] = _cost(segment)
        if not segment.answer.unread:
            self._note_columns(fact.call, state)

    def _note_columns(self, call: CallId, state: RouterState) -> None:
        found = trajectory(state.forest, state.forest.calls[call])
        self.columns[call] = columns_of(found, source="at its capture", call=call)

    def _note_retrieved(self, fact: Retrieved, state: RouterState) -> None:
        """All answers that were delivered whole count as retrieved, by the calls' own lineage."""
        segment: Segment | None = state.forest.calls.get(fact.call)
        end = fact.token_end
        while segment is not None:
            if segment.answer is not None:
                self._epochs[segment.answer.call] = state.versions.epoch
                if end is None or end >= segment.token_end:
                    self._retrieved.add(segment.answer.call)
            end, segment = segment.token_start, segment.parent

    # -- what goes -----------------------------------------------------------------------

    def _check_gone(self, number: int, fact: SegmentsGone, state: RouterState) -> None:
        users = [call for call, one in self._open.items() if one.parent == number]
        if users:
            self.say("eviction", f"segment {number} went while calls {users} extend it")
        call = self.numbers.get(number)
        if call is None or call in self.gone:
            return
        self.gone[call] = fact.reason
        self._story.marks[f"gone:{fact.reason}"] += 1
        self.gone_at[call] = self._story.journal[-1].at if self._story.journal else 0
        if call in self._retrieved:
            return
        self.unretrieved_gone += 1
        self._story.marks["gone:unretrieved"] += 1
        if fact.reason == "collected":
            age = state.versions.epoch - self._epochs[call]
            if age <= self._limits.epochs:
                self.say("eviction", f"call {call} was collected at the age of {age}")
            return
        most = self._costs[call] + self._held(state)
        if most <= self._limits.data_bytes:
            self.say(
                "eviction",
                f"call {call}, which nobody had retrieved, went although all that is wanted "
                f"takes {most} bytes at most, of {self._limits.data_bytes}",
            )

    def _check_held(self, state: RouterState) -> None:
        """What open calls extend, and the prompts they brought, are still there."""
        for call, one in state.open_calls.items():
            for held in (one.parent, one.prompt):
                if held is not None and state.forest.segments.get(held.number) is not held:
                    self.say("eviction", f"a segment went while call {call} needs it")

    def _held(self, state: RouterState) -> int:
        """What is wanted costs so much at most: as if nothing were shared."""
        unretrieved = (
            cost
            for call, cost in self._costs.items()
            if call not in self._retrieved and call not in self.gone
        )
        in_use = (
            _cost(held)
            for one in state.open_calls.values()
            for held in (one.parent, one.prompt)
            if held is not None
        )
        return sum(unretrieved) + sum(in_use)

    # -- now and then --------------------------------------------------------------------

    def check(self, state: RouterState) -> None:
        """All invariants of the state; and that looking and deciding change nothing."""
        try:
            state.check()
        except SlimeError as error:
            self.say("invariants", str(error))
        before = state.digest()
        first, second = self._decisions(state), self._decisions(state)
        if list(first) != list(second):
            self.say("deciding", "the same question got two answers")
        if state.digest() != before:
            self.say("deciding", f"deciding changed the state, at fact {self._seen}")

    def _decisions(self, state: RouterState) -> Iterator[object]:
        yield next_gone(state, self._limits)
        for encoding in state.forest.texts:
            found = find_text(state.forest, self._last_text, encoding, self._facts)
            yield found.token_start, found.encode_from, found.run_ids, found.used


def _cost(segment: Segment) -> int:
    """Bytes of a trajectory that shares nothing."""
    answers = (one.answer.size for one in segment.lineage() if one.answer is not None)
    segments = len(segment.lineage()) * SEGMENT_BYTES
    return sum(answers) + segments + 4 * segment.token_end + 2 * segment.text_end
