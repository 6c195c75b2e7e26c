"""Requests that are placed on a prefill and a decode worker: both, one of each, and no fewer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from slime_core.fleet import WorkerKind
from slime_core.transitions import VersionSeen, WorkerAdded, WorkerPaused
from slime_trio.relay import forward
from slime_trio.router import Router
from tests.server.dispatch_support import Asked, Station, asking, fleet, refusing, until
from tests.server.relay_support import Journal, inbound

P, D = WorkerKind.PREFILL, WorkerKind.DECODE


@asynccontextmanager
async def _pairs(
    *stations: tuple[Station, WorkerKind], **settings: Any
) -> AsyncIterator[tuple[Router, Journal]]:
    async with fleet(*(station for station, _ in stations), **settings) as (router, journal):
        for station, kind in stations:
            router.commit(WorkerAdded(worker=station.url, kind=kind, bootstrap_port=8998))
        yield router, journal


async def test_a_generation_goes_to_one_worker_of_each_kind(autojump_clock: MockClock) -> None:
    prefill, decode = Station("p"), Station("d")
    async with _pairs((prefill, P), (decode, D)) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
        assert asked.status == 200
        (one,), (other,) = prefill.arrived, decode.arrived
        assert one["bootstrap_host"] == other["bootstrap_host"] == "p"
        assert one["rid"] == other["rid"]
        assert asked.header(b"x-slime-worker") == b"2"


async def test_it_occupies_both_and_is_live_at_both(autojump_clock: MockClock) -> None:
    prefill, decode = Station("p"), Station("d")
    decode.answer = decode.hold
    async with _pairs((prefill, P), (decode, D)) as (router, _), trio.open_nursery() as nursery:
        asking(nursery, router)
        await until(lambda: decode.held)
        (live,) = router.shared.dispatcher.live.values()
        assert live.workers == (prefill.url, decode.url)
        loads = [worker.load for worker in router.state.fleet.listed()]
        assert loads == [1, 1]
        decode.finish()


@pytest.mark.parametrize("kind", [P, D])
async def test_without_its_other_half_there_is_no_pair(
    kind: WorkerKind, autojump_clock: MockClock
) -> None:
    station = Station("a")
    async with _pairs((station, kind)) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
        assert (asked.status, asked.code) == (503, "no_pair")
        assert not station.arrived


async def test_an_unknown_target_is_the_client_s_mistake_also_where_a_half_is_missing(
    autojump_clock: MockClock,
) -> None:
    async with _pairs((Station("p"), P)) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router, headers=[(b"x-smg-target-worker", b"9")])
        assert (asked.status, asked.code) == (400, "worker_not_found")


async def test_a_fleet_that_is_to_be_of_pairs_gives_regular_workers_nothing(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    async with fleet(station, pd_disaggregation=True) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
        assert (asked.status, asked.code) == (503, "no_pair")


async def test_a_half_that_is_paused_is_waited_for(autojump_clock: MockClock) -> None:
    prefill, decode = Station("p"), Station("d")
    async with _pairs((prefill, P), (decode, D)) as (router, _):
        router.commit(WorkerPaused(worker=decode.url, paused=True))
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
            await trio.sleep(5)
            assert not prefill.arrived
            assert router.state.fleet.total_in_flight == 0
            router.commit(WorkerPaused(worker=decode.url, paused=False))
        assert asked.status == 200


async def test_a_half_that_fails_is_replaced_and_the_other_may_serve_again(
    autojump_clock: MockClock,
) -> None:
    sick, well, decode = Station("sick"), Station("well"), Station("d")
    sick.takes_connections = False
    stations = ((sick, P), (well, P), (decode, D))
    async with _pairs(*stations, prefill_policy="round-robin") as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
        assert asked.status == 200
        assert len(well.arrived) == 1
        workers = router.state.fleet.workers
        assert not workers[sick.url].is_fit
        assert workers[decode.url].is_fit


async def test_a_busy_half_is_replaced_too(autojump_clock: MockClock) -> None:
    prefill, full, free = Station("p"), Station("full"), Station("free")
    full.answer = refusing(b"503 Busy")
    stations = ((prefill, P), (full, D), (free, D))
    async with _pairs(*stations, decode_policy="round-robin") as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
        assert asked.status == 200
        assert (len(full.arrived), len(free.arrived)) == (1, 1)


async def test_halves_of_the_same_weights_go_together(autojump_clock: MockClock) -> None:
    prefill, old, new = Station("p"), Station("old"), Station("new")
    async with _pairs((prefill, P), (old, D), (new, D)) as (router, _):
        for station, version in ((old, "1"), (prefill, "2"), (new, "2")):
            router.commit(VersionSeen(worker=station.url, version=version))
        prefill.answer = old.answer = new.answer = prefill.hold
        async with trio.open_nursery() as nursery:
            asked = [asking(nursery, router) for _ in range(6)]
            await until(lambda: router.state.fleet.total_in_flight == 12)
            loads = {worker.url: worker.load for worker in router.state.fleet.listed()}
            for one in asked:
                one.scope.cancel()
        assert loads == {prefill.url: 6, old.url: 0, new.url: 6}


async def test_what_is_no_generation_goes_to_one_worker(autojump_clock: MockClock) -> None:
    prefill, decode = Station("p"), Station("d")
    async with _pairs((prefill, P), (decode, D)) as (router, _):
        asked = Asked()
        await asked.run(lambda sink: forward(router, inbound("/v1/embeddings", {}), sink))
        assert asked.status == 200
        assert (len(prefill.arrived), len(decode.arrived)) == (1, 0)


async def test_a_client_that_leaves_frees_both(autojump_clock: MockClock) -> None:
    prefill, decode = Station("p"), Station("d")
    prefill.answer, decode.answer = prefill.hold, decode.hold
    async with _pairs((prefill, P), (decode, D)) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
            await until(lambda: prefill.held and decode.held)
            asked.scope.cancel()
        assert router.state.fleet.total_in_flight == 0
        await until(lambda: prefill.told and decode.told)
