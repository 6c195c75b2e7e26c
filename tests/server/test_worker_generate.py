"""``/generate`` of the embedded worker over real sockets."""

from __future__ import annotations

import base64
import itertools
import struct
from typing import Any

import httpx
import pytest
import trio

from slime_core.engine import ExpertShape, Reply, Sampler, SamplingParams, float32, in_turn
from slime_trio.worker import SHIPPED_CHECKPOINT, Fault, load_model
from tests.server.worker_support import (
    PROMPT,
    events_of,
    has_records,
    is_running,
    is_waiting,
    running_worker,
    until,
)

SEEDED = {"max_new_tokens": 24, "sampling_seed": 5}


async def generate(client: httpx.AsyncClient, **body: Any) -> Any:
    response = await client.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_every_logprob_on_the_wire_equals_an_independent_computation() -> None:
    model = load_model(SHIPPED_CHECKPOINT)
    sampler = Sampler(model.language, end_ids=model.end_ids)
    params = SamplingParams(temperature=0.8, top_p=0.9)
    async with running_worker(weight_version="3") as client:
        answer = await generate(
            client,
            text=PROMPT,
            sampling_params={"temperature": 0.8, "top_p": 0.9, "max_new_tokens": 30},
            return_logprob=True,
            return_prompt_token_ids=True,
        )
    meta, ids = answer["meta_info"], answer["output_ids"]
    assert answer["prompt_token_ids"] == model.tokenizer.encode(PROMPT).ids
    assert [token for _, token, _ in meta["output_token_logprobs"]] == ids
    for place, (logprob, token, text) in enumerate(meta["output_token_logprobs"]):
        context = [*answer["prompt_token_ids"], *ids[:place]]
        assert logprob == float32(sampler.logprob(context, token, params, (), "3"))
        assert text is None
    assert meta["weight_versions"] == [{"version": "3", "start": 0, "end": len(ids)}]
    assert meta["completion_tokens"] == meta["output_token_logprobs_length"] == len(ids)


async def test_cumulative_chunks_end_in_the_answer_without_streaming() -> None:
    body = {"text": PROMPT, "sampling_params": SEEDED, "return_logprob": True}
    async with running_worker() as client:
        whole = await generate(client, **body)
        chunks = await events_of(client, "/generate", body | {"stream": True})
    for key in ("text", "output_ids"):
        assert chunks[-1][key] == whole[key]
        for earlier, later in itertools.pairwise(chunks):
            assert later[key][: len(earlier[key])] == earlier[key]
    last = chunks[-1]["meta_info"]
    assert last["output_token_logprobs"] == whole["meta_info"]["output_token_logprobs"]
    assert last["finish_reason"] == whole["meta_info"]["finish_reason"]
    assert all(chunk["meta_info"]["finish_reason"] is None for chunk in chunks[:-1])
    assert len(chunks) > 3


async def test_incremental_chunks_add_up_to_the_answer_without_streaming() -> None:
    body = {"text": PROMPT, "sampling_params": SEEDED, "return_logprob": True}
    async with running_worker(incremental_streaming_output=True) as client:
        whole = await generate(client, **body)
        chunks = await events_of(client, "/generate", body | {"stream": True})
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert [i for chunk in chunks for i in chunk["output_ids"]] == whole["output_ids"]
    logprobs = [t for chunk in chunks for t in chunk["meta_info"]["output_token_logprobs"]]
    assert logprobs == whole["meta_info"]["output_token_logprobs"]
    totals = [chunk["meta_info"]["completion_tokens"] for chunk in chunks]
    assert totals[-1] == len(whole["output_ids"])
    assert totals == [chunk["meta_info"]["output_token_logprobs_length"] for chunk in chunks]


async def test_a_batch_answers_in_order_with_derived_ids() -> None:
    prompts = [[1, 2], [3], [4, 5, 6]]
    async with running_worker() as client:
        answers = await generate(
            client, input_ids=prompts, rid="b", return_prompt_token_ids=True, sampling_params=SEEDED
        )
    assert [answer["prompt_token_ids"] for answer in answers] == prompts
    assert [answer["meta_info"]["id"] for answer in answers] == ["b_0", "b_1", "b_2"]


