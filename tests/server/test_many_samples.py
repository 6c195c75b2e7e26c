"""Requests for very many samples: bounded, and answered with heads that clients accept."""

from __future__ import annotations

from slime_trio.relay import CALLS_NAMED
from tests.server.harness import (
    Arrived,
    answer_item,
    fake_worker,
    json_answer,
    router_with,
    settled,
)


def _answers(arrived: Arrived) -> list[object]:
    samples = arrived.json["sampling_params"]["n"]
    return [answer_item([5], "a", rid=f"r{sample}") for sample in range(samples)]


async def test_more_samples_than_the_router_takes_are_refused_by_name() -> None:
    async with (
        fake_worker(json_answer(_answers)) as worker,
        router_with(worker.url, max_samples_per_request=4) as served,
    ):
        response = await served.generate(text="x", sampling_params={"n": 5})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "n"
        assert worker.arrived == []
        await settled(served)


async def test_prompts_times_samples_count() -> None:
    async with (
        fake_worker(json_answer(_answers)) as worker,
        router_with(worker.url, max_samples_per_request=4) as served,
    ):
        response = await served.generate(text=["x", "y", "z"], sampling_params={"n": 2})
        assert response.status_code == 400


async def test_a_few_calls_are_named_in_the_head() -> None:
    async with fake_worker(json_answer(_answers)) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", sampling_params={"n": 3})
        assert len(response.headers["x-slime-call-id"].split(",")) == 3


async def test_very_many_calls_are_named_by_their_answers_alone() -> None:
    async with fake_worker(json_answer(_answers)) as worker, router_with(worker.url) as served:
        count = CALLS_NAMED + 1
        response = await served.generate(text="x", sampling_params={"n": count})
        assert "x-slime-call-id" not in response.headers
        assert len(response.json()) == count
        assert (await served.trajectory("r7"))["tokens"][-1:] == [5]
