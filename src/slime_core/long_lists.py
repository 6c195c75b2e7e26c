"""Long JSON lists of numbers, read and written a slice at a time.

A JSON library holds the interpreter's lock for as long as one call lasts: 20 ms for the ids of a
200k-token prompt, which is 20 ms in which no other request moves, thread or not. Sliced, the same
work in a thread lets the event loop in between two slices. A slice is cut at a separator that
cannot occur inside an element; where it could (an element holds text), or where a slice is not what
was expected, the whole is read in one go, so that results and errors never depend on the slicing.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec
from msgspec import Meta, Raw

from slime_core.types import ID_BYTES, PackedIds

__all__ = [
    "MAX_TOKEN_ID",
    "IdList",
    "SlicedList",
    "WriteIds",
    "encode_flags",
    "encode_ids",
    "encode_numbers",
    "encode_runs",
    "slices",
]

MAX_TOKEN_ID: Final = 2**31 - 1
"""The largest id that a worker's 32-bit signed tensors can hold."""

_SLICE_BYTES: Final = 16 * 1024
_SLICE_NUMBERS: Final = 4096
_DIGITS: Final = bytes.maketrans(b"\x00\x01", b"01")
_WHITE_SPACE: Final = b" \t\n\r"
_OPENS: Final = ord("[")

T = TypeVar("T")

WriteIds = Callable[[bytes], bytes]
"""Makes a JSON array of packed ids, as :func:`encode_ids` does."""


def slices(text: bytearray, end: bytes) -> Iterator[bytes | bytearray | memoryview]:
    """A JSON array as several, whose elements in turn are its own.

    An element ends where ``end`` stands, which is a comma and perhaps what must come before it.
    What is no array, or lacks an element beside a comma, comes as it is, for a decoder to refuse.

    Nothing is copied: the comma between two slices becomes the end of the one and then the
    beginning of the next. So ``text`` is written to, and a slice is gone when the next is asked
    for.
    """
    if not (text.startswith(b"[") and text.endswith(b"]")):
        text = text.strip(_WHITE_SPACE)
        if not (text.startswith(b"[") and text.endswith(b"]")):
            yield text
            return
    view, at, last = memoryview(text), 0, len(text) - 1
    while last - at > _SLICE_BYTES:
        stop = text.find(end, at + 1 + _SLICE_BYTES, last)
        if stop < 0:
            break
        stop += len(end) - 1
        if text[at + 1 : stop].isspace():
            yield b"[,]"
        text[at], text[stop] = b"[]"
        yield view[at : stop + 1]
        at = stop
    if at and not text[at + 1 : last].strip():
        yield b"[,]"
    text[at] = _OPENS
    yield view[at:]


class SlicedList(Generic[T]):
    """A decoder of JSON arrays, for use like one of msgspec's; ``end`` as in :func:`slices`.

    With ``end`` longer than a comma, elements are arrays or objects and must hold no text for the
    array to be sliced.
    """

    def __init__(self, decoder: msgspec.json.Decoder[list[T]], end: bytes = b",") -> None:
        self._decoder = decoder
        self._end = end

    def decode(self, data: bytes | Raw, /) -> list[T]:
        """The elements. Raises ``msgspec.ValidationError`` or ``msgspec.DecodeError``."""
        found: list[T] = []
        try:
            for some in self.in_slices(data):
                found += some
        except msgspec.DecodeError:
            return self._decoder.decode(data)  # not what was expected, or not here: it tells
        return found

    def in_slices(self, data: bytes | Raw, /) -> Iterator[list[T]]:
        """The elements, some at a time: those before are best let go of meanwhile.

        A list is kept in memory that is still in the processor's cache from the one before, which
        makes twice the difference in a process whose memory is in use. Raises likewise, but not
        with the right place, and perhaps after the first elements.
        """
        text = bytearray(data)
        if len(text) <= _SLICE_BYTES or (len(self._end) > 1 and b'"' in text):
            yield self._decoder.decode(text)
            return
        for piece in slices(text, self._end):
            yield self._decoder.decode(piece)


class IdList:
    """A decoder of JSON arrays of token ids that gives them packed."""

    def __init__(self) -> None:
        # Bounds cost a parser more than an array, which has them anyway: they are for the words.
        self._numbers = msgspec.json.Decoder(list[int])
        self._ids = msgspec.json.Decoder(list[Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]])

    def decode(self, data: bytes | Raw, /) -> PackedIds:
        """The ids. Raises ``msgspec.ValidationError`` with the place of the first that is none."""
        pieces = []
        try:
            for piece in slices(bytearray(data), b","):
                some = array("I")
                some.fromlist(self._numbers.decode(piece))
                pieces.append(some.tobytes())
        except (msgspec.DecodeError, OverflowError):
            pieces = [array("I", self._ids.decode(data)).tobytes()]
        ids = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        # The last of an id's four bytes tells whether it is more than the largest.
        if not ids[ID_BYTES - 1 :: ID_BYTES].isascii():
            self._ids.decode(data)
        return PackedIds(ids)


def encode_ids(packed: bytes) -> bytes:
    """Packed ids as a JSON array."""
    ids = array("I")
    step = _SLICE_NUMBERS * ID_BYTES
    pieces = []
    for at in range(0, len(packed), step):
        del ids[:]
        ids.frombytes(packed[at : at + step])
        pieces.append(msgspec.json.encode(ids.tolist())[1:-1])
    return b"[" + b",".join(pieces) + b"]"


def encode_numbers(values: array[Any]) -> bytes:
    """An array of numbers as a JSON array."""
    pieces = [
        msgspec.json.encode(values[at : at + _SLICE_NUMBERS].tolist())[1:-1]
        for at in range(0, len(values), _SLICE_NUMBERS)
    ]
    return b"[" + b",".join(pieces) + b"]"


def encode_flags(flags: bytes) -> bytes:
    """Bytes of 0 and 1 as a JSON array of these numbers."""
    if not flags:
        return b"[]"
    shown = bytearray(b",") * (2 * len(flags) + 1)
    shown[1::2] = flags.translate(_DIGITS)
    shown[0], shown[-1] = b"[]"
    return bytes(shown)


def encode_runs(count: int, runs: Iterable[tuple[int, int, bytes]], other: bytes) -> bytes:
    """A JSON array of ``count`` elements, of which most stand in ``runs`` of equal ones.

    A run goes from its first number up to its second, and its third is one element's JSON, or an
    array's with all of its elements. ``other`` stands where no run does. Runs come in order.
    """
    pieces, at = list[bytes](), 0
    for start, end, element in runs:
        pieces.append((other + b",") * (start - at))
        is_array = element.startswith(b"[")
        pieces.append(element[1:-1] + b"," if is_array else (element + b",") * (end - start))
        at = end
    pieces.append((other + b",") * (count - at))
    return b"[%b]" % b"".join(pieces)[:-1]
