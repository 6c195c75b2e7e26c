"""Long lists of numbers, lifted out of a JSON object before it is parsed.

A parser looks at every byte of a list, even of one that it is told to skip: of an answer with
logprobs that is nearly all there is, and half of what reading it costs. But a list of numbers holds
no quotation mark, so the next one behind its beginning belongs to the key that follows it, and is
found at the speed of memory. What is left, with a stand-in for the list, is short, and is parsed in
full.

Nothing is believed for having been found: a list counts as the value of a field only if the parser
finds the stand-in there, and no other one stands anywhere. So where the same bytes occur as
something else (a field of another object, a key that is spelled with escapes, a list that holds
text), nothing is lifted, and the object has to be parsed as it came. What is in the list is for
its reader to judge.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from msgspec import Raw

__all__ = ["Lifted", "lift"]

_OPENS: Final = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*(?=\[)")
_STAND_IN: Final = b'"~^~%d~^~|~^~"'
"""A string, which no list is, of what is rare elsewhere: it is looked for in all of the rest."""
_LONGEST: Final = 32


class Lifted(NamedTuple):
    """A list that stands in ``body`` from ``start`` to ``end``, and in ``rest`` as ``stand_in``."""

    body: bytes
    start: int
    end: int
    rest: bytes
    stand_in: bytes

    @property
    def raw(self) -> bytes:
        """The list as it was written."""
        return self.body[self.start : self.end]

    def stands_in(self, value: Raw | None) -> bool:
        """Whether a parser of ``rest`` found the stand-in as this value."""
        if value is None:
            return False
        return bytes(memoryview(value)[:_LONGEST]) == self.stand_in

    def put_back(self, rest: bytes) -> bytes:
        """``rest``, of which something else may have been taken, with the list in its place."""
        return rest.replace(self.stand_in, self.raw, 1)


def lift(body: bytes, key: bytes, number: int = 0) -> Lifted | None:
    """The list that is the value of ``key`` in ``body``; ``None`` where that is not plain.

    ``key`` comes with its quotation marks. ``number`` tells several lists of one body apart.
    """
    at = body.find(key)
    opens = None if at < 0 else _OPENS.match(body, at + len(key))
    if opens is None:
        return None
    start = opens.end()
    next_key = body.find(b'"', start)
    end = body.rfind(b"]", start, len(body) if next_key < 0 else next_key) + 1
    if not end or body.find(key, end) >= 0:
        return None
    stand_in = _STAND_IN % number
    rest = stand_in.join((body[:start], body[end:]))
    if rest.count(stand_in) != 1:
        return None
    return Lifted(body, start, end, rest, stand_in)
