"""The fleet, kept the plain way: what every committed fact says of every worker.

Nothing is read from the router's fleet. Versions are ranked by tuples, pages are sets, and who may
get work follows from what was said, fact by fact.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from slime_core.transitions import (
    SlotsGiven,
    SlotsTaken,
    Transition,
    VersionFellBack,
    VersionSeen,
    WorkerAdded,
    WorkerFlushed,
    WorkerHealth,
    WorkerMismatch,
    WorkerPaused,
    WorkerRemoved,
)

__all__ = ["Fleet", "Known"]

_WORKING: Final = ("ready", "trial")
_Rank = tuple[int, int]


@dataclass
class Known:
    """What was said of one worker."""

    kind: str = "regular"
    condition: str = "joining"
    until: float = 0.0
    allowance: int | None = None
    paused: bool = False
    mismatch: str | None = None
    leaving: bool = False
    version: str | None = None
    settled: bool = False
    """Whether it was asked for its version since the newest became the newest."""
    stale: bool = False
    calls: list[str] = field(default_factory=list)
    pages: set[bytes] = field(default_factory=set)

    @property
    def works(self) -> bool:
        """Whether nothing is wrong with it but, perhaps, a pause or its weights."""
        return self.condition in _WORKING and self.mismatch is None and not self.leaving

    @property
    def unfit(self) -> str | None:
        """Why it may get no work."""
        if not self.works:
            return "leaving" if self.leaving else self.mismatch or self.condition
        if self.paused or self.stale:
            return "paused" if self.paused else "stale"
        return None


def _serve(kinds: set[str]) -> bool:
    """Whether workers of these kinds can answer a request."""
    return "regular" in kinds or {"prefill", "decode"} <= kinds


class Fleet:
    """Call it with every fact that was applied, and the time."""

    def __init__(self, tolerated: int = 0) -> None:
        self.workers: dict[str, Known] = {}
        self.newest: str | None = None
        self.problems: list[str] = []
        """What no fleet may do, as it was noticed."""
        self._tolerated = tolerated
        self._changes = 0
        self._epoch = 0
        self._past: _Rank | None = None
        self._names: list[str] = []
        self._led: dict[str, int] = {}

    def __call__(self, fact: Transition, now: float) -> None:
        match fact:
            case WorkerAdded():
                known = self.workers.setdefault(fact.worker, Known())
                known.leaving, known.kind = False, fact.kind.value
            case VersionFellBack():
                self._fall_back(fact.version)
            case WorkerHealth() | WorkerPaused() | WorkerMismatch() | WorkerFlushed():
                known_one = self.workers.get(fact.worker)
                if known_one is not None:
                    self._learn(fact, known_one, now)
            case WorkerRemoved() if fact.worker in self.workers:
                self.workers[fact.worker].leaving = True
                self.workers[fact.worker].pages.clear()
            case VersionSeen():
                self._see(fact)
            case SlotsTaken() if fact.worker in self.workers:
                self.workers[fact.worker].calls += fact.calls
                self.workers[fact.worker].pages.update(fact.pages)
            case SlotsGiven() if fact.worker in self.workers:
                calls = self.workers[fact.worker].calls
                calls[:] = [call for call in calls if call not in fact.calls]
            case _:
                pass
        for url in [url for url, one in self.workers.items() if one.leaving and not one.calls]:
            del self.workers[url]

    def _learn(
        self,
        fact: WorkerHealth | WorkerPaused | WorkerMismatch | WorkerFlushed,
        known: Known,
        now: float,
    ) -> None:
        match fact:
            case WorkerPaused():
                known.paused = fact.paused
            case WorkerMismatch():
                known.mismatch = fact.reason
            case WorkerFlushed():
                known.pages.clear()
            case WorkerHealth():
                self._judge_health(fact, known, now)

    def _judge_health(self, fact: WorkerHealth, known: Known, now: float) -> None:
        before, health = known.condition, fact.health
        known.condition, known.allowance = health.condition.value, health.allowance
        if before == "quarantined" and known.condition != "joining" and now < known.until:
            self.problems.append(f"the quarantine of {fact.worker} did not last until its end")
        if known.condition == "quarantined":
            known.until, known.settled = health.until or 0.0, False
            known.pages.clear()

    # -- weights -------------------------------------------------------------------------

    def _rank(self, version: str | None) -> _Rank:
        if version is None:
            return (-1, 0)
        if version.isdigit():
            return (2, int(version))
        if version == "default":
            return (0, 0)
        return (1, self._names.index(version) if version in self._names else len(self._names))

    def _is_past(self, version: str) -> bool:
        if self._past is None:
            return False
        return self._rank(self.newest) < self._rank(version) <= self._past

    def lag(self, version: str) -> float:
        """How many versions are newer; infinite for what belongs to a training of before."""
        if version == self.newest or self.newest is None:
            return 0
        if self._rank(version) > self._rank(self.newest):
            return float("inf")
        if version.isdigit() and self.newest.isdigit():
            return int(self.newest) - int(version)
        if version in self._led:
            return max(1, self._epoch - self._led[version])
        return max(1, self._epoch + 1, int(self.newest) if self.newest.isdigit() else 0)

    def _see(self, fact: VersionSeen) -> None:
        known, version = self.workers.get(fact.worker), fact.version
        held = None if known is None else known.version
        asked = fact.sighting is not None and fact.sighting >= self._changes
        past = self._is_past(version)
        changed = asked and held is not None and held != version
        if self._rank(version) > self._rank(self.newest) and (not past or changed):
            if not past:
                self._past = None
            self._lead(version)
        elif not version.isdigit() and version not in self._names:
            self._names.append(version)
        if known is not None:
            self._note_version(known, version, held, asked=asked)
        self._judge_all()

    def _note_version(self, known: Known, version: str, held: str | None, *, asked: bool) -> None:
        newer = held is None or (
            self._rank(version) > self._rank(held) and not self._is_past(version)
        )
        if held != version and (asked or newer):
            known.version = version
            known.pages.clear()
        if asked:
            known.settled = True
        elif held not in (None, version) and not newer:
            known.settled = False

    def _lead(self, version: str) -> None:
        if self.newest is not None:
            both = version.isdigit() and self.newest.isdigit()
            self._epoch += int(version) - int(self.newest) if both else 1
        self._become(version)

    def _fall_back(self, version: str) -> None:
        self._past = max(self._rank(self.newest), self._past or (-1, 0))
        self._epoch += 1
        self._become(version)
        self._judge_all()

    def _become(self, version: str) -> None:
        self.newest = version
        self._changes += 1
        if not version.isdigit():
            self._led[version] = self._epoch
            if version not in self._names:
                self._names.append(version)
        for known in self.workers.values():
            known.settled = False

    def _judge_all(self) -> None:
        for known in self.workers.values():
            lags = known.version is not None and self.lag(known.version) > self._tolerated
            if not lags:
                known.stale = False
            elif known.settled:
                known.stale = True

    @property
    def is_blocked(self) -> bool:
        """Whether workers wait with old weights, and nobody has others that are good enough."""
        good, waiting = set[str](), dict[str, set[str]]()
        for one in self.workers.values():
            if one.works and one.version is not None:
                if self.lag(one.version) <= self._tolerated:
                    good.add(one.kind)
                if not one.paused:
                    waiting.setdefault(one.version, set()).add(one.kind)
        return not _serve(good) and any(map(_serve, waiting.values()))

    def matched(self, pages: tuple[bytes, ...]) -> dict[str, int]:
        """How many pages of a prompt each worker was sent since it last forgot all."""
        found = {}
        for url, known in self.workers.items():
            held = 0
            while held < len(pages) and pages[held] in known.pages:
                held += 1
            if held:
                found[url] = held
        return found
