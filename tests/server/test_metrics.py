"""The metrics endpoint: who gets which format, and what stands in it while calls run."""

from __future__ import annotations

import json

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.listeners import BOTH_LISTENERS
from tests.server.harness import (
    Arrived,
    answer_item,
    embedded_worker,
    fake_worker,
    http_response,
    router_with,
    settled,
)

# Both: requests are entered in the books by hot paths, or around the application.
pytestmark = BOTH_LISTENERS

ROUTER = {"active_workers", "worker_loads", "total_in_flight"}
CACHE = {"total_entries", "cache_hits", "cache_misses", "hit_rate", "cur_cache_size",
         "max_cache_size", "cache_size_mb", "gc_threshold_k"}  # fmt: skip


async def test_the_documents_keys_are_there_before_any_call() -> None:
    async with router_with() as served:
        told = (await served.client.get("/metrics")).json()
        assert set(told["router"]) >= ROUTER
        assert set(told["cache"]) >= CACHE
        assert (told["cache"]["hit_rate"], told["cache"]["token_hit_rate"]) == (0.0, 0.0)
        assert told["router"]["worker_loads"] == {}


async def test_a_running_generation_is_in_flight_in_both_formats() -> None:
    go = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await go.wait()
        return http_response(json.dumps(answer_item([5], "a")).encode())

    async with (
        fake_worker(answer) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(lambda: served.generate(text=["x", "y"]))
        with trio.fail_after(5):
            while not worker.arrived:  # noqa: ASYNC110 - nothing to wait on
                await trio.sleep(0.005)
        told = (await served.client.get("/metrics")).json()["router"]
        assert (told["total_in_flight"], told["worker_loads"]) == (2, {worker.url: 2})
        text = (await served.client.get("/metrics?format=prometheus")).text
        assert f'slime_worker_in_flight{{worker="{worker.url}"}} 2.0' in text
        go.set()
        await settled(served)
        assert (await served.client.get("/metrics")).json()["router"]["total_in_flight"] == 0


async def test_the_text_format_is_what_prometheus_reads() -> None:
    params = {"max_new_tokens": 2, "ignore_eos": True}
    async with embedded_worker() as worker, router_with(worker.url) as served:
        await served.generate(text="x", sampling_params=params)
        response = await served.client.get("/metrics", headers={"accept": "text/plain"})
        families = {one.name: one for one in text_string_to_metric_families(response.text)}
        (captured,) = families["slime_calls_captured"].samples
        assert captured.value == 1
        assert all(name.startswith("slime_") for name in families)
        assert all(family.documentation for family in families.values())


@pytest.mark.parametrize(
    ("accept", "is_text"),
    [
        ("text/plain", True),
        ("text/plain;q=0.5,application/json;q=0.4", True),
        ("text/plain;q=0.4,application/json;q=0.5", False),
        ("application/openmetrics-text;q=0.5,*/*;q=0.1", True),
        ("application/json,text/plain", False),
        ("text/plain;q=0", False),
        ("text/html", False),
        ("*/*", False),
    ],
)
async def test_the_format_is_what_the_client_likes_better(accept: str, is_text: bool) -> None:
    async with router_with() as served:
        kind = (await served.client.get("/metrics", headers={"accept": accept})).headers[
            "content-type"
        ]
        assert kind.startswith("text/plain" if is_text else "application/json")


@pytest.mark.parametrize(("asked", "is_text"), [("prometheus", True), ("json", False)])
async def test_a_format_that_is_named_wins_over_accept(asked: str, is_text: bool) -> None:
    async with router_with() as served:
        for accept in ("text/plain", "application/json"):
            response = await served.client.get(
                f"/metrics?format={asked}", headers={"accept": accept}
            )
            assert response.headers["content-type"].startswith("text/plain") is is_text
