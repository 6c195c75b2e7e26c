"""``POST /generate``: what reaches the worker, what reaches the client, what is captured."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from tests.server.harness import (
    Arrived,
    Events,
    answer_item,
    embedded_worker,
    encode,
    events_of,
    fake_worker,
    http_response,
    json_answer,
    raw_client,
    router_with,
    scripted,
    settled,
    tokenizer,
)

# An answer without any text cannot be told from its prompt by text alone, so stops are ignored.
PARAMS = {"max_new_tokens": 8, "temperature": 1.0, "ignore_eos": True}


async def test_a_text_becomes_the_ids_that_the_worker_would_have_made() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.generate(text="Hello there", sampling_params=PARAMS)
        assert response.status_code == 200
        (record,) = worker.records
        assert list(record.prompt_ids) == worker.worker.model.encode(
            "Hello there", add_special_tokens=True
        )
        assert response.json()["output_ids"] == list(record.output_ids)


async def test_the_answer_passes_byte_for_byte_when_logprobs_were_asked_for() -> None:
    body = json.dumps(answer_item([5, 6], "ab", odd={"b": 1.50, "a": [1, 2]}), indent=1).encode()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(body, more="x-worker-says: hi\r\n")

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", return_logprob=True)
        assert response.content == body
        assert response.headers["x-worker-says"] == "hi"


async def test_logprobs_nobody_asked_for_are_taken_out_and_nothing_else_changes() -> None:
    item = answer_item([5, 6], "ab", odd={"b": 1.50, "a": [1, 2]})
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        shown = (await served.generate(text="x")).json()
        expected = json.loads(json.dumps(item))
        del expected["meta_info"]["output_token_logprobs"]
        assert shown == expected
        assert worker.arrived[-1].json["return_logprob"] is True


async def test_unknown_fields_reach_the_worker_as_they_came() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        fields: dict[str, Any] = {
            "future_field": {"deep": [1, 2.50, None]},
            "sampling_params": {"temperature": 0.7, "custom_params": {"x": 1}},
            "lora_path": "a/b",
        }
        await served.generate(text="x", **fields)
        sent = worker.arrived[-1].json
        assert {name: sent[name] for name in fields} == fields
        assert "text" not in sent


async def test_ids_reach_the_worker_exactly() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        await served.generate(input_ids=[9, 9, 1, 300], return_logprob=True)
        assert worker.arrived[-1].json["input_ids"] == [9, 9, 1, 300]


async def test_a_call_is_named_by_the_router_where_the_client_named_none() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        response = await served.generate(text="x")
        assert worker.arrived[-1].json["rid"] == response.headers["x-slime-call-id"]


async def test_a_clients_own_rid_is_kept_and_is_an_alias() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", rid="mine", sampling_params=PARAMS)
        assert response.json()["meta_info"]["id"] == "mine"
        found = await served.trajectory("mine")
        assert found["id"] == response.headers["x-slime-call-id"] != "mine"


@pytest.mark.parametrize(
    ("prompts", "rids"),
    [({"text": "x"}, "{}"), ({"text": ["x", "y"]}, ["a", "{}"]), ({"input_ids": [[5]]}, ["{}"])],
)
async def test_a_client_may_give_the_id_of_an_earlier_call(prompts: Any, rids: Any) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        first = await served.generate(text="x", sampling_params=PARAMS)
        named = first.headers["x-slime-call-id"]
        given = json.loads(json.dumps(rids).replace("{}", named))
        again = await served.generate(**prompts, rid=given, sampling_params=PARAMS)
        assert "x-slime-captured" not in again.headers


async def test_no_made_id_is_a_prefix_of_another() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        ids = {(await served.generate(text="x")).headers["x-slime-call-id"] for _ in range(5)}
        assert len(ids) == 5
        assert len({len(one) for one in ids}) == 1


async def test_a_batch_of_texts_is_captured_one_by_one() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.generate(text=["Hello", "Good day"], sampling_params=PARAMS)
        answers = response.json()
        calls = response.headers["x-slime-call-id"].split(",")
        assert len(answers) == len(calls) == 2
        for call, answer, prompt in zip(calls, answers, ["Hello", "Good day"], strict=True):
            found = await served.trajectory(call)
            assert found["tokens"] == encode(prompt) + answer["output_ids"]
        await settled(served)


async def test_a_batch_of_one_answers_an_array() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.generate(text=["Hello"], sampling_params=PARAMS)
        assert isinstance(response.json(), list)
        assert len(response.headers["x-slime-call-id"].split(",")) == 1


async def test_a_batch_of_ids_is_captured_one_by_one() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.generate(input_ids=[[5, 6], [7]], sampling_params=PARAMS)
        calls = response.headers["x-slime-call-id"].split(",")
        for call, answer, prompt in zip(calls, response.json(), [[5, 6], [7]], strict=True):
            assert (await served.trajectory(call))["tokens"] == prompt + answer["output_ids"]


async def test_every_sample_of_n_has_its_own_call_and_trajectory() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.generate(
            text=["Hello", "Well"], sampling_params={**PARAMS, "n": 3}, return_logprob=True
        )
        calls, answers = response.headers["x-slime-call-id"].split(","), response.json()
        assert len(set(calls)) == len(answers) == 6
        for place, (call, answer) in enumerate(zip(calls, answers, strict=True)):
            found = await served.trajectory(call)
            assert found["tokens"] == encode(["Hello", "Well"][place // 3]) + answer["output_ids"]
            sampled = [one[0] for one in answer["meta_info"]["output_token_logprobs"]]
            assert found["rollout_logp"][-len(sampled) :] == pytest.approx(sampled, rel=1e-6)


@pytest.mark.parametrize("incremental", [False, True])
async def test_a_stream_is_captured_exactly(incremental: bool) -> None:
    async with (
        embedded_worker(incremental_streaming_output=incremental) as worker,
        router_with(worker.url) as served,
    ):
        response = await served.generate(text="Hello", stream=True, sampling_params=PARAMS)
        *events, done = events_of(response.text)
        assert done == "[DONE]"
        (record,) = worker.records
        found = await served.trajectory(response.headers["x-slime-call-id"])
        assert found["tokens"] == list(record.prompt_ids) + list(record.output_ids)
        sampled = len(record.output_ids)
        assert found["rollout_logp"][-sampled:] == pytest.approx(record.logprobs, rel=1e-6)
        assert found["outcome"] == "complete"
        assert "output_token_logprobs" not in events[-1]["meta_info"]


@pytest.mark.parametrize("incremental", [False, True])
async def test_streams_of_a_batch_with_samples_are_told_apart(incremental: bool) -> None:
    async with (
        embedded_worker(incremental_streaming_output=incremental) as worker,
        router_with(worker.url) as served,
    ):
        response = await served.generate(
            text=["Hello", "Well"], stream=True, sampling_params={**PARAMS, "n": 2}
        )
        calls = response.headers["x-slime-call-id"].split(",")
        kept = sorted([(await served.trajectory(call))["tokens"] for call in calls])
        sampled = sorted(
            list(one.prompt_ids) + list(one.output_ids)
            for one in worker.records
            if len(one.output_ids) > 0
        )
        assert len(kept) == 4
        assert kept == sampled


async def test_a_stream_shows_logprobs_to_a_client_that_asked_for_them() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.generate(
            text="Hello", stream=True, return_logprob=True, sampling_params=PARAMS
        )
        *events, _ = events_of(response.text)
        (record,) = worker.records
        shown = [one[1] for one in events[-1]["meta_info"]["output_token_logprobs"]]
        assert shown == list(record.output_ids)


async def test_a_multi_turn_rollout_of_texts_is_one_trajectory() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        text = "Question: one?"
        for turn in range(3):
            response = await served.generate(text=text, sampling_params=PARAMS)
            text += response.json()["text"] + f"\nNext {turn}:"
        response = await served.generate(text=text, sampling_params=PARAMS)
        text += response.json()["text"]
        found = await served.retrieve(text)
        last = worker.records[-1]
        assert found["tokens"] == list(last.prompt_ids) + list(last.output_ids)
        sampled = [token for one in worker.records for token in one.output_ids]
        masked = [t for t, m in zip(found["tokens"], found["loss_mask"], strict=True) if m]
        assert masked == sampled
        for before, after in zip(worker.records, worker.records[1:], strict=False):
            held = list(before.prompt_ids) + list(before.output_ids)
            assert list(after.prompt_ids)[: len(held)] == held


async def test_a_multi_turn_rollout_of_ids_is_one_trajectory() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        ids, call = encode("Question: one?"), ""
        for turn in range(3):
            response = await served.generate(input_ids=ids, sampling_params=PARAMS)
            ids = ids + response.json()["output_ids"] + encode(f"\nNext {turn}:")
            call = response.headers["x-slime-call-id"]
        found = await served.trajectory(call)
        masked = [t for t, m in zip(found["tokens"], found["loss_mask"], strict=True) if m]
        assert masked == [token for one in worker.records for token in one.output_ids]


async def test_a_rollout_that_begins_with_ids_goes_on_with_text() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        first = await served.generate(input_ids=encode("Question: one?"), sampling_params=PARAMS)
        text = "Question: one?" + first.json()["text"] + "\nNext:"
        second = await served.generate(text=text, sampling_params=PARAMS)
        found = await served.trajectory(second.headers["x-slime-call-id"])
        masked = [t for t, m in zip(found["tokens"], found["loss_mask"], strict=True) if m]
        assert masked == [token for one in worker.records for token in one.output_ids]


async def test_a_rollout_that_begins_with_text_goes_on_with_ids() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        await served.generate(text="Question: one?", sampling_params=PARAMS)
        (record,) = worker.records
        ids = [*record.prompt_ids, *record.output_ids, *encode("\nNext:")]
        second = await served.generate(input_ids=ids, sampling_params=PARAMS)
        found = await served.trajectory(second.headers["x-slime-call-id"])
        masked = [t for t, m in zip(found["tokens"], found["loss_mask"], strict=True) if m]
        assert masked == [token for one in worker.records for token in one.output_ids]


async def test_a_trimmed_stop_token_that_the_client_writes_itself_is_not_doubled() -> None:
    script = scripted("fine", "good")
    async with embedded_worker(script=script) as worker, router_with(worker.url) as served:
        first = (await served.generate(text="How?", sampling_params={"max_new_tokens": 9})).json()
        assert first["text"] == "fine"
        await served.generate(
            text="How?fine<|im_end|>\nAnd?", sampling_params={"max_new_tokens": 9}
        )
        one, two = worker.records
        held = list(one.prompt_ids) + list(one.output_ids)
        assert list(two.prompt_ids) == held + encode("\nAnd?")


async def test_a_trimmed_stop_token_that_the_client_leaves_out_stays_in_the_ids() -> None:
    script = scripted("fine", "good")
    async with embedded_worker(script=script) as worker, router_with(worker.url) as served:
        await served.generate(text="How?", sampling_params={"max_new_tokens": 9})
        await served.generate(text="How?fine And?", sampling_params={"max_new_tokens": 9})
        one, two = worker.records
        held = list(one.prompt_ids) + list(one.output_ids)
        assert list(two.prompt_ids) == held + encode(" And?")


async def test_a_stop_string_is_consumed_at_the_joint() -> None:
    ids = encode("alpha STOP")
    async with (
        embedded_worker(script=scripted(ids, "end")) as worker,
        router_with(worker.url) as served,
    ):
        params = {"max_new_tokens": 30, "stop": ["STOP"]}
        shown = (await served.generate(text="Go:", sampling_params=params)).json()["text"]
        assert "STOP" not in shown
        await served.generate(text=f"Go:{shown}STOP more", sampling_params=params)
        one, two = worker.records
        held = list(one.prompt_ids) + list(one.output_ids)
        assert list(two.prompt_ids) == held + encode(" more")


async def test_an_untrimmed_stop_goes_on_from_its_text() -> None:
    async with (
        embedded_worker(script=scripted("fine", "good")) as worker,
        router_with(worker.url) as served,
    ):
        params = {"max_new_tokens": 9, "no_stop_trim": True, "skip_special_tokens": False}
        shown = (await served.generate(text="How?", sampling_params=params)).json()["text"]
        assert shown == "fine<|im_end|>"
        await served.generate(text=f"How?{shown}\nAnd?", sampling_params=params)
        one, two = worker.records
        held = list(one.prompt_ids) + list(one.output_ids)
        assert list(two.prompt_ids) == held + encode("\nAnd?")


def _broken_utf8() -> list[int]:
    vocabulary = tokenizer().vocabulary
    assert vocabulary is not None
    lone = [
        i for i in range(len(vocabulary)) if i in vocabulary and vocabulary.bytes_of(i) == b"\xe4"
    ]
    return [*encode("ab"), lone[0], *encode("cd")]


def _non_canonical() -> list[int]:
    return [token for character in "hello world" for token in encode(character)]


def _spelled_special() -> list[int]:
    return [token for character in "<|im_end|>" for token in encode(character)]


@pytest.mark.parametrize("make", [_broken_utf8, _non_canonical, _spelled_special])
async def test_odd_outputs_come_back_exactly_and_are_extended_exactly(make: Any) -> None:
    ids = make()
    async with (
        embedded_worker(script=scripted(ids, "yes")) as worker,
        router_with(worker.url) as served,
    ):
        params = {"max_new_tokens": len(ids), "skip_special_tokens": False}
        first = (await served.generate(text="Q:", sampling_params=params)).json()
        text = "Q:" + first["text"]
        assert (await served.retrieve(text))["tokens"] == encode("Q:") + ids
        await served.generate(text=text + " more", sampling_params=params)
        assert list(worker.records[1].prompt_ids) == encode("Q:") + ids + encode(" more")


async def test_an_abort_by_the_worker_is_passed_on_and_captured_as_aborted() -> None:
    from slime_trio.worker import Fault

    async with (
        embedded_worker(faults=(Fault("abort", 2),), ms_per_token=2) as worker,
        router_with(worker.url) as served,
    ):
        response = await served.generate(
            text="Hello", sampling_params={"max_new_tokens": 500, "ignore_eos": True}
        )
        assert response.status_code == 200
        assert response.json()["meta_info"]["finish_reason"]["type"] == "abort"
        found = await served.trajectory(response.headers["x-slime-call-id"])
        assert found["outcome"] == "aborted"
        assert len(worker.records) == 1


async def test_the_worker_may_leave_text_and_version_out() -> None:
    item = answer_item(encode("so"), "so")
    del item["text"], item["output_ids"], item["meta_info"]["weight_version"]
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        response = await served.generate(text="Say")
        assert response.status_code == 200
        found = await served.retrieve("Sayso")
        assert found["tokens"] == encode("Say") + encode("so")
        assert found["generation_versions"][-1] == -2


async def test_an_integer_weight_version_is_accepted() -> None:
    item = answer_item(encode("so"), "so", weight_version=12)
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        await served.generate(text="Say")
        found = await served.retrieve("Sayso")
        assert found["generation_versions"][-1] == 12
        assert found["weight_versions"][-1]["version"] == "12"


async def test_ids_outside_the_vocabulary_are_kept_as_they_came() -> None:
    item = answer_item([5, 2**31 - 1], "whatever")
    del item["text"]
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        response = await served.generate(text="Say")
        found = await served.trajectory(response.headers["x-slime-call-id"])
        assert found["tokens"][-2:] == [5, 2**31 - 1]
        await settled(served)


async def test_extras_come_back_with_the_trajectory() -> None:
    item = answer_item([5], "a", routed_experts="AAAA", routed_experts_start_len=0)
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        response = await served.generate(text="Say")
        found = await served.trajectory(response.headers["x-slime-call-id"])
        assert found["extras"]["routed_experts"] == "AAAA"


async def test_media_pass_untouched_and_say_that_they_are_not_captured() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        fields = {"text": "what is this", "image_data": ["data:x"]}
        response = await served.generate(**fields)
        assert worker.arrived[-1].json == fields
        assert response.headers["x-slime-captured"] == "false"
        assert served.router.state.counters.answers_not_captured == 1
        await settled(served)


async def test_a_weight_update_between_turns_gives_each_turn_its_version() -> None:
    async with embedded_worker(weight_version="1") as worker, router_with(worker.url) as served:
        first = (await served.generate(text="One:", sampling_params=PARAMS)).json()
        worker.worker.engine.update_version("2")
        second = await served.generate(text="One:" + first["text"] + "x", sampling_params=PARAMS)
        found = await served.trajectory(second.headers["x-slime-call-id"])
        versions = {run["version"] for run in found["weight_versions"]}
        assert versions == {"1", "2"}
        for token_mask, version in zip(
            found["loss_mask"], found["generation_versions"], strict=True
        ):
            assert (version == -1) == (token_mask == 0)


async def test_an_event_reaches_the_client_before_the_worker_sends_the_next() -> None:
    seen = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.event(answer_item([5], "a", finished=False))
        await seen.wait()
        await events.event(answer_item([5, 6], "ab"))
        await events.end()

    async with (
        fake_worker(answer) as worker,
        router_with(worker.url) as served,
        raw_client(served) as client,
    ):
        await client.post("/generate", {"text": "x", "stream": True})
        await client.until(b'"text":"a"', step=4096)
        seen.set()
        await client.until(b"[DONE]", step=4096)
        assert b'"text":"ab"' in client.got
