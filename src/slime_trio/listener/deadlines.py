"""When waits on many connections are over: one task for all of them.

A cancel scope for each read, or one whose deadline is moved, costs several microseconds of every
request, though hardly any deadline is ever reached. Here a wait is a number that is stored with its
connection, and nearly all of them are overwritten before anybody has looked. A heap holds when each
connection is to be looked at: at the earliest deadline that it had when it was last looked at. Who
waits for longer than that changes nothing in it; who waits for less is entered again. The task
sleeps until the first of them, and ends it or enters its present deadline. So a connection costs
the logarithm of their number about as often as the shortest wait is long, and deadlines are exact,
which virtual time needs.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf
from typing import Final, Protocol

import trio

__all__ = ["Deadlines", "Waiting"]

_SLACK: Final = 64
"""How many looks at those who have left are kept before they are cleared away."""


class Waiting(Protocol):
    """Who may wait for too long."""

    until: float
    """On Trio's clock; ``inf`` while it waits for nothing that has an end."""

    def overdue(self) -> None:
        """It has waited until then; awaits nothing."""


class Deadlines:
    """Those who wait. ``until`` is stored through :meth:`wait_until`, or raised at will."""

    def __init__(self) -> None:
        self._looks: dict[Waiting, float] = {}  # when each is looked at next
        self._heap: list[tuple[float, int, Waiting]] = []
        self._number = 0  # of looks, which decides between those of one time
        self._sleeps_until = inf
        self._bell = trio.lowlevel.ParkingLot()

    def enter(self, waiting: Waiting) -> None:
        """Look at it from now on, until :meth:`leave`."""
        self._looks[waiting] = inf

    def leave(self, waiting: Waiting) -> None:
        """Look at it no more; more than once is allowed."""
        self._looks.pop(waiting, None)
        if len(self._heap) > 2 * len(self._looks) + _SLACK:
            self._heap = [look for look in self._heap if self._looks.get(look[2]) == look[0]]
            heapify(self._heap)

    def wait_until(self, waiting: Waiting, until: float) -> None:
        """It waits until then."""
        waiting.until = until
        if until < self._looks[waiting]:
            self._look_at(waiting, until)

    def _look_at(self, waiting: Waiting, at: float) -> None:
        self._looks[waiting] = at
        self._number += 1
        heappush(self._heap, (at, self._number, waiting))
        if at < self._sleeps_until:
            self._bell.unpark_all()

    async def run(self) -> None:
        """End waits that are over, until cancelled."""
        while True:
            self._sleeps_until = self._heap[0][0] if self._heap else inf
            with trio.move_on_at(self._sleeps_until) as nap:
                await self._bell.park()
            if nap.cancelled_caught:
                self._look(trio.current_time())

    def _look(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            at, _, waiting = heappop(self._heap)
            if self._looks.get(waiting) != at:
                continue  # it has left, or there is an earlier look at it
            self._looks[waiting] = inf
            if waiting.until <= now:
                waiting.until = inf
                waiting.overdue()
            elif waiting.until < inf:
                self._look_at(waiting, waiting.until)
