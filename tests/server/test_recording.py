"""A recording whose readers can be given pieces by plain calls."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from slime_trio.exchange import ClientGone, Headers
from slime_trio.recording import Recording


class Direct:
    """A client whose socket takes everything, or nothing while it ``is_full``, or has gone."""

    is_direct = True

    def __init__(self) -> None:
        self.started = False
        self.is_full = self.has_gone = False
        self.got: list[bytes] = []
        self.calls: list[str] = []
        self.room = trio.Event()

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True

    async def send(self, data: bytes) -> None:
        self.calls.append("send")
        self.got.append(data)

    def send_now(self, data: bytes) -> bool:
        self.calls.append("send_now")
        if self.has_gone:
            raise ClientGone("gone")
        self.got.append(data)
        return not self.is_full

    async def flush(self) -> None:
        self.calls.append("flush")
        await self.room.wait()


@pytest.fixture
async def begun(nursery: trio.Nursery) -> tuple[Recording, Direct]:
    recording, client = Recording(lambda _: True), Direct()
    nursery.start_soon(recording.read_into, client, [])
    await recording.start(200, [])
    await wait_all_tasks_blocked()
    return recording, client


async def test_a_reader_that_has_had_everything_is_given_more_by_a_plain_call(
    begun: tuple[Recording, Direct],
) -> None:
    recording, client = begun
    assert recording.send_now(b"a")
    assert recording.send_now(b"b")
    await recording.send(b"c")
    assert (client.got, client.calls) == ([b"a", b"b", b"c"], 3 * ["send_now"])
    recording.end()
    await wait_all_tasks_blocked()
    assert recording.was_delivered


async def test_nothing_more_is_asked_for_while_a_client_takes_nothing(
    begun: tuple[Recording, Direct],
) -> None:
    recording, client = begun
    client.is_full = True
    assert not recording.send_now(b"a")
    with trio.move_on_after(0.01) as bound:
        await recording.flush()
    assert bound.cancelled_caught
    client.is_full = False
    client.room.set()
    await recording.flush()
    assert recording.send_now(b"b")
    assert client.got == [b"a", b"b"]


async def test_a_client_that_left_under_a_plain_call_is_its_readers_to_know() -> None:
    recording, gone, stays = Recording(lambda _: True), Direct(), Direct()
    async with trio.open_nursery() as nursery:

        async def leaves() -> None:
            with pytest.raises(ClientGone):
                await recording.read_into(gone, [])

        nursery.start_soon(leaves)
        nursery.start_soon(recording.read_into, stays, [])
        await recording.start(200, [])
        await wait_all_tasks_blocked()
        gone.has_gone = True
        assert recording.send_now(b"a")
        assert recording.send_now(b"b")
        recording.end()
    assert (gone.got, stays.got) == ([], [b"a", b"b"])


async def test_who_joins_late_has_everything_in_its_order(begun: tuple[Recording, Direct]) -> None:
    recording, first = begun
    assert recording.send_now(b"a")
    late = Direct()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recording.read_into, late, [])
        assert recording.send_now(b"b")
        await wait_all_tasks_blocked()
        assert recording.send_now(b"c")
        recording.end()
    assert b"".join(late.got) == b"".join(first.got) == b"abc"


async def test_without_readers_nobody_is_waited_for() -> None:
    recording, late = Recording(lambda _: True), Direct()
    await recording.start(200, [])
    assert recording.send_now(b"a")
    recording.end()
    await recording.read_into(late, [])
    assert late.got == [b"a"]
