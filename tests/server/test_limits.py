"""Limits that hold before a request is parsed: sizes, waits, connections. Over raw sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio

from slime_trio.config import Settings
from slime_trio.limits.admissions import Admissions
from tests.listeners import BOTH_LISTENERS
from tests.server.harness import (
    Arrived,
    Raw,
    Served,
    fake_worker,
    http_response,
    raw_client,
    router_with,
    until,
)

# Both: heads, bodies and patience: each listener bounds them by code of its own.
pytestmark = BOTH_LISTENERS

HEAD = b"GET /health HTTP/1.1\r\nhost: x\r\n"
MIB = 2**20


async def _refused(client: Raw) -> tuple[int, str]:
    """The status and code of the last answer, behind which the connection must end."""
    with trio.fail_after(5):
        got = await client.rest()
    head, _, body = got[got.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


async def _answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
    return http_response(b"served")


@asynccontextmanager
async def _served(**settings: Any) -> AsyncIterator[tuple[Served, Raw]]:
    async with (
        fake_worker(_answer) as worker,
        router_with(worker.url, capture=False, **settings) as served,
        raw_client(served) as client,
    ):
        yield served, client
        assert not worker.arrived


# -- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""])
async def test_a_head_over_the_limit_is_a_431_whole_or_not(end: bytes) -> None:
    async with _served(max_header_kb=2) as (_, client):
        await client.stream.send_all(HEAD + b"x-a: " + b"a" * 2048 + end)
        assert await _refused(client) == (431, "head_too_large")


async def test_a_head_within_the_limit_is_served() -> None:
    async with router_with(max_header_kb=64) as served, raw_client(served) as client:
        fields = b"x-a: " + b"a" * 60_000 + b"\r\nconnection: close\r\n\r\n"
        await client.stream.send_all(HEAD + fields)
        assert (await client.rest()).endswith(b"OK")


async def test_too_many_fields_are_a_431() -> None:
    async with _served() as (_, client):
        await client.stream.send_all(HEAD + b"a: 1\r\n" * 128 + b"\r\n")
        assert await _refused(client) == (431, "too_many_fields")


async def test_a_target_over_the_limit_is_a_414() -> None:
    async with _served() as (_, client):
        await client.stream.send_all(b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await _refused(client) == (414, "target_too_long")


@pytest.mark.parametrize("expect", [b"", b"expect: 100-continue\r\n"])
async def test_a_body_announced_over_the_limit_is_a_413_before_it_is_read(expect: bytes) -> None:
    async with _served(max_body_mb=1) as (_, client):
        announced = b"content-length: %d\r\n%b\r\n" % (MIB + 1, expect)
        await client.stream.send_all(b"POST /thing HTTP/1.1\r\nhost: x\r\n" + announced)
        assert await _refused(client) == (413, "body_too_large")
        assert b"100 " not in client.got[:20]


async def test_a_body_that_grows_over_the_limit_is_a_413() -> None:
    async with _served(max_body_mb=1) as (_, client):
        head = b"POST /thing HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        await client.stream.send_all(head + b"100001\r\n" + b"a" * (MIB + 1))
        assert await _refused(client) == (413, "body_too_large")


async def test_a_client_that_goes_on_sending_can_still_read_the_refusal() -> None:
    async with _served(max_body_mb=1) as (_, client), trio.open_nursery() as nursery:
        head = b"POST /thing HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (8 * MIB)

        async def send() -> None:
            await client.stream.send_all(head + b"a" * (4 * MIB))

        nursery.start_soon(send)
        assert await _refused(client) == (413, "body_too_large")


# -- waits -------------------------------------------------------------------------------------


async def test_a_head_that_does_not_end_is_a_408() -> None:
    async with _served(header_timeout_s=0.2) as (_, client):
        await client.stream.send_all(HEAD)
        assert await _refused(client) == (408, "request_timeout")


async def test_a_head_that_comes_drop_by_drop_has_one_deadline() -> None:
    async with _served(header_timeout_s=0.3) as (_, client), trio.open_nursery() as nursery:

        async def drip() -> None:
            while True:
                await client.stream.send_all(b"a")
                await trio.sleep(0.02)

        nursery.start_soon(drip)
        assert await _refused(client) == (408, "request_timeout")
        nursery.cancel_scope.cancel()


async def test_a_second_head_on_a_connection_has_its_own_deadline() -> None:
    async with _served(header_timeout_s=0.2) as (_, client):
        await client.stream.send_all(HEAD + b"\r\n")
        await client.until(b"OK")
        await client.stream.send_all(HEAD)
        assert await _refused(client) == (408, "request_timeout")


async def test_a_connection_between_requests_may_wait() -> None:
    async with (
        router_with(header_timeout_s=0.1, body_timeout_s=0.1) as served,
        raw_client(served) as client,
    ):
        for _ in range(2):
            await trio.sleep(0.3)
            await client.stream.send_all(HEAD + b"\r\n")
            await client.until(b"OK")
            client.got.clear()


@pytest.mark.parametrize(
    "framing", [b"content-length: 99\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n63\r\n{"]
)
@pytest.mark.parametrize("path", [b"/generate", b"/thing", b"/add_worker"])
async def test_a_body_that_pauses_too_long_is_a_408(framing: bytes, path: bytes) -> None:
    async with _served(body_timeout_s=0.2) as (served, client):
        await client.stream.send_all(b"POST %b HTTP/1.1\r\nhost: x\r\n%b" % (path, framing))
        assert await _refused(client) == (408, "request_timeout")
        assert served.at_rest


async def test_a_body_that_comes_steadily_may_take_long() -> None:
    async with (
        fake_worker(_answer) as worker,
        router_with(worker.url, capture=False, body_timeout_s=0.4) as served,
        raw_client(served) as client,
    ):
        head = b"POST /thing HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
        await client.stream.send_all(head)
        for _ in range(9):
            await trio.sleep(0.1)
            await client.stream.send_all(b"a")
        await client.until(b"served")
        assert worker.arrived[0].body == b"a" * 9


async def test_an_answer_may_take_longer_than_any_request() -> None:
    async def slow(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await trio.sleep(0.4)
        return http_response(b"served")

    async with (
        fake_worker(slow) as worker,
        router_with(worker.url, capture=False, header_timeout_s=0.1, body_timeout_s=0.1) as served,
        raw_client(served) as client,
    ):
        await client.post("/thing", b"{}")
        await client.until(b"served")


# -- connections -------------------------------------------------------------------------------


async def _opened(served: Served, stack: AsyncExitStack) -> Raw:
    client = await stack.enter_async_context(raw_client(served))
    await client.stream.send_all(HEAD + b"\r\n")
    return client


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_peer"])
async def test_a_connection_too_many_is_a_503_until_another_ends(limit: str) -> None:
    settings: dict[str, Any] = {limit: 2}
    async with router_with(**settings) as served, AsyncExitStack() as stack:
        first, second = [await _opened(served, stack) for _ in range(2)]
        await first.until(b"OK")
        await second.until(b"OK")
        assert await _refused(await _opened(served, stack)) == (503, "too_many_connections")
        await first.stream.aclose()

        async def admitted() -> bool:
            async with raw_client(served) as client:
                await client.stream.send_all(HEAD + b"connection: close\r\n\r\n")
                return (await client.rest()).endswith(b"OK")

        with trio.fail_after(5):
            while not await admitted():
                pass


def test_peers_are_counted_apart_and_forgotten() -> None:
    admissions = Admissions(Settings(max_connections=3, max_connections_per_peer=2))
    assert [admissions.enter("10.0.0.1") for _ in range(3)] == [True, True, False]
    assert admissions.enter("10.0.0.2")
    assert not admissions.enter("10.0.0.3")
    for peer in ("10.0.0.1", "10.0.0.1", "10.0.0.2"):
        admissions.leave(peer)
    assert admissions.total == 0
    assert not admissions._peers


def test_a_host_of_six_does_not_get_round_it_by_its_many_addresses() -> None:
    admissions = Admissions(Settings(max_connections_per_peer=2))
    found = [admissions.enter(f"2a00:0:0:1::{number}") for number in range(3)]
    assert found == [True, True, False]
    assert admissions.enter("2a00:0:0:2::1")


def test_a_trusted_proxy_is_bounded_by_the_total_alone() -> None:
    settings = Settings(
        max_connections=3, max_connections_per_peer=1, trusted_proxy=("10.0.0.0/24",)
    )
    admissions = Admissions(settings)
    assert [admissions.enter("10.0.0.1") for _ in range(4)] == [True, True, True, False]


async def test_thousands_of_idle_connections_keep_nobody_waiting() -> None:
    async with router_with() as served, AsyncExitStack() as stack:
        streams = [await trio.open_tcp_stream("127.0.0.1", served.port) for _ in range(400)]
        for stream in streams:
            await stack.enter_async_context(stream)
        assert (await served.client.get("/health")).text == "OK"


# -- readers and writers that are stuck -------------------------------------------------------


async def test_a_client_that_stops_reading_frees_its_slot() -> None:
    async def big(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(b"a" * (32 * MIB))

    async with (
        fake_worker(big) as worker,
        router_with(worker.url, capture=False, client_stall_s=0.3) as served,
        raw_client(served) as client,
    ):
        await client.post("/generate", b"{}")
        await until(lambda: worker.arrived)
        await until(lambda: served.at_rest)


# -- batches -----------------------------------------------------------------------------------

_ONE = {"max_new_tokens": 1}
_CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
_BATCHES: list[tuple[str, dict[str, object]]] = [
    ("/generate", {"text": ["a"] * 5, "sampling_params": _ONE}),
    ("/generate", {"input_ids": [[5]] * 5, "sampling_params": _ONE}),
    ("/generate", {"text": ["a"] * 3, "sampling_params": {"n": 2}}),
    ("/generate", {"text": ["a"] * 5, "sampling_params": [_ONE] * 5}),
    ("/v1/completions", {"model": "m", "prompt": ["a"] * 5}),
    ("/v1/completions", {"model": "m", "prompt": [[5]] * 5}),
    ("/v1/completions", {"model": "m", "prompt": ["a"] * 3, "n": 2}),
    ("/v1/completions", {"model": "m", "prompt": "a", "n": 5}),
    ("/v1/chat/completions", {**_CHAT, "n": 5}),
]


async def test_a_batch_over_the_limit_is_refused_in_every_form() -> None:
    async with (
        fake_worker(_answer) as worker,
        router_with(worker.url, max_samples_per_request=4) as served,
    ):
        for path, body in _BATCHES:
            for stream in (False, True):
                response = await served.client.post(path, json=body | {"stream": stream})
                assert response.status_code == 400, (path, body)
                assert "--max-samples-per-request" in response.json()["error"]["message"]
        assert not worker.arrived
        assert served.at_rest
