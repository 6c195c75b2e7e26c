"""A request's body that nobody reads never stands in the way of the next request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trio
from starlette.middleware.base import BaseHTTPMiddleware

from slime_trio import connection_endings
from tests.listeners import BOTH_LISTENERS
from tests.server.harness import (
    Raw,
    answer_item,
    embedded_worker,
    fake_worker,
    json_answer,
    raw_client,
    router_with,
    settled,
)

# Both: what becomes of a connection whose request was not read is each listener's own.
pytestmark = BOTH_LISTENERS

LONG = b"x" * 300_000
"""More than one read, and more than a socket and Hypercorn take in at once."""

# A body has no meaning on these, or the answer is known before it has come.
UNREAD = [
    ("GET", "/health"),
    ("GET", "/readiness"),
    ("GET", "/metrics"),
    ("GET", "/list_workers"),
    ("GET", "/v1/models"),
    ("GET", "/trajectories/none"),
    ("POST", "/flush_cache"),
    ("GET", "/generate"),
    ("POST", "/health"),
]


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a single connection at a time."""
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=5, trust_env=False) as client:
        yield client


async def _send(client: Raw, method: str, path: str, headers: str, body: bytes) -> None:
    """Send as much of a request as the other side takes."""
    with suppress(trio.BrokenResourceError):
        await client.stream.send_all(
            f"{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n".encode() + body
        )


@pytest.mark.parametrize(("method", "path"), UNREAD)
async def test_the_next_request_is_answered(method: str, path: str) -> None:
    async with router_with() as served, _connected(served.url) as client:
        with trio.fail_after(5):
            for body in (b"x", LONG, b""):
                first = await client.request(method, path, content=body)
                assert first.status_code < 600
                assert (await client.get("/health")).text == "OK"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_next_request_to_a_worker_is_answered(method: str) -> None:
    async with embedded_worker() as worker, _connected(worker.url) as client:
        with trio.fail_after(5):
            for path in ("/health", "/model_info", "/flush_cache", "/nothing"):
                for body in (b"x", LONG):
                    await client.request(method, path, content=body)
                    assert (await client.get("/health")).is_success


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a body is hardly waited for."""
    monkeypatch.setattr(connection_endings, "_LINGER_S", 0.05)


@pytest.mark.usefixtures("no_patience")
async def test_a_chunked_body_that_nobody_reads_closes_the_connection() -> None:
    async with router_with() as served, raw_client(served) as client:
        chunks = b"5\r\nhello\r\n" * 3
        await _send(client, "GET", "/health", "transfer-encoding: chunked\r\n", chunks)
        with trio.fail_after(5):
            assert b"connection: close" in (await client.rest()).lower()


@pytest.mark.usefixtures("no_patience")
async def test_a_body_that_never_comes_does_not_keep_the_answer_back() -> None:
    async with router_with() as served, raw_client(served) as client:
        await _send(client, "GET", "/health", "content-length: 9\r\n", b"")
        with trio.fail_after(5):
            assert (await client.rest()).endswith(b"OK")


async def test_a_body_that_was_read_leaves_the_connection_open() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        for path, body in (
            ("/generate", {"text": "x"}),
            ("/retrieve_from_text", {"text": "x"}),
            ("/other", {"pass": "through"}),
            ("/add_worker", {"url": worker.url}),
            ("/generate", {"text": ""}),
            ("/v1/chat/completions", {"messages": []}),
        ):
            response = await served.client.post(path, json=body)
            assert "connection" not in response.headers, path
        await settled(served)


async def test_a_request_without_a_body_leaves_the_connection_open() -> None:
    async with router_with() as served, raw_client(served) as client:
        for length in ("", "content-length: 0\r\n"):
            await _send(client, "GET", "/health", length, b"")
            with trio.fail_after(5):
                got = await client.until(b"\r\n\r\nOK", step=65536)
                assert b"connection: close" not in got.lower()
            client.got.clear()


async def test_a_slow_body_that_nobody_reads_is_taken_in_before_the_connection_is_closed() -> None:
    async with router_with() as served, raw_client(served) as client:
        await _send(client, "POST", "/slime_worker", f"content-length: {len(LONG)}\r\n", b"")
        with trio.fail_after(5):
            await client.until(b"control_path", step=65536)
            for at in range(0, len(LONG), 100_000):
                await client.stream.send_all(LONG[at : at + 100_000])
                await trio.sleep(0.02)
            await client.rest()


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_over_the_limit_ends_with_its_connection(announced: bool) -> None:
    async with router_with(max_body_mb=1) as served:
        async with raw_client(served) as client, trio.open_nursery() as nursery:
            body = b" " * 3_000_000
            if announced:
                headers = f"content-length: {len(body)}\r\n"
            else:
                headers, body = (
                    "transfer-encoding: chunked\r\n",
                    b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
                )
            nursery.start_soon(_send, client, "POST", "/generate", headers, body)
            with trio.fail_after(5):
                got = await client.until(b"body_too_large", step=65536)
                assert got.startswith(b"HTTP/1.1 413")
                assert b"connection: close" in got.lower()
        assert (await served.client.get("/health")).is_success
        await settled(served)


async def test_a_client_in_one_connection_goes_on_after_a_body_over_the_limit() -> None:
    async with router_with(max_body_mb=1) as served, _connected(served.url) as client:
        with trio.fail_after(5):
            for path in ("/generate", "/v1/chat/completions", "/add_worker", "/other"):
                refused = await client.post(path, content=b" " * 1_100_000)
                assert refused.status_code == 413
                assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
                assert (await client.get("/health")).is_success
        await settled(served)


MARK = "tests.server.test_unread_body.Mark"


class Mark(BaseHTTPMiddleware):
    """Middleware that sends answers from a task of its own."""

    def __init__(self, app: Any, *, router: Any) -> None:
        super().__init__(app)

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


@pytest.mark.parametrize("middleware", [(), (MARK,)])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_connection_is_closed_when_the_client_asks_for_it(
    version: str, stream: bool, middleware: tuple[str, ...]
) -> None:
    async with (
        embedded_worker() as worker,
        router_with(worker.url, middleware=middleware) as served,
    ):
        body = json.dumps(
            {"text": "x", "stream": stream, "sampling_params": {"max_new_tokens": 3}}
        ).encode()
        for url in (served.url, worker.url):
            stream_ = await trio.open_tcp_stream("127.0.0.1", urlsplit(url).port or 0)
            async with stream_:
                client = Raw(stream_)
                head = f"POST /generate HTTP/{version}\r\nhost: x\r\nconnection: close\r\n"
                await stream_.send_all(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
                with trio.fail_after(5):
                    got = await client.rest()
                assert b"output_ids" in got
        await settled(served)


async def test_an_expectation_to_continue_is_answered() -> None:
    body = json.dumps({"text": "x"}).encode()
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
        raw_client(served) as client,
    ):
        headers = f"content-length: {len(body)}\r\nexpect: 100-continue\r\n"
        await _send(client, "POST", "/generate", headers, b"")
        with trio.fail_after(5):
            assert b" 100 " in await client.until(b"\r\n\r\n", step=65536)
            await client.stream.send_all(body)
            await client.until(b"HTTP/1.1 200", step=65536)
        assert "expect" not in worker.arrived[-1].headers
        assert urlsplit(worker.url).netloc == worker.arrived[-1].headers["host"]
        await settled(served)
