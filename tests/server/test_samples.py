"""Samples over HTTP: what can be asked, in which form they come, and that they are the truth."""

from __future__ import annotations

import base64
import json
from array import array
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
from safetensors import deserialize

from slime_core.engine.answers import ExpertShape, routed_experts
from slime_trio.samples import SAMPLE_POLICIES
from tests.server.harness import EmbeddedWorker, Served, embedded_worker, router_with, scripted

_MILES = {"max_seq_len": None, "metadata": {"task": 7}}
_SHAPE = ExpertShape(layers=2, top_k=3)


def _worker(**options: Any) -> AbstractAsyncContextManager[EmbeddedWorker]:
    """A worker whose answers end where the model ended them."""
    return embedded_worker(script=scripted("One.", "Two.", "Three.", "Four."), **options)


async def _open(served: Served, **body: Any) -> tuple[str, str]:
    """A new session: its id, and what paths in it begin with."""
    session = (await served.client.post("/sessions", json=body)).json()["session_id"]
    return session, f"/sessions/{session}"


async def _say(served: Served, at: str, text: str, **more: Any) -> tuple[str, str]:
    """A call: its id, and the text that the client holds then."""
    body = {"text": text, "sampling_params": {"max_new_tokens": 16}, **more}
    response = await served.client.post(f"{at}/generate", json=body)
    assert response.status_code == 200, response.text
    return response.headers["x-slime-call-id"], text + response.json()["text"]


async def _samples(served: Served, at: str, **body: Any) -> Any:
    """``POST …/samples``; its JSON, which must come with 200."""
    response = await served.client.post(f"{at}/samples", json={"format": "json", **body})
    assert response.status_code == 200, response.text
    return response.json()


def _tensors(response: httpx.Response) -> tuple[dict[str, Any], Any]:
    """The tensors of the binary form as lists of numbers, and its words."""
    assert response.headers["content-type"] == "application/octet-stream"
    codes = {"I64": "q", "U8": "B", "F64": "d", "I32": "i"}
    found = {}
    for name, tensor in deserialize(response.content):  # type: ignore[no-untyped-call]
        values = array(codes[tensor["dtype"]])
        values.frombytes(bytes(tensor["data"]))
        found[name] = values.tolist()
    return found, json.loads(bytes(found.pop("_samples_meta")))


async def _branched(served: Served, at: str) -> list[str]:
    """A session of three calls in two branches; their ids."""
    first, held = await _say(served, at, "Hello")
    second, _ = await _say(served, at, held + " and")
    third, _ = await _say(served, at, held + " but")
    return [first, second, third]


async def test_a_sample_is_the_trajectory_of_its_last_call() -> None:
    async with _worker() as worker, router_with(worker.url) as served:
        _, at = await _open(served)
        _, held = await _say(served, at, "Hello")
        last, _ = await _say(served, at, held + " and")
        (sample,) = (await _samples(served, at))["samples"]
        truth = await served.trajectory(last)
        start = sample["prompt_length"]
        assert sample["tokens"] == truth["tokens"]
        assert sample["loss_mask"] == truth["loss_mask"][start:]
        assert sample["rollout_log_probs"] == truth["rollout_logp"][start:]
        assert sample["weight_version_runs"] == truth["weight_versions"]
        assert sample["response"] == "One.<|im_end|> andTwo.<|im_end|>"


async def test_branches_share_what_was_sampled_before_them_and_train_it_once() -> None:
    async with _worker() as worker, router_with(worker.url) as served:
        _, at = await _open(served)
        calls = await _branched(served, at)
        found = await _samples(served, at)
        ways = [sample["call_ids"] for sample in found["samples"]]
        assert ways == [[calls[0], calls[1]], [calls[0], calls[2]]]
        trained = sum(sum(sample["loss_mask"]) for sample in found["samples"])
        assert trained == found["accounting"]["used"] == found["accounting"]["captured"]
        assert trained == sum(len(record.output_ids) for record in worker.records)


async def test_one_sample_per_call_is_made_where_it_is_asked_for() -> None:
    async with _worker() as worker, router_with(worker.url) as served:
        _, at = await _open(served)
        calls = await _branched(served, at)
        found = await _samples(served, at, per="call")
        assert [sample["call_ids"][-1] for sample in found["samples"]] == calls


