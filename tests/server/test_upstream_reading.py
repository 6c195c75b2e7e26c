"""Pieces of a body that are taken by plain calls, off real sockets and off other streams."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from slime_trio.upstream import Pool, Response, UpstreamError
from tests.server.upstream_support import URL, Peer, Workers

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
WHO: ContextVar[str] = ContextVar("WHO", default="nobody")

Script = Callable[[Peer], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def into(taken: list[bytes], *, more: bool = True) -> Callable[[bytes], bool]:
    """Takes pieces there, and wants more or not."""

    def take(data: bytes) -> bool:
        taken.append(data)
        return more

    return take


class Sent:
    """A worker that sends what a test tells it to, and ends when told nothing more."""

    def __init__(self) -> None:
        self._tell, self._told = trio.open_memory_channel[bytes](10)
        self.has_left = trio.Event()

    async def script(self, peer: Peer) -> None:
        await peer.request()
        async for data in self._told:
            await peer.send(data)
        self.has_left.set()

    def say(self, data: bytes) -> None:
        self._tell.send_nowait(data)

    def leave(self) -> None:
        self._tell.close()


@asynccontextmanager
async def answering(sent: Sent, *, runs: bool = True) -> AsyncIterator[tuple[Response, Pool]]:
    """The answer of a worker behind a socket, whose head has come."""

    async def handle(stream: trio.SocketStream) -> None:
        await sent.script(Peer(stream, 0))
        await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        pool = Pool()
        if runs:
            await nursery.start(pool.readers.run)
        sent.say(HEAD)
        with trio.fail_after(10):
            async with pool.request("POST", url, b"/") as response:
                yield response, pool
        pool.close()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("runs", [True, False], ids=["called", "woken"])
async def test_every_piece_is_taken_up_to_the_end(runs: bool) -> None:
    sent, taken = Sent(), list[bytes]()

    def take(data: bytes) -> bool:
        taken.append(data)
        sent.say(chunk(b"b") if len(taken) == 1 else END)
        return True

    async with answering(sent, runs=runs) as (response, _):
        sent.say(chunk(b"a"))
        assert await response.pass_on(take)
    assert taken == [b"a", b"b"]


async def test_what_came_with_the_head_is_taken_first() -> None:
    sent, taken = Sent(), list[bytes]()
    sent.say(HEAD + chunk(b"a") + END)
    async with answering(sent) as (response, _):
        assert await response.pass_on(into(taken))
    assert taken == [b"a"]


@pytest.mark.parametrize("runs", [True, False], ids=["called", "woken"])
async def test_whoever_wants_no_more_goes_on_where_it_stopped(runs: bool) -> None:
    sent, taken = Sent(), list[bytes]()
    async with answering(sent, runs=runs) as (response, _):
        for data in (b"a", b"b"):
            sent.say(chunk(data))
            assert not await response.pass_on(into(taken, more=False))
        sent.say(END)
        assert await response.receive_some() == b""
    assert taken == [b"a", b"b"]


async def test_a_piece_is_taken_without_waking_the_task_and_in_its_context() -> None:
    sent, taken = Sent(), list[tuple[bytes, str]]()

    async with answering(sent) as (response, _):
        task = trio.lowlevel.current_task()
        WHO.set("the task")
        steps: list[trio.lowlevel.Task] = []

        class Steps(trio.abc.Instrument):
            def before_task_step(self, task: trio.lowlevel.Task) -> None:
                steps.append(task)

        def take(data: bytes) -> bool:
            taken.append((data, WHO.get()))
            if len(taken) == 1:
                steps.clear()
            sent.say(chunk(b"more"))
            return len(taken) < 5

        trio.lowlevel.add_instrument(instrument := Steps())
        sent.say(chunk(b"a"))
        assert not await response.pass_on(take)
        trio.lowlevel.remove_instrument(instrument)
        assert [one for one in steps if one is task] == [task]
    assert taken[1:] == 4 * [(b"more", "the task")]


@pytest.mark.parametrize("end", [b"", b"nonsense"], ids=["cut off", "malformed"])
async def test_a_broken_body_is_the_readers_to_know(end: bytes) -> None:
    sent, taken = Sent(), list[bytes]()

    def take(data: bytes) -> bool:
        taken.append(data)
        if end:
            sent.say(end)
        else:
            sent.leave()
        return True

    async with answering(sent) as (response, _):
        sent.say(chunk(b"a"))
        with pytest.raises(UpstreamError):
            await response.pass_on(take)
        with pytest.raises(UpstreamError):
            await response.pass_on(take)
        sent.leave()
    assert taken == [b"a"]


async def test_what_a_taker_raises_is_its_own_tasks_alone() -> None:
    sent, other, taken = Sent(), Sent(), list[bytes]()

    def take(data: bytes) -> bool:
        raise ValueError(data)

    async with answering(sent) as (response, pool), trio.open_nursery() as nursery:

        async def beside() -> None:
            async with answering(other) as (second, _):
                second._connection._readers = pool.readers
                await second.pass_on(into(taken))

        nursery.start_soon(beside)
        await wait_all_tasks_blocked(0.01)
        sent.say(chunk(b"a"))
        with pytest.raises(ValueError, match="a"):
            await response.pass_on(take)
        other.say(chunk(b"b") + END)
        sent.leave()
    assert taken == [b"b"]


async def test_who_is_cancelled_is_not_called_any_more() -> None:
    sent, taken = Sent(), list[bytes]()
    async with answering(sent) as (response, pool):
        with trio.CancelScope() as scope:

            def take(data: bytes) -> bool:
                taken.append(data)
                scope.cancel()
                return True

            sent.say(chunk(b"a"))
            await response.pass_on(take)
        assert scope.cancelled_caught
        sent.say(chunk(b"b"))
        await wait_all_tasks_blocked(0.01)
        assert not pool.readers._readers
        sent.leave()
    assert taken == [b"a"]


@pytest.mark.parametrize("ending", ["wants no more", "raises"])
async def test_who_is_cancelled_by_what_it_takes_may_end_by_it_too(ending: str) -> None:
    sent, other, taken = Sent(), Sent(), list[bytes]()
    async with answering(sent) as (response, pool), answering(other) as (second, _):
        second._connection._readers = pool.readers
        with trio.CancelScope() as scope:

            def take(data: bytes) -> bool:
                scope.cancel()
                if ending == "raises":
                    raise ValueError(data)
                return False

            sent.say(chunk(b"a"))
            await response.pass_on(take)
        assert scope.cancelled_caught
        other.say(chunk(b"b") + END)
        assert await second.pass_on(into(taken))
        sent.leave()
    assert taken == [b"b"]


async def test_where_nobody_calls_any_more_the_task_reads_on_by_itself() -> None:
    sent, taken = Sent(), list[bytes]()
    async with answering(sent, runs=False) as (response, pool), trio.open_nursery() as nursery:
        await nursery.start(pool.readers.run)

        def take(data: bytes) -> bool:
            taken.append(data)
            nursery.cancel_scope.cancel()
            sent.say(chunk(b"b") + END)
            return True

        sent.say(chunk(b"a"))
        with trio.CancelScope(shield=True):
            assert await response.pass_on(take)
    assert taken == [b"a", b"b"]


async def test_where_the_kernel_has_no_room_for_a_watch_the_task_reads_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full:
        def register(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, "no room")

    sent, taken = Sent(), list[bytes]()
    async with answering(sent) as (response, pool):
        monkeypatch.setattr(pool.readers, "_epoll", Full())
        sent.say(chunk(b"a") + END)
        assert await response.pass_on(into(taken))
    assert taken == [b"a"]


async def test_streams_that_are_no_sockets_are_read_as_ever(autojump_clock: object) -> None:
    taken = list[bytes]()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(b"a"))
        await trio.sleep(1)
        await peer.send(chunk(b"b") + END)

    async with trio.open_nursery() as nursery:
        workers = Workers(nursery, script)
        pool = Pool(connect=workers)
        await nursery.start(pool.readers.run)
        async with pool.request("POST", URL, b"/") as response:
            assert await response.pass_on(into(taken))
        nursery.cancel_scope.cancel()
    assert taken == [b"a", b"b"]
