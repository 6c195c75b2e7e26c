"""Pauses are leases: they end by themselves, with their caller, and with the router."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from slime_core.errors import ClientError
from slime_core.transitions import WorkerPaused, WorkerRemoved
from slime_core.types import WorkerUrl
from slime_trio.router import Router
from tests.server.control_support import Engines, call, controlled, paused, serve, told
from tests.server.relay_support import AtStep, sweep

PAUSE, CONTINUE = "pause_generation", "continue_generation"


def times_of(engines: Engines, number: int, path: str) -> list[float]:
    """When a worker was called on a path, from the start on."""
    return [round(at, 3) for at, called, _ in engines[number].told if called == path]


async def test_a_pause_ends_with_its_lease(autojump_clock: MockClock) -> None:
    async with controlled(2) as (router, engines):
        start = trio.current_time()
        await serve(router, call(PAUSE, query="lease_s=30"))
        assert paused(router) == ["w0", "w1"]
        await trio.sleep(29.9)
        assert told(engines) == [[PAUSE], [PAUSE]]
        await trio.sleep(0.2)
        assert told(engines) == [[PAUSE, CONTINUE], [PAUSE, CONTINUE]]
        assert times_of(engines, 0, CONTINUE) == [round(start + 30, 3)]
        assert paused(router) == []


async def test_a_lease_lasts_ten_minutes_unless_it_is_said(autojump_clock: MockClock) -> None:
    async with controlled(1) as (router, engines):
        start = trio.current_time()
        await serve(router, call(PAUSE, {"mode": "retract"}))
        await trio.sleep(1000)
        assert times_of(engines, 0, CONTINUE) == [round(start + 600, 3)]


async def test_pausing_again_renews_the_lease(autojump_clock: MockClock) -> None:
    async with controlled(1) as (router, engines):
        start = trio.current_time()
        await serve(router, call(PAUSE, query="lease_s=30"))
        await trio.sleep(20)
        await serve(router, call(PAUSE, query="lease_s=30"))
        await trio.sleep(100)
        assert times_of(engines, 0, CONTINUE) == [round(start + 50, 3)]


async def test_continuing_ends_it_at_once_and_for_good(autojump_clock: MockClock) -> None:
    async with controlled(2) as (router, engines):
        await serve(router, call(PAUSE, query="lease_s=30"))
        await serve(router, call(CONTINUE))
        assert paused(router) == []
        await trio.sleep(100)
        assert told(engines) == [[PAUSE, CONTINUE]] * 2


async def test_the_lease_is_said_in_the_body_too_and_not_told_to_workers(
    autojump_clock: MockClock,
) -> None:
    async with controlled(1) as (router, engines):
        await serve(router, call(PAUSE, b'{"mode":"in_place","lease_s":5,"x":-1e-07}'))
        assert engines[0].told[0][2] == {"mode": "in_place", "x": -1e-07}
        await trio.sleep(6)
        assert engines[0].paths() == [PAUSE, CONTINUE]


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "soon", "1e9"])
async def test_a_lease_that_is_none_is_refused_and_nobody_told(
    given: str, autojump_clock: MockClock
) -> None:
    async with controlled(1) as (router, engines):
        with pytest.raises(ClientError) as refused:
            await serve(router, call(PAUSE, query=f"lease_s={given}"))
        assert refused.value.param == "lease_s"
        assert told(engines) == [[]]


async def test_calls_without_a_body_are_told_with_an_empty_object(
    autojump_clock: MockClock,
) -> None:
    async with controlled(1) as (router, engines):
        await serve(router, call(PAUSE))
        await serve(router, call(CONTINUE))
        assert [body for _, _, body in engines[0].told] == [{}, {}]


async def test_a_worker_that_refuses_is_not_paused(autojump_clock: MockClock) -> None:
    async with controlled(2) as (router, engines):
        engines[1].refusing.add(PAUSE)
        outcomes = await serve(router, call(PAUSE))
        assert [one.succeeded for one in outcomes] == [True, False]
        assert paused(router) == ["w0"]


async def test_a_worker_gets_no_work_from_before_it_is_told(autojump_clock: MockClock) -> None:
    async with controlled(1) as (router, engines), trio.open_nursery() as nursery:
        engines[0].slow_s[PAUSE] = 10
        nursery.start_soon(serve, router, call(PAUSE))
        await trio.sleep(5)
        assert paused(router) == ["w0"]


async def test_a_pause_of_which_nobody_knows_is_ended(autojump_clock: MockClock) -> None:
    async with controlled(1) as (router, engines):
        engines[0].silent.add(PAUSE)
        (outcome,) = await serve(router, call(PAUSE))
        assert outcome.failure == "upstream_unreachable"
        await trio.sleep(1)
        assert engines[0].paths()[-1] == CONTINUE
        assert paused(router) == []


async def test_a_worker_that_does_not_go_on_is_told_again(autojump_clock: MockClock) -> None:
    async with controlled(1) as (router, engines):
        engines[0].refusing.add(CONTINUE)
        await serve(router, call(PAUSE, query="lease_s=10"))
        await trio.sleep(21)
        assert len(times_of(engines, 0, CONTINUE)) == 3
        assert paused(router) == ["w0"]
        engines[0].refusing.clear()
        await trio.sleep(5)
        assert paused(router) == []
        await trio.sleep(100)
        assert len(times_of(engines, 0, CONTINUE)) == 4


async def test_a_worker_that_left_is_told_once_and_forgotten(autojump_clock: MockClock) -> None:
    async with controlled(1) as (router, engines):
        engines[0].refusing.add(CONTINUE)
        await serve(router, call(PAUSE, query="lease_s=10"))
        router.commit(WorkerRemoved(worker=WorkerUrl(engines.urls[0])))
        await trio.sleep(100)
        assert engines[0].paths() == [PAUSE, CONTINUE]


async def test_a_continue_overtakes_a_pause_that_is_still_being_answered(
    autojump_clock: MockClock,
) -> None:
    async with controlled(1) as (router, engines), trio.open_nursery() as nursery:
        engines[0].slow_s[PAUSE] = 10
        nursery.start_soon(serve, router, call(PAUSE))
        await trio.sleep(5)
        await serve(router, call(CONTINUE))
        assert paused(router) == []
        await trio.sleep(10)
        assert paused(router) == []


async def test_a_lease_is_dropped_when_somebody_else_has_the_worker_go_on(
    autojump_clock: MockClock,
) -> None:
    async with controlled(1) as (router, engines):
        await serve(router, call(PAUSE, query="lease_s=10"))
        router.commit(WorkerPaused(worker=WorkerUrl(engines.urls[0]), paused=False))
        await trio.sleep(100)
        assert engines[0].paths() == [PAUSE]


async def test_a_worker_that_somebody_else_paused_is_known_to_go_on_at_once(
    autojump_clock: MockClock,
) -> None:
    async with controlled(1) as (router, engines):
        router.commit(WorkerPaused(worker=WorkerUrl(engines.urls[0]), paused=True))
        await serve(router, call(CONTINUE))
        assert paused(router) == []


# -- callers that leave ------------------------------------------------------------------------


async def _leaving_after(seconds: float, router: Router, arrived: Any) -> None:
    with trio.move_on_after(seconds) as scope:
        await serve(router, arrived)
    assert scope.cancelled_caught


async def test_a_caller_that_leaves_in_the_middle_leaves_nobody_paused(
    autojump_clock: MockClock,
) -> None:
    async with controlled(3) as (router, engines):
        engines[1].slow_s[PAUSE] = 20
        engines[2].slow_s[PAUSE] = 40
        start = trio.current_time()
        await _leaving_after(5, router, call(PAUSE))
        await trio.sleep(100)
        assert told(engines) == [[PAUSE, CONTINUE]] * 3
        ended = [times_of(engines, number, CONTINUE) for number in range(3)]
        assert ended == [[round(start + at, 3)] for at in (5, 20, 40)]
        assert paused(router) == []


async def test_a_renewal_whose_caller_leaves_leaves_the_earlier_lease(
    autojump_clock: MockClock,
) -> None:
    async with controlled(2) as (router, engines):
        start = trio.current_time()
        await serve(router, call(PAUSE, query="lease_s=100"))
        engines[1].slow_s[PAUSE] = 20
        await _leaving_after(5, router, call(PAUSE))
        await trio.sleep(50)
        assert paused(router) == ["w0", "w1"]
        await trio.sleep(100)
        assert [times_of(engines, number, CONTINUE) for number in range(2)] == [[start + 100]] * 2


async def test_a_continue_whose_caller_leaves_is_done_all_the_same(
    autojump_clock: MockClock,
) -> None:
    async with controlled(2) as (router, engines):
        await serve(router, call(PAUSE))
        engines[1].slow_s[CONTINUE] = 20
        await _leaving_after(5, router, call(CONTINUE))
        await trio.sleep(30)
        assert paused(router) == []


async def _abandoned(at: int) -> AtStep:
    """A pause whose caller leaves at step ``at`` of the telling: nobody stays paused."""
    async with controlled(3) as (router, engines):
        engines[1].slow_s[PAUSE] = 1
        scope = trio.CancelScope()
        instrument = AtStep(at, scope.cancel, named=("<locals>.run",))

        async def victim() -> None:
            instrument.task = trio.lowlevel.current_task()
            with scope:
                await serve(router, call(PAUSE))

        with instrument.watching():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(victim)
        if scope.cancelled_caught:
            await trio.sleep(10)
            assert paused(router) == []
            assert all(paths[-1:] in ([], [CONTINUE]) for paths in told(engines))
        return instrument


def test_a_caller_that_leaves_at_any_step_leaves_nobody_paused() -> None:
    assert sweep(_abandoned) > 10


# -- the end of the router ---------------------------------------------------------------------


async def test_the_end_of_the_router_ends_all_pauses(autojump_clock: MockClock) -> None:
    async with controlled(3) as (router, engines):
        await serve(router, call(PAUSE))
        await serve(router, call(CONTINUE, query="worker=" + engines.urls[2]))
    assert told(engines) == [[PAUSE, CONTINUE]] * 3
    assert paused(router) == []


async def test_the_end_of_the_router_does_not_wait_for_those_who_do_not_answer(
    autojump_clock: MockClock,
) -> None:
    async with controlled(1) as (router, engines):
        engines[0].slow_s[CONTINUE] = 1e6
        await serve(router, call(PAUSE))
        end = trio.current_time()
    assert trio.current_time() - end <= 5


# -- memory ------------------------------------------------------------------------------------


async def test_a_worker_without_its_memory_gets_no_work_until_it_has_it_all(
    autojump_clock: MockClock,
) -> None:
    async with controlled(2) as (router, engines):
        release, resume = "release_memory_occupation", "resume_memory_occupation"
        await serve(router, call(release, {"tags": ["weights", "kv_cache"]}))
        assert paused(router) == ["w0", "w1"]
        await serve(router, call(resume, {"tags": ["weights"]}))
        assert paused(router) == ["w0", "w1"]
        engines[1].refusing.add(resume)
        await serve(router, call(resume, {"tags": ["kv_cache"]}))
        assert paused(router) == ["w1"]
        await serve(router, call(PAUSE))
        await serve(router, call(CONTINUE))
        assert paused(router) == ["w1"]
        router.shared.control.forget(WorkerUrl(engines.urls[1]))
        assert paused(router) == []
