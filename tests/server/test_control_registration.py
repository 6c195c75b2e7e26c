"""A worker that registers while it is paused: its pause holds unless it really goes on."""

from __future__ import annotations

import httpx
import pytest

from slime_core.transitions import Transition, WorkerPaused
from tests.server.harness import embedded_worker, router_with


@pytest.mark.parametrize("path", ["/workers", "/add_worker"])
async def test_a_paused_worker_that_registers_again_stays_paused_under_its_lease(path: str) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        router = served.router
        await served.client.post("/pause_generation", json={"mode": "retract"})
        noted: list[Transition] = []
        router.observers.append(lambda fact, _state: noted.append(fact))
        assert (await served.client.post(path, json={"url": worker.url})).status_code < 300
        assert [fact for fact in noted if isinstance(fact, WorkerPaused)] == []
        assert router.state.fleet.listed()[0].paused
        assert router.shared.control.pauses.paused == [worker.url]


async def test_a_worker_that_goes_on_and_registers_again_works_at_once() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        router = served.router
        await served.client.post("/pause_generation", json={"mode": "retract"})
        async with httpx.AsyncClient() as client:
            await client.post(f"{worker.url}/continue_generation", json={})
        await served.client.post("/workers", json={"url": worker.url})
        assert not router.state.fleet.listed()[0].paused
        assert router.shared.control.pauses.paused == []
