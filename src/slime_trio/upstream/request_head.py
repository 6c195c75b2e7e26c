"""A request's line and fields, written and checked."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Final

__all__ = ["request_head"]

_NAMES_KNOWN: Final = 512
"""So many rows of names of fields need not be looked at again: clients send few."""

_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET: Final = re.compile(rb"/[\x21-\x7e\x80-\xff]*")
# The framing and the connection are ours: a second word about them is how requests get smuggled.
_OURS: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})
# Methods whose requests usually have no body say nothing about its length (RFC 9110, 8.6).
_USUALLY_EMPTY: Final = frozenset({b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"TRACE"})


def request_head(
    method: bytes,
    authority: bytes,
    target: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    body_bytes: int,
) -> bytes:
    """The bytes before a request's body of ``body_bytes`` bytes.

    ``host`` and ``content-length`` are set here; the caller's own, and its ``connection`` and
    ``transfer-encoding``, are left out. Everything else is written as given. Raises
    ``ValueError`` for a method, target or field that would not be one on the wire.
    """
    if not _TOKEN.fullmatch(method) or method == b"CONNECT":
        raise ValueError(f"{method!r} is not a method that can be sent to a worker")
    if not _TARGET.fullmatch(target):
        raise ValueError("the target must start with a slash and hold no space or control byte")
    if _name_ours(tuple([name for name, _ in headers])):
        headers = [field for field in headers if field[0].lower() not in _OURS]
    block = b"".join([b"%b: %b\r\n" % field for field in headers])
    # Each field is one line. Counting line ends in the whole is much cheaper than reading it.
    count = len(headers)
    if block.count(b"\n") != count or block.count(b"\r") != count or b"\0" in block:
        raise ValueError("a header field holds a line end or a null byte")
    if body_bytes or method not in _USUALLY_EMPTY:
        block += b"content-length: %d\r\n" % body_bytes
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (method, target, authority, block)


@functools.lru_cache(maxsize=_NAMES_KNOWN)
def _name_ours(names: tuple[bytes, ...]) -> bool:
    """Whether we write any of these fields ourselves. Raises ``ValueError`` for what is no field's
    name."""
    for name in names:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a header field")
    return any(name.lower() in _OURS for name in names)
