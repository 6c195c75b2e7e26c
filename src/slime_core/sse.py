"""Server-sent events: bytes to events and back.

The rules are those of the WHATWG HTML standard, section 9.2 "Server-sent events": lines end in CR,
LF or CRLF, one byte order mark may lead, a blank line completes an event, a line that starts with a
colon is a comment. Two things differ from a browser, on purpose. ``id`` and ``retry`` are not
interpreted: they steer reconnection, and a generation cannot be resumed. And a stream that ends in
the middle of an event is an error: a browser drops such an event, but for a router it is an answer
cut off by a dying worker.

A relay passes :attr:`Event.raw` on untouched. It starts at the event's first field line and ends
with its blank line; comments inside are kept. Whatever stands between two events (keep-alive
comments, spare blank lines, blocks without data) is dropped as it arrives, so that an hour of pings
holds no memory.

What is read does not depend on how the bytes were cut. The delicate case is a blank line that ends
in a CR when nothing follows yet: an LF may still belong to it. If the line before ended in CRLF the
decoder waits for it; if not, the event is complete at the CR, and an LF after it reads as a blank
line between events, which means nothing.
"""

from __future__ import annotations

from typing import Final

import msgspec

from slime_core.errors import WorkerError

__all__ = ["DONE", "Decoder", "Event", "comment", "encode"]

DONE: Final = b"data: [DONE]\n\n"
"""The last event of an OpenAI or SGLang stream."""

