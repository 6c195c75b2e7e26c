"""What every request costs and comes to: :class:`Watch` watches one, :class:`Watched` those of an
ASGI application around all others.

It opens the request's :class:`~slime_trio.observability.about.About`, times the answer, counts it,
writes its line and closes its span. It changes nothing of what passes.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from slime_trio.observability.about import ABOUT, About
from slime_trio.observability.counts import kind_of
from slime_trio.observability.spans import NO_SPANS, RequestSpan

if TYPE_CHECKING:
    from slime_trio.shared import Shared

__all__ = ["Watch", "Watched"]

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
        with Watch(self._shared, scope, _request_id(scope)) as watch:

            async def watched_receive() -> Any:
                message = await receive()
                watch.received += len(message.get("body", b""))
                return message

            async def watched_send(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    watch.status = message["status"]
                elif message["type"] == "http.response.body":
                    watch.sends(len(message.get("body", b"")))
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    watch.has_ended = True

            await self._app(scope, watched_receive, watched_send)


def _request_id(scope: Any) -> str:
    for key, value in scope["headers"]:
        if key == b"x-request-id":
            return str(value.decode("latin-1"))
    return ""


class Watch:
    """One request on its way: a context in which it is served, told what passes.

    ``scope`` is its ASGI scope, or as much of one: method, path, scheme and header fields.
    ``kind`` is what its path is for (:func:`~slime_trio.observability.counts.kind_of`), where that
    is known. A class and no generator: every request pays for it.
    """

    __slots__ = (
        "_about",
        "_began",
        "_first",
        "_kind",
        "_opened",
        "_scope",
        "_sent",
        "_shared",
        "_span",
        "_token",
        "has_ended",
        "received",
        "status",
    )

    def __init__(
        self, shared: Shared, scope: Mapping[str, Any], request_id: str, *, kind: str | None = None
    ) -> None:
        self._shared = shared
        self._scope = scope
        self._kind = kind or kind_of(scope["path"])
        self._about = About(request_id)
        self._began = trio.current_time()
        self._opened: AbstractContextManager[RequestSpan] | None = None
        self._first: float | None = None
        self.status = 0
        """The answer's, once it has one."""
        self.has_ended = False
        """Whether the whole answer was sent."""
        self.received = 0
        """How much of the request's body came."""
        self._sent = 0

    def __enter__(self) -> Watch:
        self._token = ABOUT.set(self._about)
        spans = self._shared.spans
        if spans is not NO_SPANS:
            self._opened = spans.request(self._scope, self._about)
            self._span = self._opened.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._settle()
            if self._shared.args.verbose:
                self._log()
        finally:
            if self._opened is not None:
                self._opened.__exit__(kind, error, trace)
            ABOUT.reset(self._token)

    def sends(self, count: int) -> None:
        """So much of the answer's body is about to be sent."""
        self._sent += count
        if self._first is None:
            self._first = trio.current_time()

    def _told_status(self) -> str:
        return str(self.status) if self.has_ended else UNFINISHED

    def _settle(self) -> None:
        """Enter into the books what came of it. Awaits nothing."""
        counts, kind = self._shared.counts, self._kind
        now = trio.current_time()
        counts.requests.add((kind, self._told_status()))
        if self._about.code is not None:
            counts.refusals.add((str(self.status), self._about.code))
        counts.received[kind,] += self.received  # of kinds there are few
        counts.sent[kind,] += self._sent
        if kind in counts.whole:
            if self._first is not None:
                counts.first_byte[kind].observe(self._first - self._began)
            counts.whole[kind].observe(now - self._began)
        if self._opened is not None:
            self._span.settle(self.status, ended=self.has_ended)

    def _log(self) -> None:
        """Write its line."""
        _log.debug(
            "request",
            method=self._scope["method"],
            path=_readable(self._scope),
            status=self._told_status(),
            seconds=round(trio.current_time() - self._began, 6),
            bytes_in=self.received,
            bytes_out=self._sent,
            calls=self._about.calls,
        )


def _readable(scope: Any) -> str:
    """The path, without its query, as one short word of ASCII."""
    path: str = scope["path"]
    shown = path.encode("ascii", "backslashreplace").decode("ascii")
    shown = "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in shown)
    return shown if len(shown) <= _LONGEST_PATH else shown[:_LONGEST_PATH] + "…"
