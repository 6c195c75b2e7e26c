"""When waits on many connections are over: one task for all of them.

A cancel scope for each read, or one whose deadline is moved, costs several microseconds of every
request, though hardly any deadline is ever reached. Here a wait is a number that is stored with its
connection, and nearly all of them are overwritten before anybody has looked. The task sleeps until
the earliest that it has seen, looks at all, and ends those that are over. Who waits for less long
than that wakes it: at most once per sleep, since from then on it will wake early enough for all
who wait as long. So connections are looked through about as often as the shortest wait is long,
and deadlines are exact, which virtual time needs.
"""

from __future__ import annotations

from math import inf
from typing import Protocol

import trio

__all__ = ["Deadlines", "Waiting"]


class Waiting(Protocol):
    """Who may wait for too long."""

    until: float
    """On Trio's clock; ``inf`` while it waits for nothing that has an end."""

    def overdue(self) -> None:
        """It has waited until then; awaits nothing."""


class Deadlines:
    """Those who wait. ``until`` is stored through :meth:`wait_until`, or raised at will."""

    def __init__(self) -> None:
        # A dictionary keeps the order in which they came; a set has none.
        self._waiting: dict[Waiting, None] = {}
        self._next = inf
        self._bell = trio.lowlevel.ParkingLot()

    def enter(self, waiting: Waiting) -> None:
        """Look at it from now on, until :meth:`leave`."""
        self._waiting[waiting] = None

    def leave(self, waiting: Waiting) -> None:
        """Look at it no more; more than once is allowed."""
        self._waiting.pop(waiting, None)

    def wait_until(self, waiting: Waiting, until: float) -> None:
        """It waits until then."""
        waiting.until = until
        if until < self._next:
            self._next = until
            self._bell.unpark_all()

    async def run(self) -> None:
        """End waits that are over, until cancelled."""
        while True:
            with trio.move_on_at(self._next) as nap:
                await self._bell.park()
            if nap.cancelled_caught:
                self._end(trio.current_time())

    def _end(self, now: float) -> None:
        for waiting in [one for one in self._waiting if one.until <= now]:
            waiting.until = inf
            waiting.overdue()
        self._next = min((one.until for one in self._waiting), default=inf)
