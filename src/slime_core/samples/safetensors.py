"""The safetensors format: the length of a header, the header, and all tensors behind one another.

The length is 8 bytes, little-endian; the header JSON, padded with blanks so that the tensors begin
at a multiple of 8; each tensor's place counts from there (safetensors, "Format"). Written here, for
the library takes arrays of other libraries, or addresses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

__all__ = ["Tensor", "encode"]

_DTYPES: Final = {
    "uint8": ("U8", 1),
    "int32": ("I32", 4),
    "int64": ("I64", 8),
    "float64": ("F64", 8),
}
_ALIGNMENT: Final = 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: ``dtype`` as NumPy names it, little-endian data row by row."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def encode(tensors: Iterable[Tensor]) -> bytes:
    """All of them as one file. Wide numbers come first, so that every tensor is aligned."""
    ordered = sorted(tensors, key=lambda one: (-_DTYPES[one.dtype][1], one.name))
    header: dict[str, Any] = {}
    at = 0
    for one in ordered:
        end = at + len(one.data)
        header[one.name] = {
            "dtype": _DTYPES[one.dtype][0],
            "shape": one.shape,
            "data_offsets": (at, end),
        }
        at = end
    words = msgspec.json.encode(header)
    words += b" " * (-len(words) % _ALIGNMENT)
    return b"".join([len(words).to_bytes(8, "little"), words, *(one.data for one in ordered)])
