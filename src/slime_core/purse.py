"""Which segment goes first when memory runs out: the leaf that was used longest ago.

A leaf is a segment without children that no call in flight extends. There are two purses: what is
kept only because it may be reused, and what was captured and not yet retrieved. A segment changes
purse and recency often, so entries are not moved but outdated: the heap keeps old entries until
they reach its top. ``settle`` drops them there, which makes ``first`` a plain look.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from slime_core.segments import Segment

__all__ = ["Purse"]


class Purse:
    """The leaves of one purse, least recently used first.

    ``holds`` tells whether a segment is a leaf of this purse now.
    """

    def __init__(self, holds: Callable[[Segment], bool]) -> None:
        self._holds = holds
        self._heap: list[tuple[int, int, Segment]] = []
        self._live_at_rebuild = 0

    def file(self, segment: Segment) -> None:
        """Take notice of a leaf, or of its new recency."""
        heapq.heappush(self._heap, (segment.used, segment.number, segment))

    def settle(self) -> None:
        """Drop outdated entries from the top, and everywhere once they prevail."""
        heap = self._heap
        while heap:
            used, _, segment = heap[0]
            if segment.used == used and self._holds(segment):
                break
            heapq.heappop(heap)
        if len(heap) > 2 * self._live_at_rebuild + 64:
            current = {entry[1]: entry for entry in heap if self._is_current(entry)}
            self._heap = list(current.values())
            heapq.heapify(self._heap)
            self._live_at_rebuild = len(self._heap)

    def _is_current(self, entry: tuple[int, int, Segment]) -> bool:
        used, _, segment = entry
        return segment.used == used and self._holds(segment)

    def first(self) -> Segment | None:
        """The leaf to go first, or ``None``."""
        return self._heap[0][2] if self._heap else None
