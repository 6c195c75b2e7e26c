"""Long lists of ids that were read before, and need not be read again.

A rollout by ids sends its whole prompt in every turn, and one prompt is sampled many times: most of
a long list stood in an earlier one in the very same bytes. Comparing them takes a fiftieth of the
time that reading them takes. So the latest lists are remembered, each by its beginning, with the
ids that came of it; of a list that begins alike, only what follows the part they share is read.

It makes no difference to what comes of a list, nor to how a wrong one is refused.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from slime_core.strict_json import Decodes
from slime_core.types import ID_BYTES, NO_IDS, PackedIds

__all__ = ["KnownIds"]

_BEGINNING: Final = 16 * 1024
"""Bytes by which a list is known, some 3,000 ids; what is no longer is not worth it."""


class KnownIds:
    """A decoder of JSON arrays of ids, which are ``decoder``'s, that remembers ``most`` bytes."""

    def __init__(self, decoder: Decodes[PackedIds], *, most: int = 8 * 2**20) -> None:
        self._decoder = decoder
        self._most = most
        self._known: dict[bytes, tuple[bytes, PackedIds]] = {}

    def decode(self, data: bytes | Raw, /) -> PackedIds:
        """The ids. Raises what the decoder raises."""
        text = bytes(data)
        if len(text) <= _BEGINNING:
            return self._decoder.decode(text)
        beginning = text[:_BEGINNING]
        before, known = self._known.get(beginning, (b"", NO_IDS))
        ids = known if text == before else self._read(text, before, known)
        self._remember(beginning, text, ids)
        return ids

    def _read(self, text: bytes, before: bytes, known: PackedIds) -> PackedIds:
        """The ids of ``text``; ``known`` are those of ``before``."""
        behind = text.rfind(b",", 0, _common(text, before)) + 1
        if behind:
            try:
                rest = self._decoder.decode(b"[" + text[behind:])
            except msgspec.DecodeError:
                rest = NO_IDS  # the whole tells where
            if rest:
                return PackedIds(known[: text.count(b",", 0, behind) * ID_BYTES] + rest)
        return self._decoder.decode(text)

    def _remember(self, beginning: bytes, text: bytes, ids: PackedIds) -> None:
        """Let the oldest go where there is no room. Threads may do so at the same time."""
        self._known.pop(beginning, None)
        self._known[beginning] = (text, ids)
        held = 0
        for name, entry in reversed(list(self._known.items())):
            held += _size(*entry)
            if held > self._most:
                self._known.pop(name, None)


def _size(text: bytes, ids: PackedIds) -> int:
    return _BEGINNING + len(text) + len(ids)


def _common(one: bytes, other: bytes) -> int:
    """How many bytes both begin with."""
    view, low, high = memoryview(other), 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one.startswith(view[low:middle], low):
            low = middle
        else:
            high = middle - 1
    return low