async def test_a_conversation_is_told_in_messages() -> None:
    async with _worker() as worker, router_with(worker.url) as served:
        _, at = await _open(served)
        asked = {"role": "user", "content": "hi"}
        chat = {"model": "m", "messages": [asked], "max_tokens": 16}
        response = await served.client.post(f"{at}/v1/chat/completions", json=chat)
        said = response.json()["choices"][0]["message"]["content"]
        (sample,) = (await _samples(served, at))["samples"]
        assert sample["messages"][0] == asked
        assert sample["messages"][1]["content"] == said


async def test_rewards_and_metadata_are_given_by_call_or_alias() -> None:
    async with _worker() as worker, router_with(worker.url) as served:
        _, at = await _open(served, metadata={"task": 7})
        chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16}
        response = await served.client.post(f"{at}/v1/chat/completions", json=chat)
        alias = response.json()["id"]
        found = await _samples(served, at, rewards={alias: 0.0}, calls={alias: {"turn": 1}})
        (sample,) = found["samples"]
        assert (sample["reward"], sample["metadata"]) == (0.0, {"task": 7, "turn": 1})


async def test_asking_twice_gives_the_same_bytes() -> None:
    async with _worker() as worker, router_with(worker.url) as served:
        _, at = await _open(served)
        await _branched(served, at)
        for body in ({"per": "branch"}, _MILES):
            first, second = [await served.client.post(f"{at}/samples", json=body) for _ in "12"]
            assert first.content == second.content


async def test_what_was_given_stays_until_the_session_ends_even_where_little_is_kept() -> None:
    async with (
        _worker() as worker,
        router_with(worker.url, radix_tree_max_size=1) as served,
    ):
        session, at = await _open(served)
        await _branched(served, at)
        first, second = [await _samples(served, at) for _ in "12"]
        assert first["accounting"] == second["accounting"]
        await served.client.delete(f"/sessions/{session}")
        counters = served.router.state.counters
        assert (counters.sessions_collected, counters.answers_lost_unretrieved) == (2, 0)


async def test_the_samples_of_a_session_without_an_end_are_retrieved() -> None:
    async with _worker() as worker, router_with(worker.url) as served:
        headers = {"x-session-id": "mine"}
        body = {"text": "Hello", "sampling_params": {"max_new_tokens": 16}}
        await served.client.post("/generate", json=body, headers=headers)
        assert len((await _samples(served, "/sessions/mine"))["samples"]) == 1
        forest = served.router.state.forest
        assert all(segment.retrieved for segment in forest.calls.values())
        served.router.state.check()


async def test_sealing_along_with_the_samples_refuses_what_comes_later() -> None:
    async with _worker() as worker, router_with(worker.url) as served:
        _, at = await _open(served)
        await _say(served, at, "Hello")
        await _samples(served, at, seal=True)
        late = await served.client.post(f"{at}/generate", json={"text": "x"})
        assert late.json()["error"]["code"] == "session_sealed"
        assert len((await _samples(served, at))["samples"]) == 1


async def test_the_form_follows_format_then_accept_then_the_shape_of_the_body() -> None:
    binary, words = "application/octet-stream", "application/json"
    async with _worker() as worker, router_with(worker.url) as served:
        _, at = await _open(served)
        await _say(served, at, "Hello")
        for body, accept, expected in (
            ({}, "*/*", words),
            ({"max_seq_len": 100, "per": "call"}, "*/*", words),
            (_MILES, "*/*", binary),
            ({"max_seq_len": None}, "*/*", binary),
            (_MILES, "application/json", words),
            ({}, binary, binary),
            ({"format": "json"}, binary, words),
            ({"format": "safetensors"}, words, binary),
        ):
            response = await served.client.post(
                f"{at}/samples", json=body, headers={"accept": accept}
            )
            assert response.headers["content-type"] == expected, (body, accept)


async def test_both_forms_tell_the_same() -> None:
    async with _worker() as worker, router_with(worker.url) as served:
        _, at = await _open(served)
        await _branched(served, at)
        told = await _samples(served, at, metadata={"task": 7})
        tensors, meta = _tensors(await served.client.post(f"{at}/samples", json=_MILES))
        for place, sample in enumerate(told["samples"]):
            assert tensors[f"tokens.{place}"] == sample.pop("tokens")
            assert tensors[f"loss_mask.{place}"] == sample.pop("loss_mask")
            assert tensors[f"rollout_log_probs.{place}"] == sample.pop("rollout_log_probs")
            del sample["routed_experts"]
            assert sample.items() <= meta["samples"][place].items()
        assert meta["session_metadata"] == told["session_metadata"]


