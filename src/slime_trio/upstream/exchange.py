"""One request and its response, on a connection of the pool."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any

import trio

from slime_trio.upstream.connection import Connection
from slime_trio.upstream.failures import UpstreamError
from slime_trio.upstream.response import Response
from slime_trio.upstream.site import Site

__all__ = ["Exchange"]


class Exchange:
    """One request and its response, as an async context manager that is entered once.

    Entering sends the request and waits for the response's head. Leaving never awaits: it keeps
    the connection if all went well and the body was received to its end, and closes it if not.
    """

    __slots__ = (
        "_before_send",
        "_body",
        "_connection",
        "_head",
        "_head_timeout_s",
        "_is_answered",
        "_is_connecting",
        "_is_head",
        "_site",
    )

    def __init__(
        self,
        site: Site,
        head: bytes,
        body: bytes,
        *,
        is_head: bool,
        head_timeout_s: float | None,
        before_send: Callable[[], None] | None,
    ) -> None:
        self._site = site
        self._head = head
        self._body = body
        self._is_head = is_head
        self._head_timeout_s = head_timeout_s
        self._before_send = before_send
        self._connection: Connection | None = None
        self._is_answered = False
        self._is_connecting = False

    def __aenter__(self) -> Coroutine[Any, Any, Response]:
        # Not a coroutine function itself: whoever waits would have one more to go through.
        return self._respond() if self._head_timeout_s is None else self._respond_within()

    async def _respond_within(self) -> Response:
        assert self._head_timeout_s is not None
        with trio.move_on_after(self._head_timeout_s):
            return await self._respond()
        raise UpstreamError(
            "connect_timeout" if self._is_connecting else "worker_timeout",
            worker_url=self._site.url,
            first_byte_sent=self._is_answered,
        )

    async def _respond(self) -> Response:
        site = self._site
        connection = site.take()
        is_reused = connection is not None
        while True:
            if connection is None:
                connection = await self._opened()
            try:
                if self._before_send is not None:
                    self._before_send()
                head = await connection.exchange_head(
                    self._head, self._body, is_head_request=self._is_head
                )
            except BaseException as error:
                self._is_answered = connection.is_answered
                site.discard(connection)
                if not (is_reused and _is_lost_unseen(error)):
                    raise
            else:
                self._connection = connection
                return Response(connection, head, worker_url=site.url)
            site.note_retry()
            connection, is_reused = None, False

    async def _opened(self) -> Connection:
        self._is_connecting = True
        connection = await self._site.open()
        self._is_connecting = False
        return connection

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None, "an exchange is left once, after it was entered"
        if exc_type is None:
            self._site.release(connection)
        else:
            self._site.discard(connection)


def _is_lost_unseen(error: BaseException) -> bool:
    """Whether a connection was lost before a byte of an answer came."""
    if not isinstance(error, UpstreamError):
        return False
    return error.code == "connection_lost" and not error.first_byte_sent
