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
from tests.server.harness import Served, fake_worker, http_response, router_with

HIDDEN: Final = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
"""What an attacker would like to see served as a request of somebody else's."""


def post(*fields: bytes, version: bytes = b"1.1", body: bytes = HIDDEN) -> bytes:
    return b"".join(
        (b"POST /thing HTTP/%b\r\nhost: x\r\n" % version, *(one + b"\r\n" for one in fields))
    ) + (b"\r\n" + body)


CHUNKED: Final = b"transfer-encoding: chunked"


def chunked(body: bytes, coding: bytes = CHUNKED) -> bytes:
    return post(coding, body=body)


CASES: Final[dict[str, tuple[int, bytes]]] = {
    # Two lengths.
    "length and coding": (400, post(b"content-length: 6", CHUNKED, body=b"0\r\n\r\nG")),
    "coding and length": (400, post(CHUNKED, b"content-length: 4", body=b"5c\r\n" + HIDDEN)),
    "two lengths": (400, post(b"content-length: 0", b"content-length: 36")),
    "two equal lengths": (400, post(b"content-length: 0", b"content-length: 0")),
    "lengths in a list": (400, post(b"content-length: 0, 36")),
    "equal lengths in a list": (400, post(b"content-length: 0, 0")),
    "no length": (400, post(b"content-length:")),
    "positive length": (400, post(b"content-length: +0")),
    "negative length": (400, post(b"content-length: -1")),
    "hexadecimal length": (400, post(b"content-length: 0x24")),
    "length with a point": (400, post(b"content-length: 0.0")),
    "length with an exponent": (400, post(b"content-length: 1e1")),
    "length with an underscore": (400, post(b"content-length: 3_6")),
    "length in other digits": (400, post("content-length: ٣".encode())),
    "length of twenty digits": (400, post(b"content-length: 18446744073709551616")),
    "length of a thousand digits": (400, post(b"content-length: " + b"9" * 1000)),
    "length with a blank within": (400, post(b"content-length: 3 6")),
    "enormous length": (413, post(b"content-length: 999999999999999999")),
    # Codings.
    "coding in version 1.0": (400, post(CHUNKED, version=b"1.0", body=b"0\r\n\r\n" + HIDDEN)),
    "two codings": (400, chunked(b"0\r\n\r\n", CHUNKED + b"\r\ntransfer-encoding: identity")),
    "twice chunked": (400, chunked(b"0\r\n\r\n" + HIDDEN, b"transfer-encoding: chunked, chunked")),
    "another coding first": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: gzip, chunked")),
    "chunked not last": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: chunked, identity")),
    "identity": (400, chunked(HIDDEN, b"transfer-encoding: identity")),
    "nearly chunked": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: xchunked")),
    "chunked in quotes": (400, chunked(b"0\r\n\r\n", b'transfer-encoding: "chunked"')),
    "chunked with a parameter": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: chunked;q=1")),
    "chunked behind a tab": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: \x0bchunked")),
    "chunked before a null": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: chunked\x00")),
    "chunked with a byte above": (400, chunked(b"0\r\n\r\n", b"transfer-encoding: chunked\xa0")),
    "empty coding": (400, chunked(HIDDEN, b"transfer-encoding:")),
    "coding before a blank": (400, chunked(b"0\r\n\r\n", b"transfer-encoding : chunked")),
    "coding behind a blank": (400, chunked(b"0\r\n\r\n", b" transfer-encoding: chunked")),
    "coding in a folded line": (400, chunked(b"0\r\n\r\n", b"transfer-encoding:\r\n chunked")),
    "coding behind a folded line": (400, chunked(b"0\r\n\r\n", b"x-a: 1\r\n\t" + CHUNKED)),
    # Lines.
    "line feeds alone": (400, b"GET /thing HTTP/1.1\nhost: x\n\n"),
    "one line feed alone": (400, post(b"x-a: 1\ncontent-length: 0")),
    "a return alone": (400, post(b"x-a: 1\rcontent-length: 0")),
    "a return before the end": (400, b"GET /thing HTTP/1.1\r\nhost: x\r\r\n\r\n"),
    "a null in a value": (400, post(b"x-a: 1\x002")),
    "a null in a name": (400, post(b"x\x00a: 1")),
    "an escape in a value": (400, post(b"x-a: \x1b[2J")),
    "a delete in a value": (400, post(b"x-a: \x7f")),
    "a blank before the colon": (400, post(b"content-length : 0")),
    "a tab before the colon": (400, post(b"content-length\t: 0")),
    "no colon": (400, post(b"content-length 0")),
    "no name": (400, post(b": 0")),
    "a name with a byte above": (400, post(b"content-length\xff: 0")),
    "a first field that is folded": (400, b"GET /thing HTTP/1.1\r\n x-a: 1\r\nhost: x\r\n\r\n"),
    # Request lines.
    "two blanks": (400, b"GET  /thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a blank in the target": (400, b"GET /thing /x HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a tab": (400, b"GET\t/thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a blank at the start": (400, b" GET /thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "an empty line at the start": (400, b"\r\nGET /thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a blank at the end": (400, b"GET /thing HTTP/1.1 \r\nhost: x\r\n\r\n"),
    "no version": (400, b"GET /thing\r\n\r\n"),
    "version 2.0": (505, b"GET /thing HTTP/2.0\r\nhost: x\r\n\r\n"),
    "version 1.2": (505, b"GET /thing HTTP/1.2\r\nhost: x\r\n\r\n"),
    "version 1.10": (505, b"GET /thing HTTP/1.10\r\nhost: x\r\n\r\n"),
    "version in small letters": (400, b"GET /thing http/1.1\r\nhost: x\r\n\r\n"),
    "the preface of version 2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a method that is none": (400, b"G(T /thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a method in small letters": (400, b"get /thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a tunnel": (400, b"CONNECT other:443 HTTP/1.1\r\nhost: other:443\r\n\r\n"),
    "a target that is no path": (400, b"GET thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a target of another kind": (400, b"GET ftp://x/thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a star without its method": (400, b"GET * HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a fragment": (400, b"GET /thing#x HTTP/1.1\r\nhost: x\r\n\r\n"),
    "a byte above in the target": (400, b"GET /th\xffng HTTP/1.1\r\nhost: x\r\n\r\n"),
    # Hosts.
    "no host": (400, b"GET /thing HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET /thing HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n"),
    "two equal hosts": (400, b"GET /thing HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n"),
    "hosts in a list": (400, b"GET /thing HTTP/1.1\r\nhost: x y\r\n\r\n"),
    "a host with a path": (400, b"GET /thing HTTP/1.1\r\nhost: x/y\r\n\r\n"),
    "a host with a user": (400, b"GET /thing HTTP/1.1\r\nhost: u@x\r\n\r\n"),
    "another host in the target": (400, b"GET http://y/thing HTTP/1.1\r\nhost: x\r\n\r\n"),
    "another port in the target": (400, b"GET http://x:1/thing HTTP/1.1\r\nhost: x:2\r\n\r\n"),
    # Chunks.
    "a chunk of negative size": (400, chunked(b"-1\r\n" + HIDDEN)),
    "a chunk of positive size": (400, chunked(b"+1\r\na\r\n0\r\n\r\n")),
    "a chunk of prefixed size": (400, chunked(b"0x1\r\na\r\n0\r\n\r\n")),
    "a chunk of no size": (400, chunked(b"\r\na\r\n0\r\n\r\n")),
    "a chunk of a word": (400, chunked(b"ten\r\n")),
    "a chunk of enormous size": (400, chunked(b"f" * 21 + b"\r\n")),
    "a size behind a blank": (400, chunked(b" 1\r\na\r\n0\r\n\r\n")),
    "a size that ends in a line feed": (400, chunked(b"1\na\r\n0\r\n\r\n")),
    "a chunk longer than its size": (400, chunked(b"1\r\nabc\r\n0\r\n\r\n")),
    "a chunk shorter than its size": (400, chunked(b"3\r\na\r\n0\r\n\r\n" + HIDDEN)),
    "a chunk that ends in a line feed": (400, chunked(b"1\r\na\n0\r\n\r\n")),
    "an extension with a line feed": (400, chunked(b"1;a\nb\r\na\r\n0\r\n\r\n")),
    "an extension with a return": (400, chunked(b"1;a\rb\r\na\r\n0\r\n\r\n")),
    "an extension without end": (400, chunked(b"1;" + b"a" * 80_000)),
    "a trailer that is none": (400, chunked(b"0\r\nbad trailer\r\n\r\n")),
    "trailers without end": (400, chunked(b"0\r\n" + b"x-a: 1\r\n" * 12_000)),
}  # fmt: skip


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
