"""What a grammar of tool calls is, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from slime_core.parsing.source import SPACE, Broken, Source, Steps
from slime_core.parsing.telling import Call, Teller

__all__ = ["Grammar", "Reading", "attempt", "one_call"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a grammar reads from, tells to, and knows of the request."""

    source: Source
    teller: Teller
    parameters: Mapping[str, Mapping[str, Any]]
    """The JSON schema of each tool's parameters, by the tool's name."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """How a family writes its tool calls.

    ``opens`` begins a call, or the section that calls stand in. In a section, ``calls`` begins each
    further call, and ``closes`` ends it. ``read`` reads from the tag that opens a call or a section
    to the end of the call, the tag included; it is called again for the next call of the section.
    It raises :class:`Broken` where there is no call; what it took is content then.

    ``bare``: a call may also stand without any tag, where an answer begins.
    """

    opens: str
    read: Callable[[Reading, str], Steps[None]]
    calls: str | None = None
    closes: str | None = None
    bare: Callable[[Reading], Steps[None]] | None = None

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags to look for in content."""
        return tuple(tag for tag in (self.opens, self.calls, self.closes) if tag is not None)


def attempt(reading: Reading, steps: Steps[None]) -> Steps[bool]:
    """Read something that may be none; whether it was. If not, what was taken of it is content."""
    reading.source.hold()
    try:
        yield from steps
    except Broken:
        reading.teller.content(*reading.source.release())
        return False
    return True


def one_call(
    reading: Reading,
    call: Call,
    steps: Steps[None],
    until: tuple[str, ...],
    closing: tuple[str, ...] = (),
) -> Steps[None]:
    """Read a call: by ``steps`` up to its arguments' end, and then the tag that ends it.

    The tag is one of ``closing``; the text before it, or before another tag of ``until``, is
    content behind the call. An answer may end without it: a stop string trimmed it, or the length
    did. If ``steps`` break after the head was told, what is left up to there is told as further
    arguments. Raises :class:`Broken` if the head was not told yet.
    """
    source, problem = reading.source, None
    try:
        yield from steps
    except Broken as broken:
        if not call.begun:
            raise
        tag = yield from _rest(source, call, until)
        problem = None if call.is_json else broken.problem
    else:
        tag = (yield from _behind(reading, call, until)) if closing else None
    if tag in closing:
        source.take(len(tag))
    call.end(source.at, problem)


def _behind(reading: Reading, call: Call, until: tuple[str, ...]) -> Steps[str | None]:
    """Pass over blanks behind a call's arguments. Where more comes before the next tag, the call
    ends before the blanks, and all of it is content; the tag, not taken."""
    source = reading.source
    yield from source.space()
    tag = yield from source.here(until)
    if tag is None and (yield from source.peek()):
        text, start = source.release()
        call.end(start, None)
        reading.teller.content(text, start)
        tag = yield from source.until(until, reading.teller.content)
    return tag


def _rest(source: Source, call: Call, until: tuple[str, ...]) -> Steps[str | None]:
    """Tell what was taken since the last arguments and all up to the next tag as arguments, if
    there is more than blanks; the tag, not taken."""
    yield from source.space()
    text, _ = source.release()
    tag = yield from source.here(until)
    if text.strip(SPACE) or (tag is None and (yield from source.peek())):
        call.argue(text)
        tag = yield from source.until(until, call.argue)
    return tag