_BOM: Final = b"\xef\xbb\xbf"
_COLON: Final = 0x3A
_CR: Final = 0x0D
_PLAIN: Final = b"data: "
_BETWEEN_PLAIN: Final = b"\n\ndata: "


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event: its data lines joined by LF, its name, its exact bytes on the wire."""

    data: bytes
    event: str = ""
    raw: bytes


class Decoder:
    """Eats bytes in pieces of any size and returns the events that they complete.

    Call :meth:`receive` with each piece and :meth:`close` when the stream has ended. An event or a
    comment of more than ``max_event_bytes`` on the wire is a :class:`WorkerError`, from which a
    decoder does not recover. Events that came before it in the same piece are returned first; the
    next call raises.
    """

    __slots__ = (
        "_after_crlf",
        "_at_start",
        "_begun",
        "_begun_bytes",
        "_buffer",
        "_data",
        "_failure",
        "_in_event",
        "_line",
        "_max_event_bytes",
        "_name",
        "_searched",
    )

    def __init__(self, *, max_event_bytes: int = 256 * 2**20) -> None:
        self._max_event_bytes = max_event_bytes
        # Outside an event the buffer starts at the current line, inside one at its first field.
        self._buffer = bytearray()
        self._line = 0
        """Where the current line starts in the buffer."""
        self._searched = 0
        """No line end lies between ``_line`` and here: a piece is never searched twice."""
        self._begun: list[bytes] = []
        """Pieces of a plain event without a line end; then the buffer is empty."""
        self._begun_bytes = 0
        self._at_start = True
        self._in_event = False
        self._after_crlf = False
        self._data: list[bytes] = []
        self._name = ""
        self._failure: WorkerError | None = None

    def receive(self, data: bytes) -> list[Event]:
        """The events completed by these bytes. Raises WorkerError for one that is too long."""
        if self._failure is not None:
            raise self._failure
        events: list[Event] = []
        if not (self._begun or self._buffer) and len(data) <= self._max_event_bytes:
            events = _plain_events(data)
            if events:
                self._at_start = False
                return events
        rest = self._receive_plain(data, events)
        if rest:
            self._buffer += rest
            self._receive_lines(events)
        if not events:
            self._raise_failure()
        return events

    def close(self) -> None:
        """The stream has ended. Raises WorkerError if it ended inside an event."""
        self._raise_failure()
        rest = self._buffer[self._line :]
        if self._at_start and _BOM.startswith(rest):
            return
        if self._begun or self._in_event or (rest and rest[0] not in (_COLON, _CR)):
            raise WorkerError("the worker's event stream ended in the middle of an event")

    def _receive_plain(self, data: bytes, events: list[Event]) -> bytes:
        """The common case, several times faster: events of one ``data: `` line, ended by LF.

        What is left is not that; it is to be read line by line. An event that comes in several
        pieces waits in ``_begun`` and is put together once.
        """
        searched = self._begun_bytes
        is_plain = searched or data.startswith(_PLAIN)
        if not is_plain or self._buffer or b"\r" in data:
            return self._take_begun(data)
        if searched + len(data) > self._max_event_bytes:
            return self._take_begun(data)
        self._at_start = False
        rest = data
        if b"\n" in data:
            whole = self._take_begun(data) if searched else data
            rest = _split_plain(whole, searched, events)
            if not rest or not rest.startswith(_PLAIN) or b"\n" in rest:
                return rest
        self._begun.append(rest)
        self._begun_bytes += len(rest)
        return b""

    def _take_begun(self, data: bytes) -> bytes:
        """What has come of an event, with more of it."""
        if not self._begun:
            return data
        self._begun.append(data)
        data = b"".join(self._begun)
        self._begun.clear()
        self._begun_bytes = 0
        return data

    def _receive_lines(self, events: list[Event]) -> None:
        if self._at_start and not self._skip_bom():
            return
        buffer, size = self._buffer, len(self._buffer)
        line, searched = self._line, self._searched
        begin = 0
        """Where the bytes still needed begin."""
        lf = cr = -1
        while self._failure is None:
            # Each search runs from the last hit to the next and no further: all in all linear.
            if lf < line:
                lf = _find(buffer, b"\n", max(line, searched))
            if cr < line:
                cr = _find(buffer, b"\r", max(line, searched))
            end = min(lf, cr)
            if end == size or (end == cr and end + 1 == size and self._must_wait(end == line)):
                searched = end
                break
            after = end + 1
            is_crlf = end == cr and after < size and lf == after
            if is_crlf and (end > line or self._after_crlf):
                after += 1
            if end > line:
                self._take_line(buffer[line:end], end - begin)
            else:
                self._take_blank(events, buffer, begin, after)
            self._after_crlf = is_crlf
            line = after
            if not self._in_event:
                begin = line
        self._check_size(searched - begin)
        del buffer[:begin]
        self._line, self._searched = line - begin, searched - begin

    def _skip_bom(self) -> bool:
        """Drop a leading byte order mark; False while it is not decided whether there is one."""
        if len(self._buffer) < len(_BOM) and _BOM.startswith(self._buffer):
            return False
        if self._buffer.startswith(_BOM):
            del self._buffer[: len(_BOM)]
        self._at_start = False
        return True

    def _must_wait(self, blank: bool) -> bool:
        """Whether a CR that is the last byte so far needs its successor to be understood."""
        return not blank or self._after_crlf

    def _take_line(self, line: bytearray, length: int) -> None:
        if line[0] == _COLON:
            self._check_size(length)
            return
        self._in_event = True
        name, _, value = line.partition(b":")
        if value[:1] == b" ":
            del value[:1]
        if name == b"data":
            self._data.append(bytes(value))
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")

    def _take_blank(self, events: list[Event], buffer: bytearray, begin: int, end: int) -> None:
        self._check_size(end - begin)
        if self._data and self._failure is None:
            data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            events.append(Event(data=data, event=self._name, raw=bytes(buffer[begin:end])))
        self._data = []
        self._name = ""
        self._in_event = False

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _check_size(self, length: int) -> None:
        if length > self._max_event_bytes:
            self._failure = WorkerError(
                f"the worker sent an event of more than {self._max_event_bytes} bytes"
            )


def _plain_events(data: bytes) -> list[Event]:
    """Whole events of one ``data: `` line each, ended by LF, if that is all there is; or none.

    What most reads bring: a few searches show that every LF stands where it must.
    """
    if b"\r" in data or not (data.startswith(_PLAIN) and data.endswith(b"\n\n")):
        return []
    line_ends = data.count(b"\n")
    if line_ends == 2:
        return [Event(data=data[6:-2], raw=data)]
    if line_ends != 2 * data.count(_BETWEEN_PLAIN) + 2:
        return []
    lines = data[6:-2].split(_BETWEEN_PLAIN)
    return [Event(data=line, raw=b"data: %b\n\n" % line) for line in lines]


def _split_plain(data: bytes, searched: int, events: list[Event]) -> bytes:
    """Take plain events off the front; what is left. No LF is before ``searched``."""
    at, size = 0, len(data)
    end = _find(data, b"\n", searched)
    while data.startswith(b"\n\n", end) and data.startswith(_PLAIN, at):
        after = end + 2
        raw = data if after == size and not at else data[at:after]
        events.append(Event(data=data[at + 6 : end], raw=raw))
        at, end = after, _find(data, b"\n", after)
        if at == size:
            return b""
    return data[at:]


def encode(data: bytes, *, event: str = "") -> bytes:
    """One event as bytes: :class:`Decoder` gives the same ``data`` and ``event`` back.

    Raises ``ValueError`` for a CR in ``data`` and for a line end in ``event``: neither can be
    carried. JSON never holds a bare CR.
    """
    if b"\r" in data:
        raise ValueError("an event cannot carry a carriage return")
    name = f"event: {_one_line(event)}\n".encode() if event else b""
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    return b"%bdata: %b\n\n" % (name, data)


def comment(text: str) -> bytes:
    """A comment, which keeps a quiet connection alive. Raises ``ValueError`` for a line end."""
    return f": {_one_line(text)}\n\n".encode()


def _one_line(text: str) -> str:
    if "\r" in text or "\n" in text:
        raise ValueError("an event's name and a comment are one line each")
    return text


def _find(buffer: bytes | bytearray, byte: bytes, start: int) -> int:
    """Where it is next, or the buffer's end."""
    found = buffer.find(byte, start)
    return len(buffer) if found < 0 else found
