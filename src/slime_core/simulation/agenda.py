"""What happens next: actions by time, and those of one time in the order in which they were put.

The number of each entry makes the order of ties exact, so a simulation that takes nothing but its
own generators of chance is the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import TypeAlias

__all__ = ["Action", "Agenda"]

Action: TypeAlias = Callable[[], object]


class Agenda:
    """Actions to come. ``now`` is the time of the last one that was done, 0 before."""

    def __init__(self) -> None:
        self.now = 0.0
        self._entries: list[tuple[float, int, Action]] = []
        self._count = 0

    def __len__(self) -> int:
        """How many actions are to come."""
        return len(self._entries)

    @property
    def next_time(self) -> float:
        """When the next action is due; infinity: never."""
        return self._entries[0][0] if self._entries else inf

    def at(self, time_s: float, action: Action) -> None:
        """Does ``action`` at that time; now, after what is due now, if the time has passed."""
        self._count += 1
        heappush(self._entries, (time_s if time_s > self.now else self.now, self._count, action))

    def after(self, delay_s: float, action: Action) -> None:
        """Does ``action`` so much later."""
        self.at(self.now + delay_s, action)

    def step(self) -> bool:
        """Does the next action; False if there is none."""
        if not self._entries:
            return False
        time_s, _, action = heappop(self._entries)
        if time_s > self.now:
            self.now = time_s
        action()
        return True

    def jump(self, seconds: float) -> None:
        """The clock goes on by so much at once; what became due meanwhile is late."""
        self.now += seconds