async def test_several_samples_of_one_prompt_differ_and_have_fresh_ids() -> None:
    async with running_worker() as client:
        answers = await generate(
            client, text=PROMPT, rid="mine", sampling_params={"n": 4, "max_new_tokens": 12}
        )
    assert len({tuple(answer["output_ids"]) for answer in answers}) > 1
    ids = {answer["meta_info"]["id"] for answer in answers}
    assert len(ids) == 4
    assert "mine" not in ids
    assert answers[0]["meta_info"]["cached_tokens"] > 0


async def test_chunks_of_a_batch_carry_their_index() -> None:
    body = {"input_ids": [[1, 2], [3]], "stream": True, "sampling_params": SEEDED}
    async with running_worker() as client:
        whole = await generate(client, **(body | {"stream": False}))
        chunks = await events_of(client, "/generate", body)
    for index, answer in enumerate(whole):
        last = [chunk for chunk in chunks if chunk["index"] == index][-1]
        assert last["output_ids"] == answer["output_ids"]


async def test_top_logprobs_watched_ids_and_prompt_logprobs_have_sglangs_form() -> None:
    async with running_worker() as client:
        answer = await generate(
            client,
            input_ids=[10, 11, 12],
            sampling_params={"max_new_tokens": 2, "ignore_eos": True},
            return_logprob=True,
            logprob_start_len=0,
            top_logprobs_num=2,
            token_ids_logprob=[7],
            return_text_in_logprobs=True,
        )
    meta = answer["meta_info"]
    assert [token for _, token, _ in meta["input_token_logprobs"]] == [10, 11, 12]
    assert meta["input_token_logprobs"][0][0] is None
    assert [len(row) for row in meta["output_top_logprobs"]] == [2, 2]
    assert meta["input_top_logprobs"][0] is None
    assert [row[0][1] for row in meta["output_token_ids_logprobs"]] == [7, 7]
    assert all(isinstance(text, str) for _, _, text in meta["output_token_logprobs"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "error"),
        (b"{", "error"),
        (b'{"text": NaN}', "error"),
        (b'{"text": 5}', "error"),
    ],
)
async def test_what_the_framework_refuses_is_worded_by_it(content: bytes, expected: str) -> None:
    async with running_worker() as client:
        response = await client.post("/generate", content=content)
    assert response.status_code == 400
    assert response.json()["object"] == expected
    assert response.json()["code"] == 400


async def test_an_unknown_sampling_key_is_a_400_also_for_a_stream() -> None:
    async with running_worker() as client:
        for stream in (False, True):
            body = {"text": "a", "stream": stream, "sampling_params": {"max_tokens": 1}}
            response = await client.post("/generate", json=body)
            assert response.status_code == 400
            assert "max_tokens" in response.json()["error"]


async def test_a_call_that_does_not_fit_is_an_error_event_on_a_stream() -> None:
    body = {"input_ids": [1], "sampling_params": {"max_new_tokens": 100}}
    async with running_worker(context_length=50) as client:
        plain = await client.post("/generate", json=body)
        (event,) = await events_of(client, "/generate", body | {"stream": True})
    assert plain.status_code == 400
    assert event["error"] == plain.json()["error"] | {
        "type": "invalid_request_error",
        "code": 400,
        "retryable": False,
    }


async def test_the_id_of_a_live_request_is_refused() -> None:
    async with running_worker(ms_per_token=20) as client, trio.open_nursery() as nursery:
        body = {"text": PROMPT, "rid": "x", "sampling_params": {"ignore_eos": True}}
        nursery.start_soon(lambda: client.post("/generate", json=body))
        await until(is_running, client)
        response = await client.post("/generate", json=body)
        assert response.status_code == 400
        assert "Duplicate request ID" in response.json()["error"]["message"]
        nursery.cancel_scope.cancel()


