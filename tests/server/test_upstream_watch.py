"""The watch: ends of idle connections are noticed on real sockets, without a request."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import memory_stream_pair

from slime_trio.upstream import EndWatch, Pool, TrioStream
from tests.server.upstream_support import HTTP_OK, answer


class Sockets:
    """A worker whose connections a test closes as it likes."""

    def __init__(self, pool: Pool, url: str) -> None:
        self.pool = pool
        self.url = url
        self.theirs: list[trio.SocketStream] = []
        self.answer = HTTP_OK

    async def serve(self, stream: trio.SocketStream) -> None:
        self.theirs.append(stream)
        with suppress(trio.ClosedResourceError):  # a test has closed it
            async for data in stream:
                if data.endswith(b"\r\n\r\n"):
                    await stream.send_all(self.answer)

    async def ask(self) -> None:
        async with self.pool.request("GET", self.url, b"/") as response:
            await response.read()

    async def until_idle(self, count: int) -> None:
        with trio.fail_after(5):
            while self.pool.idle(self.url) != count:  # noqa: ASYNC110 - nothing to wait on
                await trio.sleep(0.001)


@pytest.fixture
async def sockets() -> AsyncIterator[Sockets]:
    async with _serving() as served:
        yield served


@asynccontextmanager
async def _serving() -> AsyncIterator[Sockets]:
    watch = EndWatch()
    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        served = Sockets(Pool(watch=watch), url)
        nursery.start_soon(trio.serve_listeners, served.serve, [listener])
        yield served
        await served.pool.aclose()
        nursery.cancel_scope.cancel()


async def _two_idle(sockets: Sockets) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sockets.ask)
        nursery.start_soon(sockets.ask)
    assert sockets.pool.idle(sockets.url) == 2


def _reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.socket.close()


def _close(stream: trio.SocketStream) -> None:
    stream.socket.close()


def _half_close(stream: trio.SocketStream) -> None:
    stream.socket.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("end", [_close, _reset, _half_close])
async def test_an_idle_connection_is_dropped_when_its_worker_ends_it(
    sockets: Sockets, end: Callable[[trio.SocketStream], None]
) -> None:
    await _two_idle(sockets)
    end(sockets.theirs[0])
    await sockets.until_idle(1)
    assert sockets.pool.stats().in_use == 0


async def test_others_stay_and_are_used(sockets: Sockets) -> None:
    await _two_idle(sockets)
    _close(sockets.theirs[1])
    await sockets.until_idle(1)
    await sockets.ask()
    stats = sockets.pool.stats()
    assert (stats.opened, stats.reused, stats.retried) == (2, 1, 0)


async def test_a_worker_that_closes_all_at_once(sockets: Sockets) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(sockets.ask)
    for stream in sockets.theirs:
        _close(stream)
    await sockets.until_idle(0)


async def test_an_answer_behind_which_the_worker_half_closed_is_read_and_nothing_follows(
    sockets: Sockets,
) -> None:
    async with sockets.pool.request("GET", sockets.url, b"/") as response:
        _half_close(sockets.theirs[0])
        await trio.sleep(0.01)  # the end is noticed while the answer is still unread
        assert await response.read() == b"ok"
    assert sockets.pool.idle(sockets.url) == 0


async def test_a_number_that_is_used_again_belongs_to_its_new_connection(sockets: Sockets) -> None:
    await sockets.ask()
    sockets.pool.forget(sockets.url)
    await sockets.ask()  # as a rule on a socket with the number that was just closed
    _close(sockets.theirs[-1])
    await sockets.until_idle(0)
    assert sockets.pool.stats().in_use == 0


async def test_a_large_answer_is_one_that_a_watched_connection_survives(sockets: Sockets) -> None:
    sockets.answer = answer(bytes(1_000_000))
    await sockets.ask()
    await sockets.ask()
    assert sockets.pool.stats().reused == 1


async def test_a_watch_that_has_ended_notices_nothing_and_harms_nobody() -> None:
    async with _serving() as served:
        await served.ask()
    watch = served.pool.watch
    watch.add(0, lambda: None)
    watch.remove(0)
    watch.add(-1, lambda: None)


async def test_a_stream_is_watched_at_the_socket_under_it() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = TrioStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        assert stream.socket_number() == ours.fileno() != -1
        stream.close()
        assert stream.socket_number() == -1


async def test_a_stream_in_memory_has_no_socket() -> None:
    ours, _ = memory_stream_pair()
    assert TrioStream(ours).socket_number() == -1
