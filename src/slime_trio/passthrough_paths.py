"""What a path means, to whoever may read it: its normal form, and all its readings.

The router judges a path and a worker, or a proxy before it, serves it; they must not read it in two
ways. So what is passed on is the normal form (RFC 3986, 6.2.2: needless escapes undone, dot
segments and doubled slashes gone), what has no such form is refused, and what is judged are all the
readings that somebody behind might come to: decoded once or again, without parameters, in small
letters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from slime_core.errors import ClientError

__all__ = ["NormalPath", "normal_path"]

_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_BROKEN_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
_UNRESERVED: Final = frozenset(
    b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~"
)
_DECODINGS: Final = 3
"""Who is still not done after so many has escaped for somebody's sake that is not here."""


@dataclass(frozen=True, slots=True)
class NormalPath:
    """``raw``: the path to pass on. ``readings``: what it may be read as, each without slashes at
    its ends, the router's own reading first."""

    raw: bytes
    readings: tuple[str, ...]


def normal_path(raw: bytes) -> NormalPath:
    """The normal form of a path as it was written, without its query. It starts with a slash.

    Raises ``ClientError`` (400, ``ambiguous_path``) for a path that has none.
    """
    if _BROKEN_ESCAPE.search(raw):
        raise _ambiguous("it holds a % that begins no escape")
    plain = _ESCAPE.sub(_undone, raw)
    normal = _without_dots(plain)
    readings = [normal]
    for _ in range(_DECODINGS):
        decoded = unquote_to_bytes(readings[-1])
        if _CONTROL.search(decoded) or b"\\" in decoded:
            raise _ambiguous("it holds a backslash or a control character")
        if decoded == readings[-1]:
            break
        readings.append(_decoded_without_dots(decoded))
    else:
        raise _ambiguous("it is escaped several times over")
    said = [_plain_words(one) for one in (*readings[1:], readings[0])]
    lower = [_without_parameters(one).lower() for one in said]
    return NormalPath(normal, tuple(dict.fromkeys((*said, *lower))))


def _undone(escape: re.Match[bytes]) -> bytes:
    """An escaped character that needs none."""
    byte = int(escape[1], 16)
    return bytes([byte]) if byte in _UNRESERVED else escape[0].upper()


def _without_dots(path: bytes) -> bytes:
    """The path with its dot segments and doubled slashes resolved; never above its root."""
    kept: list[bytes] = []
    segments = path.split(b"/")
    for segment in segments:
        if segment == b"..":
            del kept[-1:]
        elif segment.partition(b";")[0] in (b".", b"..") and segment != b".":
            raise _ambiguous("it holds a dot segment with parameters")
        elif segment not in (b"", b"."):
            kept.append(segment)
    is_open = segments[-1] in (b"", b".", b"..")
    return b"/" + b"/".join(kept) + (b"/" if is_open and kept else b"")


def _decoded_without_dots(path: bytes) -> bytes:
    """The same of a path that was decoded, where dots that come to light are no good sign."""
    if any(one in (b".", b"..") for one in path.split(b"/")):
        raise _ambiguous("it holds dot segments between escaped slashes")
    return _without_dots(path)


def _plain_words(path: bytes) -> str:
    return path.decode("utf-8", "replace").strip("/")


def _without_parameters(path: str) -> str:
    segments = (segment.partition(";")[0] for segment in path.split("/"))
    return "/".join(segment for segment in segments if segment)


def _ambiguous(words: str) -> ClientError:
    return ClientError(f"the path is ambiguous: {words}", code="ambiguous_path")
