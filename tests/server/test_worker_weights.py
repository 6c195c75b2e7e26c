"""The embedded worker's weight sessions, memory, adapters and metrics over real sockets."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.server.worker_support import PROMPT, is_running, running_worker, until

TENSOR = {"serialized_named_tensors": ["AA"], "weight_version": "2"}


async def test_tensors_are_taken_between_begin_and_end_only() -> None:
    async with running_worker(weight_version="1") as client:
        statuses = [
            (await client.post(path, json=body)).status_code
            for path, body in (
                ("/update_weights_from_tensor", TENSOR),
                ("/end_weight_update", {}),
                ("/begin_weight_update", {}),
                ("/begin_weight_update", {}),
                ("/update_weights_from_tensor", TENSOR),
                ("/end_weight_update", {}),
                ("/update_weights_from_tensor", TENSOR),
            )
        ]
        assert statuses == [400, 400, 200, 400, 200, 200, 400]
        assert (await client.get("/model_info")).json()["weight_version"] == "2"


async def test_an_update_beside_paused_requests_is_applied_and_flushes_nothing() -> None:
    long = {"text": PROMPT, "sampling_params": {"ignore_eos": True, "max_new_tokens": 60}}
    async with running_worker(ms_per_token=5) as client, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: client.post("/generate", json=long))
        await until(is_running, client)
        await client.post("/pause_generation", json={"mode": "in_place"})
        answer = await client.post("/update_weights_from_ipc", json={"weight_version": "2"})
        assert answer.status_code == 400
        assert answer.json()["message"] == "Cache flush failed after updating weights"
        assert (await client.get("/model_info")).json()["weight_version"] == "2"
        await client.post("/continue_generation", json={})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/update_weights_from_distributed", {"names": ["a"], "dtypes": [], "shapes": []}),
        ("/update_weights_from_distributed", {"group_name": "unknown"}),
        ("/destroy_weights_update_group", {"group_name": "unknown"}),
        ("/begin_weight_update", {"selector": "half"}),
        ("/get_weights_by_name", {}),
        ("/weights_checker", {"action": "guess"}),
        ("/unload_lora_adapter", {"lora_name": "unknown"}),
        ("/pd_role_switch", {"new_role": "decode"}),
    ],
)
async def test_what_cannot_be_done_is_refused_in_words(path: str, body: Any) -> None:
    async with running_worker() as client:
        await client.post("/begin_weight_update", json={})
        answer = await client.post(path, json=body)
        assert (answer.status_code, answer.json()["success"]) == (400, False)
        assert answer.json()["message"]


async def test_weights_by_name_are_those_in_force() -> None:
    async with running_worker(weight_version="1") as client:
        asked = {"name": "w", "truncate_size": 4}
        first = (await client.post("/get_weights_by_name", json=asked)).json()
        assert len(first) == 4
        assert (await client.post("/get_weights_by_name", json=asked)).json() == first
        checksums = [(await client.get("/weights_checker")).json()["per_engine_checksum"]]
        body = {"new_version": "2", "abort_all_requests": False}
        await client.post("/update_weight_version", json=body)
        assert (await client.post("/get_weights_by_name", json=asked)).json() != first
        checksums += [(await client.get("/weights_checker")).json()["per_engine_checksum"]]
        assert len(set(checksums)) == 2


async def test_nothing_is_generated_without_memory() -> None:
    async with running_worker() as client:
        asked = {"text": PROMPT, "sampling_params": {"max_new_tokens": 1}}
        assert (await client.post("/release_memory_occupation")).json() is None
        assert (await client.post("/generate", json=asked)).status_code == 500
        await client.post("/resume_memory_occupation", json={"tags": ["weights", "cuda_graph"]})
        assert (await client.post("/generate", json=asked)).status_code == 500
        await client.post("/resume_memory_occupation", json={"tags": ["kv_cache"]})
        assert (await client.post("/generate", json=asked)).status_code == 200
        assert (await client.post("/resume_memory_occupation", json={"tags": ["x"]})).is_error


async def test_memory_is_kept_while_anything_runs() -> None:
    long = {"text": PROMPT, "sampling_params": {"ignore_eos": True, "max_new_tokens": 4000}}
    async with running_worker(ms_per_token=5) as client, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: client.post("/generate", json=long))
        await until(is_running, client)
        assert (await client.post("/release_memory_occupation")).status_code == 500
        await client.post("/abort_request", json={"abort_all": True})


async def test_sessions_have_ids_of_their_own_or_given_ones() -> None:
    async with running_worker() as client:
        body = {"capacity_of_str_len": 10}
        first = (await client.post("/open_session", json=body)).json()
        assert first != (await client.post("/open_session", json=body)).json()
        given = body | {"session_id": "mine"}
        assert (await client.post("/open_session", json=given)).json() == "mine"
        assert (await client.post("/open_session", json=given)).status_code == 400
        await client.post("/close_session", json={"session_id": "mine"})
        assert (await client.post("/open_session", json=given)).status_code == 200


async def test_metrics_are_told_in_prometheus_format() -> None:
    async with running_worker() as client:
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        assert "# TYPE sglang:num_running_reqs gauge" in answer.text.splitlines()
