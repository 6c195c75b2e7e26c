"""Retries over real HTTP: which connections were lost, as far as a server can know."""

from __future__ import annotations

import json

import httpx
import pytest
import trio

from tests.listeners import BOTH_LISTENERS
from tests.server.harness import (
    Arrived,
    Events,
    answer_item,
    fake_worker,
    http_response,
    json_answer,
    raw_client,
    router_with,
    settled,
    until,
)

# Both: a request is given up when its client leaves, of which each listener learns otherwise.
pytestmark = BOTH_LISTENERS

SESSION = {"x-session-id": "s"}
LINE = "x-session-id: s\r\n"
BODY = {"text": "x"}
STREAM = {"text": "x", "stream": True}


async def test_a_key_is_answered_once() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        key = {"Idempotency-Key": "k"}
        first, second = [
            await served.client.post("/generate", json=BODY, headers=key) for _ in range(2)
        ]
        assert first.content == second.content
        assert first.headers["x-slime-call-id"] == second.headers["x-slime-call-id"]
        assert "x-slime-retry" not in first.headers
        assert second.headers["x-slime-retry"] == "replayed"
        refused = await served.client.post("/generate", json={"text": "y"}, headers=key)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "Idempotency-Key")
        assert len(worker.arrived) == 1
        await settled(served)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_closes_once_it_has_everything_has_lost_nothing(stream: bool) -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes | None:
        if not arrived.json.get("stream"):
            return http_response(b"%b" % _JSON)
        events = Events(stream)
        await events.begin()
        await events.event(answer_item([5], "a"))
        await events.end()
        return None

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        for asked in range(1, 6):
            async with raw_client(served) as client:
                await client.post("/generate", STREAM if stream else BODY, more=LINE)
                await client.until(b"[DONE]" if stream else b'"finish_reason"', step=65536)
            await settled(served)
            assert served.router.state.counters.calls_captured == asked


_JSON = httpx.Request("POST", "http://x", json=answer_item([5], "a")).read()


@pytest.mark.parametrize("body", [BODY, STREAM])
async def test_a_client_that_leaves_before_is_told_of_what_it_left(body: dict[str, object]) -> None:
    go_on = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes | None:
        if not go_on.is_set():
            await trio.sleep_forever()
        if not arrived.json.get("stream"):
            return http_response(_JSON)
        events = Events(stream)
        await events.begin()
        await events.event(answer_item([5], "a"))
        await events.end()
        return None

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        async with raw_client(served) as client:
            await client.post("/generate", body, more=LINE)
            await until(lambda: worker.arrived)
        await settled(served)
        await until(lambda: worker.aborted)
        go_on.set()
        same = json.dumps(body).encode()  # byte for byte, as the raw client wrote it
        again = await served.client.post("/generate", content=same, headers=SESSION)
        assert again.headers["x-slime-flags"] == f"retry,retry_of:{worker.aborted[0]}"
        await settled(served)


async def test_a_retry_on_a_second_connection_joins_the_first() -> None:
    go_on = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.event(answer_item([5], "a", finished=False))
        await go_on.wait()
        await events.event(answer_item([5, 6], "ab"))
        await events.end()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        async with raw_client(served) as client:
            await client.post("/generate", STREAM, more="x-stainless-retry-count: 0\r\n")
            await client.until(b"output_ids")
            headers = {"x-stainless-retry-count": "1"}
            async with served.client.stream(
                "POST", "/generate", content=json.dumps(STREAM).encode(), headers=headers
            ) as joined:
                assert joined.headers["x-slime-retry"] == "joined"
                go_on.set()
                got = (await joined.aread()).count(b"output_ids")
            assert got == 2
            await client.until(b"[DONE]")
        assert len(worker.arrived) == 1
        await settled(served)
