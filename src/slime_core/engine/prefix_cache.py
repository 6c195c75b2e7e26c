"""Which prefix of a prompt an engine would still have in its KV cache.

The cache is a sorted list of token sequences. The longest prefix that a query shares with *any* of
them it shares with one of its two neighbours in that order, so a look-up is one bisection and two
comparisons; and what a sequence adds to the cache is its length less what it shares with the one
before it, which makes the size exact without a tree. Eviction drops whole sequences, least
recently used first: coarser than a radix tree's leaves, and enough to exercise ``cached_tokens``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from slime_core.types import ID_BYTES, pack_ids

__all__ = ["PrefixCache"]


class PrefixCache:
    """Token sequences that were computed lately, at most ``capacity`` distinct tokens."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self._sequences: list[bytes] = []
        self._used: dict[bytes, int] = {}
        self._clock = 0

    def match(self, ids: Sequence[int]) -> int:
        """How many leading tokens of ``ids`` are cached. Counts as a use of what holds them."""
        key = pack_ids(ids)
        place = bisect_left(self._sequences, key)
        longest, holder = 0, b""
        for neighbour in self._sequences[max(0, place - 1) : place + 1]:
            shared = _shared(key, neighbour)
            if shared > longest:
                longest, holder = shared, neighbour
        if holder:
            self._touch(holder)
        return longest

    def add(self, ids: Sequence[int]) -> None:
        """Caches a sequence and all its prefixes, then evicts down to the capacity."""
        key = bytes(pack_ids(ids))
        if not key or not self.capacity:
            return
        place = bisect_left(self._sequences, key)
        if place < len(self._sequences) and self._sequences[place].startswith(key):
            self._touch(self._sequences[place])
            return
        while place and key.startswith(self._sequences[place - 1]):
            place -= 1
            self._remove(place)
        self.size += self._added_by(key, place, place)
        self._sequences.insert(place, key)
        self._touch(key)
        self._evict()

    def clear(self) -> None:
        """Forgets everything."""
        self._sequences.clear()
        self._used.clear()
        self.size = 0

    def _touch(self, key: bytes) -> None:
        self._clock += 1
        self._used[key] = self._clock

    def _added_by(self, key: bytes, before: int, after: int) -> int:
        """How many tokens ``key`` adds between its neighbours at ``before - 1`` and ``after``."""
        left = self._sequences[before - 1] if before else b""
        right = self._sequences[after] if after < len(self._sequences) else b""
        return len(key) // ID_BYTES - max(_shared(key, left), _shared(key, right))

    def _remove(self, place: int) -> None:
        key = self._sequences[place]
        self.size -= self._added_by(key, place, place + 1)
        del self._sequences[place]
        del self._used[key]

    def _evict(self) -> None:
        while self.size > self.capacity:
            oldest = min(self._used, key=self._used.__getitem__)
            self._remove(bisect_left(self._sequences, oldest))


def _shared(one: bytes, other: bytes) -> int:
    """The number of leading tokens two packed sequences share."""
    low, high = 0, min(len(one), len(other)) // ID_BYTES
    if one[: high * ID_BYTES] == other[: high * ID_BYTES]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if one[low * ID_BYTES : middle * ID_BYTES] == other[low * ID_BYTES : middle * ID_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low
