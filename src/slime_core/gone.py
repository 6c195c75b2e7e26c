"""A bounded memory of what is no longer kept, so that asking for it gets a true answer.

Two questions are answered: what became of a call, and whether a text continues beyond what is
still known into an answer that is gone. For the second a fingerprint of the whole text up to the
end of that answer is kept, not the text. The oldest entries are forgotten first; what is forgotten
here can only be called *unknown or evicted*.
"""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from typing import Final

from slime_core.types import CallId

__all__ = ["UNKNOWN", "GoneMemory"]

UNKNOWN: Final = "unknown_or_evicted"
"""What is said of anything that is neither kept nor remembered."""

_DIGEST_BYTES: Final = 12


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class GoneMemory:
    """Remembers up to ``limit`` calls and as many texts that were lost, with the reason."""

    def __init__(self, limit: int = 8192) -> None:
        self._limit = limit
        self._calls: dict[CallId, str] = {}
        self._texts: dict[tuple[int, bytes], str] = {}
        self._lengths: Counter[int] = Counter()

    def note_call(self, call: CallId, reason: str) -> None:
        """Remember why ``call`` cannot be retrieved."""
        self._calls.pop(call, None)
        self._calls[call] = reason
        if len(self._calls) > self._limit:
            del self._calls[next(iter(self._calls))]

    def note_text(self, text: str, reason: str) -> None:
        """Remember that an answer which ended at the end of ``text`` is gone."""
        entry = (len(text), blake2b(_encode(text), digest_size=_DIGEST_BYTES).digest())
        if self._texts.pop(entry, None) is None:
            self._lengths[len(text)] += 1
        self._texts[entry] = reason
        if len(self._texts) > self._limit:
            oldest = next(iter(self._texts))
            del self._texts[oldest]
            self._lengths[oldest[0]] -= 1
            if not self._lengths[oldest[0]]:
                del self._lengths[oldest[0]]

    def call(self, call: CallId) -> str:
        """What became of ``call``."""
        return self._calls.get(call, UNKNOWN)

    def beyond(self, text: str, known: int) -> str | None:
        """The reason why an answer that ended in ``text`` after ``known`` characters is gone."""
        lengths = sorted(length for length in self._lengths if known < length <= len(text))
        hasher = blake2b(digest_size=_DIGEST_BYTES)
        done = 0
        found = None
        for length in lengths:
            hasher.update(_encode(text[done:length]))
            done = length
            found = self._texts.get((length, hasher.digest()), found)
        return found

    def facts(self) -> tuple[object, ...]:
        """What a digest of the state includes."""
        return (tuple(self._calls.items()), tuple(self._texts.items()))
