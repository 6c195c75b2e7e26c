"""Weight updates: what they hold up, what they wait for, and what is known after them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
import trio

from slime_core.transitions import WorkerPaused
from slime_core.types import WorkerUrl
from tests.server.control_support import ids_of
from tests.server.harness import (
    Arrived,
    FakeWorker,
    Served,
    answer_item,
    embedded_worker,
    fake_worker,
    http_response,
    router_with,
    until,
)

UPDATE = {"model_path": "/w/2", "weight_version": "2"}
DISK = "/update_weights_from_disk"


class Stage:
    """A worker whose generations and updates end when they are told to."""

    def __init__(self) -> None:
        self.generated = trio.Event()
        self.updated = trio.Event()
        self.said: tuple[str, Any] = ("200 OK", {"success": True, "message": "updated"})
        self.version = "1"

    async def answer(self, arrived: Arrived, stream: trio.SocketStream) -> bytes:
        if arrived.target == "/generate":
            await self.generated.wait()
            item = answer_item([5], "a", weight_version=self.version)
            return http_response(json.dumps(item).encode())
        if "update" in arrived.target or "release" in arrived.target:
            await self.updated.wait()
            status, body = self.said
            return http_response(json.dumps(body).encode(), status=status)
        return http_response(b"{}")


def called(worker: FakeWorker, path: str) -> int:
    """How often a worker was called on it."""
    return sum(arrived.target.partition("?")[0] == path for arrived in worker.arrived)


class Background:
    """A request that is not waited for."""

    def __init__(self, nursery: trio.Nursery, served: Served, path: str, body: Any) -> None:
        self.response: httpx.Response | None = None
        nursery.start_soon(self._run, served, path, body)

    async def _run(self, served: Served, path: str, body: Any) -> None:
        self.response = await served.client.post(path, json=body)

    async def status(self) -> int:
        """Of its answer, once it has come."""
        await until(lambda: self.response is not None)
        assert self.response is not None
        return self.response.status_code


async def test_no_dispatch_begins_while_weights_are_updated() -> None:
    stage = Stage()
    async with (
        fake_worker(stage.answer) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        before = Background(nursery, served, "/generate", {"text": "a"})
        await until(lambda: called(worker, "/generate") == 1)
        update = Background(nursery, served, DISK, UPDATE)
        await until(lambda: called(worker, DISK) == 1)
        after = Background(nursery, served, "/generate", {"text": "b"})
        await until(lambda: len(served.router.shared.dispatcher.live) == 2)
        stage.generated.set()
        assert await before.status() == 200
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert called(worker, "/generate") == 1
        stage.updated.set()
        assert await update.status() == 200
        assert await after.status() == 200


async def test_in_mode_none_dispatches_go_on() -> None:
    stage = Stage()
    stage.generated.set()
    async with (
        fake_worker(stage.answer) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        update = Background(nursery, served, f"{DISK}?mode=none", UPDATE)
        await until(lambda: called(worker, DISK) == 1)
        response = await served.generate(text="a")
        assert response.status_code == 200
        stage.updated.set()
        assert await update.status() == 200


async def test_in_mode_drain_calls_in_flight_are_waited_for() -> None:
    stage = Stage()
    stage.updated.set()
    async with (
        fake_worker(stage.answer) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        before = Background(nursery, served, "/generate", {"text": "a"})
        await until(lambda: called(worker, "/generate") == 1)
        update = Background(nursery, served, f"{DISK}?mode=drain", UPDATE)
        await until(lambda: served.router.shared.gate.is_written)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert called(worker, DISK) == 0
        stage.generated.set()
        assert await before.status() == 200
        assert await update.status() == 200
        assert called(worker, DISK) == 1


async def test_a_drain_that_takes_too_long_does_nothing() -> None:
    stage = Stage()
    stage.updated.set()
    async with (
        fake_worker(stage.answer) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        before = Background(nursery, served, "/generate", {"text": "a"})
        await until(lambda: called(worker, "/generate") == 1)
        params = {"mode": "drain", "drain_timeout_s": "0.05"}
        late = await served.client.post(DISK, params=params, json=UPDATE)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "drain_timeout")
        assert called(worker, DISK) == 0
        assert not served.router.shared.gate.is_written
        stage.generated.set()
        assert await before.status() == 200


async def test_calls_on_paused_workers_are_not_waited_for() -> None:
    stage = Stage()
    stage.updated.set()
    async with (
        fake_worker(stage.answer) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        before = Background(nursery, served, "/generate", {"text": "a"})
        await until(lambda: called(worker, "/generate") == 1)
        paused = await served.client.post("/pause_generation", json={"mode": "in_place"})
        assert paused.status_code == 200
        params = {"mode": "drain"}
        assert (await served.client.post(DISK, params=params, json=UPDATE)).status_code == 200
        await served.client.post("/continue_generation", json={})
        stage.generated.set()
        assert await before.status() == 200


@pytest.mark.parametrize("pausing", ["by the router", "by somebody else"])
async def test_calls_on_a_paused_worker_that_is_not_meant_hold_up_no_drain(pausing: str) -> None:
    stage, free = Stage(), Stage()
    free.updated.set()
    async with (
        fake_worker(stage.answer) as stuck,
        fake_worker(free.answer) as meant,
        router_with(stuck.url, meant.url, policy="round-robin") as served,
        trio.open_nursery() as nursery,
    ):
        before = Background(nursery, served, "/generate", {"text": "a"})
        await until(lambda: called(stuck, "/generate") == 1)
        if pausing == "by the router":
            wish = {"worker": stuck.url}
            paused = await served.client.post("/pause_generation", params=wish, json={})
            assert paused.status_code == 200
        else:
            served.router.commit(WorkerPaused(worker=WorkerUrl(stuck.url), paused=True))
        params = {"mode": "drain", "worker": meant.url}
        assert (await served.client.post(DISK, params=params, json=UPDATE)).status_code == 200
        stage.generated.set()
        assert await before.status() == 200


async def test_memory_is_given_back_when_nothing_runs() -> None:
    stage = Stage()
    stage.updated.set()
    async with (
        fake_worker(stage.answer) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        before = Background(nursery, served, "/generate", {"text": "a"})
        await until(lambda: called(worker, "/generate") == 1)
        path = "/release_memory_occupation"
        release = Background(nursery, served, path, {})
        await until(lambda: served.router.shared.gate.is_written)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert called(worker, path) == 0
        stage.generated.set()
        assert await before.status() == 200
        assert await release.status() == 200
        (known,) = served.router.shared.fleet.listed()
        assert known.paused


@pytest.mark.parametrize("given", ["mode=soft", "mode=drain&drain_timeout_s=-1"])
async def test_a_mode_that_does_not_exist_is_refused(given: str) -> None:
    stage = Stage()
    async with fake_worker(stage.answer) as worker, router_with(worker.url) as served:
        answer = await served.client.post(f"{DISK}?{given}", json=UPDATE)
        assert answer.status_code == 400
        assert called(worker, DISK) == 0


async def test_updates_take_turns() -> None:
    stage = Stage()
    async with (
        fake_worker(stage.answer) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        first = Background(nursery, served, DISK, UPDATE)
        await until(lambda: called(worker, DISK) == 1)
        second = Background(nursery, served, DISK, UPDATE)
        await until(lambda: served.router.shared.gate.waiting == 1)
        assert called(worker, DISK) == 1
        stage.updated.set()
        assert (await first.status(), await second.status()) == (200, 200)
        assert called(worker, DISK) == 2


# -- what is known then ------------------------------------------------------------------------


def versions(served: Served) -> list[str | None]:
    """The weights that the workers are known to hold."""
    return [one.version for one in served.router.shared.fleet.listed()]


async def test_a_version_that_an_update_names_is_known_at_once() -> None:
    stages = Stage(), Stage()
    for stage in stages:
        stage.updated.set()
    stages[1].said = ("400 Bad Request", {"success": False, "message": "no such file"})
    async with (
        fake_worker(stages[0].answer) as one,
        fake_worker(stages[1].answer) as two,
        router_with(one.url, two.url) as served,
    ):
        answer = await served.client.post(DISK, json=UPDATE)
        assert answer.status_code == 207
        assert versions(served) == ["2", "1"]
        assert served.router.state.versions.newest == "2"


async def test_an_update_that_names_none_has_all_workers_asked() -> None:
    stage = Stage()
    stage.updated.set()
    async with fake_worker(stage.answer) as worker, router_with(worker.url) as served:
        worker.model_info = {"model_path": "m", "weight_version": "7"}
        answer = await served.client.post(DISK, json={"model_path": "/w/7"})
        assert answer.status_code == 200
        await until(lambda: versions(served) == ["7"])


async def test_an_update_whose_caller_leaves_has_all_workers_asked_and_dispatches_go_on() -> None:
    stage = Stage()
    stage.generated.set()
    async with (
        fake_worker(stage.answer) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(served.client.post, DISK)
        await until(lambda: called(worker, DISK) == 1)
        worker.model_info = {"model_path": "m", "weight_version": "9"}
        nursery.cancel_scope.cancel()
        await until(lambda: versions(served) == ["9"])
        stage.version = "9"
        assert (await served.generate(text="a")).status_code == 200


@pytest.mark.parametrize(
    "words",
    [
        "Cache flush failed after updating weights",
        "The weights were updated, but the cache could not be flushed: requests are running.",
        "Update applied; flush_cache failed",
    ],
)
async def test_an_update_that_was_applied_without_a_flush_counts_and_says_so(words: str) -> None:
    stage = Stage()
    stage.updated.set()
    stage.said = ("400 Bad Request", {"success": False, "message": words})
    async with fake_worker(stage.answer) as worker, router_with(worker.url) as served:
        answer = await served.client.post(DISK, json=UPDATE)
        assert answer.status_code == 200
        told = answer.json()
        (entry,) = told["results"].values()
        assert (entry["status"], entry["applied"]) == (400, True)
        assert told["message"].startswith("done by all 1 workers; 1 of them could not flush")
        assert versions(served) == ["2"]


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b'{"new_version":"2"}', {"new_version": "2", "abort_all_requests": False}),
        (b'{"new_version":"2","abort_all_requests":true}', None),
        (b'{"new_version":"2","abort_all_requests":false,"x":1}', None),
    ],
)
async def test_a_new_name_for_weights_aborts_nothing_unless_it_is_asked_to(
    body: bytes, sent: Any
) -> None:
    stage = Stage()
    stage.updated.set()
    async with fake_worker(stage.answer) as worker, router_with(worker.url) as served:
        answer = await served.client.post("/update_weight_version", content=body)
        assert answer.status_code == 200
        (arrived,) = (one for one in worker.arrived if one.target == "/update_weight_version")
        assert arrived.json == (sent or json.loads(body))
        assert versions(served) == ["2"]


async def test_a_new_name_aborts_nothing_that_embedded_workers_run() -> None:
    async with (
        embedded_worker(ms_per_token=5, weight_version="1") as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        params = {"max_new_tokens": 40, "ignore_eos": True}
        body = {"text": "Hello", "sampling_params": params}
        running = Background(nursery, served, "/generate", body)
        await until(lambda: worker.worker.engine.load.used_tokens > 4)
        renamed = await served.client.post("/update_weight_version", json={"new_version": "2"})
        assert renamed.json()["new_version"] == "2"
        assert await running.status() == 200
        assert running.response is not None
        meta = running.response.json()["meta_info"]
        assert meta["finish_reason"] == {"type": "length", "length": 40}
        assert [span["version"] for span in meta["weight_versions"]] == ["1", "2"]


async def test_weights_can_be_rolled_out_worker_by_worker() -> None:
    async with (
        embedded_worker(weight_version="1") as one,
        embedded_worker(weight_version="1") as two,
        router_with(one.url, two.url, max_weight_staleness=1, health_check=False) as served,
    ):
        for name in ids_of(served):
            engine = f"/workers/{name}/engine"
            await served.client.post(f"{engine}/pause_generation", json={"mode": "retract"})
            assert (await served.generate(text="Hi")).status_code == 200
            updated = await served.client.post(f"{engine}{DISK}?mode=none", json=UPDATE)
            assert updated.status_code == 200
            await served.client.post(f"{engine}/continue_generation")
        assert versions(served) == ["2", "2"]
