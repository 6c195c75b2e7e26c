"""A request's head as the listener knows it, and heads that come again.

On one connection nearly all heads are alike but for the length of the body. What was read and
judged once need not be read and judged again: where every byte is the same but the digits of the
length, so is all that follows from them (:class:`SameHead`). That is a comparison and no parser.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from slime_trio.limits.head import HeadLimits

__all__ = ["LONGEST_KEPT", "RequestHead", "SameHead"]

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)(?=\r\n)", re.IGNORECASE)
_DIGITS: Final = 18
LONGEST_KEPT: Final = 4096
"""Longer heads are not worth remembering: a connection holds twice as much while it waits."""


class RequestHead(NamedTuple):
    """A request line and its fields; a named tuple, since one is made for each request.

    ``target`` is as written. ``headers`` keeps order, repetitions and the case of values; names are
    lower-case. ``content_length`` is ``None`` where none was announced: then ``has_body`` says
    whether chunks follow. ``keep_alive`` says whether another request may follow, and
    ``expects_continue`` that the client may wait for a 100 before it sends the body.
    """

    method: str
    target: bytes
    headers: list[tuple[bytes, bytes]]
    http_version: str
    keep_alive: bool
    content_length: int | None
    has_body: bool
    expects_continue: bool


class SameHead:
    """A head that was taken, and announced a length; ``head`` are its bytes."""

    __slots__ = ("_before", "_behind", "_most", "_place", "_request")

    def __init__(self, head: bytes, request: RequestHead, limits: HeadLimits) -> None:
        found = _LENGTH.search(head)
        self._before = head if found is None else head[: found.start(1)]
        self._behind = b"" if found is None else head[found.end(1) :]
        # Its list is its own: whoever serves the first request may change that.
        self._request = request._replace(headers=request.headers.copy())
        names = [name for name, _ in request.headers]
        self._place = names.index(b"content-length")
        room = limits.head_bytes - len(self._before) - len(self._behind)
        self._most = -1 if found is None or room < _DIGITS else limits.body_bytes

    def again(self, data: bytes) -> tuple[RequestHead, int] | None:
        """The head that ``data`` begins with, and where it ends, if it is this one again with a
        length of its own, which must be allowed."""
        if not data.startswith(self._before):
            return None
        start = len(self._before)
        end = data.find(b"\r", start, start + _DIGITS + 1)
        digits = data[start:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._behind, end):
            return None
        length = int(digits)
        if length > self._most:
            return None
        one = self._request
        headers = one.headers.copy()
        headers[self._place] = (b"content-length", digits)
        request = RequestHead(
            one.method,
            one.target,
            headers,
            one.http_version,
            one.keep_alive,
            length,
            length > 0,
            one.expects_continue,
        )
        return request, end + len(self._behind)
