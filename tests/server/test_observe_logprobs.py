"""What a worker's logprobs are of is found out before it matters, and told with what it sampled."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from slime_core.logprob_kinds import LogprobKind
from slime_core.types import WorkerUrl
from tests.server.harness import (
    Arrived,
    Served,
    answer_item,
    embedded_worker,
    fake_worker,
    http_response,
    router_with,
    until,
)

PARAMS = {"max_new_tokens": 4, "ignore_eos": True, "temperature": 0.7, "top_p": 0.9}
LOGITS = (2.0, 1.0, 0.5, 0.0)


class Engine:
    """A fake engine that tells logprobs of one kind; ``None``: none of likely tokens."""

    def __init__(self, kind: LogprobKind | None) -> None:
        self.kind = kind
        self.probed = 0
        self.url = ""

    async def answer(self, arrived: Arrived, _: trio.SocketStream) -> bytes:
        body = arrived.json
        if "top_logprobs_num" not in body:
            return http_response(json.dumps(answer_item([5], "a")).encode())
        self.probed += 1
        return http_response(json.dumps(self.probe(body["sampling_params"])).encode())

    def probe(self, params: dict[str, Any]) -> dict[str, Any]:
        item = answer_item([0], "a")
        if self.kind is None:
            return item
        heat = 1.0 if self.kind is LogprobKind.RAW else params["temperature"]
        weights = [math.exp(one / heat) for one in LOGITS]
        if self.kind is LogprobKind.SAMPLING and params["top_p"] < 1:
            weights = weights[:1]
        told = [math.log(one / sum(weights)) for one in weights]
        item["meta_info"]["output_token_logprobs"] = [[told[0], 0, None]]
        item["meta_info"]["output_top_logprobs"] = [
            [[one, place, None] for place, one in enumerate(told[:2])]
        ]
        return item


@asynccontextmanager
async def probed(kind: LogprobKind | None) -> AsyncIterator[tuple[Served, Engine]]:
    """A router that probes, and its only worker, once it has been probed."""
    engine = Engine(kind)
    async with (
        fake_worker(engine.answer) as worker,
        router_with(worker.url, probe_logprobs=True) as served,
    ):
        engine.url = worker.url
        await until(lambda: engine.probed)
        await until(lambda: kind_of(served, worker.url) is (kind or LogprobKind.UNKNOWN))
        yield served, engine


def kind_of(served: Served, url: str) -> LogprobKind:
    return served.router.state.fleet.workers[WorkerUrl(url)].logprob_kind


async def told(served: Served, **body: Any) -> Any:
    response = await served.generate(text="Hello", **body)
    return await served.trajectory(response.headers["x-slime-call-id"])


async def test_the_embedded_worker_tells_those_of_what_it_draws_from() -> None:
    async with embedded_worker() as worker, router_with(worker.url, probe_logprobs=True) as served:
        await until(lambda: kind_of(served, worker.url) is LogprobKind.SAMPLING)
        kept = await told(served, sampling_params=PARAMS)
        assert kept["logprob_kind"] == "sampling"


@pytest.mark.parametrize("kind", [LogprobKind.RAW, LogprobKind.TEMPERED, LogprobKind.SAMPLING])
async def test_an_engine_s_kind_is_found_out_and_told_with_its_answers(kind: LogprobKind) -> None:
    async with probed(kind) as (served, engine):
        assert (await told(served))["logprob_kind"] == kind.value
        assert engine.probed == 3


async def test_what_is_not_found_out_is_unknown() -> None:
    async with probed(None) as (served, _):
        assert (await told(served))["logprob_kind"] == "unknown"


async def test_answers_of_workers_that_differ_are_mixed() -> None:
    async with (
        probed(LogprobKind.RAW) as (served, first),
        fake_worker(Engine(LogprobKind.SAMPLING).answer) as second,
    ):
        response = await served.generate(text="Hello")
        text = "Hello" + response.json()["text"] + " and on"
        await served.client.post("/remove_worker", params={"url": first.url})
        await served.client.post("/add_worker", params={"url": second.url})
        await until(lambda: kind_of(served, second.url) is LogprobKind.SAMPLING)
        response = await served.generate(text=text)
        kept = await served.trajectory(response.headers["x-slime-call-id"])
        assert kept["logprob_kind"] == "mixed"


async def test_samples_tell_the_kind() -> None:
    async with probed(LogprobKind.TEMPERED) as (served, _):
        session = (await served.client.post("/sessions")).json()["session_id"]
        await served.client.post(
            "/generate", json={"text": "Hello"}, headers={"x-session-id": session}
        )
        answer = await served.client.post(
            f"/sessions/{session}/samples", headers={"accept": "application/json"}
        )
        (sample,) = answer.json()["samples"]
        assert sample["logprob_kind"] == "tempered"


async def test_nobody_is_asked_where_it_is_switched_off() -> None:
    engine = Engine(LogprobKind.RAW)
    async with fake_worker(engine.answer) as worker, router_with(worker.url) as served:
        assert (await told(served))["logprob_kind"] == "unknown"
        assert engine.probed == 0
