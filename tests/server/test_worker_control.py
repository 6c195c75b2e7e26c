"""Control, health and information endpoints of the embedded worker over real sockets."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from slime_core.engine import ExpertShape
from slime_trio.tokenizer import CheckpointError
from slime_trio.worker import (
    SHIPPED_CHECKPOINT,
    Fault,
    WorkerOptions,
    add_arguments,
    create_worker_app,
    parse_fault,
    run,
)
from slime_trio.worker.options import options_from
from tests.server.worker_support import (
    PROMPT,
    events_of,
    has_records,
    is_running,
    is_waiting,
    load_of,
    running_worker,
    until,
)

LONG = {"text": PROMPT, "sampling_params": {"ignore_eos": True, "max_new_tokens": 60}}


class Call:
    """One ``/generate`` in the background."""

    def __init__(self, nursery: trio.Nursery, client: httpx.AsyncClient, **body: Any) -> None:
        self.done = trio.Event()
        self.response: httpx.Response | None = None
        nursery.start_soon(self._run, client, LONG | body)

    async def _run(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        self.response = await client.post("/generate", json=body)
        self.done.set()

    async def answer(self) -> Any:
        with trio.fail_after(10):
            await self.done.wait()
        assert self.response is not None
        return self.response.json()


async def test_an_abort_ends_a_running_request_with_its_tokens_so_far() -> None:
    async with running_worker(ms_per_token=20) as client, trio.open_nursery() as nursery:
        call = Call(nursery, client, rid="a", return_logprob=True)
        await until(is_running, client)
        response = await client.post("/abort_request", json={"rid": "a"})
        assert (response.status_code, response.content) == (200, b"")
        answer = await call.answer()
    reason = answer["meta_info"]["finish_reason"]
    assert reason == {"type": "abort", "message": "Aborted", "status_code": None, "err_type": None}
    assert len(answer["output_ids"]) == len(answer["meta_info"]["output_token_logprobs"]) > 0


async def test_an_abort_ends_a_queued_request_with_the_queues_shape() -> None:
    options = {"ms_per_token": 30, "max_running_requests": 1}
    async with running_worker(**options) as client, trio.open_nursery() as nursery:
        Call(nursery, client, rid="a")
        await until(is_running, client)
        queued = Call(nursery, client, rid="b")
        await until(is_waiting, client)
        await client.post("/abort_request", json={"rid": "b"})
        meta = (await queued.answer())["meta_info"]
        await client.post("/abort_request", json={"abort_all": True})
    assert meta["finish_reason"] == {"type": "abort", "message": "Abort in waiting queue"}
    assert meta["completion_tokens"] == 0
    assert not {"prompt_tokens", "cached_tokens", "num_retractions"} & set(meta)


async def test_the_version_changes_in_mid_generation_and_the_spans_say_where() -> None:
    async with (
        running_worker(ms_per_token=5, weight_version="1") as client,
        trio.open_nursery() as nursery,
    ):
        call = Call(nursery, client)
        await until(is_running, client)
        await trio.sleep(0.05)
        response = await client.post(
            "/update_weight_version", json={"new_version": "2", "abort_all_requests": False}
        )
        assert response.json()["new_version"] == "2"
        meta = (await call.answer())["meta_info"]
        assert (await client.get("/model_info")).json()["weight_version"] == "2"
    first, second = meta["weight_versions"]
    assert (first["version"], first["start"]) == ("1", 0)
    assert (second["version"], second["start"], second["end"]) == ("2", first["end"], 60)
    assert meta["weight_version"] == "2"


async def test_pausing_in_place_stops_the_tokens_until_continue() -> None:
    async with running_worker(ms_per_token=5) as client, trio.open_nursery() as nursery:
        call = Call(nursery, client)
        await until(is_running, client)
        paused = await client.post("/pause_generation", json={"mode": "in_place"})
        assert paused.json() == {"message": "Generation paused successfully.", "status": "ok"}
        assert (await client.get("/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/ping")).status_code == 200
        assert (await client.post("/flush_cache")).status_code == 400
        before = (await load_of(client))["num_used_tokens"]
        await trio.sleep(0.1)
        assert (await load_of(client))["num_used_tokens"] == before
        await client.post(
            "/update_weights_from_disk",
            json={"model_path": "step-2", "weight_version": "2", "flush_cache": False},
        )
        continued = await client.post("/continue_generation", json={})
        assert continued.json()["message"] == "Generation continued successfully."
        spans = (await call.answer())["meta_info"]["weight_versions"]
    assert [span["version"] for span in spans] == ["default", "2"]


async def test_pausing_with_abort_returns_when_nothing_runs() -> None:
    async with running_worker(ms_per_token=10) as client, trio.open_nursery() as nursery:
        call = Call(nursery, client)
        await until(is_running, client)
        await client.post("/pause_generation", json={})
        assert (await call.answer())["meta_info"]["finish_reason"]["type"] == "abort"
        held = Call(nursery, client, sampling_params={"max_new_tokens": 2})
        await trio.sleep(0.1)
        assert not held.done.is_set()
        await client.post("/continue_generation", json={})
        assert (await held.answer())["output_ids"]


async def test_retracted_requests_go_on_after_continue() -> None:
    async with running_worker(ms_per_token=5) as client, trio.open_nursery() as nursery:
        call = Call(nursery, client)
        await until(is_running, client)
        await client.post("/pause_generation", json={"mode": "retract"})
        assert (await client.post("/flush_cache")).text.startswith("Cache flushed.")
        await client.post("/continue_generation", json={})
        answer = await call.answer()
    assert answer["meta_info"]["num_retractions"] == 1
    assert len(answer["output_ids"]) == 60


async def test_weights_from_disk_wait_for_requests_in_flight_and_hold_new_ones() -> None:
    async with running_worker(ms_per_token=5) as client, trio.open_nursery() as nursery:
        before = Call(nursery, client)
        await until(is_running, client)
        done = trio.Event()

        async def update() -> None:
            body = {"model_path": "step-3", "weight_version": "3"}
            response = await client.post("/update_weights_from_disk", json=body)
            assert response.json()["success"] is True
            done.set()

        nursery.start_soon(update)
        await trio.sleep(0.05)
        after = Call(nursery, client)
        with trio.fail_after(5):
            await done.wait()
        first = (await before.answer())["meta_info"]["weight_versions"]
        second = (await after.answer())["meta_info"]["weight_versions"]
        assert (await client.get("/v1/models")).json()["data"][0]["id"] == "step-3"
        assert (await client.get("/v1/models/step-3")).status_code == 200
        missing = await client.get("/v1/models/none")
    assert [span["version"] for span in first] == ["default"]
    assert [span["version"] for span in second] == ["3"]
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_flush_may_wait_for_idleness() -> None:
    async with running_worker(ms_per_token=3) as client, trio.open_nursery() as nursery:
        call = Call(nursery, client)
        await until(is_running, client)
        assert (await client.post("/flush_cache")).status_code == 400
        assert (await client.get("/flush_cache?timeout=5")).status_code == 200
        assert call.done.is_set() or await call.answer()


@pytest.mark.parametrize("path", ["/pause_generation", "/continue_generation", "/abort_request"])
async def test_control_calls_need_a_body(path: str) -> None:
    async with running_worker() as client:
        response = await client.post(path)
    assert response.status_code == 400
    assert response.json()["object"] == "error"


async def test_unknown_paths_and_methods_are_worded_as_the_framework_words_them() -> None:
    async with running_worker() as client:
        missing, wrong = await client.get("/nothing"), await client.get("/generate")
    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})


async def test_information_endpoints_and_their_old_names_agree() -> None:
    async with running_worker(experts=ExpertShape(2, 2)) as client:
        for path in ("model_info", "server_info"):
            now, old = await client.get(f"/{path}"), await client.get(f"/get_{path}")
            assert now.json() == old.json()
        assert (await client.get("/server_info")).json()["version"]
        assert (await client.get("/health_generate")).status_code == 200


async def test_tokens_go_both_ways() -> None:
    async with running_worker() as client:
        text = "Hello 你好 🙂\n<|im_end|>"
        tokens = (await client.post("/tokenize", json={"prompt": text})).json()
        assert tokens["count"] == len(tokens["tokens"])
        body = {"tokens": tokens["tokens"], "skip_special_tokens": False}
        assert (await client.post("/detokenize", json=body)).json() == {"text": text}
        several = await client.post("/v1/tokenize", json={"prompt": ["a", "b c"]})
        assert [len(row) for row in several.json()["tokens"]] == several.json()["count"]
        assert (await client.post("/detokenize", json={"tokens": "x"})).status_code == 400


async def test_a_worker_over_another_tokenizer_counts_its_model_anew(tmp_path: Path) -> None:
    from tests.tokenizers import byte_level_bpe

    (tmp_path / "tokenizer.json").write_text(byte_level_bpe().to_str())
    async with running_worker(hf_checkpoint=tmp_path) as client:
        chunks = await events_of(client, "/generate", LONG | {"stream": True})
        await until(has_records, client)
    assert len(chunks[-1]["output_ids"]) == 60


async def test_a_script_file_is_read_and_a_bad_one_refused(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps(["Paris.", [5, 6], {"ids": [7], "logprobs": [-0.5]}]))
    async with running_worker(script_file=script) as client:
        texts = [(await client.post("/generate", json={"text": "a"})).json() for _ in range(3)]
    assert texts[0]["text"] == "Paris."
    assert texts[0]["meta_info"]["finish_reason"]["type"] == "stop"
    assert [answer["output_ids"] for answer in texts[1:]] == [[5, 6], [7]]
    script.write_text('[{"neither": 1}]')
    with pytest.raises(CheckpointError, match="script"):
        create_worker_app(WorkerOptions(script_file=script))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(made)
    return made


def test_the_command_line_becomes_options() -> None:
    line = "--ms-per-token 2.5 --fault hang --fault abort:3 --routed-experts 4x2 --seed 7"
    options = options_from(parser().parse_args(line.split()))
    assert options.ms_per_token == 2.5
    assert options.faults == (Fault("hang"), Fault("abort", 3))
    assert options.experts == ExpertShape(4, 2)
    assert options.seed == 7
    assert options.hf_checkpoint == SHIPPED_CHECKPOINT
    assert options_from(parser().parse_args([])) == WorkerOptions()


@pytest.mark.parametrize("text", ["nonsense", "hang:3", "abort", "abort:x"])
def test_a_fault_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_fault(text)


def test_a_missing_checkpoint_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = parser().parse_args(["--hf-checkpoint", str(tmp_path / "none"), "--port", "0"])
    assert run(args) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
