"""How workers are told, in virtual time: side by side, within bounds, cancelled anywhere."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from slime_core.errors import ClientError, WorkerError
from tests.server.control_support import call, controlled, paused, serve, told
from tests.server.relay_support import AtStep, sweep

DISK = "update_weights_from_disk"


async def test_workers_are_told_side_by_side_thirty_two_at_a_time(
    autojump_clock: MockClock,
) -> None:
    async with controlled(40) as (router, engines):
        for engine in engines.engines:
            engine.slow_s["slow_down"] = 1
        start = trio.current_time()
        outcomes = await serve(router, call("slow_down"))
        assert all(one.succeeded for one in outcomes)
        assert trio.current_time() - start == pytest.approx(2)
        begun = [round(engine.told[0][0] - start) for engine in engines.engines]
        assert [begun.count(second) for second in range(2)] == [32, 8]


async def test_a_worker_that_takes_too_long_is_given_up(autojump_clock: MockClock) -> None:
    async with controlled(2) as (router, engines):
        engines[1].slow_s["slow_down"] = 1e6
        start = trio.current_time()
        quick, slow = await serve(router, call("slow_down"))
        assert quick.succeeded
        assert (slow.failure, slow.status) == ("timeout", 504)
        assert slow.latency_ms == round((trio.current_time() - start) * 1000) == 60_000


async def test_a_worker_has_ten_minutes_for_its_weights(autojump_clock: MockClock) -> None:
    async with controlled(2) as (router, engines):
        engines[0].slow_s[DISK], engines[1].slow_s[DISK] = 599, 601
        first, second = await serve(router, call(DISK, {"model_path": "m"}))
        assert (first.succeeded, second.failure) == (True, "timeout")


async def test_a_worker_that_breaks_off_has_given_no_answer(autojump_clock: MockClock) -> None:
    async with controlled(1) as (router, engines):
        engines[0].silent.add("slow_down")
        (outcome,) = await serve(router, call("slow_down"))
        assert (outcome.failure, outcome.status) == ("upstream_unreachable", 503)


async def _cancelled(path: str, body: Any, at: int) -> AtStep:
    """A control call that is cancelled at its step ``at`` excludes nobody afterwards."""
    async with controlled(2) as (router, engines):
        engines[1].slow_s[path] = 1
        scope = trio.CancelScope()
        instrument = AtStep(at, scope.cancel, named=("<locals>.run",))

        async def victim() -> None:
            instrument.task = trio.lowlevel.current_task()
            with scope:
                await serve(router, call(path, body))

        with instrument.watching():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(victim)
        gate = router.shared.gate
        assert (gate.is_written, gate.waiting, gate.readers) == (False, 0, 0)
        with trio.fail_after(10):
            await serve(router, call(path, body))
        assert [paths[-1] for paths in told(engines)] == [path, path]
        return instrument


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (DISK, {"model_path": "m", "weight_version": "2"}),
        (DISK, {"model_path": "m"}),
        ("update_weight_version", {"new_version": "2"}),
        ("release_memory_occupation", None),
        ("flush_cache", None),
        ("slow_down", None),
    ],
)
def test_a_call_cancelled_at_any_step_leaves_nothing_held(path: str, body: Any) -> None:
    assert sweep(functools.partial(_cancelled, path, body)) > 6


async def _switch_left(at: int) -> AtStep:
    """A change of role whose caller leaves at its step ``at`` is done all the same."""
    async with controlled(1) as (router, _):
        scope = trio.CancelScope()
        instrument = AtStep(at, scope.cancel, named=("<locals>.run",))

        async def victim() -> None:
            with scope:
                await serve(router, call("pd_role_switch", {"new_role": "decode"}))

        with instrument.watching():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(victim)
            await trio.sleep(5)
        assert paused(router) == []
        (known,) = router.shared.fleet.listed()
        assert known.kind.value == "decode"
        return instrument


def test_a_change_of_role_whose_caller_leaves_is_done() -> None:
    assert sweep(_switch_left) > 2


async def test_a_role_is_changed_by_one_caller_at_a_time(autojump_clock: MockClock) -> None:
    async with controlled(1) as (router, engines), trio.open_nursery() as nursery:
        engines[0].slow_s["pd_role_switch"] = 5
        wish = call("pd_role_switch", {"new_role": "decode"})
        nursery.start_soon(serve, router, wish)
        await trio.sleep(1)
        with pytest.raises(ClientError) as refused:
            await serve(router, wish)
        assert (refused.value.status, refused.value.code) == (409, "role_switching")


async def test_what_outlives_its_caller_ends_with_the_router(autojump_clock: MockClock) -> None:
    async with controlled(1) as (router, engines):
        engines[0].slow_s["continue_generation"] = 30

        async def stop() -> None:
            await trio.sleep(1)
            assert router.nursery is not None
            router.nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            with pytest.raises(WorkerError) as refused:
                await serve(router, call("continue_generation"))
        assert (refused.value.status, refused.value.code) == (503, "shutting_down")
