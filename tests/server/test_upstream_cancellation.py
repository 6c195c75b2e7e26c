"""Cancelled at every step it has, a request leaves no connection open and none in the pool."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from slime_trio.upstream import Pool
from tests.server.upstream_support import HTTP_OK, URL, Peer, Workers

STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class CancelAtStep(trio.abc.Instrument):
    """Cancels the scope of the current task when that task is about to run its n-th step."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._task = trio.lowlevel.current_task()
        self._scope = scope
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def stream_after_race(peer: Peer) -> None:
    """A GET is answered, and the connection with it is gone; a POST's answer takes its time."""
    request = await peer.request()
    if request is None or request[0].startswith(b"GET"):
        await peer.send(HTTP_OK)
        return
    await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    await trio.sleep(1)
    await peer.send(STREAM)
    for _ in range(3):
        await trio.sleep(1)
        await peer.send(b"2\r\nab\r\n")
    await peer.send(b"0\r\n\r\n")
    await peer.request()


async def read_all(pool: Pool) -> None:
    async with pool.request("POST", URL, b"/", (), bytes(10**5), head_timeout_s=60) as response:
        async for piece in response.iter_bytes():
            assert piece == b"ab"


async def warm_up(pool: Pool) -> None:
    async with pool.request("GET", URL, b"/") as response:
        await response.read()
    await wait_all_tasks_blocked()


async def stay_cold(pool: Pool) -> None:
    await wait_all_tasks_blocked()


async def cancel_at(step: int, prepare: Callable[[Pool], Awaitable[None]]) -> bool:
    """Whether the request was through before its ``step``-th step; checks what is left."""
    async with trio.open_nursery() as nursery:
        workers = Workers(nursery, stream_after_race)
        pool = Pool(connect=workers)
        await prepare(pool)
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await read_all(pool)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        stats = pool.stats()
        assert stats.in_use == 0
        if scope.cancelled_caught:
            assert stats.idle == 0
        assert len(workers.open) == stats.idle
        nursery.cancel_scope.cancel()
    return not scope.cancelled_caught


@pytest.mark.parametrize("prepare", [warm_up, stay_cold])
def test_a_request_cancelled_at_any_step_leaves_nothing_open(
    prepare: Callable[[Pool], Awaitable[None]],
) -> None:
    step, is_through = 0, False
    while not is_through:
        step += 1
        is_through = trio.run(cancel_at, step, prepare, clock=MockClock(autojump_threshold=0))
    assert step > 8  # connect, two sends, the interim head, the head, three chunks and the end


async def test_a_deadline_while_the_body_is_read_closes_the_connection(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    hung_up_at = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM)
        assert await peer.request() is None
        hung_up_at.append(trio.current_time())

    workers = Workers(nursery, script)
    start = trio.current_time()
    with trio.move_on_after(2):
        async with Pool(connect=workers).request("GET", URL, b"/") as response:
            await response.receive_some()
    await wait_all_tasks_blocked()
    assert hung_up_at == [start + 2]
    assert workers.open == set()
