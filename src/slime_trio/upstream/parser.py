"""Bytes of one connection in, one response at a time out: llhttp under httptools, tamed.

The parser does no I/O and never raises for what a worker sent. It records a ``fault`` and keeps
what was well-formed before it, so a caller sees the same head, the same body bytes and then the
same fault however the bytes were split on their way (a parser that raised from the middle of a
read would lose the good part of that read).

What llhttp leaves to us, found by trying it (httptools 0.9):

* trailing white space of a value stays in the value (RFC 9110, 5.5 excludes it);
* ``RTSP/`` and ``ICE/`` are accepted beside ``HTTP/``, and so is version 2.0;
* nothing bounds the size of a head, of trailers or of a chunk extension;
* nobody tells it that a response answers ``HEAD``;
* the end of the stream cannot be reported to it, so whether a body ends there is decided here;
* after the end of a response it starts to parse the next one, which on this connection was not
  asked for. Only an empty line there goes unnoticed; the next response may lawfully follow it.

It reads heads and chunks. The rest of a body whose length was announced is only counted here, since
llhttp would copy every byte of it. Having missed them it stands in the middle of a response ever
after, so the next response gets a new llhttp, which is cheap (0.4 µs).

Nearly every head is plain: it comes in one read, and one expression knows all of it (version 1.1, a
status that has a body, one length, no field about the connection). Such a head needs no llhttp,
which calls back for each of its fields and costs five times as much. Whatever is not plain, llhttp
reads from its first byte on; what a plain head says, it would say likewise.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import httptools

from slime_trio.upstream.failures import FailureCode

__all__ = ["Head", "ResponseParser"]

_VERSIONS: Final = ("1.0", "1.1")
_FIELD_OVERHEAD: Final = 4  # ": " and CRLF
_FIRST_BYTE: Final = ord("H")
_FIELD_LINE: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t\x20-\x7e\x80-\xff]*+\r\n"
_PLAIN: Final = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*+)\r\n((?:%b)*+)\r\n" % _FIELD_LINE
)
_FIELD: Final = re.compile(rb"([^:]++):[ \t]*+([^\r]*+)\r\n")
_WITHOUT_BODY: Final = (204, 304)
_LENGTH_DIGITS: Final = 18
_FRAMING: Final = frozenset(
    {b"connection", b"proxy-connection", b"transfer-encoding", b"upgrade", b"trailer"}
)
"""Fields of which llhttp knows what they mean for the connection, or for where the body ends."""


class Head(NamedTuple):
    """A response's status line and fields.

    ``headers`` keeps order, repetitions and the case of values; names are lower-case.
    ``content_length`` is ``None`` where the body's length is not announced. One is made for every
    response, hence no dataclass: that takes three times as long to make.
    """

    status: int
    reason: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    content_length: int | None


class _Refused(Exception):
    """Stops llhttp in the middle of a read; the reason is in ``ResponseParser.fault``."""


class ResponseParser:
    """The receiving half of one HTTP/1.1 client connection.

    For each request: :meth:`start`, then :meth:`feed` (or :meth:`feed_eof`) until ``head`` is
    set, then :meth:`take` and :meth:`feed` until ``is_complete``. ``fault`` may be set by any
    feed; it is final, and what :meth:`take` still gives was well-formed. ``is_reusable`` says
    whether another request may follow on this connection.
    """

    __slots__ = (
        "_body",
        "_chunked",
        "_content_length",
        "_fields",
        "_head_bytes",
        "_is_head_request",
        "_keep_alive",
        "_left",
        "_max_head_bytes",
        "_parser",
        "_reason",
        "_surplus",
        "_unproductive_bytes",
        "fault",
        "head",
        "is_complete",
        "is_started",
    )

    def __init__(self, *, max_head_bytes: int) -> None:
        self._max_head_bytes = max_head_bytes
        self._surplus = False
        self._keep_alive = True
        self.fault: FailureCode | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._reset_head()
        self.start()

    def start(self, *, is_head_request: bool = False) -> None:
        """Expect the answer to the next request; the previous one must have left us reusable."""
        self._is_head_request = is_head_request
        self._body: list[bytes] = []
        self._left = 0
        self.head: Head | None = None
        self.is_started = False
        self.is_complete = False

    def _reset_head(self) -> None:
        self._reason = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._content_length: int | None = None
        self._chunked = False

    @property
    def is_reusable(self) -> bool:
        """Whether the response has ended, and the connection stands at the start of another."""
        return self.is_complete and self._keep_alive and not self._surplus and self.fault is None

    @property
    def is_wanting(self) -> bool:
        """Whether more must be fed before anything can be taken or said."""
        return not (self._body or self.is_complete or self.fault)

    def feed(self, data: bytes) -> None:
        """Parse what was read; ``data`` is not empty."""
        if self._left:
            self._count_off(data)
        elif not self.is_started:
            self.is_started = True
            if not self._takes_plain(data):
                self._begin_parsing(data)
        elif self.fault is None:
            self._parse(data)

    def _takes_plain(self, data: bytes) -> bool:
        """Take a head that is plain, and what there is of its body; whether it was."""
        found = None if self._is_head_request else _PLAIN.match(data)
        if found is None or found.end() > self._max_head_bytes:
            return False
        status, reason, lines = found.groups()
        fields = [(name.lower(), value.rstrip(b" \t")) for name, value in _FIELD.findall(lines)]
        named = dict(fields)
        length = named.get(b"content-length", b"")
        is_one = len(named) == len(fields) and length.isdigit() and len(length) <= _LENGTH_DIGITS
        if not is_one or not _FRAMING.isdisjoint(named) or int(status) in _WITHOUT_BODY:
            return False
        self.head = Head(int(status), reason, tuple(fields), int(length))
        self._keep_alive = True
        self._parser = None
        self._left = int(length)
        self._count_off(data[found.end() :])
        return True

    def _begin_parsing(self, data: bytes) -> None:
        """Have llhttp read a response from its first byte on."""
        if data[0] != _FIRST_BYTE:
            self.fault = "bad_response_framing"
            return
        if self._parser is None:
            # httptools looks the callbacks up here, once: they are public for no other reason.
            self._parser = httptools.HttpResponseParser(self)
        self._unproductive_bytes = 0
        self._reset_head()
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        if self._parser is None:
            self._surplus = True  # the announced body is complete
            return
        pieces = len(self._body)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self.is_complete:
                self._surplus = True
            elif self.fault is None:
                self.fault = "bad_response_framing"
        if len(self._body) > pieces:
            self._unproductive_bytes = 0
        elif not self.is_complete:
            self._spend(len(data))
        if not self.is_complete and self.head is not None and self.fault is None:
            self._begin_counting()

    def _begin_counting(self) -> None:
        """A head has just come, or a piece of chunked body: from an announced one on, count."""
        if self._content_length is None or self._chunked:
            return
        assert self._parser is not None
        self._keep_alive = self._parser.should_keep_alive()
        self._left = self._content_length - sum(map(len, self._body))
        self._parser = None

    def _count_off(self, data: bytes) -> None:
        if len(data) > self._left:
            data, self._surplus = data[: self._left], True
        if data:
            self._body.append(data)
        self._left -= len(data)
        self.is_complete = not self._left

    def feed_eof(self) -> None:
        """The worker has closed its side: the end of a body that has no other, or a fault."""
        if self.is_complete or self.fault is not None:
            return
        head = self.head
        if head is not None and head.content_length is None and not self._chunked:
            self._keep_alive = False
            self.is_complete = True
        else:
            self.fault = "connection_lost"

    def give_up_keep_alive(self) -> None:
        """This response is the connection's last: the request before it was not sent whole."""
        self._surplus = True

    def take(self) -> bytes:
        """The body bytes that were parsed since the last call; empty when there are none."""
        body = self._body
        if not body:
            return b""
        taken = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        return taken

    def close(self) -> None:
        """Let go of llhttp: it and this object refer to each other."""
        self._parser = None
        self._left = 0

    def _spend(self, count: int) -> None:
        """Bound what brings no body: an endless head, trailer or chunk extension."""
        self._unproductive_bytes += count
        if self._unproductive_bytes > self._max_head_bytes and self.fault is None:
            self.fault = "response_too_large"

    def _refuse(self, fault: FailureCode) -> _Refused:
        self.fault = fault
        return _Refused(fault)

    # What httptools calls.

    def on_message_begin(self) -> None:
        if self.is_complete:
            self._surplus = True
            raise _Refused("bytes after the end of the response")

    def on_status(self, reason: bytes) -> None:
        self._reason += reason
        self._count_head(len(reason))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is not None:
            return  # a trailer: nothing that a worker's trailers could say is of use here
        name, value = name.lower(), value.rstrip(b" \t")
        self._fields.append((name, value))
        self._count_head(len(name) + len(value) + _FIELD_OVERHEAD)
        if name == b"content-length":
            self._content_length = int(value)
        elif name == b"transfer-encoding":
            # We send no TE, so no other coding may be used (RFC 9112, 7.4). Passing one on with
            # its name stripped, as every proxy must, would hand out a body nobody can read.
            if self._chunked or value.lower() != b"chunked":
                raise self._refuse("bad_response_framing")
            self._chunked = True

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self._max_head_bytes:
            raise self._refuse("response_too_large")

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        status = parser.get_status_code()
        if status == 101 or parser.get_http_version() not in _VERSIONS:
            raise self._refuse("bad_response_framing")
        if status < 200:
            return  # interim: on_message_complete forgets it
        self.head = Head(
            status=status,
            reason=self._reason,
            headers=tuple(self._fields),
            content_length=self._content_length,
        )
        if self._is_head_request:
            # llhttp now waits for a body that never comes: its state is of no further use,
            # unless it knows by itself that there is none and says so at once.
            self._keep_alive = False
            self.is_complete = True

    def on_body(self, data: bytes) -> None:
        if self.head is None:
            raise self._refuse("bad_response_framing")  # an interim response with a body
        if self.is_complete:
            self._surplus = True  # a body after the head that answers HEAD
        elif data:
            self._body.append(data)

    def on_message_complete(self) -> None:
        if self.head is None:
            self._reset_head()
            return
        parser = self._parser
        assert parser is not None
        # A chunked response of version 1.0 has doubtful framing (RFC 9112, 6.1).
        doubtful = self._chunked and parser.get_http_version() == "1.0"
        self._keep_alive = parser.should_keep_alive() and not doubtful
        self.is_complete = True
