"""One answer as bytes: the sending half of the listener. No I/O.

Heads are as h11 writes them under Hypercorn, as far as a client can tell: no reason phrase, the
fields in their order, then ``date``, ``transfer-encoding`` and ``connection``; HTTP/1.0 is answered
as 1.1 and its connection closed (RFC 9112, 2.5 and 9.3). A body whose length is announced is
passed on as it is; another goes in chunks, or to an older client up to the end of the connection.

What is wrong here is a bug of ours and no client's doing: a field that would end its line, a body
that is not as long as announced, calls out of order. All raise
:class:`~slime_core.errors.InvariantError`, and the connection must then be closed, lest its client
take what follows for something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal

from slime_core.errors import InvariantError
from slime_trio.listener.request_head import RequestHead

__all__ = ["AnswerWriter"]

_ENDING: Final = frozenset({b"connection", b"content-length", b"transfer-encoding"})
_WITHOUT_BODY: Final = (204, 304)
_LENGTH: Final = re.compile(rb"[0-9]{1,19}")

_Part = Literal["head", "body", "end"]
_Framing = Literal["none", "length", "chunks", "close"]


class AnswerWriter:
    """The answer to ``request``; to what never became a request, where it is ``None``.

    :meth:`interim` if at all, :meth:`start`, then :meth:`data` for each piece, :meth:`end`. Each
    returns the bytes to send, which may be none. Head and first piece belong into one send.
    """

    __slots__ = ("_closes", "_framing", "_is_head", "_is_new", "_part", "_wanted")

    def __init__(self, request: RequestHead | None = None) -> None:
        self._closes = request is None or not request.keep_alive
        self._is_new = request is not None and request.http_version == "1.1"
        self._is_head = request is not None and request.method == "HEAD"
        self._part: _Part = "head"
        self._framing: _Framing = "none"
        self._wanted = 0  # bytes that an announced length still wants

    @property
    def announces_length(self) -> bool:
        """Whether the head that was written says how long its body is."""
        return self._framing == "length"

    @property
    def keeps_alive(self) -> bool:
        """Whether the answer is complete and another request may follow it."""
        return self._part == "end" and not self._closes

    def interim(self, status: int, *, date: bytes) -> bytes:
        """A head before the head, such as 100; nothing for clients of version 1.0."""
        self._must_be("head")
        if not 100 <= status < 200:
            raise InvariantError(f"an interim answer of status {status}")
        return _head(status, [(b"date", date)]) if self._is_new else b""

    def start(
        self,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        date: bytes,
        closes: bool = False,
    ) -> bytes:
        """The head. ``closes`` announces that the connection ends with this answer.

        Of ``headers`` ``content-length`` is heeded, and that ``connection`` may say ``close``;
        ``transfer-encoding`` is nobody else's business. Names are lower-case.
        """
        self._must_be("head")
        self._part = "body"
        if not 200 <= status < 1000:
            raise InvariantError(f"an answer of status {status}")
        fields = self._heed(headers)
        self._frame(status)
        fields.append((b"date", date))
        if self._framing == "chunks":
            fields.append((b"transfer-encoding", b"chunked"))
        if closes or self._closes:
            self._closes = True
            fields.append((b"connection", b"close"))
        return _head(status, fields)

    def data(self, piece: bytes) -> bytes:
        """Some of the body."""
        self._must_be("body")
        if self._is_head or self._framing == "none" or not piece:
            return b""
        if self._framing == "chunks":
            return b"%x\r\n%b\r\n" % (len(piece), piece)
        if self._framing == "length":
            self._wanted -= len(piece)
            if self._wanted < 0:
                self._closes = True
                raise InvariantError("a body is longer than announced")
        return piece

    def end(self) -> bytes:
        """The end of the body."""
        self._must_be("body")
        if self._wanted and not self._is_head:
            self._closes = True
            raise InvariantError("a body is shorter than announced")
        self._part = "end"
        return b"0\r\n\r\n" if self._framing == "chunks" and not self._is_head else b""

    def _must_be(self, part: _Part) -> None:
        if self._part != part:
            self._closes = True
            raise InvariantError(f"the answer is at its {self._part}, not at its {part}")

    def _heed(self, fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The fields without those that are decided here; what they say is remembered."""
        kept = []
        for field in fields:
            name, value = field
            if name not in _ENDING:
                kept.append(field)
            elif name == b"content-length":
                if self._framing == "length" or not _LENGTH.fullmatch(value):
                    raise InvariantError("an answer announces no length, or more than one")
                self._framing, self._wanted = "length", int(value)
                kept.append(field)
            elif name == b"connection":
                self._closes = self._closes or b"close" in value.lower()
        return kept

    def _frame(self, status: int) -> None:
        """Decide how the end of the body will be known."""
        if status in _WITHOUT_BODY:
            self._framing, self._wanted = "none", 0
        elif self._framing != "length":
            self._framing = "chunks" if self._is_new else "close"
            self._closes = self._closes or not self._is_new


def _head(status: int, fields: list[tuple[bytes, bytes]]) -> bytes:
    head = b"HTTP/1.1 %d \r\n%b\r\n" % (status, b"".join([b"%b: %b\r\n" % one for one in fields]))
    ends = len(fields) + 2
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
        raise InvariantError("a field of an answer would end its line")
    return head
