"""How deep JSON is nested, found out before anything parses it.

Parsers go down one call per level, here, in the workers and in whatever else reads the same body;
each has its own depth at which it fails or falls over. A scan over the bytes tells without going
down at all: strings are cut out, only brackets are kept, and of those only stretches that could
possibly be too deep are counted one by one.

The depth of malformed JSON is the depth at which a parser would find out: up to the first error the
scan and every parser agree on what is a string and what a bracket.
"""

from __future__ import annotations

from typing import Final

from slime_core.errors import ClientError

__all__ = ["check_depth", "is_deeper"]

_STRETCH: Final = 256
_NO_BRACKET: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def check_depth(body: bytes, limit: int) -> None:
    """Raise ``ClientError`` (400, ``json_too_deep``) if ``body`` is JSON that is nested deeper.

    What begins neither as an array nor as an object is not JSON of any depth.
    """
    if body.lstrip(b" \t\r\n")[:1] in (b"[", b"{") and is_deeper(body, limit):
        raise ClientError(
            f"the JSON is nested deeper than {limit} levels (--max-json-depth)",
            code="json_too_deep",
        )


def is_deeper(body: bytes, limit: int) -> bool:
    """Whether more than ``limit`` arrays and objects are open at once anywhere in ``body``."""
    if not _has_more(body, limit):
        return False
    brackets = _outside_strings(body).translate(None, _NO_BRACKET)
    depth = 0
    for start in range(0, len(brackets), _STRETCH):
        stretch = brackets[start : start + _STRETCH]
        opened = stretch.count(b"[") + stretch.count(b"{")
        if depth + opened > limit and depth + _highest(stretch) > limit:
            return True
        depth += 2 * opened - len(stretch)
    return False


def _has_more(body: bytes, limit: int) -> bool:
    """Whether more than ``limit`` brackets are opened in ``body``, be it in strings.

    Bodies are long because of text or numbers, and finding the next of a few brackets passes those
    ten times as fast as counting does.
    """
    opened = 0
    for bracket in (b"[", b"{"):
        at = body.find(bracket)
        while at >= 0:
            opened += 1
            if opened > limit:
                return True
            at = body.find(bracket, at + 1)
    return False


def _outside_strings(body: bytes) -> bytes:
    """What is left without the strings. Escapes go first, and of those escaped backslashes."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(body.split(b'"')[::2])


def _highest(stretch: bytes) -> int:
    """How far the depth rises within ``stretch``."""
    depth = highest = 0
    for byte in stretch:
        depth += _STEP[byte]
        highest = max(highest, depth)
    return highest
