"""What a grammar of tool calls is, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from slime_core.parsing.source import Broken, Source, Steps
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
    """Read a call by ``steps``; if it breaks after its head was told, pass over the rest of it.

    The rest reaches to the next tag of ``until``, or to the answer's end, and includes the tag if
    it is one of ``closing``. Raises :class:`Broken` if the head was not told yet.
    """
    source, problem = reading.source, None
    try:
        yield from steps
    except Broken as broken:
        if not call.begun:
            raise
        problem = broken.problem
        tag = yield from source.until(until, _pass_over)
        if tag in closing:
            source.take(len(tag))
    call.end(source.at, problem)


def _pass_over(_text: str, _start: int) -> None:
    """Where text goes that belongs to a broken call: its span says that it was there."""
