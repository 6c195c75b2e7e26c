"""Clients written for a single SGLang server call the router instead, unchanged.

Bodies and expectations are those of SGLang 0.5.23's own endpoints; a client reads the status and,
of the body, ``success`` and ``message``.
"""

from __future__ import annotations

from typing import Any

import httpx
import trio

from slime_core.types import WorkerUrl
from tests.server.control_support import ids_of
from tests.server.harness import (
    Arrived,
    Served,
    embedded_worker,
    fake_worker,
    http_response,
    router_with,
    until,
)

TENSORS = {"serialized_named_tensors": ["AAAA"], "load_format": "flattened_bucket"}


async def said(served: Served, path: str, body: Any = None, method: str = "POST") -> Any:
    """The answer's JSON as a client of one server reads it."""
    answer = await served.client.request(method, path, json=body)
    answer.raise_for_status()
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_trainer_updates_weights_from_tensors() -> None:
    async with (
        embedded_worker(weight_version="1") as one,
        embedded_worker(weight_version="1") as two,
        router_with(one.url, two.url) as served,
    ):
        assert (await said(served, "/pause_generation", {}))["status"] == "ok"
        assert (await said(served, "/flush_cache", method="GET"))["success"]
        assert (await said(served, "/begin_weight_update", {"selector": "all"}))["success"]
        for _ in range(2):
            body = TENSORS | {"flush_cache": False, "weight_version": "2"}
            told = await said(served, "/update_weights_from_tensor", body)
            assert told["success"]
            assert told["message"] == "Succeeded to update parameter online."
        assert (await said(served, "/end_weight_update", {}))["success"]
        assert (await said(served, "/continue_generation", {}))["status"] == "ok"
        answer = (await served.generate(text="Hi")).json()
        assert answer["meta_info"]["weight_version"] == "2"
        known = served.router.shared.fleet.listed()
        assert [worker.version for worker in known] == ["2", "2"]


async def test_an_update_outside_of_its_session_fails_as_it_does_there() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        answer = await served.client.post("/update_weights_from_tensor", json=TENSORS)
        assert answer.status_code == 502
        assert not answer.json()["success"]
        assert answer.json()["failed"][0]["status"] == 400
        assert "begin_weight_update" in answer.json()["message"]


async def test_a_trainer_joins_each_worker_to_its_group_with_a_rank_of_its_own() -> None:
    async with (
        embedded_worker() as one,
        embedded_worker() as two,
        router_with(one.url, two.url) as served,
    ):
        group = {
            "master_address": "127.0.0.1",
            "master_port": 29500,
            "world_size": 3,
            "group_name": "g",
            "backend": "nccl",
        }
        for rank, name in enumerate(ids_of(served), 1):
            path = f"/workers/{name}/engine/init_weights_update_group"
            told = await said(served, path, group | {"rank_offset": rank})
            assert told["body"]["success"]
        await said(served, "/begin_weight_update", {})
        body = {"names": ["w"], "dtypes": ["bfloat16"], "shapes": [[2, 2]], "group_name": "g"}
        assert (await said(served, "/update_weights_from_distributed", body))["success"]
        await said(served, "/end_weight_update", {})
        assert (await said(served, "/destroy_weights_update_group", {"group_name": "g"}))["success"]


async def test_a_trainer_takes_the_memory_and_gives_it_back() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        told = await said(served, "/release_memory_occupation", {"tags": ["weights", "kv_cache"]})
        (entry,) = told["results"].values()
        assert entry["body"] is None
        async with trio.open_nursery() as nursery:
            done: list[httpx.Response] = []

            async def generate() -> None:
                done.append(await served.generate(text="Hi", sampling_params={"max_new_tokens": 2}))

            nursery.start_soon(generate)
            await until(lambda: len(served.router.shared.dispatcher.live) == 1)
            await said(served, "/resume_memory_occupation", {"tags": ["weights"]})
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert not done
            await said(served, "/resume_memory_occupation", {"tags": ["kv_cache"]})
        assert done[0].status_code == 200


async def test_everything_else_that_a_client_of_one_server_calls() -> None:
    async with (
        embedded_worker() as one,
        embedded_worker() as two,
        router_with(one.url, two.url) as served,
    ):
        weights = await said(served, "/get_weights_by_name", {"name": "w", "truncate_size": 3})
        assert all(len(entry["body"]) == 3 for entry in weights["results"].values())
        assert (await said(served, "/weights_checker", {"action": "checksum"}))["success"]
        lora = {"lora_name": "a", "lora_path": "/a"}
        told = await said(served, "/load_lora_adapter", lora)
        assert told["loaded_adapters"] == {"a": "/a"}
        assert (await said(served, "/unload_lora_adapter", {"lora_name": "a"}))["success"]
        for path in ("/start_profile", "/stop_profile", "/freeze_gc", "/slow_down"):
            assert (await said(served, path, {}))["success"]
        for verb in ("start", "stop", "dump"):
            assert (await said(served, f"/{verb}_expert_distribution_record"))["success"]
        state = {"server_args": {"max_micro_batch_size": 8}}
        assert (await said(served, "/set_internal_state", state))["updated"]
        assert (await said(served, "/update_weights_from_ipc", {"zmq_handles": {}}))["success"]
        name = await said(served, "/open_session", {"capacity_of_str_len": 1000})
        assert isinstance(name, str)
        closed = await served.client.post("/close_session", json={"session_id": name})
        assert closed.status_code == 200
        text = (await served.client.get("/engine_metrics")).text
        assert text.count("sglang:num_running_reqs{worker=") == 2


