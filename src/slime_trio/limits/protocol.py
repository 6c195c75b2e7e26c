"""One connection's requests, held to the limits: h11 and Hypercorn's protocol around it.

Hypercorn reads whatever h11 takes, also what two readers may read in two ways, starts HTTP/2 or a
WebSocket on the same connection where a client asks for it, and answers what it refuses without a
word. Here each head is judged before h11 reads it (:mod:`slime_trio.limits.head`), bodies are
counted as they arrive, ``upgrade`` is ignored as RFC 9110 (7.8) leaves to a server, and a refusal
says why.
"""

from __future__ import annotations

from typing import Any, Final

import h11
from h11._readers import ChunkedReader
from hypercorn.protocol.h11 import H11Protocol

from slime_trio.limits.head import (
    MALFORMED,
    TOO_LARGE,
    HeadLimits,
    Phase,
    Refusal,
    body_refusal,
    end_of_head,
    judge_head,
    judge_start,
)
from slime_trio.limits.refusals import refusal_body

__all__ = ["StrictConnection", "StrictProtocol"]

_UPGRADING: Final = frozenset({b"upgrade", b"http2-settings"})


class StrictConnection(h11.Connection):
    """An h11 server that refuses more. ``refusal`` is why, once it has."""

    def __init__(self, limits: HeadLimits) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self.limits: Final = limits
        self.refusal: Refusal | None = None
        self.is_head_request = False
        self._body_bytes = 0

    @property
    def phase(self) -> Phase:
        """What is awaited of the client."""
        if self.their_state is h11.IDLE:
            return "head" if self.trailing_data[0] else "idle"
        return "body" if self.their_state is h11.SEND_BODY else "answer"

    def next_event(self) -> Any:
        """As in h11. Raises ``h11.RemoteProtocolError`` for what is refused."""
        is_head = self.their_state is h11.IDLE
        if is_head:
            self._judge()
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            too_large = is_head and error.error_status_hint == 431
            self.refusal = TOO_LARGE if too_large else MALFORMED
            raise h11.RemoteProtocolError(str(error), self.refusal.status) from error
        if isinstance(event, h11.Request):
            self._body_bytes = 0
            self.is_head_request = event.method == b"HEAD"
            if isinstance(self._reader, ChunkedReader):
                self._reader = _StrictChunks()
            return _without_upgrade(event)
        if isinstance(event, h11.Data):
            self._body_bytes += len(event.data)
            if self._body_bytes > self.limits.body_bytes:
                self._refuse(body_refusal(self.limits))
        return event

    def _judge(self) -> None:
        waiting = self.trailing_data[0]
        if not waiting:
            return
        end = end_of_head(waiting)
        begun = end < 0
        refusal = judge_start(waiting) if begun else judge_head(waiting[:end], self.limits)
        if refusal is not None:
            self._refuse(refusal)

    def fail(self, refusal: Refusal) -> None:
        """Read nothing more, because of what the client sent or did not send."""
        self.refusal = refusal
        # As h11 does for what it refuses itself.
        self._process_error(h11.CLIENT)

    def _refuse(self, refusal: Refusal) -> None:
        self.fail(refusal)
        raise h11.RemoteProtocolError(refusal.message, error_status_hint=refusal.status)


class _StrictChunks(ChunkedReader):
    """Reads chunks, and no return within their extensions, which others take for a line's end."""

    def __call__(self, buf: Any) -> Any:
        return super().__call__(_Lines(buf))  # type: ignore[arg-type]


class _Lines:
    """What a reader of chunks uses of h11's buffer."""

    def __init__(self, buf: Any) -> None:
        self.maybe_extract_at_most = buf.maybe_extract_at_most
        self.maybe_extract_lines = buf.maybe_extract_lines
        self._next_line = buf.maybe_extract_next_line

    def maybe_extract_next_line(self) -> Any:
        line = self._next_line()
        if line is not None and line.count(b"\r") != 1:
            raise h11.LocalProtocolError("a return within a line")
        return line


def _without_upgrade(request: h11.Request) -> h11.Request:
    headers = [(name, value) for name, value in request.headers if name not in _UPGRADING]
    if len(headers) == len(request.headers):
        return request
    return h11.Request(
        method=request.method,
        target=request.target,
        headers=headers,
        http_version=request.http_version,
    )


class StrictProtocol(H11Protocol):
    """Hypercorn's HTTP/1.1 over a :class:`StrictConnection`."""

    connection: StrictConnection

    def __init__(self, *arguments: Any, limits: HeadLimits) -> None:
        super().__init__(*arguments)
        self.connection = StrictConnection(limits)

    @property
    def is_refused(self) -> bool:
        """Whether the connection is to end because of what the client sent, or did not send."""
        return self.connection.refusal is not None

    async def refuse(self, refusal: Refusal) -> None:
        """Answer so, where no answer has begun; nothing more is read."""
        self.connection.fail(refusal)
        if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._send_error_response(refusal.status)

    async def _send_error_response(self, status_code: int) -> None:
        """An error as all others of this server are worded."""
        refusal = self.connection.refusal or MALFORMED
        body = refusal_body(refusal)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=refusal.status, headers=headers))
        if not self.connection.is_head_request:
            await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())
