"""Workers made of memory streams, for tests of the upstream pool in virtual time."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable

import trio
from trio.testing import memory_stream_pair

from slime_trio.upstream import Origin, TrioStream

__all__ = ["HTTP_OK", "URL", "Peer", "WorkerScript", "Workers", "answer"]

URL = "http://worker:30000"


def answer(body: bytes, *, status: bytes = b"200 OK", extra: bytes = b"") -> bytes:
    """A response with an announced length."""
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), extra, body)


HTTP_OK = answer(b"ok")


class Peer:
    """The worker's end of one connection. ``number`` counts connections from 0."""

    def __init__(self, stream: trio.abc.Stream, number: int) -> None:
        self.stream = stream
        self.number = number
        self._buffer = b""

    async def request(self) -> tuple[bytes, bytes] | None:
        """The next request's head and body, or ``None`` at the end of the stream."""
        while b"\r\n\r\n" not in self._buffer:
            if not await self._more():
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        size = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name == b"content-length":
                size = int(value)
        while len(self._buffer) < size:
            if not await self._more():
                return None
        body, self._buffer = self._buffer[:size], self._buffer[size:]
        return head, body

    async def _more(self) -> bool:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            return False
        self._buffer += data
        return bool(data)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def close(self) -> None:
        await self.stream.aclose()


WorkerScript = Callable[[Peer], Awaitable[None]]


class _Watched(TrioStream):
    """A stream that tells when it was closed."""

    def __init__(self, stream: trio.abc.Stream, on_close: Callable[[], None]) -> None:
        super().__init__(stream)
        self._on_close = on_close

    def close(self) -> None:
        self._on_close()
        super().close()


class Workers:
    """A ``connect`` for the pool: each connection meets a new run of ``script``.

    ``connected`` counts connections made, ``open`` holds the numbers of those not yet closed by
    the pool. An idle connection's end is not visible on these streams before it is used, which
    is how the keep-alive race is staged.
    """

    def __init__(self, nursery: trio.Nursery, script: WorkerScript) -> None:
        self._nursery = nursery
        self._script = script
        self.connected = 0
        self.open: set[int] = set()
        self.connect_delay_s = 0.0
        self.fail_with: Exception | None = None

    async def __call__(self, origin: Origin, tls: ssl.SSLContext | None) -> TrioStream:
        await trio.sleep(self.connect_delay_s)
        if self.fail_with is not None:
            raise self.fail_with
        ours, theirs = memory_stream_pair()
        number = self.connected
        self.connected += 1
        self.open.add(number)
        self._nursery.start_soon(self._run, Peer(theirs, number))
        return _Watched(ours, lambda: self.open.discard(number))

    async def _run(self, peer: Peer) -> None:
        # A script may meet a pool that hangs up on it: that is the pool's right.
        try:
            await self._script(peer)
        except trio.BrokenResourceError:
            pass
        finally:
            await peer.close()
