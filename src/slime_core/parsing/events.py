"""What a parsed answer consists of, and where the added tokens of the vocabulary stand in it.

Offsets count characters of the whole answer's text. The text of :class:`Reasoning` and
:class:`Content` is a verbatim piece of that text; the arguments of a call are so only in families
whose arguments are JSON, others spell them in tags of their own.

All are structs: every token of a streamed answer makes one, and a frozen dataclass costs tenfold.
"""

from __future__ import annotations

from typing import final

import msgspec

__all__ = [
    "CallArguments",
    "CallBegun",
    "CallEnded",
    "Content",
    "Event",
    "Mark",
    "Reasoning",
]


@final
class Mark(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The text from ``start`` to ``end`` is one added token of the vocabulary, known by its id."""

    start: int
    end: int


@final
class Reasoning(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A piece of what the model thought; ``text`` stands at ``start`` in the answer."""

    text: str
    start: int


@final
class Content(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A piece of what the model says to the user; ``text`` stands at ``start`` in the answer."""

    text: str
    start: int


@final
class CallBegun(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A tool call whose head is known; calls are counted from 0 in the order of their heads.

    ``model_id`` is the id that the model itself wrote, in families where it writes one.
    """

    index: int
    name: str
    model_id: str | None


@final
class CallArguments(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A piece of call ``index``'s arguments; all pieces together are one JSON object, unless the
    call ends with a problem."""

    index: int
    text: str


@final
class CallEnded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Call ``index`` took the answer's text from ``start`` to ``end``, tags included.

    ``problem`` is ``None`` where the arguments are whole. ``malformed``: the text broke the grammar
    after the head was told; ``unfinished``: the answer ended within the call. The arguments are
    then what was whole of them, and the rest of the call's text, verbatim: no JSON.
    """

    index: int
    start: int
    end: int
    problem: str | None


Event = Reasoning | Content | CallBegun | CallArguments | CallEnded
"""The closed union of what a parser gives."""
