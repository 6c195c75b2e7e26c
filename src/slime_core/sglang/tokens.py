"""Sampled tokens as a worker lists them: ``output_ids`` and ``output_token_logprobs``.

Logprobs are by far the largest and dearest part of an answer, and nobody needs them as numbers to
show or to keep it. So of a large whole answer they may be left as they were written, unread, once
the ids are known and the first and the last entry agree with them; :func:`read_logprobs` is what
must be said of them later, and says the same as reading them at once would have.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from slime_core.errors import WorkerError
from slime_core.long_lists import IdList, SlicedList
from slime_core.sglang.errors import read_json
from slime_core.strict_json import BAD_JSON, is_null
from slime_core.types import ID_BYTES, PackedIds, pack_float32, pack_logprobs

__all__ = [
    "Sampled",
    "Tokens",
    "Triple",
    "agrees_at_its_ends",
    "pack",
    "plain_tokens",
    "read_ids",
    "read_logprobs",
    "read_tokens",
]


class Triple(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An entry of ``output_token_logprobs``; what else stands in it is not read."""

    logprob: float | None
    token: int


_SHORT: Final = 4096
_SHORT_IDS: Final = msgspec.json.Decoder(list[int])
_SHORT_TRIPLES: Final = msgspec.json.Decoder(list[Triple])
_IDS: Final = SlicedList(_SHORT_IDS)
_PACKED_IDS: Final = IdList()
_TRIPLE: Final = msgspec.json.Decoder(Triple)
_TRIPLES: Final = SlicedList(_SHORT_TRIPLES, end=b"],")
_OTHERS: Final = "output_ids and output_token_logprobs do not name the same tokens"
_NO_LOGPROB: Final = "a sampled token has no logprob"


class Tokens(NamedTuple):
    """Sampled tokens as a worker listed them."""

    ids: array[int]
    logprobs: list[float | None]
    problem: str | None


class Sampled(NamedTuple):
    """Sampled tokens as they are kept; without logprobs where there is a ``problem``.

    ``unread``: the logprobs as they were written, where they are left so; then ``logprobs`` is
    empty.
    """

    ids: PackedIds
    logprobs: bytes
    problem: str | None = None
    unread: bytes = b""


def read_tokens(output_ids: Raw | bytes, triples: Raw | bytes) -> Tokens:
    """Ids and logprobs out of ``output_ids`` and ``output_token_logprobs``; either may be null.

    Raises :class:`WorkerError` for what is not a list of ids, or of triples.
    """
    ids = None if _null(output_ids) else _read_ids(output_ids)
    entries = None if _null(triples) else _read_triples(triples)
    if entries is None:
        problem = "the worker gave no logprobs" if ids else None
        return Tokens(ids=_array(ids or []), logprobs=[], problem=problem)
    sampled = [entry.token for entry in entries]
    problem = None if ids is None or ids == sampled else _OTHERS
    return Tokens(
        ids=_array(sampled if ids is None else ids),
        logprobs=[entry.logprob for entry in entries],
        problem=problem,
    )


# Nearly all lists are an event's and short: for those, decoding is the least of reading them. What
# is wrong with one, the way of the long ones says.


def _read_ids(raw: Raw | bytes) -> list[int]:
    if isinstance(raw, bytes) and len(raw) < _SHORT:
        try:
            return _SHORT_IDS.decode(raw)
        except BAD_JSON:
            pass
    return read_json(_IDS, raw, "output_ids")


def _read_triples(raw: Raw | bytes) -> list[Triple]:
    if isinstance(raw, bytes) and len(raw) < _SHORT:
        try:
            return _SHORT_TRIPLES.decode(raw)
        except BAD_JSON:
            pass
    return read_json(_TRIPLES, raw, "output_token_logprobs")


def plain_tokens(ids: list[int] | None, entries: list[Triple] | None) -> Sampled | None:
    """Tokens of which both lists say the same, as they are kept; ``None`` where they do not, or
    something is missing: what, :func:`read_tokens` and :func:`pack` say."""
    if ids is None or entries is None or ids != [entry.token for entry in entries]:
        return None
    try:
        packed = PackedIds(array("I", ids).tobytes())
        return Sampled(packed, pack_logprobs([entry.logprob for entry in entries]))
    except (OverflowError, TypeError):
        return None


def pack(tokens: Tokens) -> Sampled:
    """Tokens as they are kept."""
    ids = PackedIds(tokens.ids.tobytes())
    if len(tokens.logprobs) != len(tokens.ids):
        return Sampled(ids, b"", tokens.problem or _NO_LOGPROB)
    logprobs, problem = _packed(tokens.logprobs)
    return Sampled(ids, logprobs, tokens.problem or problem)


def _packed(logprobs: Sequence[float | None]) -> tuple[bytes, str | None]:
    try:
        return pack_logprobs(logprobs), None
    except TypeError:  # a null among them, which packing finds at no cost of its own
        return b"", _NO_LOGPROB


def read_logprobs(triples: bytes, ids: PackedIds) -> tuple[bytes, str | None]:
    """Logprobs that were left unread, packed; or none, and why they are not those of ``ids``."""
    with suppress(*BAD_JSON, OverflowError, TypeError):
        packed = _read_in_slices(triples, ids)
        if packed is not None:
            return packed, None
    try:
        entries = read_json(_TRIPLES, triples, "output_token_logprobs")
        sampled = _array([entry.token for entry in entries]).tobytes()
    except WorkerError as error:
        return b"", error.message
    if sampled != ids:
        return b"", _OTHERS
    return _packed([entry.logprob for entry in entries])


def _read_in_slices(triples: bytes, ids: PackedIds) -> bytes | None:
    """Logprobs as nearly all come: of the very ``ids``, all ``float32`` and none missing.

    ``None``, or whatever reading one raises, for all others: what is the matter with them, if
    anything is, the whole tells.
    """
    pieces, at = list[bytes](), 0
    for entries in _TRIPLES.in_slices(triples):
        tokens = array("I")
        tokens.fromlist([entry.token for entry in entries])
        sampled = tokens.tobytes()
        packed = pack_float32([entry.logprob for entry in entries])
        if packed is None or not ids.startswith(sampled, at):
            return None
        pieces.append(packed)
        at += len(sampled)
    return b"".join(pieces) if at == len(ids) else None


def agrees_at_its_ends(triples: bytes, ids: PackedIds) -> bool:
    """Whether the first and the last entry are of the first and the last id, with a logprob."""
    first, last = triples[1 : triples.find(b"]") + 1], triples[triples.rfind(b"[") : -1]
    try:
        ends = [_TRIPLE.decode(first), _TRIPLE.decode(last)]
        tokens = _array([end.token for end in ends]).tobytes()
    except (msgspec.DecodeError, WorkerError):
        return False
    return tokens == ids[:ID_BYTES] + ids[-ID_BYTES:] and all(
        end.logprob is not None for end in ends
    )


def read_ids(output_ids: bytes) -> PackedIds:
    """``output_ids`` packed. Raises :class:`WorkerError`."""
    return read_json(_PACKED_IDS, output_ids, "output_ids")


def _array(ids: Sequence[int]) -> array[int]:
    try:
        return array("I", ids)
    except OverflowError:
        raise WorkerError("The worker gave a token id that cannot be one.") from None


def _null(raw: Raw | bytes) -> bool:
    return is_null(raw) if isinstance(raw, Raw) else raw == b"null"
