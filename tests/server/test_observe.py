"""Metrics and logs: computed from committed transitions, and true."""

from __future__ import annotations

import pytest

from tests.server.harness import (
    answer_item,
    embedded_worker,
    fake_worker,
    json_answer,
    router_with,
    settled,
)

PARAMS = {"max_new_tokens": 4, "ignore_eos": True}


async def test_a_capture_counts_once() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        await served.generate(text="Hello", sampling_params=PARAMS)
        router = (await served.client.get("/metrics")).json()["router"]
        assert (router["calls_captured"], router["calls_lost"]) == (1, 0)
        assert router["answers_not_captured"] == 0


async def test_what_was_not_captured_is_counted() -> None:
    item = answer_item([5], "a", completion_tokens=3)
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        await served.generate(text="Hello")
        router = (await served.client.get("/metrics")).json()["router"]
        assert (router["calls_captured"], router["answers_not_captured"]) == (0, 1)


async def test_the_token_hit_rate_is_reused_over_prompt_tokens() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        text = "A first question:"
        first = await served.generate(text=text, sampling_params=PARAMS)
        text += first.json()["text"] + " and then some more"
        await served.generate(text=text, sampling_params=PARAMS)
        one, two = worker.records
        held = len(one.prompt_ids) + len(one.output_ids)
        cache = (await served.client.get("/metrics")).json()["cache"]
        expected = held / (len(one.prompt_ids) + len(two.prompt_ids))
        assert cache["token_hit_rate"] == pytest.approx(expected)
        assert cache["hit_rate"] == 0.5


async def test_both_formats_tell_the_same() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        for _ in range(3):
            await served.generate(text="Hello", sampling_params=PARAMS)
        as_json = (await served.client.get("/metrics")).json()
        text = (await served.client.get("/metrics?format=prometheus")).text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(values["slime_calls_captured_total"]) == as_json["router"]["calls_captured"]
        assert float(values["slime_lookup_hits_total"]) == as_json["cache"]["cache_hits"]
        assert float(values["slime_segments"]) == as_json["cache"]["total_entries"]
        assert float(values[f'slime_worker_fit{{worker="{worker.url}"}}']) == 1
        await settled(served)


async def test_data_lost_to_memory_is_warned_of(capfd: pytest.CaptureFixture[str]) -> None:
    versions = iter(["1", "2", "30"])

    info = {"model_path": "fake", "weight_version": "1"}

    def item(_: object) -> object:
        info["weight_version"] = next(versions)
        return answer_item([5], "a", weight_version=info["weight_version"])

    async with (
        fake_worker(json_answer(item), model_info=info) as worker,
        router_with(worker.url) as served,
    ):
        for number in range(3):
            await served.generate(text=f"Prompt {number}")
        cache = (await served.client.get("/metrics")).json()["cache"]
        assert cache["lost_unretrieved"] == 2
        assert "--gc-threshold-k" in capfd.readouterr().err
