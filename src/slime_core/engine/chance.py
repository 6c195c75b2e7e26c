"""Random numbers that are functions of what they are for.

A counter-based generator: the uniform number of a seed and a position is a hash of both, so a
sample can be drawn again by anyone who knows the two, in any order, on any machine. Nothing is
consumed and nothing has to be kept in step.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final

__all__ = ["derived_seed", "float32", "fresh_id", "uniform"]

_FRACTION_BITS: Final = 53


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for the token at ``position`` of the generation seeded by ``seed``."""
    digest = blake2b(b"%d:%d" % (seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> (64 - _FRACTION_BITS)) * 2.0**-_FRACTION_BITS


def derived_seed(seed: int, label: str) -> int:
    """Another 64-bit seed, independent of the first for every label."""
    digest = blake2b(f"{seed}/{label}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def fresh_id(seed: int, number: int) -> str:
    """The ``number``-th request id of a worker: 32 hexadecimal digits, as SGLang's are."""
    return blake2b(f"{seed}#{number}".encode(), digest_size=16).hexdigest()


def float32(value: float) -> float:
    """The nearest single-precision number: engines compute in it, and print it exactly."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded
