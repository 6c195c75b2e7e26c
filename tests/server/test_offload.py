"""Long work leaves the event loop, short work stays; the result is the same."""

from __future__ import annotations

import threading

import msgspec
import pytest
import trio
import trio.testing

from slime_trio.offload import INLINE_BYTES, off_loop


async def test_short_work_is_done_where_it_stands() -> None:
    assert await off_loop(INLINE_BYTES, threading.get_ident) == threading.get_ident()


async def test_short_work_lets_nobody_else_in_between() -> None:
    with trio.testing.assert_no_checkpoints():
        await off_loop(1, len, b"x")


async def test_long_work_is_done_in_a_thread() -> None:
    assert await off_loop(INLINE_BYTES + 1, threading.get_ident) != threading.get_ident()


async def test_the_event_loop_goes_on_while_long_work_is_done() -> None:
    go = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(off_loop, INLINE_BYTES + 1, go.wait, 5)
        await trio.testing.wait_all_tasks_blocked()
        go.set()


@pytest.mark.parametrize("size", [0, INLINE_BYTES, INLINE_BYTES + 1])
async def test_the_result_does_not_depend_on_where(size: int) -> None:
    assert await off_loop(size, msgspec.json.decode, b"[1,2]", type=list[int]) == [1, 2]


@pytest.mark.parametrize("size", [0, INLINE_BYTES + 1])
async def test_an_error_is_raised_as_it_is(size: int) -> None:
    with pytest.raises(msgspec.DecodeError, match="truncated"):
        await off_loop(size, msgspec.json.decode, b"[1,2")
