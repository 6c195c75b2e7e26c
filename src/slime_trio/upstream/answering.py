"""What an answer is to those who read it, wherever it comes from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Protocol

import trio

__all__ = ["GivenAnswer", "WorkerAnswer"]


class WorkerAnswer(Protocol):
    """A worker's answer: its head, and its body as it arrives. The body is read once.

    Of one worker it is a :class:`~slime_trio.upstream.Response`.
    """

    @property
    def status(self) -> int:
        """Its HTTP status."""

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Fields in their order, names in lower case."""

    @property
    def content_length(self) -> int | None:
        """How long the body is, if it was said."""

    @property
    def worker_url(self) -> str:
        """Whose answer it is, for the books; no client sees it."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of a field, by its lower-case name."""

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """The body, in pieces that are never empty. Raises ``UpstreamError``."""

    def receive_some(self) -> Awaitable[bytes]:
        """The next of these pieces; ``b""`` behind the last. Raises ``UpstreamError``."""

    def pass_on(self, take: Callable[[bytes], bool]) -> Awaitable[bool]:
        """Have ``take`` called with each of these pieces, until it returns false; whether the end
        came first. Raises ``UpstreamError``, and what ``take`` raises."""

    async def read(self, *, max_bytes: int | None = None) -> bytes:
        """The rest of the body. Raises ``UpstreamError`` if it is over ``max_bytes``."""


class GivenAnswer:
    """An answer that is there already: the router's own, or one that was kept."""

    def __init__(
        self,
        status: int,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        *,
        worker_url: str = "",
    ) -> None:
        self.status = status
        self.headers = list(headers)
        self.content_length: int | None = len(body)
        self.worker_url: Final = worker_url
        self._body = body

    def header(self, name: bytes) -> bytes | None:
        """The first value of a field, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """The body in one piece; nothing where it is empty."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if body := await self.read():
            return body
        raise StopAsyncIteration

    def receive_some(self) -> Awaitable[bytes]:
        """The body; then nothing."""
        return self.read()

    async def pass_on(self, take: Callable[[bytes], bool]) -> bool:
        """The body in one piece."""
        body = await self.read()
        return not body or (take(body) and await self.pass_on(take))

    async def read(self, *, max_bytes: int | None = None) -> bytes:
        """All of it, once: it is no larger than what was read to make it."""
        await trio.lowlevel.checkpoint()
        body, self._body = self._body, b""
        return body
