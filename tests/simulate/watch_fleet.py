"""What can only be seen of the fleet while a run goes on, against the plain books of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from slime_core.prefixes import page_ends
from slime_core.state import RouterState
from slime_core.transitions import (
    SlotsGiven,
    SlotsTaken,
    Transition,
    VersionFellBack,
    VersionSeen,
    WorkerAdded,
    WorkerFlushed,
    WorkerHealth,
    WorkerLoads,
    WorkerMismatch,
    WorkerPaused,
    WorkerRemoved,
)
from tests.simulate.naive_fleet import Fleet, Known
from tests.simulate.story import Story

__all__ = ["FleetWatch", "Taken"]

_OF_THE_FLEET: Final = (
    WorkerAdded
    | WorkerRemoved
    | WorkerHealth
    | WorkerPaused
    | WorkerMismatch
    | WorkerLoads
    | WorkerFlushed
    | SlotsTaken
    | SlotsGiven
    | VersionSeen
    | VersionFellBack
)
_SLACK_S: Final = 2.0
"""How long after the grace the fleet may take to notice, once time has gone on."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A slot as it was taken: the worker, its version as known then, how old that was, and the
    list of workers."""

    worker: str
    version: str | None
    lag: float | None
    listed: tuple[str, ...]


class FleetWatch:
    """``say`` takes a rule and what broke it. ``grace_s``: ``None`` where nobody falls back."""

    def __init__(
        self,
        story: Story,
        say: Callable[[str, str], None],
        *,
        tolerated: int = 0,
        grace_s: float | None = None,
    ) -> None:
        self.books: Final = Fleet(tolerated)
        self.taken: Final[dict[str, list[Taken]]] = {}
        """Every call's slots, in their order."""
        self._story = story
        self._say = say
        self._grace_s = grace_s
        self._blocked_since: float | None = None
        self._overdue_at: float | None = None

    def __call__(self, fact: Transition, state: RouterState) -> None:
        """``fact`` was just applied."""
        now = self._story.journal[-1].now if self._story.journal else 0.0
        self._check_grace(now)
        if not isinstance(fact, _OF_THE_FLEET):
            return
        if isinstance(fact, SlotsTaken):
            self._check_taken(fact)
        elif isinstance(fact, SlotsGiven):
            self._check_given(fact)
        self._note_marks(fact)
        self.books(fact, now)
        for problem in self.books.problems:
            self._say("health", problem)
        self.books.problems.clear()
        self._compare(state)
        if isinstance(fact, SlotsTaken) and fact.pages:
            self._compare_prefixes(fact, state)

    @property
    def occupied(self) -> list[str]:
        """Calls that have a slot by the facts."""
        return [call for one in self.books.workers.values() for call in one.calls]

    def _note_marks(self, fact: Transition) -> None:
        marks = self._story.marks
        if isinstance(fact, WorkerHealth):
            marks[f"health:{fact.health.condition.value} by {fact.event.value}"] += 1
        if any(one.stale for one in self.books.workers.values()):
            marks["checked:stale workers"] += 1
        if isinstance(fact, SlotsTaken) and fact.pages:
            marks["checked:prefixes"] += 1

    # -- slots ---------------------------------------------------------------------------

    def _check_taken(self, fact: SlotsTaken) -> None:
        worker = self.books.workers.get(fact.worker)
        why = "not there" if worker is None else self._why_not(worker)
        if why is not None:
            self._say(
                "unfit workers", f"calls {list(fact.calls)} went to {fact.worker}, which is {why}"
            )
        # Of a pair each side has a slot for the same call.
        kind = None if worker is None else worker.kind
        alike = [one for one in self.books.workers.values() if one.kind == kind]
        occupied = {call for one in alike for call in one.calls}
        version = None if worker is None else worker.version
        lag = None if version is None else self.books.lag(version)
        listed = tuple(url for url, one in self.books.workers.items() if not one.leaving)
        for call in fact.calls:
            self.taken.setdefault(call, []).append(Taken(fact.worker, version, lag, listed))
            if call in occupied:
                self._say("slots", f"call {call} took a second slot")

    def _why_not(self, worker: Known) -> str | None:
        if worker.unfit is None and worker.allowance is not None:
            self._story.marks["checked:trial"] += 1
            if len(worker.calls) >= worker.allowance:
                return f"on trial with {len(worker.calls)} calls of {worker.allowance}"
        return worker.unfit

    def _check_given(self, fact: SlotsGiven) -> None:
        worker = self.books.workers.get(fact.worker)
        for call in fact.calls:
            if worker is None or call not in worker.calls:
                self._say("slots", f"call {call} gave back a slot at {fact.worker} it had not")

    # -- what the router says of it --------------------------------------------------------

    def _compare(self, state: RouterState) -> None:
        workers = self.books.workers
        mine = {url: sorted(one.calls) for url, one in workers.items()}
        theirs = {url: sorted(one.in_flight) for url, one in state.fleet.workers.items()}
        if mine != theirs:
            self._say("slots", f"the facts say {mine}, the fleet {theirs}")
        unfit = {url: one.unfit for url, one in workers.items()}
        fit = [url for url, why in unfit.items() if why is None]
        if sorted(fit) != sorted(one.url for one in state.fleet.fit()):
            self._say("unfit workers", f"by the facts it is {unfit}")
        if self.books.newest != state.versions.newest:
            self._say("weights", f"the newest is {self.books.newest} by the facts")

    def _compare_prefixes(self, fact: SlotsTaken, state: RouterState) -> None:
        ends = page_ends(2**20)
        mine = {url: ends[held - 1] for url, held in self.books.matched(fact.pages).items()}
        theirs = dict(state.fleet.prefixes.matched(fact.pages))
        if mine != theirs:
            self._say("prefixes", f"by the facts workers hold {mine}, the fleet says {theirs}")

    # -- a trainer that starts over ----------------------------------------------------------

    def _check_grace(self, now: float) -> None:
        """Workers that wait with old weights while nobody has new ones wait for the grace only.

        The clock may jump, and then everybody learns of it in some order: what is overdue when it
        is first seen so may still be on its way.
        """
        if self._grace_s is None:
            return
        if not self.books.is_blocked:
            self._blocked_since = self._overdue_at = None
            return
        if self._blocked_since is None:
            self._blocked_since = now
        if now <= self._blocked_since + self._grace_s + _SLACK_S:
            return
        if self._overdue_at is None:
            self._overdue_at = now
        elif now > self._overdue_at + _SLACK_S:
            waited_s = now - self._blocked_since
            self._say("weights", f"nobody may work for {waited_s:.1f} s, of {self._grace_s:.1f} s")
            self._blocked_since = self._overdue_at = None
