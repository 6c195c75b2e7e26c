"""The answer of a pair, in the form of one worker's: in hand, or still coming."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable

from slime_trio.exchange import Headers
from slime_trio.upstream import GivenAnswer, Response, UpstreamError

__all__ = ["Flowing", "given"]

_OF_THE_BODY = (b"content-length", b"transfer-encoding")


def given(like: Response, body: bytes) -> GivenAnswer:
    """An answer whose whole body is there already; status, fields and worker are ``like``'s."""
    headers = [(name, value) for name, value in like.headers if name not in _OF_THE_BODY]
    headers.append((b"content-length", b"%d" % len(body)))
    return GivenAnswer(like.status, headers, body, worker_url=like.worker_url)


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
        self.receive_some = receive

    def header(self, name: bytes) -> bytes | None:
        """The first value of a field, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """The pieces, none of them empty."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        data = await self.receive_some()
        if not data:
            raise StopAsyncIteration
        return data

    async def pass_on(self, take: Callable[[bytes], bool]) -> bool:
        """Have ``take`` called with each piece, until it returns false; whether the end came."""
        async for data in self:
            if not take(data):
                return False
        return True

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
