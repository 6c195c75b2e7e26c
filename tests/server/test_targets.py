"""What may stand in a request's first line, and what of it a worker gets to see."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import trio

from slime_trio.routes import GENERATING_PATHS
from tests.server.harness import (
    Arrived,
    FakeWorker,
    Served,
    fake_worker,
    http_response,
    raw_client,
    router_with,
    settled,
)


async def _ok(arrived: Arrived, stream: trio.SocketStream) -> bytes:
    return http_response(b"{}")


async def _ask(served: Served, line: str, headers: str = "", *, host: str = "x") -> bytes:
    """The whole answer to a request without a body."""
    async with raw_client(served) as client:
        await client.stream.send_all(
            f"{line} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n".encode()
        )
        with trio.fail_after(5):
            return await client.rest()


def _targets(worker: FakeWorker) -> list[str]:
    return [one.target for one in worker.arrived]


@pytest.mark.parametrize(
    "target",
    ["/x?", "/x?a=1&a=2&&b", "/a;b?c", "/caf%C3%A9", "/a%2Fb", "/a?/../b", "/%E4?%FF", "/a+b?c+d"],
)
async def test_path_and_query_pass_as_they_were_written(target: str) -> None:
    async with fake_worker(_ok) as worker, router_with(worker.url) as served:
        assert (await _ask(served, f"GET {target}")).startswith(b"HTTP/1.1 200")
        assert _targets(worker) == [target.removesuffix("?")]


@pytest.mark.parametrize(
    ("target", "seen"),
    [("http://other/z?q=1", "/z?q=1"), ("http://other:80", "/"), ("HTTPS://other/a%20b", "/a%20b")],
)
async def test_a_whole_url_means_its_path_and_never_another_server(target: str, seen: str) -> None:
    async with fake_worker(_ok) as worker, router_with(worker.url) as served:
        host = target.split("/")[2]
        assert (await _ask(served, f"GET {target}", host=host)).startswith(b"HTTP/1.1 200")
        assert _targets(worker) == [seen]


async def test_a_whole_url_of_another_host_than_the_field_is_refused() -> None:
    async with fake_worker(_ok) as worker, router_with(worker.url) as served:
        refused = await _ask(served, "GET http://other/z", host="x")
        assert refused.startswith(b"HTTP/1.1 400")
        assert b"malformed_request" in refused
        assert not worker.arrived


@pytest.mark.parametrize(("target", "seen"), [("/a//b", "/a/b"), ("//x/y", "/x/y")])
async def test_doubled_slashes_are_one(target: str, seen: str) -> None:
    async with fake_worker(_ok) as worker, router_with(worker.url) as served:
        assert (await _ask(served, f"GET {target}")).startswith(b"HTTP/1.1 200")
        assert _targets(worker) == [seen]


@pytest.mark.parametrize("target", ["/%zz", "/%00"])
async def test_a_path_of_no_one_meaning_is_refused(target: str) -> None:
    async with fake_worker(_ok) as worker, router_with(worker.url) as served:
        refused = await _ask(served, f"GET {target}")
        assert refused.startswith(b"HTTP/1.1 400")
        assert b"ambiguous_path" in refused
        assert not worker.arrived


@pytest.mark.parametrize("line", ["OPTIONS *", "GET x"])
async def test_what_is_no_path_is_the_clients_error(line: str) -> None:
    async with fake_worker(_ok) as worker, router_with(worker.url) as served:
        assert (await _ask(served, line)).startswith(b"HTTP/1.1 400")
        assert not worker.arrived
        await settled(served)


@pytest.mark.parametrize(
    "target",
    ["/./flush_cache", "/x/../flush_cache", "/%2e/flush_cache", "/x%2F..%2Fflush_cache",
     "/../flush_cache", "/flush_cache/.", "/flush_cache%2F", "/flush_cache/x",
     "/x/%2e%2e/flush_cache?a=/"],
)  # fmt: skip
async def test_a_control_path_passes_in_no_spelling(target: str) -> None:
    async with fake_worker(_ok) as worker, router_with(worker.url) as served:
        for method in ("GET", "POST"):
            answer = await _ask(served, f"{method} {target}")
            assert answer.split(b" ", 2)[1] in (b"400", b"404", b"501"), answer
        assert not worker.arrived


@pytest.mark.parametrize("target", ["/flush%5fcache", "//flush_cache"])
async def test_a_control_path_written_otherwise_is_the_same_path(target: str) -> None:
    async with fake_worker(_ok) as worker, router_with(worker.url) as served:
        answer = await _ask(served, f"POST {target}")
        assert b'"workers_flushed":1' in answer
        assert _targets(worker) == ["/flush_cache"]


SERVED_HERE = {"generate", "v1/chat/completions", "v1/completions"}


@pytest.mark.parametrize("path", sorted(GENERATING_PATHS - SERVED_HERE))
async def test_a_generation_that_passes_says_so_and_is_counted(path: str) -> None:
    async with fake_worker(_ok) as worker, router_with(worker.url) as served:
        response = await served.client.post(f"/{path}", json={})
        assert response.headers["x-slime-captured"] == "false"
        await settled(served)
        assert served.router.state.counters.answers_not_captured == 1


@pytest.mark.parametrize("status", ["400 No", "404 No", "503 No"])
async def test_a_generation_that_passes_and_is_refused_is_not_counted_as_lost(status: str) -> None:
    async def refuse(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(b"{}", status=status)

    async with fake_worker(refuse) as worker, router_with(worker.url) as served:
        response = await served.client.post("/v1/responses", json={})
        assert response.status_code == int(status[:3])
        await settled(served)
        assert served.router.state.counters.answers_not_captured == 0


async def test_chat_that_is_not_served_here_passes_and_says_so() -> None:
    off: dict[str, Any] = {"enable_openai_chat_completion": False}
    async with fake_worker(_ok) as worker, router_with(worker.url, **off) as served:
        for path in ("/v1/chat/completions", "/v1/completions"):
            response = await served.client.post(path, json={})
            assert response.headers["x-slime-captured"] == "false"
        await served.client.get("/v1/models")
        assert _targets(worker)[-1] == "/v1/models"
        assert served.router.state.counters.answers_not_captured == 2


async def test_without_capture_models_and_chat_are_the_workers_and_nothing_is_marked() -> None:
    async with fake_worker(_ok) as worker, router_with(worker.url, capture=False) as served:
        assert (await served.client.get("/v1/models")).json() == {}
        chat = await served.client.post("/v1/chat/completions", json={})
        assert "x-slime-captured" not in chat.headers
        assert _targets(worker) == ["/v1/models", "/v1/chat/completions"]


async def test_fields_that_repeat_pass_both_ways_in_their_order() -> None:
    raw = bytearray()

    async def answer(stream: trio.SocketStream) -> None:
        more = "x-two: 1\r\nset-cookie: a=1\r\nx-two: 2\r\nset-cookie: b=2\r\n"
        more += "connection: x-once\r\nx-once: 1\r\nkeep-alive: timeout=5\r\nserver: w\r\n"
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                if data.startswith(b"GET /thing "):
                    raw.extend(data)
                await stream.send_all(http_response(b"{}", more=more))

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        async with router_with(url) as served:
            sent = "x-one: 1\r\nX-One: 2\r\ncookie: a\r\ncookie: b\r\n"
            got = await _ask(served, "GET /thing", sent)
        nursery.cancel_scope.cancel()
    asked = bytes(raw).lower()
    assert asked.index(b"x-one: 1") < asked.index(b"x-one: 2")
    assert asked.count(b"cookie: ") == 2
    assert asked.count(b"host: ") == 1
    assert b"host: x\r\n" not in asked
    assert got.index(b"x-two: 1") < got.index(b"x-two: 2")
    assert got.count(b"set-cookie: ") == 2
    for gone in (b"x-once", b"keep-alive", b"server: w"):
        assert gone not in got


async def test_an_error_of_ours_is_logged_without_what_the_client_sent(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with router_with() as served:

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(served.router.shared.dispatcher, "ask", broken)
        response = await served.client.post(
            "/generate", json={"text": "confidential"}, headers={"authorization": "Bearer hidden"}
        )
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "internal error"
        await settled(served)
    said = capfd.readouterr().err
    assert "RuntimeError: a bug" in said
    assert "hidden" not in said
    assert "confidential" not in said
