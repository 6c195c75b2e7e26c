"""Registration, removal, first contact and operations."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
import trio

from slime_core.types import Encoding, unpack_ids
from tests.server.harness import (
    Arrived,
    Served,
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


async def test_so_many_workers_are_registered_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slime_trio.tending.membership.WORKERS_MOST", 1)
    async with fake_worker(OK) as worker, fake_worker(OK) as other, router_with() as served:
        assert (await served.client.post("/add_worker", json={"url": worker.url})).is_success
        refused = await served.client.post("/add_worker", json={"url": other.url})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_workers")
        assert (await served.client.post("/add_worker", json={"url": worker.url})).is_success


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


# -- the gateway's dialect ---------------------------------------------------------------------


async def _entry(served: Served, url: str) -> Any:
    """What ``GET /workers`` shows of this worker."""
    shown = (await served.client.get("/workers")).json()["workers"]
    return next(entry for entry in shown if entry["url"] == url)


def _quoted(url: str) -> str:
    return "/workers/" + quote(url, safe="")


async def test_a_registration_is_answered_as_by_the_gateway() -> None:
    async with fake_worker(OK) as worker, router_with() as served:
        answer = await served.client.post("/workers", json={"url": worker.url})
        assert answer.status_code == 202
        said = answer.json()
        name = said["worker_id"]
        assert said == {
            "status": "accepted",
            "worker_id": name,
            "url": worker.url,
            "location": f"/workers/{name}",
            "message": "registered",
        }
        assert answer.headers["location"] == f"/workers/{name}"
        one = (await served.client.get(answer.headers["location"])).json()
        assert one == await _entry(served, worker.url)


async def test_a_registered_worker_is_shown_with_what_is_known_of_it() -> None:
    async with fake_worker(OK) as worker, router_with() as served:
        said = {"priority": 7, "cost": 2.5, "labels": {"pool": "a"}, "model_id": "m"}
        await served.client.post("/workers", json={"url": worker.url, "api_key": "hidden"} | said)
        entry = await _entry(served, worker.url)
        assert {key: entry[key] for key in said} == said
        assert (entry["status"], entry["reason"], entry["is_healthy"]) == ("ready", None, True)
        assert (entry["worker_type"], entry["connection_mode"]) == ("regular", "http")
        assert (entry["load"], entry["weight_version"], entry["paused"]) == (0, "1", False)
        assert entry["metadata"] == {"pool": "a"}
        assert "bootstrap_port" not in entry
        assert "hidden" not in json.dumps(entry)


async def test_workers_are_counted_by_kind_and_shown_by_model() -> None:
    async with router_with() as served:
        kinds = ("prefill", "decode", "decode", "regular")
        for number, kind in enumerate(kinds):
            body = {"url": f"http://127.0.0.1:{number + 2}", "worker_type": kind, "model_id": kind}
            await served.client.post("/workers", json=body | {"bootstrap_port": 8998})
        shown = (await served.client.get("/workers")).json()
        assert shown["total"] == 4
        assert shown["stats"] == {"prefill_count": 1, "decode_count": 2, "regular_count": 1}
        assert {entry["bootstrap_port"] for entry in shown["workers"]} == {8998}
        decoding = (await served.client.get("/workers", params={"model": "decode"})).json()
        assert decoding["total"] == 2
        assert decoding["stats"] == {"prefill_count": 0, "decode_count": 2, "regular_count": 0}


async def test_a_worker_that_cannot_be_reached_is_registered_and_not_ready() -> None:
    async with router_with() as served:
        url = "http://127.0.0.1:9"
        assert (await served.client.post("/workers", json={"url": url})).status_code == 202
        entry = await _entry(served, url)
        assert (entry["status"], entry["is_healthy"]) == ("not_ready", False)


async def test_a_worker_with_another_tokenizer_is_shown_as_failed() -> None:
    async with fake_worker(OK, tokenize=lambda text: [1]) as worker, router_with() as served:
        await served.client.post("/workers", json={"url": worker.url})
        entry = await _entry(served, worker.url)
        assert (entry["status"], entry["is_healthy"]) == ("failed", False)
        assert "tokenizer" in entry["reason"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": 7}, "url"),
        ({"url": "ftp://a"}, "url"),
        ({"url": "http://127.0.0.1:1", "worker_type": "encode"}, "worker_type"),
        ({"url": "http://127.0.0.1:1", "bootstrap_port": "x"}, "bootstrap_port"),
        ({"url": "http://127.0.0.1:1", "disable_health_check": 1}, "disable_health_check"),
    ],
)
async def test_a_bad_registration_is_refused_by_the_name_of_its_field(
    body: dict[str, Any], field: str
) -> None:
    async with router_with() as served:
        refused = await served.client.post("/workers", json=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == field
        assert (await served.client.get("/workers")).json()["total"] == 0


async def test_an_id_that_no_worker_ever_had_is_not_found() -> None:
    async with router_with() as served:
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            answer = await served.client.request(method, "/workers/nobody", json={})
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "WORKER_NOT_FOUND"


async def test_a_worker_may_be_named_by_its_url() -> None:
    async with fake_worker(OK) as worker, router_with(worker.url, worker.url + "/") as served:
        for url in (worker.url, worker.url + "/"):
            one = (await served.client.get(_quoted(url))).json()
            assert one["url"] == url
        assert (await served.client.get(_quoted("http://127.0.0.1:9"))).status_code == 404


async def test_other_methods_on_a_worker_reach_no_worker() -> None:
    async with fake_worker(OK) as worker, router_with(worker.url) as served:
        answer = await served.client.post(_quoted(worker.url), json={})
        assert answer.status_code == 405
        assert "DELETE" in answer.headers["allow"]
        assert not worker.arrived


# -- changing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_a_worker_s_registration_is_changed_field_by_field(method: str) -> None:
    async with fake_worker(OK) as worker, router_with() as served:
        body = {"url": worker.url, "priority": 7, "labels": {"a": "1"}}
        await served.client.post("/workers", json=body)
        before = await _entry(served, worker.url)
        changed = await served.client.request(method, _quoted(worker.url), json={"priority": 9})
        assert changed.status_code == 202
        assert await _entry(served, worker.url) == before | {"priority": 9}
        refused = await served.client.request(
            method, _quoted(worker.url), json={"worker_type": "decode"}
        )
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "worker_type"


async def test_a_worker_is_asked_with_the_key_it_was_registered_with() -> None:
    async with fake_worker(OK) as worker, router_with(worker_api_key="of-all") as served:
        await served.client.post("/workers", json={"url": worker.url, "api_key": "its-own"})
        await served.generate(text="x")
        await served.client.patch(_quoted(worker.url), json={"api_key": None})
        await served.generate(text="x")
        keys = [arrived.headers["authorization"] for arrived in worker.arrived]
        assert keys == ["Bearer its-own", "Bearer of-all"]


async def test_registering_by_url_alone_leaves_what_was_registered() -> None:
    async with fake_worker(OK) as worker, router_with() as served:
        await served.client.post("/workers", json={"url": worker.url, "priority": 7})
        await served.client.post("/add_worker", params={"url": worker.url})
        assert (await _entry(served, worker.url))["priority"] == 7
        await served.client.post("/workers", json={"url": worker.url})
        assert (await _entry(served, worker.url))["priority"] == 50


# -- what slime calls, in each of its ages -----------------------------------------------------


async def test_slime_s_newest_registers_finds_and_removes_its_workers() -> None:
    async with fake_worker(OK) as worker, router_with() as served:
        body = {"url": worker.url, "worker_type": "regular"}
        assert (await served.client.post("/workers", json=body)).is_success
        shown = (await served.client.get("/workers")).json()["workers"]
        (name,) = [entry["id"] for entry in shown if entry["url"] == worker.url]
        assert (await served.generate(text="x")).is_success
        assert (await served.client.delete(f"/workers/{name}")).status_code == 202
        assert (await served.client.get("/workers")).json()["workers"] == []


async def test_slime_with_its_own_router_registers_lists_and_removes_its_workers() -> None:
    async with fake_worker(OK) as worker, router_with() as served:
        assert (await served.client.post(f"/add_worker?url={worker.url}")).is_success
        assert (await served.client.get("/list_workers")).json()["urls"] == [worker.url]
        assert (await served.generate(text="x")).is_success
        assert (await served.client.post(f"/remove_worker?url={worker.url}")).is_success
        assert (await served.client.get("/list_workers")).json()["urls"] == []


async def test_slime_with_an_older_gateway_removes_its_workers_by_their_urls() -> None:
    async with fake_worker(OK) as worker, router_with() as served:
        body = {"url": worker.url, "worker_type": "regular"}
        assert (await served.client.post("/workers", json=body)).is_success
        assert (await served.client.delete(_quoted(worker.url))).is_success
        assert (await served.client.get("/workers")).json()["workers"] == []


async def test_removing_succeeds_whether_the_worker_is_still_there_or_not() -> None:
    async with fake_worker(OK) as worker, router_with(worker.url) as served:
        name = (await _entry(served, worker.url))["id"]
        for path in (f"/workers/{name}", _quoted(worker.url), _quoted("http://never:1")):
            for _ in range(2):
                assert (await served.client.delete(path)).status_code == 202


async def test_an_engine_that_comes_back_keeps_its_id() -> None:
    async with fake_worker(OK) as worker, router_with(worker.url) as served:
        name = (await _entry(served, worker.url))["id"]
        await served.client.delete(f"/workers/{name}")
        again = await served.client.post("/workers", json={"url": worker.url})
        assert again.json()["worker_id"] == name


async def test_both_dialects_act_on_the_same_workers() -> None:
    async with fake_worker(OK) as worker, router_with() as served:
        await served.client.post("/workers", json={"url": worker.url})
        assert (await served.client.get("/list_workers")).json() == {"urls": [worker.url]}
        await served.client.post("/remove_worker", json={"worker_url": worker.url})
        assert (await served.client.get("/workers")).json()["total"] == 0


# -- removal in mid-call -----------------------------------------------------------------------


async def test_a_worker_that_is_being_removed_is_shown_as_draining_and_its_calls_end() -> None:
    go = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await go.wait()
        return http_response(json.dumps(answer_item([5], "a")).encode())

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        got = []

        async def ask() -> None:
            got.append((await served.generate(text="x")).status_code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: worker.arrived)
            await served.client.delete(_quoted(worker.url))
            entry = await _entry(served, worker.url)
            assert (entry["status"], entry["load"]) == ("draining", 1)
            go.set()
        assert got == [200]
        await settled(served)
        assert (await served.client.get("/workers")).json()["total"] == 0


async def test_the_calls_of_a_removed_worker_are_aborted_where_that_is_asked_for() -> None:
    async with embedded_worker(ms_per_token=5.0) as worker, router_with(worker.url) as served:
        got = []

        async def ask() -> None:
            got.append(
                await served.generate(
                    text="x",
                    rid="mine",
                    sampling_params={"max_new_tokens": 10_000, "ignore_eos": True},
                )
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: not worker.is_idle)
            refused = await served.client.delete(_quoted(worker.url) + "?drain=perhaps")
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "drain"
            await served.client.delete(_quoted(worker.url) + "?drain=false")
        assert got[0].json()["meta_info"]["finish_reason"]["type"] == "abort"
        await settled(served)
        assert not served.router.state.fleet.workers


async def test_idle_connections_of_a_removed_worker_are_closed() -> None:
    async with fake_worker(OK) as worker, router_with(worker.url) as served:
        await served.generate(text="x")
        assert served.router.pool.idle(worker.url) == 1
        await served.client.delete(_quoted(worker.url))
        assert served.router.pool.stats().idle == 0


# -- who may -----------------------------------------------------------------------------------

FAR = {"x-forwarded-for": "203.0.113.9"}


async def test_a_stranger_registers_and_removes_nobody_but_itself() -> None:
    async with (
        fake_worker(OK) as worker,
        router_with(worker.url, api_key=("a-tenant-of-ours",)) as served,
    ):
        name = (await _entry(served, worker.url))["id"]
        for method, path in (
            ("POST", "/workers"),
            ("POST", "/add_worker"),
            ("POST", "/remove_worker"),
            ("DELETE", f"/workers/{name}"),
            ("DELETE", _quoted(worker.url)),
        ):
            refused = await served.client.request(
                method, path, json={"url": worker.url}, headers=FAR
            )
            assert refused.status_code == 403, (method, path)
            assert refused.json()["error"]["code"] == "worker_not_allowed"
        assert (await served.client.get("/list_workers")).json() == {"urls": [worker.url]}
