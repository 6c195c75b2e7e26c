"""Requests cancelled at any step while they wait, are placed, back off and are tried elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import trio

from slime_core.errors import InvariantError, SlimeError
from slime_core.transitions import WorkerPaused, WorkerRemoved
from slime_trio.dispatch.dispatcher import Asking, Dispatcher
from slime_trio.endpoints import generate
from slime_trio.router import Router
from tests.server.dispatch_support import Station, asking, fleet
from tests.server.relay_support import AtStep, Sink, inbound, kinds_of, leak_slots, sweep

Stage = Callable[[Router, tuple[Station, ...], trio.Nursery], Any]


def _paused(router: Router, stations: tuple[Station, ...], nursery: trio.Nursery) -> None:
    """All wait until they go on."""

    async def go_on() -> None:
        await trio.sleep(0.5)
        for station in stations:
            router.commit(WorkerPaused(worker=station.url, paused=False))

    for station in stations:
        router.commit(WorkerPaused(worker=station.url, paused=True))
    nursery.start_soon(go_on)


def _fails_first(router: Router, stations: tuple[Station, ...], nursery: trio.Nursery) -> None:
    """The first worker hangs up, so there is a second try after a while."""
    stations[0].answer = stations[0].hang_up


def _updates(router: Router, stations: tuple[Station, ...], nursery: trio.Nursery) -> None:
    """The gate is closed for a while, twice in a row."""

    async def update() -> None:
        async with router.shared.gate.write(drain=True):
            await trio.sleep(0.3)

    nursery.start_soon(update)
    nursery.start_soon(update)


def _crowded(router: Router, stations: tuple[Station, ...], nursery: trio.Nursery) -> None:
    """Others have all the places."""
    for station in stations:
        station.answer = _slowly(station)
    for _ in range(2):
        asking(nursery, router)


def _slowly(station: Station) -> Any:
    async def answer(asked: dict[str, Any]) -> bytes | None:
        await trio.sleep(0.4)
        return await station.at_once(asked)

    return answer


STAGES: dict[str, Stage] = {
    "paused workers": _paused,
    "a worker that hangs up": _fails_first,
    "weight updates": _updates,
    "a crowd": _crowded,
}


async def _cancelled(stage: str, at: int, *, after_s: float = math.inf) -> AtStep:
    """Cancel a request at its step ``at``, or after so long; the fleet checks what is left."""
    stations = (Station("a"), Station("b"))
    async with fleet(*stations, max_concurrent_requests=2) as (router, _):
        scope = trio.CancelScope(deadline=trio.current_time() + after_s)
        instrument = AtStep(at, scope.cancel)

        async def victim() -> None:
            instrument.task = trio.lowlevel.current_task()
            with scope:
                try:
                    await generate(router, inbound("/generate", {"text": "x"}), Sink())
                except InvariantError:
                    raise
                except SlimeError:
                    pass

        with instrument.watching():
            async with trio.open_nursery() as nursery:
                STAGES[stage](router, stations, nursery)
                nursery.start_soon(victim)
        for station in stations:
            station.answer = station.at_once
        sink = Sink()
        await generate(router, inbound("/generate", {"text": "x"}), sink)
        assert sink.got
        instrument.has_acted = scope.cancelled_caught
        return instrument


@pytest.mark.parametrize("stage", STAGES)
def test_a_request_cancelled_on_its_way_to_a_worker_leaves_nothing_behind(stage: str) -> None:
    async def run(at: int) -> AtStep:
        return await _cancelled(stage, at)

    assert sweep(run) > 5


def _at_any_time(stage: str) -> int:
    """Its steps are few: most of the time it waits."""

    async def run(at: int) -> AtStep:
        return await _cancelled(stage, 10**9, after_s=0.03 * at)

    return sweep(run)


@pytest.mark.parametrize("stage", STAGES)
def test_so_does_one_that_is_cancelled_while_it_waits(stage: str) -> None:
    assert _at_any_time(stage) > 5


def test_workers_removed_under_those_that_wait_send_them_away() -> None:
    async def run(at: int) -> AtStep:
        stations = (Station("a"), Station("b"))
        async with fleet(*stations) as (router, _):
            statuses: list[int] = []

            def remove() -> None:
                for station in stations:
                    router.commit(WorkerRemoved(worker=station.url))

            instrument = AtStep(at, remove)

            async def victim() -> None:
                instrument.task = trio.lowlevel.current_task()
                await trio.lowlevel.checkpoint()
                sink = Sink()
                try:
                    await generate(router, inbound("/generate", {"text": "x"}), sink)
                except SlimeError as error:
                    statuses.append(error.status)
                else:
                    assert sink.status is not None
                    statuses.append(sink.status)

            with instrument.watching():
                async with trio.open_nursery() as nursery:
                    _paused(router, stations, nursery)
                    nursery.start_soon(victim)
            assert statuses in ([200], [503])
            return instrument

    assert sweep(run) > 5


# -- the sweep itself --------------------------------------------------------------------------


def test_a_slot_that_is_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    leak_slots(monkeypatch)

    async def run(at: int) -> AtStep:
        return await _cancelled("a worker that hangs up", at)

    with pytest.raises((AssertionError, ExceptionGroup)) as found:
        sweep(run)
    assert kinds_of(found.value) == {AssertionError}


def test_a_place_in_the_queue_that_is_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    proper = Dispatcher._end

    def forgetting(self: Dispatcher, asking: Asking) -> None:
        if not asking.tries:
            asking.entry.ticket = None  # so nobody knows any more that it had one
        proper(self, asking)

    monkeypatch.setattr(Dispatcher, "_end", forgetting)

    with pytest.raises((AssertionError, ExceptionGroup)) as found:
        _at_any_time("paused workers")
    assert AssertionError in kinds_of(found.value)
