"""What every request costs and comes to: an ASGI application around all others.

It opens the request's :class:`~slime_trio.observability.about.About`, times the answer, counts it,
writes its line and closes its span. It changes nothing of what passes.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from slime_trio.observability.about import ABOUT, About
from slime_trio.observability.counts import Counts, kind_of
from slime_trio.observability.spans import RequestSpan

if TYPE_CHECKING:
    from slime_trio.shared import Shared

__all__ = ["Watched"]

_LONGEST_PATH: Final = 200
UNFINISHED: Final = "unfinished"
"""The status of an answer that was not given whole: the client left, or it was cut off."""

_log: Any = structlog.get_logger("slime_router")


class Watched:
    """An ASGI application that is counted, timed, logged and traced.

    It expects a request's ``x-request-id`` (:mod:`slime_trio.request_id`).
    """

    def __init__(self, app: Any, shared: Shared) -> None:
        self._app = app
        self._shared = shared

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one scope; only requests over HTTP are watched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        about = About(_request_id(scope))
        token = ABOUT.set(about)
        exchange = _Watch(scope, receive, send, about)
        try:
            with self._shared.spans.request(scope, about) as span:
                try:
                    await self._app(scope, exchange.receive, exchange.send)
                finally:
                    exchange.settle(self._shared.counts, span)
                    if self._shared.args.verbose:
                        exchange.log()
        finally:
            ABOUT.reset(token)


def _request_id(scope: Any) -> str:
    for key, value in scope["headers"]:
        if key == b"x-request-id":
            return str(value.decode("latin-1"))
    return ""


class _Watch:
    """One request on its way."""

    def __init__(self, scope: Any, receive: Any, send: Any, about: About) -> None:
        self._scope, self._receive, self._send, self._about = scope, receive, send, about
        self._began = trio.current_time()
        self._first: float | None = None
        self._status = 0
        self._ended = False
        self._received = self._sent = 0

    async def receive(self) -> Any:
        """A message of the request."""
        message = await self._receive()
        self._received += len(message.get("body", b""))
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """A message of the answer."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif message["type"] == "http.response.body":
            self._sent += len(message.get("body", b""))
            if self._first is None:
                self._first = trio.current_time()
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._ended = True

    @property
    def _told_status(self) -> str:
        return str(self._status) if self._ended else UNFINISHED

    def settle(self, counts: Counts, span: RequestSpan) -> None:
        """Enter into the books what came of it. Awaits nothing."""
        kind = kind_of(self._scope["path"])
        now = trio.current_time()
        counts.requests.add((kind, self._told_status))
        if self._about.code is not None:
            counts.refusals.add((str(self._status), self._about.code))
        counts.received.add((kind,), self._received)
        counts.sent.add((kind,), self._sent)
        if kind in counts.whole:
            if self._first is not None:
                counts.first_byte[kind].observe(self._first - self._began)
            counts.whole[kind].observe(now - self._began)
        span.settle(self._status, ended=self._ended)

    def log(self) -> None:
        """Write its line."""
        _log.debug(
            "request",
            method=self._scope["method"],
            path=_readable(self._scope),
            status=self._told_status,
            seconds=round(trio.current_time() - self._began, 6),
            bytes_in=self._received,
            bytes_out=self._sent,
            calls=self._about.calls,
        )


def _readable(scope: Any) -> str:
    """The path, without its query, as one short word of ASCII."""
    path: str = scope["path"]
    shown = path.encode("ascii", "backslashreplace").decode("ascii")
    shown = "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in shown)
    return shown if len(shown) <= _LONGEST_PATH else shown[:_LONGEST_PATH] + "…"
