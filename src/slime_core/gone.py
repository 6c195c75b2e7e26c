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
_ENDING_CHARS: Final = 12


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class GoneMemory:
    """Remembers up to ``limit`` calls and as many texts that were lost, with the reason."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._calls: dict[CallId, str] = {}
        self._texts: dict[tuple[int, str, bytes], str] = {}
        self._endings: dict[int, Counter[str]] = {}
        """Length of a text → how it ended: most texts are told apart by a glance at that."""

    def note_call(self, call: CallId, reason: str) -> None:
        """Remember why ``call`` cannot be retrieved."""
        self._calls.pop(call, None)
        self._calls[call] = reason
        if len(self._calls) > self._limit:
            del self._calls[next(iter(self._calls))]

    def note_text(self, text: str, reason: str) -> None:
        """Remember that an answer which ended at the end of ``text`` is gone."""
        ending = text[-_ENDING_CHARS:]
        digest = blake2b(_encode(text), digest_size=_DIGEST_BYTES).digest()
        entry = (len(text), ending, digest)
        if self._texts.pop(entry, None) is None:
            self._endings.setdefault(len(text), Counter())[ending] += 1
        self._texts[entry] = reason
        if len(self._texts) > self._limit:
            self._forget(next(iter(self._texts)))

    def _forget(self, entry: tuple[int, str, bytes]) -> None:
        del self._texts[entry]
        length, ending, _ = entry
        endings = self._endings[length]
        endings[ending] -= 1
        if not endings[ending]:
            del endings[ending]
        if not endings:
            del self._endings[length]

    def call(self, call: CallId) -> str:
        """What became of ``call``."""
        return self._calls.get(call, UNKNOWN)

    def within(self, text: str) -> dict[int, str]:
        """Where in ``text`` answers ended that are gone, in characters, and why each is."""
        places = sorted(
            (length, ending)
            for length, endings in self._endings.items()
            if length <= len(text)
            and (ending := text[max(0, length - _ENDING_CHARS) : length]) in endings
        )
        hasher = blake2b(digest_size=_DIGEST_BYTES)
        done = 0
        found = {}
        for length, ending in places:
            hasher.update(_encode(text[done:length]))
            done = length
            reason = self._texts.get((length, ending, hasher.digest()))
            if reason is not None:
                found[length] = reason
        return found

    def facts(self) -> tuple[object, ...]:
        """What a digest of the state includes."""
        return (tuple(self._calls.items()), tuple(self._texts.items()))
