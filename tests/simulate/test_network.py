"""The simulated network: Trio's own conformance tests, and each thing that can go wrong."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from slime_trio.byte_stream import ClientStream
from slime_trio.upstream import Origin, parse_origin
from tests.simulate.shell.network import Calm, Network, SimStream

WORKER = parse_origin("http://w0:80")


@asynccontextmanager
async def _network(seed: int = 1, **options: Any) -> AsyncIterator[Network]:
    async with trio.open_nursery() as nursery:
        yield Network(seed, nursery, **options)
        nursery.cancel_scope.cancel()


def _in_virtual_time(work: Callable[[], Awaitable[None]]) -> None:
    trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))


async def _read(stream: SimStream, count: int) -> bytes:
    got = b""
    while len(got) < count:
        data = await stream.receive_some()
        assert data, got
        got += data
    return got


async def test_a_link_is_a_stream_as_trio_defines_it() -> None:
    async with _network() as network:

        async def pair() -> tuple[SimStream, SimStream]:
            return network.pair("client")

        async def clogged() -> tuple[SimStream, SimStream]:
            near, far = network.pair("client")
            near._out.put(bytes(near._out.window))
            far._out.put(bytes(far._out.window))
            return near, far

        await trio.testing.check_half_closeable_stream(pair, clogged)


def test_bytes_take_the_delay_of_their_conditions() -> None:
    async def run() -> None:
        async with _network() as network:
            near, far = network.pair("client", Calm(delay_s=2.5))
            await near.send_all(b"ab")
            assert await far.receive_some() == b"ab"
            assert trio.current_time() == 2.5

    _in_virtual_time(run)


def test_a_partition_holds_bytes_back_until_it_is_over_and_loses_none() -> None:
    async def run() -> None:
        weather = Calm()
        async with _network() as network, trio.open_nursery() as nursery:
            near, far = network.pair("client", weather)
            await near.send_all(b"a")
            assert await _read(far, 1) == b"a"
            weather.partitioned = True

            @nursery.start_soon
            async def heal() -> None:
                await near.send_all(b"bc")
                await trio.sleep(30)
                weather.partitioned = False
                network.changed()

            assert await _read(far, 2) == b"bc"
            assert trio.current_time() == 30

    _in_virtual_time(run)


def test_a_trickle_takes_time_and_comes_in_small_pieces() -> None:
    async def run() -> None:
        async with _network() as network:
            near, far = network.pair("client", Calm(trickle=True))
            await near.send_all(bytes(500))
            sizes: list[int] = []
            while sum(sizes) < 500:
                sizes.append(len(await far.receive_some()))
            assert len(sizes) > 10
            assert max(sizes) < 100
            assert trio.current_time() == pytest.approx(0.001 * (len(sizes) - 1))

    _in_virtual_time(run)


async def test_small_chunks_cut_reads_anywhere_and_change_nothing_else() -> None:
    sent = bytes(range(256)) * 100
    async with _network(chunk_bytes=7) as network, trio.open_nursery() as nursery:
        near, far = network.pair("client")
        nursery.start_soon(near.send_all, sent)
        got, sizes = b"", set()
        while len(got) < len(sent):
            data = await far.receive_some()
            sizes.add(len(data))
            got += data
        assert got == sent
        assert {1, 2, 3, 4, 5, 6, 7} <= sizes


def test_a_full_window_holds_the_sender_until_something_is_read() -> None:
    async def run() -> None:
        async with _network() as network, trio.open_nursery() as nursery:
            near, far = network.pair("client")
            size = near._out.window + 1

            @nursery.start_soon
            async def reader() -> None:
                await trio.sleep(9)
                await _read(far, size)

            await near.send_all(bytes(size))
            assert trio.current_time() == 9

    _in_virtual_time(run)


def test_a_send_that_stalls_for_too_long_breaks_the_connection_for_both() -> None:
    async def run() -> None:
        async with _network() as network:
            near, far = network.pair("client", stall_s=60)
            with pytest.raises(trio.BrokenResourceError):
                await far.send_all(bytes(far._out.window + 1))
            assert trio.current_time() == 60
            await _read(near, near._in.window)
            with pytest.raises(trio.BrokenResourceError):
                await near.receive_some()

    _in_virtual_time(run)


# -- ends --------------------------------------------------------------------------------------


async def test_a_close_is_read_as_an_end_behind_what_was_sent() -> None:
    async with _network() as network:
        near, far = network.pair("client")
        await near.send_all(b"last")
        near.close()
        assert await far.receive_some() == b"last"
        assert await far.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            await far.send_all(b"x")
        far.close()
        assert network.open_streams == []


async def test_a_close_with_unread_bytes_resets_the_connection() -> None:
    async with _network() as network:
        near, far = network.pair("client")
        await far.send_all(b"unread")
        near.close()
        with pytest.raises(trio.BrokenResourceError) as caught:
            await far.receive_some()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ECONNRESET


@pytest.mark.parametrize("lose", [False, True])
async def test_a_reset_breaks_both_sides_and_may_lose_what_is_under_way(lose: bool) -> None:
    async with _network() as network:
        near, far = network.pair("client")
        await near.send_all(b"sent")
        near.reset(lose=lose)
        if not lose:
            assert await far.receive_some() == b"sent"
        for stream in (near, far):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")


async def test_after_a_half_close_the_other_direction_goes_on() -> None:
    async with _network() as network:
        near, far = network.pair("client")
        await near.send_eof()
        assert await far.receive_some() == b""
        await far.send_all(b"answer")
        assert await near.receive_some() == b"answer"


def test_a_hang_up_is_noticed_without_reading() -> None:
    async def run() -> None:
        async with _network() as network, trio.open_nursery() as nursery:
            near, far = network.pair("client", Calm(delay_s=1.0))
            await near.send_all(b"request")

            @nursery.start_soon
            async def leave() -> None:
                await trio.sleep(4)
                near.close()

            await far.wait_hangup()
            assert trio.current_time() == 5
            assert await far.receive_some() == b"request"

    _in_virtual_time(run)


def test_a_hang_up_during_a_partition_is_noticed_when_that_is_over() -> None:
    async def run() -> None:
        async with _network() as network:
            weather = Calm(partitioned=True)
            near, far = network.pair("client", weather)
            near.close()
            with trio.move_on_after(3.0) as waiting:
                await far.wait_hangup()
            assert waiting.cancelled_caught
            weather.partitioned = False
            network.changed()
            await far.wait_hangup()

    _in_virtual_time(run)


async def test_an_idle_end_is_stale_once_the_other_side_has_closed_or_said_something() -> None:
    async with _network() as network:
        for say in (SimStream.close, SimStream.reset, lambda far: far._out.put(b"x")):
            near, far = network.pair("client")
            assert not near.is_stale()
            say(far)
            assert near.is_stale()


# -- connecting --------------------------------------------------------------------------------


async def test_a_listener_uses_a_link_as_it_uses_a_socket() -> None:
    async with _network() as network:
        near, _ = network.pair("client")
        assert isinstance(near, ClientStream)
        assert near.sends_now


async def test_a_connection_reaches_whoever_listens_there() -> None:
    async def serve(stream: SimStream) -> None:
        await stream.send_all(await stream.receive_some())

    async with _network() as network:
        network.listen("w0", 80, serve, Calm())
        stream = await network.connect(WORKER)
        await stream.send_all(b"echo")
        assert await stream.receive_some() == b"echo"


@pytest.mark.parametrize("listens", [False, True])
async def test_connecting_is_refused_where_nobody_listens_or_conditions_say_so(
    listens: bool,
) -> None:
    async with _network() as network:
        if listens:
            network.listen("w0", 80, SimStream.aclose, Calm(refuse=True))
        with pytest.raises(ConnectionRefusedError):
            await network.connect(WORKER)
        assert network.open_streams == []


def test_connecting_hangs_as_long_as_conditions_say_so() -> None:
    async def run() -> None:
        conditions = Calm(hang=True)
        async with _network() as network:
            network.listen("w0", 80, SimStream.aclose, conditions)
            with trio.move_on_after(100) as scope:
                await network.connect(WORKER)
            assert scope.cancelled_caught
            conditions.hang = False
            await network.connect(WORKER)
            assert trio.current_time() == 100

    _in_virtual_time(run)


def test_links_of_one_name_and_number_behave_alike_under_one_seed() -> None:
    def sizes(seed: int) -> list[int]:
        found: list[int] = []

        async def run() -> None:
            async with _network(seed, chunk_bytes=100) as network, trio.open_nursery() as nursery:
                near, far = network.pair("client")
                nursery.start_soon(near.send_all, bytes(5000))
                while sum(found) < 5000:
                    found.append(len(await far.receive_some()))

        trio.run(run)
        return found

    assert sizes(1) == sizes(1)
    assert sizes(1) != sizes(2)


def test_the_origin_of_a_worker_is_what_the_pool_connects_to() -> None:
    assert (WORKER.host, WORKER.port) == ("w0", 80)
    assert isinstance(WORKER, Origin)
