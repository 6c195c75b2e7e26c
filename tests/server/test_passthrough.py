"""Paths that are not the router's own, and a router that captures nothing."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from slime_trio.routes import CONTROL_PATHS
from tests.server.harness import (
    Arrived,
    answer_item,
    fake_worker,
    http_response,
    json_answer,
    router_with,
    settled,
)


async def _echo(arrived: Arrived, stream: trio.SocketStream) -> bytes:
    body = f"{arrived.method} {arrived.target} {arrived.headers.get('x-mine')} ".encode()
    return http_response(body + arrived.body, status="207 Odd", kind="x/y", more="x-back: 1\r\n")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_a_request_passes_with_everything_that_is_its_own(method: str) -> None:
    async with fake_worker(_echo) as worker, router_with(worker.url) as served:
        response = await served.client.request(
            method, "/some%20path/x?a=1&b=%2F", content=b"\x00\xff", headers={"x-mine": "m"}
        )
        assert response.status_code == 207
        assert response.content == f"{method} /some%20path/x?a=1&b=%2F m ".encode() + b"\x00\xff"
        assert (response.headers["content-type"], response.headers["x-back"]) == ("x/y", "1")
        await settled(served)


async def test_a_head_request_passes() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return (
            b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\nx-m: "
            + arrived.method.encode()
            + b"\r\n\r\n"
        )

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.client.head("/thing")
        assert (response.headers["x-m"], response.headers["content-length"]) == ("HEAD", "12")
        await settled(served)


async def test_an_answer_without_body_passes() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return b"HTTP/1.1 204 No Content\r\nx-m: 1\r\n\r\n"

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.client.delete("/thing")
        assert (response.status_code, response.headers["x-m"]) == (204, "1")
        await settled(served)


@pytest.mark.parametrize("path", sorted(CONTROL_PATHS))
async def test_a_control_path_never_passes(path: str) -> None:
    async with fake_worker(_echo) as worker, router_with(worker.url) as served:
        for spelled in (f"/{path}", f"/{path}/", f"/%{ord(path[0]):02x}{path[1:]}", f"/{path}?x=1"):
            for method in ("GET", "POST"):
                response = await served.client.request(method, spelled)
                assert response.status_code == 501
        assert not worker.arrived
        assert not worker.aborted


async def test_a_generation_that_passes_through_says_that_it_is_not_captured() -> None:
    async with fake_worker(_echo) as worker, router_with(worker.url) as served:
        response = await served.client.post("/v1/responses", json={})
        assert response.headers["x-slime-captured"] == "false"
        await settled(served)


async def test_capture_off_passes_generate_byte_for_byte() -> None:
    async with fake_worker(_echo) as worker, router_with(worker.url, capture=False) as served:
        body = b'{ "text":"x" ,"rid":null, "q": 1.50}'
        response = await served.client.post("/generate", content=body)
        assert response.status_code == 207
        assert worker.arrived[-1].body == body
        for path in ("/v1/chat/completions", "/v1/completions"):
            await served.client.post(path, content=b"{not json")
            assert worker.arrived[-1].body == b"{not json"
        await settled(served)


async def test_capture_off_says_so_when_asked_for_trajectories() -> None:
    async with router_with(capture=False) as served:
        asked: list[tuple[str, str, Any]] = [
            ("POST", "/retrieve_from_text", {"text": "x"}),
            ("POST", "/retrieve_from_messages_template", {"messages": []}),
            ("GET", "/trajectories/x", None),
        ]
        for method, path, body in asked:
            response = await served.client.request(method, path, json=body)
            assert (response.status_code, response.json()["error"]["code"]) == (501, "capture_off")


async def test_hop_by_hop_fields_do_not_pass() -> None:
    async with fake_worker(_echo) as worker, router_with(worker.url) as served:
        headers = {"connection": "x-once", "x-once": "1", "te": "trailers", "x-kept": "1"}
        await served.client.get("/thing", headers=headers)
        sent = worker.arrived[-1].headers
        assert "x-once" not in sent
        assert "te" not in sent
        assert sent["x-kept"] == "1"


async def test_a_worker_that_fails_in_the_middle_of_a_body_does_not_end_it_cleanly() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")

    import httpx

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        with pytest.raises(httpx.RemoteProtocolError):
            await served.client.get("/thing")
        await settled(served)


async def test_no_generation_is_lost_in_the_router_while_json_answers() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        await served.client.get("/get_model_info")
        assert served.router.state.counters.calls_opened == 0
        await settled(served)
