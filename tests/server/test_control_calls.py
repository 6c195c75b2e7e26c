"""What is told to all workers, to some, to one; and what comes back of it."""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
import trio

from slime_core.access import CONTROL_PATHS, Area, area_of
from slime_core.types import WorkerUrl
from slime_trio.control.outcomes import Outcome, Target, answer_of
from slime_trio.control.paths import PATHS, Kind
from tests.server.control_support import ids_of
from tests.server.harness import (
    Answering,
    Arrived,
    embedded_worker,
    fake_worker,
    http_response,
    router_with,
)


def saying(body: bytes, *, status: str = "200 OK", kind: str = "application/json") -> Answering:
    """Answers everything with this."""

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(body, status=status, kind=kind)

    return answer


DONE = saying(b'{"success":true,"message":"done"}')
NOT_DONE = saying(b'{"success":false,"message":"no such file"}', status="400 Bad Request")


# -- all of them -------------------------------------------------------------------------------


async def test_all_succeed() -> None:
    async with (
        fake_worker(DONE) as one,
        fake_worker(DONE) as two,
        router_with(one.url, two.url) as served,
    ):
        answer = await served.client.post("/slow_down", json={"forward_sleep_time": 0.1})
        assert answer.status_code == 200
        told = answer.json()
        first, second = ids_of(served)
        assert (told["success"], told["message"]) == (True, "done")
        assert (told["total"], told["succeeded"], told["failed"]) == (2, 2, [])
        assert list(told["results"]) == [first, second]
        entry = told["results"][second]
        assert isinstance(entry.pop("latency_ms"), int)
        body = {"success": True, "message": "done"}
        assert entry == {"worker_id": second, "url": two.url, "status": 200, "body": body}
        for worker in (one, two):
            (arrived,) = worker.arrived
            assert (arrived.method, arrived.target) == ("POST", "/slow_down")
            assert arrived.body == b'{"forward_sleep_time":0.1}'


async def test_some_fail() -> None:
    async with (
        fake_worker(DONE) as one,
        fake_worker(NOT_DONE) as two,
        router_with(one.url, two.url) as served,
    ):
        answer = await served.client.post("/load_lora_adapter", json={"lora_name": "a"})
        assert answer.status_code == 207
        told = answer.json()
        first, second = ids_of(served)
        assert told["success"] is False
        assert told["message"] == "1 of 2 workers failed: no such file"
        assert (told["total"], told["succeeded"]) == (2, 1)
        assert list(told["results"]) == [first]
        assert told["failed"] == [
            {
                "worker_id": second,
                "url": two.url,
                "status": 400,
                "error": "upstream_error",
                "message": "no such file",
                "body": {"success": False, "message": "no such file"},
            }
        ]


async def test_all_fail() -> None:
    async with fake_worker(NOT_DONE) as worker, router_with(worker.url) as served:
        answer = await served.client.post("/load_lora_adapter", json={})
        assert answer.status_code == 502
        assert (answer.json()["succeeded"], answer.json()["results"]) == (0, {})


async def test_a_worker_that_cannot_be_reached_is_told_apart() -> None:
    async with fake_worker(DONE) as one, router_with(one.url) as served:
        async with fake_worker(DONE) as two:
            await served.client.post("/add_worker", params={"url": two.url})
        answer = await served.client.post("/slow_down")
        assert answer.status_code == 207
        (failed,) = answer.json()["failed"]
        assert (failed["url"], failed["status"]) == (two.url, 503)
        assert failed["error"] == "upstream_unreachable"
        assert failed["message"] == "the worker could not be reached"


async def test_a_success_that_says_that_it_is_none_is_a_failure() -> None:
    answer = saying(b'{"success":false,"message":"busy"}')
    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        assert (await served.client.post("/slow_down")).status_code == 502


