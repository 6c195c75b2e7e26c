"""The fleet: workers, what occupies them, and whether they may get work.

The number of calls in flight is the size of a set, never a counter of its own, so it cannot drift.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from slime_core.errors import InvariantError
from slime_core.types import CallId, WorkerUrl

__all__ = ["NOT_CONTACTED", "UNREACHABLE", "Fleet", "Worker"]

NOT_CONTACTED: Final = "not contacted yet"
"""Why a worker that was just added gets no work: nothing is known of it."""

UNREACHABLE: Final = "not reachable"
"""Why a worker gets no work that took no connection, until it answers again."""


@dataclass(slots=True, kw_only=True)
class Worker:
    """One worker. ``unfit`` says why it gets no new work; ``None``: it does."""

    url: WorkerUrl
    number: int
    """Counts workers in the order in which they joined."""
    unfit: str | None = None
    leaving: bool = False
    version: str | None = None
    """The weights it was last known to hold."""
    in_flight: dict[CallId, None] = field(default_factory=dict)
    last_chosen: int = 0
    """When it last got work, on the fleet's own clock."""

    @property
    def load(self) -> int:
        """Calls in flight."""
        return len(self.in_flight)

    @property
    def is_fit(self) -> bool:
        """Whether it may get new work."""
        return self.unfit is None and not self.leaving


class Fleet:
    """Workers by the very URL they were registered with, in the order of joining."""

    def __init__(self) -> None:
        self.workers: Final[dict[WorkerUrl, Worker]] = {}
        self.clock = 0
        self._next = 1

    @property
    def total_in_flight(self) -> int:
        """Calls in flight on all workers."""
        return sum(worker.load for worker in self.workers.values())

    def listed(self) -> list[Worker]:
        """The workers that have not been removed."""
        return [worker for worker in self.workers.values() if not worker.leaving]

    def fit(self) -> list[Worker]:
        """The workers that may get new work, in the order of joining."""
        return [worker for worker in self.workers.values() if worker.is_fit]

    def get(self, url: WorkerUrl) -> Worker:
        """The worker of that URL. Raises ``InvariantError``."""
        worker = self.workers.get(url)
        if worker is None:
            raise InvariantError(f"no such worker: {url}")
        return worker

    def add(self, url: WorkerUrl) -> None:
        """A worker joins, or one that was leaving stays after all."""
        worker = self.workers.get(url)
        if worker is None:
            self.workers[url] = Worker(url=url, number=self._next)
            self._next += 1
        else:
            worker.leaving = False

    def remove(self, url: WorkerUrl) -> None:
        """A worker leaves: at once if idle, else with its last call."""
        worker = self.workers.get(url)
        if worker is not None:
            worker.leaving = True
            self._drop_if_done(worker)

    def set_fitness(self, url: WorkerUrl, unfit: str | None) -> None:
        """A worker was found fit, or not; one that is gone stays gone."""
        worker = self.workers.get(url)
        if worker is not None:
            worker.unfit = unfit

    def note_version(self, url: WorkerUrl, version: str) -> None:
        """A worker holds these weights."""
        worker = self.workers.get(url)
        if worker is not None:
            worker.version = version

    def take(self, url: WorkerUrl, calls: tuple[CallId, ...]) -> None:
        """``calls`` occupy the worker from now on."""
        worker = self.get(url)
        for call in calls:
            if call in worker.in_flight:
                raise InvariantError("a call takes its slot once")
            worker.in_flight[call] = None
        self.clock += 1
        worker.last_chosen = self.clock

    def give(self, url: WorkerUrl, calls: tuple[CallId, ...]) -> None:
        """``calls`` occupy the worker no longer."""
        worker = self.get(url)
        for call in calls:
            if call not in worker.in_flight:
                raise InvariantError("a slot that was not taken cannot be given back")
            del worker.in_flight[call]
        self._drop_if_done(worker)

    def _drop_if_done(self, worker: Worker) -> None:
        if worker.leaving and not worker.in_flight:
            del self.workers[worker.url]

    def facts(self) -> tuple[object, ...]:
        """What a digest of the state includes."""
        return tuple(
            (w.url, w.number, w.unfit, w.leaving, w.version, tuple(w.in_flight), w.last_chosen)
            for w in self.workers.values()
        )