async def test_a_full_queue_is_a_503_or_a_last_chunk() -> None:
    options = {"ms_per_token": 50, "max_running_requests": 1, "queue_max": 1}
    body = {"text": PROMPT, "sampling_params": {"ignore_eos": True}}
    async with running_worker(**options) as client, trio.open_nursery() as nursery:
        for reached in (is_running, is_waiting):
            nursery.start_soon(lambda: client.post("/generate", json=body))
            await until(reached, client)
        response = await client.post("/generate", json=body)
        assert response.status_code == 503
        assert response.json()["type"] == "503"
        (chunk,) = await events_of(client, "/generate", body | {"stream": True})
        assert chunk["meta_info"]["finish_reason"]["status_code"] == 503
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_aborts_its_generation(stream: bool) -> None:
    body = {"text": PROMPT, "stream": stream, "sampling_params": {"ignore_eos": True}}
    async with running_worker(ms_per_token=20) as client:
        with trio.move_on_after(0.3):
            await client.post("/generate", json=body)
        await until(has_records, client)
        records = (await client.get("/slime_worker/records")).json()["records"]
    assert records[0]["finish_reason"]["type"] == "abort"
    assert 0 < len(records[0]["output_ids"]) < 128


async def test_records_tell_what_was_sampled() -> None:
    async with running_worker() as client:
        answer = await generate(client, text=PROMPT, rid="q", return_logprob=True)
        (record,) = (await client.get("/slime_worker/records?rid=q")).json()["records"]
        await client.delete("/slime_worker/records")
        assert (await client.get("/slime_worker/records")).json() == {"records": []}
    assert record["output_ids"] == answer["output_ids"]
    triples = answer["meta_info"]["output_token_logprobs"]
    assert record["logprobs"] == [logprob for logprob, _, _ in triples]
    assert record["weight_versions"] == ["default"] * len(triples)
    assert record["text"] == answer["text"]


async def test_a_script_answers_in_turn() -> None:
    script = in_turn([Reply(ids=(5, 6), logprobs=(-1.5, -2.5)), Reply(ids=(7,))])
    async with running_worker(script=script) as client:
        first = await generate(client, text="a", return_logprob=True)
        second = await generate(client, text="a")
    assert first["meta_info"]["output_token_logprobs"] == [[-1.5, 5, None], [-2.5, 6, None]]
    assert second["output_ids"] == [7]


async def test_pretended_experts_have_one_row_per_token_but_the_last() -> None:
    body = {"input_ids": [1, 2, 3], "sampling_params": SEEDED, "return_routed_experts": True}
    async with running_worker(experts=ExpertShape(4, 2)) as client:
        answer = await generate(client, routed_experts_start_len=1, **body)
    raw = base64.b64decode(answer["meta_info"]["routed_experts"])
    rows = 3 + answer["meta_info"]["completion_tokens"] - 1 - 1
    assert len(struct.unpack(f"<{len(raw) // 4}i", raw)) == rows * 4 * 2


async def test_faults_can_be_set_at_run_time_and_are_what_they_say() -> None:
    body = {"text": PROMPT, "sampling_params": {"max_new_tokens": 30, "ignore_eos": True}}
    async with running_worker(faults=(Fault("fail-first", 1),)) as client:

        async def post(*faults: str) -> httpx.Response:
            await client.post("/slime_worker/faults", json={"faults": list(faults)})
            return await client.post("/generate", json=body)

        assert (await client.post("/generate", json=body)).status_code == 500
        assert (await client.post("/generate", json=body)).status_code == 200
        assert (await post("refuse")).status_code == 503
        for fault in ("truncate-json", "garbage"):
            response = await post(fault)
            assert response.status_code == 200
            with pytest.raises(ValueError, match=r"."):
                response.json()
        aborted = (await post("abort:3")).json()
        assert aborted["meta_info"]["finish_reason"]["type"] == "abort"
        assert len(aborted["output_ids"]) == 4
        refused = await client.post("/slime_worker/faults", json={"faults": ["nonsense"]})
        assert refused.status_code == 400
        assert (await post()).status_code == 200


async def test_a_stream_is_cut_without_the_end_of_the_message() -> None:
    body = {"text": PROMPT, "stream": True, "sampling_params": {"ignore_eos": True}}
    async with running_worker(faults=(Fault("cut-stream", 2),)) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/generate", json=body)


async def test_a_hanging_worker_never_answers() -> None:
    async with running_worker(faults=(Fault("hang"),)) as client:
        with trio.move_on_after(0.3) as scope:
            await client.post("/generate", json={"text": "a"})
        assert scope.cancelled_caught
        assert (await client.get("/ping")).status_code == 200
