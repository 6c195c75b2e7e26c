"""Where characters begin and end in a text that comes in pieces of bytes.

A token may hold half a character, or the end of one and the start of the next. All functions are
linear and let C do the work per byte.
"""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

__all__ = ["begun", "ended", "is_utf8", "mended"]

_CONTINUATION: Final = bytes(range(0x80, 0xC0))
_SAME_WIDTH: Final = "slime-core-same-width"


def is_utf8(data: bytes) -> bool:
    """Whether these bytes are whole characters."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """A character of as many bytes as were not understood, so that every boundary stays."""
    assert isinstance(error, UnicodeDecodeError)
    return ("?", "é", "€")[error.end - error.start - 1], error.end


# The registry belongs to the interpreter; this entry is a constant that nobody else's name meets.
codecs.register_error(_SAME_WIDTH, _substitute)


def mended(data: bytes, pieces: Sequence[bytes]) -> list[bytes]:
    """``pieces``, whose concatenation is ``data``, made UTF-8 with the same boundaries.

    Whatever ``data.decode("utf-8", "replace")`` would read as one U+FFFD becomes one character of
    as many bytes.
    """
    valid = data.decode("utf-8", _SAME_WIDTH).encode()
    ends = list(accumulate(map(len, pieces)))
    return [valid[end - len(piece) : end] for end, piece in zip(ends, pieces, strict=True)]


def begun(pieces: Sequence[bytes]) -> array[int]:
    """Characters begun by the end of each piece, where the pieces together are UTF-8."""
    starts = (
        len(piece) if piece.isascii() else len(piece.translate(None, _CONTINUATION))
        for piece in pieces
    )
    return array("I", accumulate(starts))


def ended(pieces: Sequence[bytes], begun: array[int]) -> array[int]:
    """Characters complete by the end of each piece: all that are begun, or all but the last."""
    ends = begun[:]
    for i, piece in enumerate(pieces):
        if piece and piece[0] in _CONTINUATION:
            for before in range(i - 1, -1, -1):
                ends[before] -= 1
                if pieces[before]:
                    break
    return ends
