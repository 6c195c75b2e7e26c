"""The words every other module uses: ids, and how ids and logprobs are packed."""

from __future__ import annotations

import enum
import struct
from array import array
from collections.abc import Iterable, Sequence
from typing import Final, NewType

__all__ = [
    "ID_BYTES",
    "NO_IDS",
    "CallId",
    "Encoding",
    "Origin",
    "PackedIds",
    "WorkerUrl",
    "logprob_column",
    "pack_float32",
    "pack_ids",
    "pack_logprobs",
    "token_count",
    "unpack_ids",
    "unpack_logprobs",
]

CallId = NewType("CallId", str)
"""Names one generation call; made by the router, of one fixed length."""

WorkerUrl = NewType("WorkerUrl", str)
"""A worker, by the very string it was registered with."""

PackedIds = NewType("PackedIds", bytes)
"""Token ids as little-endian ``uint32``, 4 bytes each."""

NO_IDS: Final = PackedIds(b"")
ID_BYTES: Final = 4
_FLOAT32: Final = 4


class Origin(enum.Enum):
    """Where a token came from. The loss mask is derived from this and from nothing else."""

    PROMPT = "prompt"
    """Encoded from what a client sent, or sent by it as ids."""
    TEMPLATE = "template"
    """Supplied by the router or a chat template, such as the close of a turn cut short."""
    SAMPLED = "sampled"
    """Sampled by a model in this very position."""


class Encoding(enum.Enum):
    """How the first piece of a text became ids."""

    RAW = "raw"
    """As a worker encodes ``text`` of ``/generate``: with the tokenizer's special tokens added."""
    RENDERED = "rendered"
    """As a rendered chat template is encoded: nothing is added, the template wrote it all."""


def pack_ids(ids: Iterable[int]) -> PackedIds:
    """Token ids packed. Raises ``OverflowError`` for an id outside 0 … 2**32 - 1."""
    packed = array("I", ids)
    if packed.itemsize != ID_BYTES:  # pragma: no cover - no such platform is supported
        raise OverflowError("this platform's unsigned int is not 4 bytes")
    return PackedIds(packed.tobytes())


def unpack_ids(packed: bytes) -> list[int]:
    """The ids again."""
    ids = array("I")
    ids.frombytes(packed)
    return ids.tolist()


def token_count(packed: bytes) -> int:
    """How many ids are packed here."""
    return len(packed) // ID_BYTES


def pack_logprobs(logprobs: Sequence[float | None]) -> bytes:
    """Logprobs packed losslessly: ``float32`` where every value survives it, else ``float64``.

    Engines compute in ``float32`` and print its exact decimal form, so 4 bytes are the rule; a
    worker that prints more digits costs 8 and still comes back bit for bit. The width follows
    from the length: ``len(packed) // len(logprobs)``. Raises ``TypeError`` for what is no number.
    """
    narrow = pack_float32(logprobs)
    return narrow if narrow is not None else struct.pack(f"{len(logprobs)}d", *logprobs)


def pack_float32(logprobs: Sequence[float | None]) -> bytes | None:
    """Logprobs as ``float32``; ``None`` unless every value survives it. Raises likewise."""
    values = tuple(logprobs)
    form = f"{len(values)}f"
    try:  # twice as fast as an array that is made and read back
        narrow = struct.pack(form, *values)
    except OverflowError:
        return None
    except struct.error:
        raise TypeError("a logprob is a number") from None
    return narrow if struct.unpack(form, narrow) == values else None


def unpack_logprobs(packed: bytes, count: int) -> list[float]:
    """``count`` logprobs again, exactly as they were given to :func:`pack_logprobs`."""
    return logprob_column(packed, count).tolist()


def logprob_column(packed: bytes, count: int) -> array[float]:
    """``count`` logprobs as an array of the width in which they are packed."""
    values = array("f" if len(packed) == count * _FLOAT32 else "d")
    values.frombytes(packed)
    return values
