"""Waits that are too long, in virtual time."""

from __future__ import annotations

from math import inf

import trio
from trio.testing import MockClock

from slime_trio.listener.deadlines import Deadlines


class _Waiting:
    def __init__(self) -> None:
        self.until = inf
        self.ended_at: list[float] = []

    def overdue(self) -> None:
        self.ended_at.append(trio.current_time())


async def test_each_wait_ends_when_it_is_over_and_once(autojump_clock: MockClock) -> None:
    deadlines, waits = Deadlines(), [_Waiting() for _ in range(5)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        for place, one in enumerate(waits):
            deadlines.enter(one)
            deadlines.wait_until(one, 9.0 - place)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert [one.ended_at for one in waits] == [[9.0], [8.0], [7.0], [6.0], [5.0]]


async def test_a_wait_that_is_prolonged_ends_later(autojump_clock: MockClock) -> None:
    deadlines, one = Deadlines(), _Waiting()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        deadlines.enter(one)
        for now in range(10):
            deadlines.wait_until(one, now + 3.0)
            await trio.sleep(1)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert one.ended_at == [12.0]


async def test_who_waits_for_nothing_or_has_left_is_let_be(autojump_clock: MockClock) -> None:
    deadlines, gone, content = Deadlines(), _Waiting(), _Waiting()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        for one in (gone, content):
            deadlines.enter(one)
            deadlines.wait_until(one, 5.0)
        await trio.sleep(1)
        deadlines.leave(gone)
        deadlines.leave(gone)
        content.until = inf
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert gone.ended_at == content.ended_at == []
