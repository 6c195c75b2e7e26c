"""Registration, removal, first contact and operations."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from slime_core.types import Encoding, unpack_ids
from tests.server.harness import (
    Arrived,
    answer_item,
    embedded_worker,
    fake_worker,
    http_response,
    json_answer,
    router_with,
    settled,
    tokenizer,
    until,
)

OK = json_answer(answer_item([5], "a"))


def _ids(text: str) -> list[int]:
    return unpack_ids(tokenizer().encode_packed(text, encoding=Encoding.RAW, first=True))


@pytest.mark.parametrize("form", ["query", "json", "query worker_url", "json worker_url"])
async def test_a_worker_is_added_and_listed_exactly_as_registered(form: str) -> None:
    async with fake_worker(OK) as worker, router_with() as served:
        name = "worker_url" if "worker_url" in form else "url"
        given = {name: worker.url + "/"}
        more: Any = {"params": given} if form.startswith("query") else {"json": given}
        assert (await served.client.post("/add_worker", **more)).is_success
        assert (await served.client.get("/list_workers")).json() == {"urls": [worker.url + "/"]}
        assert (await served.generate(text="x")).is_success


async def test_adding_a_worker_twice_lists_it_once() -> None:
    async with fake_worker(OK) as worker, router_with(worker.url, worker.url) as served:
        assert (await served.client.get("/list_workers")).json() == {"urls": [worker.url]}


async def test_a_trailing_slash_does_not_hide_another_tokenizer() -> None:
    async with fake_worker(OK, tokenize=lambda text: [1, 2, 3]) as worker, router_with() as served:
        await served.client.post("/add_worker", params={"url": worker.url + "/"})
        assert (await served.client.get("/readiness")).status_code == 503


async def test_another_tokenizer_makes_a_worker_unfit_with_the_reason() -> None:
    async with (
        fake_worker(OK, tokenize=lambda text: [1, 2, 3]) as worker,
        router_with(worker.url) as served,
    ):
        ready = await served.client.get("/readiness")
        assert ready.status_code == 503
        assert "tokenizer" in ready.json()["workers"][worker.url]
        refused = await served.generate(text="x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_fit_workers")
        assert not worker.arrived
        await settled(served)


async def test_the_same_tokenizer_makes_a_worker_fit() -> None:
    async with fake_worker(OK, tokenize=_ids) as worker, router_with(worker.url) as served:
        assert (await served.client.get("/readiness")).json()["healthy_workers"] == 1


async def test_a_worker_that_cannot_be_reached_is_listed_and_gets_nothing() -> None:
    async with router_with() as served:
        url = "http://127.0.0.1:9"
        assert (await served.client.post("/add_worker", params={"url": url})).is_success
        assert (await served.client.get("/list_workers")).json() == {"urls": [url]}
        assert (await served.client.get("/readiness")).status_code == 503
        assert (await served.generate(text="x")).status_code == 503


async def test_removing_is_always_a_success() -> None:
    async with fake_worker(OK) as worker, router_with(worker.url) as served:
        for url in (worker.url, worker.url, "http://never:1"):
            assert (await served.client.post("/remove_worker", params={"url": url})).is_success
        assert (await served.client.get("/list_workers")).json() == {"urls": []}


async def test_a_worker_removed_with_calls_in_flight_finishes_them_and_gets_no_more() -> None:
    go = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await go.wait()
        return http_response(json.dumps(answer_item([5], "a")).encode())

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        got = []

        async def ask() -> None:
            got.append(await served.generate(text="x"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: worker.arrived)
            await served.client.post("/remove_worker", params={"url": worker.url})
            assert (await served.client.get("/list_workers")).json() == {"urls": []}
            assert (await served.generate(text="y")).status_code == 503
            go.set()
        assert got[0].status_code == 200
        await settled(served)
        assert not served.router.state.fleet.workers


async def test_a_worker_removed_and_added_again_in_mid_call_serves_on() -> None:
    go = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await go.wait()
        return http_response(json.dumps(answer_item([5], "a")).encode())

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                await served.generate(text="x")

            nursery.start_soon(ask)
            await until(lambda: worker.arrived)
            await served.client.post("/remove_worker", params={"url": worker.url})
            await served.client.post("/add_worker", params={"url": worker.url})
            go.set()
        assert (await served.generate(text="x")).status_code == 200
        await settled(served)


async def test_calls_are_dealt_to_the_least_busy_worker() -> None:
    go = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await go.wait()
        return http_response(json.dumps(answer_item([5], "a")).encode())

    async with (
        fake_worker(answer) as one,
        fake_worker(answer) as two,
        router_with(one.url, two.url) as served,
        trio.open_nursery() as nursery,
    ):

        async def ask() -> None:
            await served.generate(text="x")

        for _ in range(6):
            nursery.start_soon(ask)
        await until(lambda: len(one.arrived) + len(two.arrived) >= 6)
        assert (len(one.arrived), len(two.arrived)) == (3, 3)
        go.set()


async def test_weights_are_learnt_from_first_contact() -> None:
    async with embedded_worker(weight_version="7") as worker, router_with(worker.url) as served:
        assert (await served.client.get("/metrics")).json()["router"]["weight_version"] == "7"


async def test_health_is_ok_without_any_worker() -> None:
    async with router_with() as served:
        for path in ("/health", "/liveness"):
            assert (await served.client.get(path)).status_code == 200


async def test_metrics_have_the_shape_of_the_documents() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        for _ in range(2):
            await served.generate(
                text="Hello", sampling_params={"max_new_tokens": 3, "ignore_eos": True}
            )
        metrics = (await served.client.get("/metrics")).json()
        router, cache = metrics["router"], metrics["cache"]
        assert router["active_workers"] == 1
        assert router["worker_loads"] == {worker.url: 0}
        assert router["total_in_flight"] == 0
        assert {"total_entries", "cache_hits", "cache_misses", "hit_rate", "cur_cache_size",
                "max_cache_size", "cache_size_mb", "gc_threshold_k"} <= set(cache)  # fmt: skip
        assert (cache["cache_hits"], cache["cache_misses"], cache["hit_rate"]) == (1, 1, 0.5)
        assert cache["token_hit_rate"] == 0.5
        assert (cache["max_cache_size"], cache["gc_threshold_k"]) == (10_000, 5)


@pytest.mark.parametrize(
    "accept",
    ["text/plain", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
     "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
     "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"],
)  # fmt: skip
async def test_a_scraper_gets_the_prometheus_format(accept: str) -> None:
    async with router_with() as served:
        response = await served.client.get("/metrics", headers={"accept": accept})
        assert response.headers["content-type"].startswith("text/plain")
        assert "slime_calls_captured_total 0.0" in response.text


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html,*/*;q=0.8"])
async def test_everybody_else_gets_json(accept: str) -> None:
    async with router_with() as served:
        response = await served.client.get("/metrics", headers={"accept": accept})
        assert response.headers["content-type"] == "application/json"


async def test_a_format_in_the_query_wins() -> None:
    async with router_with() as served:
        response = await served.client.get("/metrics?format=prometheus")
        assert response.headers["content-type"].startswith("text/plain")
