"""Bytes of one connection in, one request at a time out: the receiving half of the listener.

No I/O, and nothing is raised for what a client sent: a ``refusal`` is recorded, and what was sound
before it is given first. A caller sees the same head, the same body bytes and then the same refusal
however the bytes were split on their way. Nothing of a request is given before its whole head has
been judged, by the rules that both listeners share (:mod:`slime_trio.limits.head`).

A head is searched for its end, held against one expression that knows what a plain head looks
like, taken apart by another, and what its fields say is judged. What is not plain is gone through
line by line, for the words of the refusal. Where a coding is named, which is rare and is how
requests are smuggled, llhttp (under httptools 0.9) has to take the head as well; for all others
that cost a tenth of a small request, and refused nothing that was not refused here. It gets the
fields behind a request line of ours: it knows a list of methods, while an application may want
others, or refuse them in its own words.

What was found by trying where llhttp and h11 differ; the stricter wins each time. llhttp takes

* an empty line before a request, more than one blank in its line, and a line without a version;
* versions 0.9 and 2.0, and ``RTSP/`` and ``ICE/`` beside ``HTTP/``;
* no host or several, and another coding before ``chunked``;
* heads and fields of any size; it leaves the blanks behind a value in it, yet it refuses
  ``chunked`` with a blank behind it, and it stops at what asks for an upgrade.

h11 takes

* lines that end in a line feed alone, and fields that are folded;
* control characters in values, other than a null and what Python calls white space;
* equal lengths that are repeated or in a list, a length beside a coding, lengths of 20 digits;
* methods in small letters, any version of two digits, and the preface of HTTP/2.

Bodies do not go through llhttp. That of an announced length is counted, and so passed on as it was
read, without a copy where a read holds nothing else; for chunks see
:mod:`slime_trio.listener.chunked_body`.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

import httptools

from slime_core.errors import InvariantError
from slime_trio.limits.head import (
    MALFORMED,
    TELLING,
    TOO_LARGE,
    HeadLimits,
    Phase,
    PlainHead,
    Refusal,
    body_refusal,
    end_of_head,
    fields_of,
    judge_head,
    judge_plain,
    judge_start,
    plain_head,
)
from slime_trio.listener.chunked_body import ChunkedBody
from slime_trio.listener.request_head import LONGEST_KEPT, RequestHead, SameHead

__all__ = ["Data", "EndOfMessage", "Event", "RequestHead", "RequestParser"]

_LINE: Final = b"POST / HTTP/1.1\r\n"
"""Read by llhttp in the place of a request line that has been judged already."""

_UPGRADING: Final = frozenset({b"upgrade", b"http2-settings"})
"""Fields that are not given to anybody: no upgrade is made (RFC 9110, 7.8)."""

_HEEDED: Final = TELLING | _UPGRADING | {b"connection", b"expect"}


class Data(NamedTuple):
    """Some of a body, never empty."""

    data: bytes


class EndOfMessage:
    """The request is complete."""

    __slots__ = ()


Event = RequestHead | Data | EndOfMessage

_END: Final = EndOfMessage()


class RequestParser:
    """The requests of one connection, one after the other.

    :meth:`feed` what was read, take all events from :meth:`next_event`, and look at ``refusal``
    when there are no more; it is final. Behind :class:`EndOfMessage` bytes are kept unread
    (``bytes_held`` says how many; nobody should read on meanwhile) until
    :meth:`start_next`. ``phase`` says what is awaited of the client; ``answer`` also where nothing
    is any more. ``has_ended`` says whether :meth:`feed_eof` was called.
    """

    __slots__ = (
        "_begun",
        "_chunks",
        "_events",
        "_held",
        "_keep_alive",
        "_limits",
        "_room",
        "_same",
        "_wanted",
        "has_ended",
        "phase",
        "refusal",
    )

    def __init__(self, limits: HeadLimits) -> None:
        self._limits = limits
        self._events: deque[Event] = deque()
        self._begun = bytearray()  # a head whose end has not come
        self._wanted = 0  # bytes of an announced body that are still to come
        self._chunks: ChunkedBody | None = None
        self._room = 0  # how much larger a body in chunks may get
        self._keep_alive = True
        self._same: SameHead | None = None
        self._held: list[bytes] = []
        self.has_ended = False
        self.phase: Phase = "idle"
        self.refusal: Refusal | None = None

    @property
    def bytes_held(self) -> int:
        """How much was fed that belongs to later requests."""
        return sum(map(len, self._held))

    def next_event(self) -> Event | None:
        """The next part of the request, if it is there."""
        return self._events.popleft() if self._events else None

    def take_body(self) -> bytes | None:
        """The whole body behind a head that was taken, with its end, if all of it has come and
        none of it was taken; else ``None``. As good as taking its events one by one."""
        if self.phase != "answer" or self.refusal is not None:
            return None
        pieces = [event.data for event in self._events if type(event) is Data]
        self._events.clear()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def feed(self, data: bytes) -> None:
        """Read on; ``data`` is not empty."""
        if self.phase == "answer":
            if self._keep_alive:
                self._held.append(data)
        elif self.phase == "body":
            self._feed_body(data)
        else:
            self._feed_head(data)

    def feed_eof(self) -> None:
        """The client sends no more. In the middle of a request that is refused."""
        self.has_ended = True
        if self.phase in ("head", "body"):
            self._refuse(MALFORMED)

    def start_next(self) -> None:
        """Go on to the next request, once this one is complete, taken and answered.

        Raises :class:`~slime_core.errors.InvariantError` where none may follow.
        """
        if self.phase != "answer" or not self._keep_alive or self._events:
            raise InvariantError("no next request may follow yet, or at all")
        self.phase = "idle"
        if self._held:
            held = b"".join(self._held)
            self._held.clear()
            self._feed_head(held)
        if self.has_ended:
            self.feed_eof()

    def _refuse(self, refusal: Refusal) -> None:
        self.refusal = refusal
        self.phase = "answer"
        self._keep_alive = False

    # -- heads ---------------------------------------------------------------------------------

    def _feed_head(self, data: bytes) -> None:
        if self._begun:
            self._gather_head(data)
            return
        same = None if self._same is None else self._same.again(data)
        if same is not None:
            self._begin(data, *same)
        elif (plain := plain_head(data)) is not None:
            self._take_head(data, *plain)  # the usual: a head that came whole
        else:
            self._gather_head(data)

    def _gather_head(self, data: bytes) -> None:
        """What is read does not begin with a plain head: it comes in parts, or is none."""
        searched = len(self._begun)
        self._begun += data
        end = end_of_head(self._begun, max(0, searched - 2))
        if end >= 0:
            self._end_head(bytes(self._begun), end)
        elif refusal := judge_start(self._begun):
            self._refuse(refusal)
        elif len(self._begun) > self._limits.head_bytes:
            self._refuse(TOO_LARGE)
        else:
            self.phase = "head"

    def _end_head(self, data: bytes, end: int) -> None:
        self._begun.clear()
        plain = plain_head(data)
        if plain is not None and plain[1] == end:
            self._take_head(data, *plain)
        else:
            self._refuse(judge_head(data[:end], self._limits) or MALFORMED)

    def _take_head(self, data: bytes, plain: PlainHead, end: int) -> None:
        """``data`` begins with a head that is plain and ends there."""
        fields = fields_of(plain)
        heeded = [field for field in fields if field[0] in _HEEDED]
        refusal = judge_plain(plain, end, heeded, self._limits)
        if refusal is not None:
            self._refuse(refusal)
            return
        request = _request(plain, fields, heeded)
        is_chunked = request.has_body and request.content_length is None
        if is_chunked and not _llhttp_takes(plain.lines):
            self._refuse(MALFORMED)
            return
        if request.content_length is not None and end <= LONGEST_KEPT:
            self._same = SameHead(data[:end], request, self._limits)
        self._begin(data, request, end)

    def _begin(self, data: bytes, request: RequestHead, end: int) -> None:
        self._events.append(request)
        self._start_body(request, data[end:])

    def _start_body(self, request: RequestHead, rest: bytes) -> None:
        self._keep_alive = request.keep_alive
        if not request.has_body:
            self._end(rest)
            return
        self.phase = "body"
        if request.content_length is None:
            self._chunks = ChunkedBody(max_line_bytes=self._limits.head_bytes)
            self._room = self._limits.body_bytes
        else:
            self._wanted = request.content_length
        if rest:
            self._feed_body(rest)

    # -- bodies --------------------------------------------------------------------------------

    def _feed_body(self, data: bytes) -> None:
        if self._chunks is not None:
            self._feed_chunks(self._chunks, data)
            return
        wanted = self._wanted
        if len(data) < wanted:
            self._wanted = wanted - len(data)
            self._events.append(Data(data))
        else:
            # Slicing a whole does not copy it.
            self._events.append(Data(data[:wanted]))
            self._end(data[wanted:])

    def _feed_chunks(self, chunks: ChunkedBody, data: bytes) -> None:
        rest = chunks.feed(data)
        if chunks.pieces:
            came = b"".join(chunks.pieces)
            chunks.pieces.clear()
            if self._room:
                self._events.append(Data(came[: self._room]))
            self._room -= len(came)
        if self._room < 0:
            self._refuse(body_refusal(self._limits))
        elif chunks.is_malformed:
            self._refuse(MALFORMED)
        elif chunks.is_complete:
            self._chunks = None
            self._end(rest)

    def _end(self, rest: bytes) -> None:
        self._events.append(_END)
        self.phase = "answer"
        if rest and self._keep_alive:
            self._held.append(rest)


def _llhttp_takes(lines: bytes) -> bool:
    """Whether llhttp takes these fields of a head."""
    try:
        httptools.HttpRequestParser(object()).feed_data(b"%b%b\r\n" % (_LINE, lines))
    except httptools.HttpParserUpgrade:
        pass  # at the end of the head, which has been read
    except httptools.HttpParserError:
        return False
    return True


def _request(
    plain: PlainHead, fields: list[tuple[bytes, bytes]], heeded: list[tuple[bytes, bytes]]
) -> RequestHead:
    keep_alive = has_new_version = plain.version == b"1.1"
    length, is_chunked, expects_continue, asks_upgrade = None, False, False, False
    for name, value in heeded:
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            is_chunked = True
        elif name == b"connection":
            keep_alive = keep_alive and not _lists(value, b"close")
        elif name == b"expect":
            expects_continue = has_new_version and _lists(value, b"100-continue")
        elif name in _UPGRADING:
            asks_upgrade = True
    return RequestHead(
        plain.method.decode(),
        plain.target,
        [field for field in fields if field[0] not in _UPGRADING] if asks_upgrade else fields,
        plain.version.decode(),
        keep_alive,
        length,
        is_chunked or bool(length),
        expects_continue,
    )


def _lists(value: bytes, word: bytes) -> bool:
    """Whether a list of words, in any case, has this one."""
    return word in (one.strip() for one in value.lower().split(b","))
