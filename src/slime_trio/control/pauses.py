"""Which workers the router has paused, until when, and which are without their memory.

A pause is a lease: whoever paused may die, and a fleet that stays paused trains nothing. When a
lease ends, or the router does, the router itself has the worker go on. Pausing again renews it.

Nobody can know what became of a pause whose answer was lost, and answers may overtake each other.
So every pause that is told is an entry of its own, from before it is told: a worker that may have
heard of it gets no work; an answered ``continue`` clears the worker's entries, and an answer to a
pause that comes after that is too late to count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

from slime_core.types import WorkerUrl

__all__ = ["MEMORY_TAGS", "Pause", "Pauses"]

MEMORY_TAGS: Final = ("weights", "kv_cache", "cuda_graph")
"""What SGLang releases and resumes; all of them where no tag is named."""


class Pause:
    """One pause of one worker, from when it is told. ``until`` is when its lease ends."""

    __slots__ = ("before", "lease_s", "until", "worker")

    def __init__(self, worker: WorkerUrl, lease_s: float, before: Pause | None) -> None:
        self.worker: Final = worker
        self.lease_s = lease_s
        self.before = before
        self.until = math.inf


class Pauses:
    """The book of pauses. ``note(worker, paused)`` is called when a worker's state may change."""

    def __init__(self, note: Callable[[WorkerUrl, bool], None]) -> None:
        self._note = note
        self._pauses: dict[WorkerUrl, Pause] = {}
        self._released: dict[WorkerUrl, tuple[str, ...]] = {}
        self._switching: dict[WorkerUrl, None] = {}

    @property
    def paused(self) -> list[WorkerUrl]:
        """The workers under a pause, oldest first."""
        return list(self._pauses)

    def is_stopped(self, worker: WorkerUrl) -> bool:
        """Whether it is paused, without some of its memory, or between two roles."""
        return worker in self._pauses or self.is_released(worker)

    def is_released(self, worker: WorkerUrl) -> bool:
        """Whether it must get no work however ready it says it is: it is without some of its
        memory, or between two roles."""
        return worker in self._released or worker in self._switching

    def drop(self, worker: WorkerUrl) -> None:
        """It is known to go on: somebody else had it do so."""
        self._pauses.pop(worker, None)

    @property
    def next_deadline(self) -> float:
        """When the next lease ends; infinity if none does."""
        return min((pause.until for pause in self._pauses.values()), default=math.inf)

    def due(self, now: float) -> list[WorkerUrl]:
        """The workers whose lease is over."""
        return [worker for worker, pause in self._pauses.items() if pause.until <= now]

    # -- pausing -------------------------------------------------------------------------------

    def begin(self, worker: WorkerUrl, lease_s: float) -> Pause:
        """The worker is about to be told."""
        pause = Pause(worker, lease_s, self._pauses.get(worker))
        self._change(worker, lambda: self._pauses.update({worker: pause}))
        return pause

    def hold(self, pause: Pause, now: float) -> None:
        """It has paused. With a lease of 0 nobody wants it, and an earlier one counts again."""
        pause.until = now + pause.lease_s
        if not pause.lease_s and pause.before is not None:
            self.withdraw(pause)

    def withdraw(self, pause: Pause) -> None:
        """It has not: what was before, is."""
        current = self._pauses.get(pause.worker)
        if current is pause:
            if pause.before is None:
                self.end(pause.worker)
            else:
                self._pauses[pause.worker] = pause.before
        while current is not None:
            if current.before is pause:
                current.before = pause.before
            current = current.before

    def abandon(self, pauses: Iterable[Pause], now: float) -> None:
        """Who paused has gone: what it began ends as soon as it can, an earlier pause does not."""
        for pause in pauses:
            pause.lease_s = 0.0
            if pause.until != math.inf:
                self.hold(pause, now)

    def put_off(self, worker: WorkerUrl, until: float) -> None:
        """It could not be told to continue: try again then."""
        pause = self._pauses.get(worker)
        if pause is not None:
            pause.until = until

    def end(self, worker: WorkerUrl) -> None:
        """It goes on, whoever paused it."""
        self._pauses.pop(worker, None)
        if not self.is_stopped(worker):
            self._note(worker, False)

    # -- memory --------------------------------------------------------------------------------

    def release(self, worker: WorkerUrl, tags: Iterable[str]) -> None:
        """It has given these parts of its memory back."""
        known = self._released.get(worker, ())
        gone = tuple(dict.fromkeys((*known, *tags)))
        self._change(worker, lambda: self._released.update({worker: gone}))

    def resume(self, worker: WorkerUrl, tags: Iterable[str]) -> None:
        """It has them again."""
        back = set(tags)
        gone = tuple(tag for tag in self._released.get(worker, ()) if tag not in back)

        def change() -> None:
            if gone:
                self._released[worker] = gone
            else:
                self._released.pop(worker, None)

        self._change(worker, change)

    # -- roles ---------------------------------------------------------------------------------

    def take_out(self, worker: WorkerUrl) -> None:
        """It is to change its role."""
        self._change(worker, lambda: self._switching.update({worker: None}))

    def put_back(self, worker: WorkerUrl) -> None:
        """It has a role again."""
        self._change(worker, lambda: self._switching.pop(worker, None))

    def forget(self, worker: WorkerUrl) -> None:
        """The process behind this URL is a new one, or gone."""

        def change() -> None:
            self._pauses.pop(worker, None)
            self._released.pop(worker, None)
            self._switching.pop(worker, None)

        self._change(worker, change)

    def _change(self, worker: WorkerUrl, change: Callable[[], object]) -> None:
        before = self.is_stopped(worker)
        change()
        after = self.is_stopped(worker)
        if before != after:
            self._note(worker, after)
