"""Streams on the wire: bytes, order, several samples, and slow or split deliveries."""

from __future__ import annotations

import json
import random

import pytest
import trio

from slime_core import sse
from tests.listeners import BOTH_LISTENERS
from tests.server.harness import (
    Arrived,
    Events,
    answer_item,
    embedded_worker,
    events_of,
    fake_worker,
    raw_client,
    router_with,
    settled,
)

# Both: how fast a client reads reaches the relay by a way of each listener's own.
pytestmark = BOTH_LISTENERS

EVENTS = [
    answer_item([5], "a", finished=False),
    answer_item([5, 6], "aé", finished=False),
    answer_item([5, 6, 7], "aé🙂"),
]
WIRE = b"".join(sse.encode(json.dumps(one, ensure_ascii=False).encode()) for one in EVENTS)


@pytest.mark.parametrize("split", ["whole", "bytes", "random"])
async def test_events_pass_byte_for_byte_however_the_worker_splits_them(split: str) -> None:
    wire = WIRE + sse.DONE
    chance = random.Random(1)

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        rest = wire
        while rest:
            size = {"whole": len(rest), "bytes": 1, "random": chance.randint(1, 40)}[split]
            await events.raw(rest[:size])
            rest = rest[size:]
        await events.end(done=False)

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", stream=True, return_logprob=True)
        assert response.content == wire
        found = await served.trajectory(response.headers["x-slime-call-id"])
        assert (found["answer_text"], found["tokens"][-3:]) == ("aé🙂", [5, 6, 7])
        await settled(served)


async def test_comments_and_keep_alives_of_a_worker_break_nothing() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.raw(b": ping\n\n\r\n" + WIRE + b": bye\n\n" + sse.DONE)
        await events.end(done=False)

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", stream=True)
        assert [one["text"] for one in events_of(response.text)[:-1]] == ["a", "aé", "aé🙂"]
        await settled(served)


async def test_a_stream_without_its_end_mark_that_is_complete_is_captured() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.raw(WIRE)
        await events.end(done=False)

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", stream=True)
        assert "error" not in events_of(response.text)[-1]
        found = await served.trajectory(response.headers["x-slime-call-id"])
        assert found["outcome"] == "complete"
        await settled(served)


@pytest.mark.parametrize("after", [b"data: {}\n\n", b"data: [DONE]\n\n", b"data: x\n\n"])
async def test_what_follows_the_end_cannot_undo_the_capture(after: bytes) -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.raw(WIRE + sse.DONE + after)
        await events.end(done=False)

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", stream=True)
        found = await served.trajectory(response.headers["x-slime-call-id"])
        assert found["outcome"] == "complete"
        await settled(served)


async def test_one_sample_that_breaks_off_does_not_take_the_other_along() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.event({"index": 0, **answer_item([5], "a", finished=False)})
        await events.event({"index": 1, **answer_item([6, 7], "bc")})

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", stream=True, sampling_params={"n": 2})
        first, second = response.headers["x-slime-call-id"].split(",")
        assert "error" in events_of(response.text)[-1]
        assert (await served.trajectory(first))["outcome"] == "partial"
        assert (await served.trajectory(second))["outcome"] == "complete"
        await settled(served)


async def test_a_stream_that_cannot_be_captured_says_so_before_its_last_event() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.event(answer_item([5, 6], "ab", completion_tokens=9))
        await events.end()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", stream=True)
        said = response.text.index(": x-slime-captured: false")
        assert said < response.text.index("data: [DONE]")
        await settled(served)


async def test_fifty_streams_at_once_are_kept_apart() -> None:
    async with (
        embedded_worker() as one,
        embedded_worker() as two,
        router_with(one.url, two.url) as served,
    ):
        params = {"max_new_tokens": 12, "ignore_eos": True}
        calls: list[str] = []

        async def ask(number: int) -> None:
            response = await served.generate(
                text=f"Stream {number % 5}:", stream=True, sampling_params=params
            )
            calls.append(response.headers["x-slime-call-id"])

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)
        records = {one.rid: one for worker in (one, two) for one in worker.records}
        for call in calls:
            record = records[call]
            found = await served.trajectory(call)
            assert found["tokens"] == list(record.prompt_ids) + list(record.output_ids)
        await settled(served)


async def test_a_slow_reader_gets_everything() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        async with raw_client(served) as client:
            params = {"max_new_tokens": 30, "ignore_eos": True}
            await client.post("/generate", {"text": "x", "stream": True, "sampling_params": params})
            await client.until(b"[DONE]", step=97)
        (call,) = served.router.state.forest.calls
        assert (await served.trajectory(call))["answer_length"] == 30
        await settled(served)
