"""Metrics of every part: what is counted where it happens, under labels that stay few."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from slime_trio.observability.counts import Counts, Tally, kind_of
from slime_trio.observability.histogram import SECONDS, Histogram
from tests.server.harness import (
    Arrived,
    Served,
    answer_item,
    embedded_worker,
    fake_worker,
    http_response,
    json_answer,
    raw_client,
    router_with,
    settled,
    until,
)

PARAMS = {"max_new_tokens": 4, "ignore_eos": True}
ADMIN = {"authorization": "Bearer admin-key-word"}
TENANT = {"authorization": "Bearer tenant-key-word"}


async def scraped(
    served: Served, headers: dict[str, str] | None = None
) -> dict[str, dict[tuple[str, ...], float]]:
    """Every sample by its name, and by the values of its labels in the order of their names."""
    response = await served.client.get("/metrics?format=prometheus", headers=headers or {})
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


async def test_requests_are_counted_by_kind_and_status_with_their_bytes() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        answer = await served.generate(text="Hello", sampling_params=PARAMS)
        await served.client.post("/generate", content=b"{")
        await served.client.get("/readiness")
        told = await scraped(served)
    requests = told["slime_requests_total"]
    assert requests["generate", "200"] == requests["generate", "400"] == 1
    assert requests["operations", "200"] == 1
    assert told["slime_sent_bytes_total"]["generate",] > len(answer.content)
    assert told["slime_received_bytes_total"]["generate",] > 1


async def test_refusals_are_counted_by_their_code() -> None:
    async with router_with() as served:
        await served.client.post("/generate", content=b"{")
        await served.client.post("/generate", json={"text": "Hello"})
        told = await scraped(served)
    assert told["slime_refusals_total"]["invalid_json", "400"] == 1
    assert sum(told["slime_refusals_total"].values()) == 2


async def test_keys_that_are_missing_or_wrong_are_counted() -> None:
    async with router_with(admin_key="admin-key-word", api_key=("tenant-key-word",)) as served:
        await served.client.post("/generate", json={"text": "x"})
        await served.client.post("/add_worker?url=http://127.0.0.1:9", headers=TENANT)
        told = await scraped(served, ADMIN)
    statuses = {status for _, status in told["slime_refusals_total"]}
    assert {"401", "403"} <= statuses


async def test_a_stream_s_first_byte_comes_before_its_end() -> None:
    async with embedded_worker(ms_per_token=20) as worker, router_with(worker.url) as served:
        await served.generate(text="Hello", sampling_params=PARAMS, stream=True)
        told = await scraped(served)
    assert told["slime_first_byte_seconds_count"]["generate",] == 1
    assert told["slime_request_seconds_count"]["generate",] == 1
    first, whole = (told[f"slime_{name}_seconds_sum"] for name in ("first_byte", "request"))
    assert 0 < first["generate",] < whole["generate",]


async def test_attempts_tell_what_came_of_them_and_whether_another_was_made() -> None:
    async def busy(_: Arrived, __: trio.SocketStream) -> bytes:
        return http_response(b"{}", status="503 Busy")

    async with (
        fake_worker(busy) as first,
        fake_worker(json_answer(answer_item([5], "a"))) as second,
        router_with(first.url, second.url, retry_backoff_s=0.001) as served,
    ):
        for _ in range(2):
            await served.generate(text="Hello")
        told = await scraped(served)
    attempts = told["slime_attempts_total"]
    assert attempts["status_503", "another"] >= 1
    assert attempts["answered", "last"] == 2
    assert told["slime_wait_seconds_count"][()] == 2


async def test_who_waits_is_told_while_it_waits() -> None:
    async with (
        embedded_worker(ms_per_token=5) as worker,
        router_with(worker.url, max_concurrent_requests=1) as served,
        trio.open_nursery() as nursery,
    ):
        body = {"text": "x", "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}}
        for _ in range(3):
            nursery.start_soon(lambda: served.client.post("/generate", json=body))
        await until(lambda: served.router.shared.dispatcher.room.waiting_count == 2)
        told = await scraped(served)
        assert (told["slime_running"][()], told["slime_waiting"][()]) == (1, 2)
        await served.client.post("/abort_request", json={"abort_all": True})
        await settled(served)
        told = await scraped(served)
        assert (told["slime_running"][()], told["slime_waiting"][()]) == (0, 0)
        assert told["slime_aborted_waiting_total"][()] == 2


async def test_control_calls_are_counted_worker_by_worker() -> None:
    async with embedded_worker() as one, router_with(one.url, "http://127.0.0.1:9") as served:
        await served.client.post("/flush_cache")
        told = await scraped(served)
    results = {result for path, result in told["slime_control_total"] if path == "/flush_cache"}
    assert "succeeded" in results


async def test_a_worker_s_condition_weights_and_probes_are_told() -> None:
    async with (
        embedded_worker(weight_version="7") as worker,
        router_with(worker.url, "http://127.0.0.1:9") as served,
    ):
        told = await scraped(served)
    assert told["slime_worker_condition"]["ready", worker.url] == 1
    assert told["slime_worker_condition"]["quarantined", worker.url] == 0
    assert told["slime_worker_weight_version"][worker.url,] == 7
    assert told["slime_weight_version"][()] == 7
    assert told["slime_probes_total"]["/model_info", "200"] >= 1
    assert told["slime_probes_total"]["/model_info", "unreachable"] >= 1


async def test_calls_are_told_tenant_by_tenant_to_the_operator_and_to_a_tenant_its_own() -> None:
    async with (
        embedded_worker() as worker,
        router_with(
            admin_key="admin-key-word", api_key=("tenant-key-word", "other-key-word")
        ) as served,
    ):
        await served.client.post("/add_worker", params={"url": worker.url}, headers=ADMIN)
        body = {"text": "Hello", "sampling_params": PARAMS}
        await served.client.post("/generate", json=body, headers=TENANT)
        all_of_it, own = await scraped(served, ADMIN), await scraped(served, TENANT)
        json_own = (await served.client.get("/metrics", headers=TENANT)).json()
    assert all_of_it["slime_calls_captured_total"] == {
        ("",): 0.0,
        ("tenant-1",): 1.0,
        ("tenant-2",): 0.0,
    }
    assert own["slime_calls_captured_total"] == {("tenant-1",): 1.0}
    assert not [name for name in own if name.startswith(("slime_worker", "slime_requests"))]
    assert json_own["router"]["calls_captured"] == 1
    assert worker.url not in json.dumps(json_own)


async def test_calls_that_were_lost_are_told_by_reason() -> None:
    async with embedded_worker(ms_per_token=20) as worker, router_with(worker.url) as served:
        async with raw_client(served) as raw:
            body = {"text": "x", "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}}
            await raw.post("/generate", body)
            await until(lambda: served.router.state.fleet.total_in_flight)
        await settled(served)
        told = await scraped(served)
    assert told["slime_calls_lost_total"] == {("client_gone",): 1.0}


# -- the books themselves ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/generate", "generate"),
        ("/v1/chat/completions", "chat"),
        ("/sessions/a/v1/chat/completions", "chat"),
        ("/sessions/a/generate", "sessions"),
        ("/v1/completions", "completions"),
        ("/v1/models", "other"),
        ("/sessions/a/samples", "sessions"),
        ("/trajectories/abc", "retrieval"),
        ("/workers/1", "workers"),
        ("/metrics", "operations"),
        ("/", "other"),
        ("/flush_cache", "other"),
        ("//generate", "generate"),
    ],
)
def test_a_path_is_of_one_of_few_kinds(path: str, kind: str) -> None:
    assert kind_of(path) == kind


def test_a_tally_stays_bounded() -> None:
    tally = Tally()
    for number in range(10_000):
        tally.add((str(number), "x"))
    assert len(tally) <= 257
    assert sum(tally.values()) == 10_000
    assert tally["other", "other"] > 9_000


def test_a_histogram_counts_each_duration_under_every_bound_above_it() -> None:
    histogram = Histogram()
    for seconds in (0.001, 0.005, 0.3, 10_000.0):
        histogram.observe(seconds)
    buckets: dict[str, Any] = dict(histogram.buckets())
    assert [buckets[bound] for bound in ("0.005", "0.25", "0.5", "3600.0", "+Inf")] == [
        2,
        2,
        3,
        3,
        4,
    ]
    assert (histogram.count, histogram.total) == (4, 10_000.306)
    assert len(buckets) == len(SECONDS) + 1


def test_nothing_is_counted_before_anything_happens() -> None:
    counts = Counts()
    assert [*counts.requests, *counts.refusals, *counts.attempts, *counts.lost] == []
