"""Rows that came with the tokens: routed experts, put together along a trajectory as bytes.

A worker gives, with its last event, one row for every position from ``routed_experts_start_len`` up
to the token before the last one, as base64 of little-endian int32; how many numbers a row has
follows from the size (SGLang 0.5.23, R3). A later call repeats the rows of earlier positions,
perhaps recomputed: what was observed first is kept. Nothing is decoded but what is kept.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from slime_core.samples.snapshot import Piece
from slime_core.segments import Answer

__all__ = ["ROUTED_EXPERTS", "START", "Rows", "RowsProblem", "merge_rows"]

ROUTED_EXPERTS: Final = "routed_experts"
START: Final = "routed_experts_start_len"
"""The extra that says where the rows of a call begin; 0 without it."""
_ITEM: Final = 4


class RowsProblem(ValueError):
    """The rows of a trajectory do not fit together; the message says where."""


@dataclass(frozen=True, slots=True)
class Rows:
    """``count`` rows of ``width`` int32 each, for the positions from 0 on."""

    data: bytes
    count: int
    width: int


@dataclass(frozen=True, slots=True)
class _Given:
    """The rows that one call gave: positions ``start`` to ``end`` (exclusive)."""

    text: bytes
    start: int
    end: int
    width: int

    def cut(self, first: int, last: int) -> bytes:
        """The rows of positions ``first`` to ``last`` (exclusive). Raises :class:`RowsProblem`."""
        size = self.width * _ITEM
        begin, end = (first - self.start) * size, (last - self.start) * size
        at = begin // 3
        try:
            piece = base64.b64decode(self.text[at * 4 : -(-end // 3) * 4], validate=True)
        except binascii.Error as error:
            raise RowsProblem(f"not base64: {error}") from None
        return piece[begin - at * 3 :][: end - begin]


def merge_rows(path: Sequence[tuple[Piece, int]], tokens: int) -> Rows | None:
    """The rows of a trajectory of ``tokens`` tokens, one fewer than it has; ``None`` if no call on
    its ``path`` gave any. Raises :class:`RowsProblem`."""
    missing = [(0, tokens - 1)] if tokens > 1 else []
    parts: list[tuple[int, bytes]] = []
    width: int | None = None
    for piece, stop in path:
        given = None if piece.answer is None else _given(piece, piece.answer)
        if given is None:
            continue
        width = _one_width(width, given, piece)
        missing = _fill(missing, given, min(given.end, stop), parts)
    if width is None:
        return None
    if missing:
        raise RowsProblem(f"no rows for positions {missing[0][0]} to {missing[0][1] - 1}")
    parts.sort()
    return Rows(b"".join(data for _, data in parts), max(tokens - 1, 0), width)


def _fill(
    missing: list[tuple[int, int]], given: _Given, end: int, parts: list[tuple[int, bytes]]
) -> list[tuple[int, int]]:
    """Add to ``parts`` what ``given`` has, before ``end``, of what is missing; what still is."""
    left = []
    for first, last in missing:
        low, high = max(first, given.start), min(last, end)
        if low >= high:
            left.append((first, last))
            continue
        parts.append((low, given.cut(low, high)))
        left += [one for one in ((first, low), (high, last)) if one[0] < one[1]]
    return left


def _one_width(width: int | None, given: _Given, piece: Piece) -> int:
    if not width or given.start == given.end or width == given.width:
        return width or given.width
    raise RowsProblem(
        f"rows of {given.width} numbers follow rows of {width} at token {piece.token_start}"
    )


def _given(piece: Piece, answer: Answer) -> _Given | None:
    """The rows that came with an answer. Raises :class:`RowsProblem` for a size that cannot be."""
    extras = dict(answer.extras)
    raw = extras.get(ROUTED_EXPERTS)
    if raw is None or not piece.tokens:
        return None
    text = _string(raw) if b"\\" in raw or not raw.startswith(b'"') else raw[1:-1]
    start = _start(extras.get(START))
    end = piece.token_end - 1
    size = len(text) // 4 * 3 - (len(text) - len(text.rstrip(b"=")))
    count = end - start
    fits = count > 0 < size and size % (count * _ITEM) == 0
    if len(text) % 4 or start < 0 or not (fits or count == size == 0):
        raise RowsProblem(
            f"{size} bytes cannot be rows for positions {start} to {end - 1} of call {answer.call}"
        )
    return _Given(text, start, end, size // (count * _ITEM) if count else 0)


def _string(raw: bytes) -> bytes:
    try:
        return msgspec.json.decode(raw, type=str).encode("ascii", "replace")
    except msgspec.DecodeError as error:
        raise RowsProblem(f"no JSON string: {error}") from None


def _start(raw: bytes | None) -> int:
    if raw is None:
        return 0
    try:
        return msgspec.json.decode(raw, type=int)
    except msgspec.DecodeError as error:
        raise RowsProblem(f"{START} is no number: {error}") from None