# -- pauses over HTTP --------------------------------------------------------------------------


async def test_a_caller_whose_connection_ends_in_mid_pause_leaves_nobody_paused() -> None:
    release = trio.Event()

    async def slow(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        if arrived.target == "/pause_generation":
            await release.wait()
        return http_response(b"{}")

    async with (
        embedded_worker() as one,
        fake_worker(slow) as two,
        router_with(one.url, two.url, health_check=False) as served,
    ):
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        await stream.send_all(b"POST /pause_generation HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(lambda: one.worker.engine.paused is not None and two.arrived)
        await stream.aclose()
        await until(lambda: one.worker.engine.paused is None)
        release.set()
        await until(lambda: two.arrived[-1].target == "/continue_generation")
        await until(lambda: not any(known.paused for known in served.router.shared.fleet.listed()))


async def test_a_router_that_is_stopped_leaves_nobody_paused() -> None:
    async with embedded_worker() as worker:
        async with router_with(worker.url) as served:
            await said(served, "/pause_generation", {"mode": "in_place"})
            assert worker.worker.engine.paused is not None
        assert worker.worker.engine.paused is None


async def test_calls_wait_in_the_router_while_all_workers_are_paused() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        await said(served, "/pause_generation", {})
        done: list[httpx.Response] = []

        async def generate() -> None:
            done.append(await served.generate(text="Hi", sampling_params={"max_new_tokens": 2}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(generate)
            await until(lambda: len(served.router.shared.dispatcher.live) == 1)
            assert worker.worker.engine.load.held == 0
            await said(served, "/continue_generation", {})
        assert done[0].status_code == 200


# -- roles -------------------------------------------------------------------------------------


class Switching:
    """A worker that switches its role after so many attempts."""

    def __init__(self, *, busy: int = 0, status: str = "200 OK", safe: bool = True) -> None:
        self.busy = busy
        self.status = status
        self.safe = safe
        self.told: list[Any] = []

    async def answer(self, arrived: Arrived, stream: trio.SocketStream) -> bytes:
        if arrived.target != "/pd_role_switch":
            return http_response(b"{}")
        self.told.append(arrived.json)
        if self.busy:
            self.busy -= 1
            body = b'{"success":false,"message":"Not idle.","safe_to_restore":true}'
            return http_response(body, status="400 Bad Request")
        safe = b"true" if self.safe else b"false"
        body = b'{"success":true,"message":"m","safe_to_restore":%b}' % safe
        return http_response(body, status=self.status)


async def test_a_worker_changes_its_role_once_it_is_idle() -> None:
    switching = Switching(busy=1)
    async with fake_worker(switching.answer) as worker, router_with() as served:
        registered = {"url": worker.url, "worker_type": "prefill", "bootstrap_port": 8998}
        await served.client.post("/workers", json=registered)
        wish = {"worker_url": worker.url, "new_role": "decode", "drain_timeout_secs": 10}
        told = await said(served, "/pd_role_switch", wish)
        assert told["success"]
        assert switching.told == [{"new_role": "decode"}] * 2
        (known,) = served.router.shared.fleet.listed()
        assert (known.kind.value, known.bootstrap_port, known.paused) == ("decode", None, False)


async def test_a_worker_that_cannot_be_restored_stays_out_until_it_registers_again() -> None:
    switching = Switching(status="500 No", safe=False)
    async with fake_worker(switching.answer) as worker, router_with(worker.url) as served:
        wish = {"worker_url": worker.url, "new_role": "prefill"}
        answer = await served.client.post("/pd_role_switch", json=wish)
        assert answer.status_code == 502
        (known,) = served.router.shared.fleet.listed()
        assert (known.kind.value, known.paused) == ("regular", True)
        served.router.shared.control.forget(WorkerUrl(worker.url))
        assert not known.paused


async def test_a_worker_that_fails_safely_goes_on_in_its_role() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        wish = {"new_role": "decode"}
        answer = await served.client.post(f"/pd_role_switch?worker={worker.url}", json=wish)
        assert answer.status_code == 502
        (known,) = served.router.shared.fleet.listed()
        assert (known.kind.value, known.paused) == ("regular", False)


async def test_a_worker_that_is_never_idle_keeps_its_role() -> None:
    switching = Switching(busy=100)
    async with fake_worker(switching.answer) as worker, router_with(worker.url) as served:
        wish = {"worker_url": worker.url, "new_role": "decode", "drain_timeout_secs": 0.05}
        answer = await served.client.post("/pd_role_switch", json=wish)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "drain_timeout")
        (known,) = served.router.shared.fleet.listed()
        assert not known.paused


async def test_a_switch_names_one_worker_and_a_role() -> None:
    switching = Switching()
    async with (
        fake_worker(switching.answer) as one,
        fake_worker(switching.answer) as two,
        router_with(one.url, two.url) as served,
    ):
        for wish in ({"new_role": "decode"}, {"worker_url": one.url, "new_role": "regular"}):
            answer = await served.client.post("/pd_role_switch", json=wish)
            assert answer.status_code == 400
        assert switching.told == []