async def test_redirects_are_not_followed() -> None:
    async def elsewhere(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(b"", status="307 Temporary", more="location: /slow_down?again=1\r\n")

    async with fake_worker(elsewhere) as worker, router_with(worker.url) as served:
        answer = await served.client.post("/slow_down")
        assert answer.status_code == 502
        assert answer.json()["failed"][0]["status"] == 307
        assert len(worker.arrived) == 1


async def test_a_call_that_nobody_can_be_told_says_so() -> None:
    async with router_with() as served:
        answer = await served.client.post("/slow_down")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_workers")


# -- byte for byte -----------------------------------------------------------------------------


async def test_what_workers_say_is_embedded_as_they_wrote_it() -> None:
    body = b'[-1e-07, 1.0, 0.10000000000000000555, 9007199254740993, {"b":1, "a":2, "b" :3}]'
    async with fake_worker(saying(body)) as worker, router_with(worker.url) as served:
        answer = await served.client.post("/get_weights_by_name", json={"name": "x"})
        assert body in answer.content


@pytest.mark.parametrize(
    ("said", "kind", "shown"),
    [
        (b"Cache flushed.\n", "text/plain", "Cache flushed.\n"),
        (b"123", "text/plain", "123"),
        (b"{broken", "application/json", "{broken"),
        (b'{"a": NaN}', "application/json", '{"a": NaN}'),
        (b"\xff", "application/json", "\ufffd"),
        (b"", "application/json", None),
        (b"null", "application/json", None),
    ],
)
def test_what_is_no_json_is_a_string(said: bytes, kind: str, shown: Any) -> None:
    target = Target("w", WorkerUrl("http://w"))
    outcome = Outcome(target=target, status=200, content_type=kind, body=said)
    assert msgspec.json.decode(msgspec.json.encode(outcome.shown()))["body"] == shown


@pytest.mark.parametrize("said", [b"null", b"[1]", b'{"other":1}'])
def test_what_is_no_message_of_a_worker_is_not_told_as_one(said: bytes) -> None:
    target = Target("w1", WorkerUrl("http://w:1"))
    outcome = Outcome(target=target, status=200, content_type="application/json", body=said)
    assert answer_of([outcome])["message"] == "done by all 1 workers"


async def test_what_all_say_alike_is_said_at_the_top_too() -> None:
    said = b'{"success":true,"message":"m","num_paused_requests":0,"loss":-1e-07,"total":"theirs"}'
    other = b'{"success":true,"message":"m","num_paused_requests":0,"loss":-2e-07,"total":"theirs"}'
    async with (
        fake_worker(saying(said)) as one,
        fake_worker(saying(other)) as two,
        router_with(one.url, two.url) as served,
    ):
        told = (await served.client.post("/slow_down")).json()
        assert (told["message"], told["num_paused_requests"]) == ("m", 0)
        assert "loss" not in told
        assert told["total"] == 2


async def test_the_query_passes_but_for_what_is_the_router_s() -> None:
    async with fake_worker(DONE) as worker, router_with(worker.url) as served:
        await served.client.post(f"/slow_down?a=%2F&worker={worker.url}&b&selector=engine%3Dsglang")
        assert worker.arrived[0].target == "/slow_down?a=%2F&b"


async def test_header_fields_pass_but_for_connections_and_keys() -> None:
    settings: dict[str, Any] = {"admin_key": "admin-key-of-8", "worker_api_key": "workers-own"}
    async with (
        fake_worker(DONE) as worker,
        router_with(worker_urls=(worker.url,), **settings) as served,
    ):
        headers = {
            "authorization": "Bearer admin-key-of-8",
            "connection": "x-once",
            "x-once": "1",
            "x-api-key": "admin-key-of-8",
            "x-mine": "1",
        }
        answer = await served.client.post("/slow_down", headers=headers)
        assert answer.status_code == 200
        (arrived,) = (one for one in worker.arrived if one.target == "/slow_down")
        assert arrived.headers["authorization"] == "Bearer workers-own"
        assert arrived.headers["x-mine"] == "1"
        assert not {"x-once", "x-api-key"} & set(arrived.headers)
        assert "admin-key" not in str(arrived.headers)


# -- some of them ------------------------------------------------------------------------------


async def test_workers_are_named_by_id_and_by_url() -> None:
    async with (
        fake_worker(DONE) as one,
        fake_worker(DONE) as two,
        fake_worker(DONE) as three,
        router_with(one.url, two.url, three.url) as served,
    ):
        params = {"worker": [ids_of(served)[0], three.url]}
        told = (await served.client.post("/slow_down", params=params)).json()
        assert list(told["results"]) == [ids_of(served)[0], ids_of(served)[2]]
        assert two.arrived == []
        unknown = await served.client.post("/slow_down", params={"worker": "nobody"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "worker_not_found")


async def test_workers_are_chosen_by_their_labels() -> None:
    async with fake_worker(DONE) as one, fake_worker(DONE) as two, router_with() as served:
        for worker, rack in ((one, "a"), (two, "b")):
            registered = {"url": worker.url, "labels": {"rack": rack}}
            assert (await served.client.post("/workers", json=registered)).status_code == 202
        told = await served.client.post("/slow_down", params={"selector": "rack in (b)"})
        assert told.status_code == 200
        assert (len(one.arrived), len(two.arrived)) == (0, 1)
        none = await served.client.post("/slow_down", params={"selector": "rack=c"})
        assert (none.status_code, none.json()["error"]["code"]) == (404, "worker_not_found")
        wrong = await served.client.post("/slow_down", params={"selector": "rack"})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_selector")


# -- one of them -------------------------------------------------------------------------------


async def _told_itself(arrived: Arrived, stream: trio.SocketStream) -> bytes:
    said = json.dumps({"was": f"{arrived.method} {arrived.target} {arrived.body.decode()}"})
    status = "409 Conflict" if "refused" in arrived.target else "200 OK"
    return http_response(said.encode(), status=status)


async def test_the_model_by_which_workers_are_shown_chooses_them_too() -> None:
    async with fake_worker(DONE) as worker, router_with(worker.url) as served:
        (shown,) = (await served.client.get("/workers")).json()["workers"]
        (told,) = (await served.client.get("/v1/rl/workers")).json()["workers"]
        assert told["model_id"] == shown["model_id"]
        chosen = f"/slow_down?selector=model_id={shown['model_id']}"
        assert (await served.client.post(chosen)).status_code == 200


@pytest.mark.parametrize("prefix", ["/workers", "/v1/rl/workers"])
async def test_a_worker_is_called_by_its_id(prefix: str) -> None:
    async with (
        fake_worker(DONE) as one,
        fake_worker(_told_itself) as two,
        router_with(one.url, two.url) as served,
    ):
        name = ids_of(served)[1]
        answer = await served.client.put(f"{prefix}/{name}/engine/some/path?a=1", content=b"x")
        assert answer.status_code == 200
        told = answer.json()
        assert isinstance(told.pop("latency_ms"), int)
        body = {"was": "PUT /some/path?a=1 x"}
        assert told == {"worker_id": name, "url": two.url, "status": 200, "body": body}
        assert one.arrived == []
        refused = await served.client.post(f"{prefix}/{name}/engine/refused")
        assert (refused.status_code, refused.json()["status"]) == (409, 409)


async def test_a_worker_that_is_gone_is_said_to_be() -> None:
    async with router_with() as served:
        async with fake_worker(DONE) as worker:
            await served.client.post("/add_worker", params={"url": worker.url})
        answer = await served.client.post(f"/workers/{ids_of(served)[0]}/engine/slow_down")
        assert (answer.status_code, answer.json()["error"]) == (503, "upstream_unreachable")
        unknown = await served.client.post("/workers/nobody/engine/slow_down")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "worker_not_found")


NO_ENGINE_PATHS = {
    "a//b": "invalid_path",
    "..%2fx": "invalid_path",
    "a/%2e%2e/b": "invalid_path",
    "a%5cb": "invalid_path",
    "a%20b": "invalid_path",
    "generate": "generating_path",
    "v1/chat/completions": "generating_path",
}


async def test_a_path_that_means_another_place_is_refused() -> None:
    async with fake_worker(DONE) as worker, router_with(worker.url) as served:
        for path, code in NO_ENGINE_PATHS.items():
            answer = await served.client.post(f"/workers/{ids_of(served)[0]}/engine/{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
        assert worker.arrived == []


async def test_a_path_is_sent_as_it_was_meant() -> None:
    async with fake_worker(_told_itself) as worker, router_with(worker.url) as served:
        await served.client.get(f"/workers/{ids_of(served)[0]}/engine/a%3Fb/%C3%A9%25")
        assert worker.arrived[0].target == "/a%3Fb/%C3%A9%25"


async def test_the_rl_interface_shows_workers_and_calls_those_that_are_selected() -> None:
    async with (
        fake_worker(DONE) as one,
        fake_worker(DONE) as two,
        router_with(one.url, two.url) as served,
    ):
        shown = (await served.client.get("/v1/rl/workers")).json()
        assert (shown["protocol_version"], shown["total"]) == (1, 2)
        first, second = shown["workers"]
        assert (first["url"], first["engine"], first["weight_version"]) == (one.url, "sglang", "1")
        again = (await served.client.get(f"/v1/rl/workers/{second['id']}")).json()
        assert again == second
        unselected = await served.client.post("/v1/rl/engine/slow_down")
        code = unselected.json()["error"]["code"]
        assert (unselected.status_code, code) == (400, "selector_required")
        url = "/v1/rl/engine/slow_down"
        told = await served.client.post(url, params={"selector": f"id={second['id']}"})
        assert list(told.json()["results"]) == [second["id"]]


# -- answers made of many ----------------------------------------------------------------------


async def test_a_flush_says_what_gateways_say() -> None:
    async with (
        fake_worker(saying(b"Cache flushed.\n", kind="text/plain")) as one,
        fake_worker(saying(b"Flush failed.\n", kind="text/plain", status="400 Bad")) as two,
        router_with(one.url, two.url) as served,
    ):
        answer = await served.client.get("/flush_cache", params={"timeout": 3})
        assert answer.status_code == 207
        told = answer.json()
        assert (told["status"], told["workers_flushed"]) == ("partial_success", 1)
        assert (told["total_http_workers"], told["message"]) == (
            2,
            "1 of 2 workers failed: Flush failed.",
        )
        assert one.arrived[0].target == "/flush_cache?timeout=3"


LOADS = (
    b'{"timestamp":"t","loads":[{"dp_rank":0,"num_running_reqs":3,"num_total_tokens":61,'
    b'"token_usage":1e-07},{"dp_rank":1,"num_total_tokens":4}]}'
)


@pytest.mark.parametrize("path", ["/get_loads", "/v1/loads?include=core"])
async def test_loads_are_told_in_both_shapes(path: str) -> None:
    async with (
        fake_worker(saying(LOADS)) as one,
        fake_worker(saying(b"", status="500 No")) as two,
        router_with(one.url, two.url) as served,
    ):
        answer = await served.client.get(path)
        assert answer.status_code == 207
        told = answer.json()
        assert told["workers"] == [{"worker": one.url, "load": 65}, {"worker": two.url, "load": -1}]
        first, second = told["loads"]
        assert (first["worker"], first["worker_type"], first["num_running_reqs"]) == (
            one.url,
            "regular",
            3,
        )
        assert (second["dp_rank"], second["worker_id"]) == (1, ids_of(served)[0])
        assert b'"token_usage":1e-07' in answer.content
        assert (told["dp_rank_count"], told["succeeded"]) == (2, 1)
        assert told["router"] == {"num_waiting_reqs": 0}
        assert one.arrived[0].target.startswith("/v1/loads")


async def test_a_worker_that_leaves_while_it_is_asked_is_left_out_of_the_loads() -> None:
    async def leave(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        if arrived.target.startswith("/v1/loads"):
            await served.client.post("/remove_worker", params={"url": two.url})
        return http_response(LOADS)

    async with (
        fake_worker(saying(LOADS)) as one,
        fake_worker(leave) as two,
        router_with(one.url, two.url) as served,
    ):
        answer = await served.client.get("/v1/loads")
        assert answer.status_code == 200
        assert answer.json()["workers"] == [{"worker": one.url, "load": 65}]


METRICS = b"""# HELP sglang:num_running_reqs Running.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{model_name="m"} 3.0
# HELP sglang:e2e_seconds Latency.
# TYPE sglang:e2e_seconds histogram
sglang:e2e_seconds_bucket{le="0.1",} 1e-07
sglang:e2e_seconds_sum 2
plain 1
empty{} 5
"""


async def test_metrics_are_merged_with_the_worker_as_a_label() -> None:
    async with (
        fake_worker(saying(METRICS, kind="text/plain")) as one,
        fake_worker(saying(METRICS, kind="text/plain")) as two,
        fake_worker(saying(b"no", status="404 No")) as three,
        router_with(one.url, two.url, three.url) as served,
    ):
        answer = await served.client.get("/engine_metrics")
        assert answer.status_code == 207
        assert answer.headers["content-type"].startswith("text/plain")
        lines = answer.text.splitlines()
        at = lines.index("# TYPE sglang:num_running_reqs gauge")
        assert lines[at - 1 : at + 3] == [
            "# HELP sglang:num_running_reqs Running.",
            "# TYPE sglang:num_running_reqs gauge",
            f'sglang:num_running_reqs{{worker="{one.url}",model_name="m"}} 3.0',
            f'sglang:num_running_reqs{{worker="{two.url}",model_name="m"}} 3.0',
        ]
        for line in (
            f'sglang:e2e_seconds_bucket{{worker="{two.url}",le="0.1",}} 1e-07',
            f'sglang:e2e_seconds_sum{{worker="{one.url}"}} 2',
            f'plain{{worker="{one.url}"}} 1',
            f'empty{{worker="{one.url}"}} 5',
            f'slime_engine_metrics_up{{worker="{two.url}"}} 1',
            f'slime_engine_metrics_up{{worker="{three.url}"}} 0',
        ):
            assert lines.count(line) == 1, line
        names = [re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")]
        families = [re.sub(r"_(bucket|sum)$", "", name) for name in names]
        runs = [name for at, name in enumerate(families) if at == 0 or families[at - 1] != name]
        assert len(runs) == len(set(runs))


async def test_health_is_asked_of_all_but_paused_workers() -> None:
    async with (
        embedded_worker() as one,
        embedded_worker() as two,
        router_with(one.url, two.url, health_check=False) as served,
    ):
        first, second = ids_of(served)
        await served.client.post("/pause_generation", params={"worker": first})
        answer = await served.client.get("/health_generate")
        assert answer.status_code == 200
        told = answer.json()
        assert (list(told["results"]), told["paused"]) == ([second], [first])
        await served.client.post("/continue_generation")


async def test_a_session_of_sglang_s_lives_on_one_worker() -> None:
    def opening(name: str) -> Callable[..., Any]:
        async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
            return http_response(json.dumps(name).encode())

        return answer

    async with (
        fake_worker(opening("a")) as one,
        fake_worker(opening("b")) as two,
        router_with(one.url, two.url) as served,
    ):
        body = {"capacity_of_str_len": 100}
        opened = await served.client.post("/open_session", params={"worker": two.url}, json=body)
        assert (opened.status_code, opened.json()) == (200, "b")
        assert opened.headers["x-smg-routed-worker-id"] == ids_of(served)[1]
        assert served.router.shared.control.engine_sessions.worker_of("b") == two.url
        await served.client.post("/close_session", json={"session_id": "b"})
        assert [len(one.arrived), len(two.arrived)] == [0, 2]
        await served.client.post("/close_session", json={"session_id": "unknown"})
        assert [len(one.arrived), len(two.arrived)] == [1, 3]


# -- large bodies ------------------------------------------------------------------------------


def _resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def test_a_large_body_is_held_once_for_all_workers() -> None:
    size_mb = 32
    peak = 0.0
    arrived_mb: list[float] = []

    async def swallow(stream: trio.SocketStream) -> None:
        """Takes a request of this size without keeping it."""
        nonlocal peak
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(4096)
        (size,) = re.findall(rb"content-length: (\d+)", head) or [b"0"]
        left = int(size) - len(head.split(b"\r\n\r\n")[1])
        arrived_mb.append(left / 2**20)
        if b"/update_weights_from_tensor" not in head:
            await stream.send_all(http_response(b'{"model_path":"m","weight_version":"1"}'))
            return
        while left > 0:
            left -= len(await stream.receive_some(2**18))
            peak = max(peak, _resident_mb())
        await stream.send_all(http_response(b'{"success":true,"message":"m"}'))

    async with trio.open_nursery() as nursery:
        urls = []
        for _ in range(4):
            (listener,) = await nursery.start(partial(trio.serve_tcp, swallow, 0, host="127.0.0.1"))
            urls.append(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
        async with router_with(*urls, health_check=False) as served:
            body = b'{"serialized_named_tensors":["' + b"A" * (size_mb * 2**20) + b'"]}'
            gc.collect()
            before = _resident_mb()
            answer = await served.client.post("/update_weights_from_tensor", content=body)
            assert answer.status_code == 200
            assert answer.json()["succeeded"] == 4
            # The client's own copy is there before; four workers would make four more of it.
            assert peak - before < 2.5 * size_mb
            assert sum(mb > size_mb - 1 for mb in arrived_mb) == 4
        nursery.cancel_scope.cancel()


# -- the table ---------------------------------------------------------------------------------


def test_what_changes_workers_is_the_operator_s() -> None:
    informing = {Kind.LOADS, Kind.METRICS, Kind.HEALTH}
    for path, how in PATHS.items():
        areas = {area_of(method, f"/{path}") for method in how.methods}
        if how.kind is Kind.ABORT:
            assert areas == {Area.ABORT}
        elif how.kind is Kind.HEALTH:
            assert areas == {Area.REPORT}
        else:
            assert areas == {Area.CONTROL}
        assert (path.split("/")[0] in CONTROL_PATHS) == (how.kind not in informing)


@pytest.mark.parametrize("path", ["/v1/rl/workers", "/v1/rl/engine/x", "/workers/a/engine/x"])
def test_calling_workers_by_name_is_the_operator_s(path: str) -> None:
    assert {area_of(method, path) for method in ("GET", "POST", "PUT", "PATCH")} == {Area.CONTROL}