async def test_rows_of_experts_come_for_every_token_but_the_last() -> None:
    async with _worker(experts=_SHAPE) as worker, router_with(worker.url) as served:
        _, at = await _open(served)
        _, held = await _say(served, at, "Hello", return_routed_experts=True)
        await _say(served, at, held + " and", return_routed_experts=True)
        (sample,) = (await _samples(served, at))["samples"]
        truth = base64.b64decode(routed_experts(sample["tokens"], 0, _SHAPE))
        assert sample["routed_experts"]["rows"] == len(sample["tokens"]) - 1
        assert base64.b64decode(sample["routed_experts"]["data"]) == truth
        body = {"format": "safetensors", "routed_experts_shape": [2, 3]}
        response = await served.client.post(f"{at}/samples", json=body)
        shapes = {
            name: tensor["shape"]
            for name, tensor in deserialize(response.content)  # type: ignore[no-untyped-call]
        }
        assert shapes["rollout_routed_experts.0"] == [len(sample["tokens"]) - 1, 2, 3]


async def test_rows_that_begin_later_are_put_behind_those_before() -> None:
    async with _worker(experts=_SHAPE) as worker, router_with(worker.url) as served:
        _, at = await _open(served)
        first, held = await _say(served, at, "Hello", return_routed_experts=True)
        known = (await served.trajectory(first))["token_length"] - 1
        more = {"return_routed_experts": True, "routed_experts_start_len": known}
        await _say(served, at, held + " and", **more)
        (sample,) = (await _samples(served, at))["samples"]
        truth = base64.b64decode(routed_experts(sample["tokens"], 0, _SHAPE))
        assert sample["routed_experts_problem"] is None
        assert base64.b64decode(sample["routed_experts"]["data"]) == truth


async def test_what_cannot_be_asked_is_refused_by_name() -> None:
    async with _worker() as worker, router_with(worker.url) as served:
        _, at = await _open(served)
        _, other = await _open(served)
        foreign, _ = await _say(served, other, "Hello")
        for body, status, param in (
            ({"per": "turn"}, 400, "per"),
            ({"max_seq_len": 0}, 400, "max_seq_len"),
            ({"rewards": {"x": "high"}}, 400, "rewards[...]"),
            ({"include": ["everything"]}, 400, "include[0]"),
            ({"no_such_key": 1}, 400, "no_such_key"),
            ({"policy": "no_such_policy"}, 400, "policy"),
            ({"rewards": {foreign: 1.0}}, 400, f"rewards.{foreign}"),
            ({"calls": {"nobody": {}}}, 404, "calls.nobody"),
        ):
            response = await served.client.post(f"{at}/samples", json=body)
            told = (response.status_code, response.json()["error"]["param"])
            assert told == (status, param), body
        broken = await served.client.post(f"{at}/samples", content=b"{")
        assert broken.json()["error"]["code"] == "invalid_json"


async def test_a_reward_for_a_call_that_is_gone_is_a_finding() -> None:
    async with (
        _worker() as worker,
        router_with(worker.url, radix_tree_max_size=1) as served,
    ):
        _, at = await _open(served)
        call, _ = await _say(served, at, "Hello")
        # Retrieved alone it is kept for reuse, of which there is no room.
        await served.trajectory(call)
        found = await _samples(served, at, rewards={call: 1.0})
        assert [(one["call"], one["finding"]) for one in found["findings"]] == [(call, "call_gone")]
        assert found["accounting"]["captured"] > 0
        (dropped,) = found["accounting"]["dropped"]
        assert (dropped["call"], dropped["reason"], dropped["calls"]) == (None, "evicted", 1)


async def test_a_policy_that_was_registered_can_be_named() -> None:
    async with _worker() as worker, router_with(worker.url) as served:
        policies = {"first_only": lambda tree: dict.fromkeys(tree.leaves[1:], "not_first")}
        served.router.component_registry.register(SAMPLE_POLICIES, policies)
        _, at = await _open(served)
        calls = await _branched(served, at)
        found = await _samples(served, at, policy="first_only")
        assert [sample["call_ids"] for sample in found["samples"]] == [calls[:2]]
        assert [one["reason"] for one in found["accounting"]["dropped"]] == ["not_first"]
