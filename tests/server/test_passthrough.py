"""Paths that are not the router's own, and a router that captures nothing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio

from slime_core.access import CONTROL_PATHS
from tests.server.harness import (
    Arrived,
    Served,
    answer_item,
    fake_worker,
    http_response,
    json_answer,
    raw_client,
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


def _spellings(path: str) -> list[str]:
    """Other ways to write a path that somebody might take for it."""
    first, rest = f"%{ord(path[0]):02x}", path[1:]
    return [
        f"/{path}/", f"/%25{first[1:]}{rest}", f"/./{path}", f"/x//../{path}",
        f"/v1/../{path}", f"/v1/%2e%2e/{path}", f"/v1/%2E%2E%2f{path}", f"/v1/..%2f{path}",
        f"/v1%2f..%2f{path}", f"/v1/..;/{path}", f"/;/{path}", f"/{path};x=1", f"/{path}%3bx",
        f"/{path.upper()}", f"/{path}%2f", f"/x/..%5c{path}", f"/\\{path}",
        f"/{path}%00", f"/{path}%0d%0a", f"/{path}%", f"/{path}/x/..", f"/%2525{first[1:]}{rest}",
    ]  # fmt: skip


async def _ask(served: Served, method: str, target: str) -> bytes:
    """The whole answer to a request whose target is written exactly so."""
    async with raw_client(served) as client:
        head = f"{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        await client.stream.send_all(head.encode())
        return await client.rest()


async def test_a_control_path_never_passes() -> None:
    wrong = []
    async with fake_worker(_echo) as worker, router_with(worker.url) as served:
        # Each path in some of its spellings, each spelling of some paths.
        every = [_spellings(path)[turn % 5 :: 5] for turn, path in enumerate(sorted(CONTROL_PATHS))]
        for spelled in itertools.chain.from_iterable(every):
            answer = await _ask(served, "POST", spelled)
            if answer.split(b" ", 2)[1] not in (b"400", b"404", b"501"):
                wrong.append((spelled, answer))
        assert not wrong
        assert not worker.arrived
        assert not worker.aborted


@pytest.mark.parametrize("method", ["TRACE", "PROPFIND", "DELETE", "GET"])
async def test_another_method_on_a_path_of_ours_never_passes(method: str) -> None:
    async with fake_worker(_echo) as worker, router_with(worker.url) as served:
        for path in ("/generate", "/retrieve_from_text", "/add_worker", "/remove_worker"):
            assert (await _ask(served, method, path)).startswith(b"HTTP/1.1 405 ")
        assert not worker.arrived


@pytest.mark.parametrize(
    ("written", "passed"),
    [
        ("/thing", "/thing"),
        ("/a%20b/%C3%A9?x=%2F&&y", "/a%20b/%C3%A9?x=%2F&&y"),
        ("/%74hing/", "/thing/"),
        ("/a/./b//c/../d", "/a/b/d"),
        ("/../../a", "/a"),
        ("/a/%2e%2e/b/%2e", "/b/"),
        ("/models/org%2fname", "/models/org%2Fname"),
        ("http://x/a/../b?q", "/b?q"),
        ("/a;v=1", "/a;v=1"),
        ("//", "/"),
    ],
)
async def test_a_path_passes_in_its_normal_form(written: str, passed: str) -> None:
    async with fake_worker(_echo) as worker, router_with(worker.url) as served:
        await _ask(served, "GET", written)
        assert [one.target for one in worker.arrived] == [passed]


@pytest.mark.parametrize(
    "path",
    ["/a\\b", "/a%5cb", "/a%255cb", "/a%00", "/a%2500", "/a%", "/a%g1", "/a/..;x/b",
     "/a%2f..%2fb", "/a%2f%2e%2e%2fb", "/a/%252e%252e/b", "/%252525252e"],
)  # fmt: skip
async def test_a_path_without_a_normal_form_is_refused(path: str) -> None:
    async with fake_worker(_echo) as worker, router_with(worker.url) as served:
        answer = await _ask(served, "GET", path)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"ambiguous_path"' in answer
        assert not worker.arrived


@pytest.mark.parametrize("path", ["/v1//responses", "/x/../v1/responses", "/v1%2fresponses"])
async def test_a_generation_is_known_by_all_its_spellings(path: str) -> None:
    async with fake_worker(_echo) as worker, router_with(worker.url) as served:
        answer = await _ask(served, "POST", path)
        assert b"x-slime-captured: false" in answer
        await settled(served)


@pytest.mark.parametrize(
    "path",
    ["/sessions", "/sessions/s/nothing", "/trajectories", "/workers/a/b/c", "/trajectories/x"],
)
async def test_what_is_under_our_own_trees_never_passes(path: str) -> None:
    async with fake_worker(_echo) as worker, router_with(worker.url) as served:
        response = await served.client.put(path)
        assert response.status_code in (404, 405)
        assert not worker.arrived


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Again", "308 For good"])
async def test_a_redirect_passes_and_is_not_followed(status: str) -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(b"", status=status, more="location: http://169.254.169.254/\r\n")

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.client.get("/thing", follow_redirects=False)
        assert response.status_code == int(status[:3])
        assert response.headers["location"] == "http://169.254.169.254/"
        assert len(worker.arrived) == 1


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
