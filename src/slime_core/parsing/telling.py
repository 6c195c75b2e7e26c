"""Turning what a grammar has read into events: trimming, counting, and heads told once.

Whitespace is :data:`~slime_core.parsing.source.SPACE`, and the rules are these:

* around reasoning it is dropped, inside the block and outside of it;
* before a call, and between calls, it is dropped;
* behind a call it belongs to the content that follows; if none follows, it is dropped;
* everywhere else content is verbatim, its first and last whitespace included.
"""

from __future__ import annotations

from slime_core.parsing.events import (
    CallArguments,
    CallBegun,
    CallEnded,
    Content,
    Event,
    Reasoning,
)
from slime_core.parsing.json_scan import is_json
from slime_core.parsing.source import SPACE, Broken, Source

__all__ = ["Call", "Teller"]


class _Held:
    """Whitespace at the end of a text, kept back until it is known what follows."""

    __slots__ = ("_end", "_pieces", "_start")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._start = self._end = 0

    def add(self, text: str, start: int) -> tuple[str, int]:
        """Add text; what is certain now, and where it begins. It never ends in whitespace."""
        body = text.rstrip(SPACE)
        told, begin = "", start
        if body:
            told, begin = self.release(start)
            told += body
        if len(body) < len(text):
            self._start = self._start if self._pieces else start + len(body)
            self._end = start + len(text)
            self._pieces.append(text[len(body) :])
        return told, begin

    def is_apart(self, start: int) -> bool:
        """Whether something is kept back that does not reach to ``start``: tags stand between."""
        return bool(self._pieces) and start != self._end

    def release(self, start: int = 0) -> tuple[str, int]:
        """All that is kept back, and where it begins; ``start`` if it is nothing."""
        text = "".join(self._pieces)
        begin = self._start if self._pieces else start
        self._pieces.clear()
        return text, begin


class Teller:
    """Collects the events of one answer.

    ``parallel``: whether more than the first call is told. A call that is not told is dropped
    without a trace: neither an event nor content is made of it.
    """

    __slots__ = ("_calls", "_events", "_held", "_parallel", "_said", "_source", "_strip")

    def __init__(self, source: Source, *, parallel: bool) -> None:
        self._source = source
        self._parallel = parallel
        self._events: list[Event] = []
        self._held = _Held()
        self._strip = False
        """Whether whitespace is dropped until something else comes."""
        self._said = ""
        """What was told last: nothing, reasoning, content or a call."""
        self._calls = 0

    @property
    def silent(self) -> bool:
        """Whether nothing was told yet but, last, reasoning."""
        return self._said in ("", "reasoning")

    @property
    def untouched(self) -> bool:
        """Whether the answer holds nothing but whitespace so far."""
        return not self._said

    def drain(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    def content(self, text: str, start: int) -> None:
        """Text for the user."""
        text, start = self._stripped(text, start)
        if self._held.is_apart(start):
            space, begin = self._held.release()
            self._events.append(Content(text=space, start=begin))
        told, begin = self._held.add(text, start)
        if told:
            self._said = "content"
            self._events.append(Content(text=told, start=begin))

    def open_reasoning(self) -> None:
        """A block of reasoning begins."""
        self._held.release()
        self._said = "reasoning"
        self._strip = True

    def reasoning(self, text: str, start: int) -> None:
        """Text of the block of reasoning."""
        text, start = self._stripped(text, start)
        told, begin = self._held.add(text, start)
        if told:
            self._events.append(Reasoning(text=told, start=begin))

    def close_reasoning(self) -> None:
        """The block of reasoning has ended."""
        self._held.release()
        self._strip = True

    def drop_space(self) -> None:
        """Whitespace that stood here is no content."""
        self._held.release()

    def finish(self) -> None:
        """The answer has ended."""
        text, start = self._held.release()
        if text and self._said in ("", "content"):
            self._events.append(Content(text=text, start=start))

    def call(self, start: int) -> Call:
        """A call may begin at ``start``: nothing is told of it before its head is known."""
        return Call(self, start)

    def begin_call(self, name: str, model_id: str | None) -> int | None:
        """Tell the head of a call; its index, or ``None`` for a call that is not told."""
        self._held.release()
        self._source.forget()
        self._strip = False
        self._said = "call"
        if self._calls and not self._parallel:
            return None
        self._events.append(CallBegun(index=self._calls, name=name, model_id=model_id))
        self._calls += 1
        return self._calls - 1

    def untold(self) -> None:
        """Nothing of a call's text from here on was told yet: it is remembered."""
        self._source.hold()

    def all_told(self) -> None:
        """What is remembered of a call needs no telling."""
        self._source.forget()

    def tell(self, event: Event) -> None:
        """Tell what happens in a call."""
        self._events.append(event)

    def _stripped(self, text: str, start: int) -> tuple[str, int]:
        if not self._strip:
            return text, start
        rest = text.lstrip(SPACE)
        self._strip = not rest
        return rest, start + len(text) - len(rest)


class Call:
    """One call as it is read: arguments that come before the name wait for it."""

    __slots__ = (
        "_index",
        "_pieces",
        "_start",
        "_teller",
        "_told",
        "argued",
        "begun",
        "model_id",
        "name",
    )

    def __init__(self, teller: Teller, start: int) -> None:
        self._teller = teller
        self._start = start
        self._index: int | None = None
        self._pieces: list[str] = []
        self._told: list[str] = []
        self.name: str | None = None
        self.model_id: str | None = None
        self.argued = False
        """Whether arguments have come."""
        self.begun = False
        """Whether the head was told."""

    def argue(self, text: str, _start: int = 0) -> None:
        """Add a piece of the arguments; the head is told once both it and the name have come."""
        self.argued = True
        self._pieces.append(text)
        if self.name is not None:
            self._tell(self.name)

    @property
    def is_json(self) -> bool:
        """Whether the arguments, as far as they were told, are whole."""
        return is_json("".join(self._told))

    def check(self) -> str:
        """The name. Raises :class:`Broken` if none has come."""
        if self.name is None:
            raise Broken("malformed")
        return self.name

    def complete(self) -> None:
        """All of the call but what ends it was read; one without arguments has empty ones."""
        if not self.argued:
            self._pieces.append("{}")
        self._tell(self.check())
        self._teller.untold()

    def end(self, end: int, problem: str | None) -> None:
        """The text of the call ends at ``end``. Again, nothing."""
        self._teller.all_told()
        if self._index is not None:
            self._teller.tell(
                CallEnded(index=self._index, start=self._start, end=end, problem=problem)
            )
            self._index = None

    def _tell(self, name: str) -> None:
        if not self.begun:
            self.begun = True
            self._index = self._teller.begin_call(name, self.model_id)
        text = "".join(self._pieces)
        self._pieces.clear()
        if not text:
            return
        self._told.append(text)
        self._teller.untold()
        if self._index is not None:
            self._teller.tell(CallArguments(index=self._index, text=text))
