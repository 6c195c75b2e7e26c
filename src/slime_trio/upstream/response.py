"""A worker's answer as it comes off a connection."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from slime_trio.upstream.connection import Connection
from slime_trio.upstream.failures import UpstreamError
from slime_trio.upstream.parser import Head

__all__ = ["Response"]


class Response:
    """A worker's answer: its head, and its body as it arrives.

    ``headers`` are ``(name, value)`` in their order, names lower-case, values as sent. The body
    is read by one of :meth:`receive_some`, :meth:`iter_bytes` and :meth:`read`, within the
    ``async with`` that gave the response.
    """

    __slots__ = ("_connection", "content_length", "headers", "reason", "status", "worker_url")

    def __init__(self, connection: Connection, head: Head, *, worker_url: str) -> None:
        self._connection = connection
        self.status = head.status
        self.reason = head.reason
        self.headers = head.headers
        self.content_length = head.content_length
        self.worker_url = worker_url

    def header(self, name: bytes) -> bytes | None:
        """The first value of a field, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def receive_some(self) -> Coroutine[Any, Any, bytes]:
        """The next piece of the body; ``b""`` at its end, again and again.

        Pieces are what single reads brought: never empty, never held back to fill a buffer.
        Raises :class:`UpstreamError` for a body that is cut off or malformed, also when called
        again. Cancelled, it leaves the exchange fit only to be left.
        """
        # Not a coroutine function itself: every event of a stream would go through one more.
        return self._connection.receive_some()

    def pass_on(self, take: Callable[[bytes], bool]) -> Coroutine[Any, Any, bool]:
        """Have ``take`` called with each piece, until it returns false; whether the body's end
        came first. Raises as :meth:`receive_some`, and what ``take`` raises."""
        return self._connection.pass_on(take)

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """The pieces of :meth:`receive_some`, for ``async for``."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self._connection.receive_some()
        if not data:
            raise StopAsyncIteration
        return data

    async def read(self, *, max_bytes: int | None = None) -> bytes:
        """The rest of the body. Raises ``response_too_large`` if it is over ``max_bytes``."""
        limit = math.inf if max_bytes is None else max_bytes
        pieces: list[bytes] = []
        size = self.content_length or 0
        if size <= limit:
            size = 0
            while data := await self._connection.receive_some():
                pieces.append(data)
                size += len(data)
                if size > limit:
                    break
            else:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        raise UpstreamError("response_too_large", worker_url=self.worker_url, first_byte_sent=True)
