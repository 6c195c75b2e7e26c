"""The answer of a pair, in the form of one worker's: in hand, or still coming."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable

from slime_trio.exchange import Headers
from slime_trio.upstream import Response, UpstreamError

__all__ = ["Flowing", "Given"]

_OF_THE_BODY = (b"content-length", b"transfer-encoding")


class Given:
    """An answer whose whole body is there already.

    ``like``: the response whose status, fields and worker are this one's.
    """

    def __init__(self, like: Response, body: bytes) -> None:
        self.status: int = like.status
        self.headers: Headers = [
            (name, value) for name, value in like.headers if name not in _OF_THE_BODY
        ]
        self.headers.append((b"content-length", b"%d" % len(body)))
        self.content_length: int | None = len(body)
        self.worker_url: str = like.worker_url
        self._body = body

    def header(self, name: bytes) -> bytes | None:
        """The first value of a field, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        """The body, in one piece; nothing if it is empty."""
        body, self._body = self._body, b""
        if body:
            yield body

    async def read(self, *, max_bytes: int | None = None) -> bytes:
        """The body. Raises ``response_too_large`` if it is over ``max_bytes``."""
        if max_bytes is not None and len(self._body) > max_bytes:
            raise UpstreamError(
                "response_too_large", worker_url=self.worker_url, first_byte_sent=True
            )
        body, self._body = self._body, b""
        return body


class Flowing:
    """An answer whose body comes piece by piece from ``receive``, ``b""`` at its end.

    ``same_body``: the pieces are the worker's own bytes, so its framing still holds.
    """

    def __init__(
        self, like: Response, receive: Callable[[], Awaitable[bytes]], *, same_body: bool
    ) -> None:
        self.status: int = like.status
        self.headers: Headers = [
            (name, value) for name, value in like.headers if same_body or name not in _OF_THE_BODY
        ]
        self.content_length: int | None = like.content_length if same_body else None
        self.worker_url: str = like.worker_url
        self._receive = receive

    def header(self, name: bytes) -> bytes | None:
        """The first value of a field, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """The pieces, none of them empty."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self._receive()
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
            async for data in self:
                pieces.append(data)
                size += len(data)
                if size > limit:
                    break
            else:
                return b"".join(pieces)
        raise UpstreamError("response_too_large", worker_url=self.worker_url, first_byte_sent=True)
