"""A bounded memory of what is no longer kept, so that asking for it gets a true answer.

Two questions are answered: what became of a call, and whether a text (or token ids) goes through an
answer that is gone. For the second a fingerprint of the whole way up to the end of that answer is
kept, not the way itself. The oldest entries are forgotten first; what is forgotten here can only be
called *unknown or evicted*.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter, OrderedDict
from hashlib import blake2b
from typing import Final, Generic, TypeVar

from slime_core.types import CallId

__all__ = ["UNKNOWN", "GoneMemory", "GoneWays"]

UNKNOWN: Final = "unknown_or_evicted"
"""What is said of anything that is neither kept nor remembered."""

_DIGEST_BYTES: Final = 12
_ENDING: Final = 16

Way = TypeVar("Way", str, bytes)


def _bytes_of(way: str | bytes) -> bytes:
    return way if isinstance(way, bytes) else way.encode("utf-8", "surrogatepass")


class GoneWays(Generic[Way]):
    """Remembers up to ``limit`` texts, or packed ids, at whose end an answer is gone."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        # A plain dictionary looks for its first entry past all that were there.
        self._reasons: OrderedDict[tuple[int, Way, bytes], str] = OrderedDict()
        self._lengths: list[int] = []
        self._endings: dict[int, Counter[Way]] = {}
        """Length → how ways of that length end: most are told apart by a glance at that."""

    def note(self, way: Way, reason: str) -> None:
        """Remember that an answer which ended at the end of ``way`` is gone."""
        ending: Way = way[-_ENDING:]
        digest = blake2b(_bytes_of(way), digest_size=_DIGEST_BYTES).digest()
        entry = (len(way), ending, digest)
        if self._reasons.pop(entry, None) is None:
            if len(way) not in self._endings:
                insort(self._lengths, len(way))
                self._endings[len(way)] = Counter()
            self._endings[len(way)][ending] += 1
        self._reasons[entry] = reason
        if len(self._reasons) > self._limit:
            self._forget(next(iter(self._reasons)))

    def _forget(self, entry: tuple[int, Way, bytes]) -> None:
        del self._reasons[entry]
        length, ending, _ = entry
        endings = self._endings[length]
        endings[ending] -= 1
        if not endings[ending]:
            del endings[ending]
        if not endings:
            del self._endings[length]
            self._lengths.remove(length)

    def within(self, way: Way, after: int = -1) -> dict[int, str]:
        """Where in ``way``, behind ``after``, answers ended that are gone, and why each is."""
        hasher = blake2b(digest_size=_DIGEST_BYTES)
        done = 0
        found = {}
        lengths = self._lengths
        for length in lengths[bisect_right(lengths, after) : bisect_right(lengths, len(way))]:
            ending: Way = way[max(0, length - _ENDING) : length]
            if ending in self._endings[length]:
                hasher.update(_bytes_of(way[done:length]))
                done = length
                reason = self._reasons.get((length, ending, hasher.digest()))
                if reason is not None:
                    found[length] = reason
        return found

    def facts(self) -> tuple[object, ...]:
        """What a digest of the state includes."""
        return tuple(self._reasons.items())


class GoneMemory:
    """What became of up to ``limit`` calls, and the ways on which answers are gone.

    ``texts`` are measured in characters, ``ids`` in bytes of packed ids. ``silent`` are the texts
    at whose end an answer without text is gone: nothing that goes on from there lacks it, but
    whoever asks for just this text does.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._calls = OrderedDict[CallId, str]()
        self.texts: Final[GoneWays[str]] = GoneWays(limit)
        self.silent: Final[GoneWays[str]] = GoneWays(limit)
        self.ids: Final[GoneWays[bytes]] = GoneWays(limit)

    def note_call(self, call: CallId, reason: str) -> None:
        """Remember why ``call`` cannot be retrieved."""
        self._calls.pop(call, None)
        self._calls[call] = reason
        if len(self._calls) > self._limit:
            self._calls.popitem(last=False)

    def call(self, call: CallId) -> str:
        """What became of ``call``."""
        return self._calls.get(call, UNKNOWN)

    def facts(self) -> tuple[object, ...]:
        """What a digest of the state includes."""
        ways = (self.texts.facts(), self.silent.facts(), self.ids.facts())
        return (tuple(self._calls.items()), *ways)
