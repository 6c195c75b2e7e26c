"""Requests that two readers could read in two ways, as raw bytes to the real server.

Each is refused with an error and the end of the connection, and what stands behind it is never
taken for a request of its own.
"""

from __future__ import annotations

import functools
import json
from typing import Final

import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_asgi

from slime_core.transitions import WorkerAdded
from slime_core.types import WorkerUrl
from slime_trio.app import create_app
from slime_trio.config import Settings
from slime_trio.router import Router
from tests.listeners import BOTH_LISTENERS
from tests.server.harness import Served, fake_worker, http_response, router_with
from tests.server.smuggling_cases import CASES, CHUNKED, HIDDEN, post

# Both: where a message ends is judged by each listener's own parser.
pytestmark = BOTH_LISTENERS


async def _all_of(served: Served, request: bytes) -> bytes:
    """Everything that comes back until the router closes."""
    return await _all_from(served.port, request)


async def _all_from(port: int, request: bytes) -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        got = bytearray()
        with trio.fail_after(5):
            await stream.send_all(request)
            while piece := await stream.receive_some(65536):
                got += piece
    return bytes(got)


def _wrong(answer: bytes, status: int) -> str | None:
    """What is wrong with an answer that should be one refusal; ``None`` if nothing."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 %d " % status):
        return f"status {head[:40]!r}"
    if answer.count(b"HTTP/1.1 ") != 1:
        return "more than one answer"
    if b"\r\nconnection: close" not in head.lower():
        return "no end announced"
    error = json.loads(body)["error"]
    return None if error.keys() == {"message", "type", "param", "code"} else f"body {body!r}"


async def _served(stream: object, _: object) -> bytes:
    return http_response(b"served")


@pytest.mark.parametrize("behind", [b"", HIDDEN])
async def test_what_two_readers_could_read_in_two_ways_is_refused(behind: bytes) -> None:
    wrong = {}
    async with fake_worker(_served) as worker, router_with(worker.url) as served:
        for name, (status, request) in CASES.items():
            try:
                found = _wrong(await _all_of(served, request + behind), status)
            except (trio.TooSlowError, OSError, ValueError) as error:
                found = repr(error)
            if found is not None:
                wrong[name] = found
        assert wrong == {}
        assert not worker.arrived


@pytest.mark.parametrize(
    "fields", [(CHUNKED, b"content-length: 4"), (b"content-length: 6", CHUNKED)]
)
async def test_plain_hypercorn_too_serves_nothing_that_has_two_lengths(
    fields: tuple[bytes, ...],
) -> None:
    router = Router(Settings(capture=False))
    app = create_app(router.args, router=router)
    config = Config()
    config.bind = ["127.0.0.1:0"]
    async with fake_worker(_served) as worker, trio.open_nursery() as nursery:
        router.commit(WorkerAdded(worker=WorkerUrl(worker.url)))
        (url,) = await nursery.start(functools.partial(serve_asgi, app, config))
        port = int(url.rpartition(":")[2])
        answer = await _all_from(port, post(*fields, body=b"0\r\n\r\n"))
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert not worker.arrived
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("behind", ["thing", "other"])
async def test_a_refusal_behind_a_good_request_comes_after_its_answer(behind: str) -> None:
    async with fake_worker(_served) as worker, router_with(worker.url) as served:
        bad = b"GET /%b HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n" % behind.encode()
        answer = await _all_of(served, HIDDEN + bad + HIDDEN)
        assert [one[:4] for one in answer.split(b"HTTP/1.1 ")[1:]] == [b"200 ", b"400 "]
        assert [one.target for one in worker.arrived] == ["/smuggled"]


@pytest.mark.parametrize(
    "request_",
    [
        b"GET http://x/thing?a HTTP/1.1\r\nhost: X\r\nconnection: close\r\n\r\n",
        b"GET /thing?a HTTP/1.1\r\nhost: [::1]:80\r\nconnection: close\r\n\r\n",
        b"GET /thing?a HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n",
        b"GET /thing?a HTTP/1.0\r\n\r\n",
        b"GET /thing?a HTTP/1.1\r\nHOST:\tx \r\nconnection: close\r\n\r\n",
    ],
)
async def test_what_means_one_thing_only_is_served(request_: bytes) -> None:
    async with fake_worker(_served) as worker, router_with(worker.url) as served:
        assert (await _all_of(served, request_)).endswith(b"\r\n\r\nserved")
        assert [one.target for one in worker.arrived] == ["/thing?a"]


async def test_chunks_are_read_as_everybody_reads_them() -> None:
    request = post(
        b"Transfer-Encoding: CHUNKED",
        b"connection: close",
        body=b"3;name=value\r\nabc\r\n00A\r\n0123456789\r\n0\r\nx-trailer: 1\r\n\r\n",
    )
    async with fake_worker(_served) as worker, router_with(worker.url) as served:
        assert (await _all_of(served, request)).endswith(b"served")
        assert worker.arrived[0].body == b"abc0123456789"
        assert "x-trailer" not in worker.arrived[0].headers
        assert "transfer-encoding" not in worker.arrived[0].headers


@pytest.mark.parametrize(
    "upgrade",
    [b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\nconnection: upgrade, http2-settings",
     b"upgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
     b"sec-websocket-version: 13\r\nconnection: upgrade"],
)  # fmt: skip
async def test_an_upgrade_is_not_made_and_not_passed_on(upgrade: bytes) -> None:
    request = b"GET /thing HTTP/1.1\r\nhost: x\r\n" + upgrade + b", close\r\n\r\n"
    async with fake_worker(_served) as worker, router_with(worker.url) as served:
        assert (await _all_of(served, request)).endswith(b"served")
        assert not {"upgrade", "http2-settings", "connection"} & worker.arrived[0].headers.keys()


ANSWERS: Final = {
    "two lengths": b"content-length: 0\r\ncontent-length: 6\r\n\r\nserved",
    "length and coding": b"content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a negative length": b"content-length: -6\r\n\r\nserved",
    "a folded line": b"x-a: 1\r\n content-length: 0\r\n\r\n",
    "a blank before the colon": b"content-length : 0\r\n\r\n",
    "a null": b"x-a: \x00\r\ncontent-length: 0\r\n\r\n",
    "a return within a field": b"x-a: 1\rx-b: 2\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_that_two_readers_could_read_in_two_ways_is_not_passed_on(
    name: str,
) -> None:
    async def answer(*_: object) -> bytes:
        return b"HTTP/1.1 200 OK\r\n" + ANSWERS[name] + b"HTTP/1.1 200 OK\r\n\r\n"

    async with fake_worker(answer) as worker, router_with(worker.url, max_attempts=1) as served:
        response = await served.client.get("/thing")
        assert response.status_code == 502
        assert response.json()["error"]["code"] == "bad_response_framing"
