"""Whatever becomes of a worker or a client: slots come back, calls end, and words say why."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from slime_trio.worker import Fault
from tests.server.dispatch_support import Station, asking, fleet
from tests.server.harness import (
    Arrived,
    Events,
    answer_item,
    embedded_worker,
    events_of,
    fake_worker,
    http_response,
    json_answer,
    raw_client,
    router_with,
    settled,
    until,
)

GENERATE = {"text": "x"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
PATHS = [("/generate", GENERATE), ("/v1/chat/completions", CHAT)]


async def _hang(arrived: Arrived, stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def _close(arrived: Arrived, stream: trio.SocketStream) -> None:
    return None


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "bad",
    [
        b"{not json",
        b'{"text": "a"',
        b"[]",
        b"null",
        b'{"text":"a","output_ids":"no","meta_info":{}}',
        b'{"text":"a","output_ids":[1],"meta_info":{"output_token_logprobs":[[1]]}}',
        b'{"text":"a","output_ids":[-1],"meta_info":{"output_token_logprobs":[[0,-1,null]]}}',
        b"\xff\xfe\x00",
        b"",
    ],
)
async def test_an_answer_that_cannot_be_read_is_a_502(
    path: str, body: dict[str, Any], bad: bytes, stream: bool
) -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(bad)

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.client.post(path, json={**body, "stream": stream})
        assert response.status_code == 502, response.text
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        await settled(served)
        assert served.router.state.counters.answers_not_captured == 1
        assert not served.router.state.forest.segments


@pytest.mark.parametrize(
    "change",
    [
        {"completion_tokens": 7},
        {"output_token_logprobs": [[-0.5, 5, None]]},
        {"output_token_logprobs": [[-0.5, 5, None], [None, 6, None]]},
        {"output_token_logprobs": [[-0.5, 5, None], [-0.5, 9, None]]},
        {"output_token_logprobs": None},
        {"finish_reason": None},
    ],
)
async def test_counts_that_do_not_fit_reach_the_client_and_are_not_captured(
    change: dict[str, Any],
) -> None:
    item = answer_item([5, 6], "ab")
    item["meta_info"] |= change
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", return_logprob=True)
        assert response.status_code == 200
        assert response.json() == item
        assert response.headers["x-slime-captured"] == "false"
        await settled(served)
        assert served.router.state.counters.answers_not_captured == 1
        gone = await served.client.get(f"/trajectories/{response.headers['x-slime-call-id']}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (410, "corrupt")


async def test_the_wrong_number_of_answers_is_a_502() -> None:
    async with (
        fake_worker(json_answer([answer_item([5], "a")])) as worker,
        router_with(worker.url) as served,
    ):
        assert (await served.generate(text=["x", "y"])).status_code == 502
        await settled(served)


@pytest.mark.parametrize("status", ["400 Bad Request", "429 Too Many", "500 Oops", "503 Busy"])
async def test_a_refusal_of_generate_passes_byte_for_byte(status: str) -> None:
    body = b'{"error": {"message": "because",   "odd": 1.0}}'

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(body, status=status, more="x-why: it\r\n")

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        for stream in (False, True):
            response = await served.generate(text="x", stream=stream)
            assert response.status_code == int(status[:3])
            assert (response.content, response.headers["x-why"]) == (body, "it")
            await settled(served)
        assert served.router.state.counters.answers_not_captured == 0


@pytest.mark.parametrize(("status", "expected"), [(400, 400), (429, 429), (500, 500), (503, 503),
                                                  (401, 502), (404, 502), (302, 502)])  # fmt: skip
@pytest.mark.parametrize(
    "body",
    [b'{"error":"because"}', b'{"error":{"message":"because"}}',
     b'{"object":"error","message":"because","code":400}', b"because"],
)  # fmt: skip
async def test_a_refusal_of_a_chat_is_an_openai_error(
    status: int, expected: int, body: bytes
) -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(body, status=f"{status} No")

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.client.post("/v1/chat/completions", json=CHAT)
        assert response.status_code == expected
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert "because" in error["message"]
        await settled(served)


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_hangs_up_before_its_answer_is_a_502(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    async with fake_worker(_close) as worker, router_with(worker.url) as served:
        response = await served.client.post(path, json={**body, "stream": stream})
        assert (response.status_code, response.json()["error"]["code"]) == (502, "connection_lost")
        await settled(served)


@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\nconte",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
        b"garbage\r\n\r\n",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_breaks_off_its_head_or_body_is_a_502(cut: bytes, stream: bool) -> None:
    async def answer(arrived: Arrived, connection: trio.SocketStream) -> None:
        await connection.send_all(cut)

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", stream=stream)
        assert response.status_code == 502, response.text
        await settled(served)


@pytest.mark.parametrize(("path", "body"), PATHS)
async def test_a_worker_nobody_listens_for_is_a_502(
    path: str, body: dict[str, Any], autojump_clock: MockClock
) -> None:
    station = Station("a")
    station.takes_connections = False
    async with fleet(station) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router, path=path, **body)
        assert (asked.status, asked.code) == (502, "connect_failed")
        assert router.state.counters.answers_not_captured == 0


@pytest.mark.parametrize(("path", "body"), PATHS)
async def test_no_workers_is_a_503_that_says_when_to_come_back(
    path: str, body: dict[str, Any]
) -> None:
    async with router_with() as served:
        response = await served.client.post(path, json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "no_workers")
        assert int(response.headers["retry-after"]) >= 1
        await settled(served)


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/completions"])
async def test_a_stream_cut_by_the_worker_ends_with_an_error_and_is_kept_as_partial(
    path: str,
) -> None:
    async with (
        embedded_worker(faults=(Fault("cut-stream", 3),)) as worker,
        router_with(worker.url) as served,
    ):
        body: dict[str, Any] = {"stream": True, "model": "m", "max_tokens": 50}
        body |= {"messages": CHAT["messages"]} if "chat" in path else {}
        body |= {"prompt": "Well"} if path == "/v1/completions" else {}
        if path == "/generate":
            params = {"max_new_tokens": 50, "ignore_eos": True}
            body = {"stream": True, "text": "Well", "sampling_params": params}
        else:
            body["ignore_eos"] = True
        response = await served.client.post(path, json=body)
        events = events_of(response.text)
        assert "error" in events[-1]
        await settled(served)
        call = response.headers["x-slime-call-id"]
        found = await served.trajectory(call)
        assert found["outcome"] == "partial"
        assert found["answer_length"] == 3


@pytest.mark.parametrize(
    "truncated",
    [
        b'data: {"text":"ab","output_ids":[5',
        b"data: nonsense\n\n",
        b'data: {"text":"ab"}\n\n',
        b"data: [DONE]\n\n",
    ],
)
async def test_a_stream_that_goes_wrong_ends_with_one_error_and_keeps_what_came(
    truncated: bytes,
) -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.event(answer_item([5], "a", finished=False))
        await events.raw(truncated)
        await events.end(done=False)

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", stream=True)
        assert "error" in events_of(response.text)[-1]
        await settled(served)
        found = await served.trajectory(response.headers["x-slime-call-id"])
        assert (found["outcome"], found["tokens"][-1]) == ("partial", 5)


async def test_a_refusal_inside_a_stream_passes_as_it_is() -> None:
    refusal = {"error": {"message": "no", "type": "invalid_request_error", "code": 400}}

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.event(refusal)
        await events.end()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", stream=True)
        assert events_of(response.text) == [refusal, "[DONE]"]
        await settled(served)


async def test_a_refusal_inside_a_stream_keeps_its_status_for_a_chat() -> None:
    refusal = {"error": {"message": "no", "type": "invalid_request_error", "code": 400}}

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.event(refusal)
        await events.end()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert response.status_code == 400
        await settled(served)


async def test_a_whole_answer_to_a_streaming_chat_is_no_half_stream() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        response = await served.client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        is_stream = response.headers["content-type"].startswith("text/event-stream")
        assert is_stream == (response.text.startswith("data: "))
        await settled(served)


async def test_a_turn_is_committed_when_its_last_event_arrives() -> None:
    go = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.event(answer_item([5], "a", finished=False))
        await events.event(answer_item([5, 6], "ab"))
        await go.wait()
        await events.end()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        async with raw_client(served) as client:
            await client.post("/generate", {"text": "x", "stream": True})
            await client.until(b'"type": "stop"')
            (segment,) = served.router.state.forest.calls.values()
            assert segment.answer is not None
            assert segment.answer.outcome.value == "complete"
            go.set()
            await client.until(b"[DONE]")
        await settled(served)


async def test_a_whole_turn_is_committed_when_its_first_byte_arrives() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
        raw_client(served) as client,
    ):
        await client.post("/generate", {"text": "x"})
        await client.until(b"H")
        assert len(served.router.state.forest.calls) == 1


async def test_a_client_gone_before_the_head_gives_its_slot_back_and_aborts() -> None:
    async with fake_worker(_hang) as worker, router_with(worker.url) as served:
        async with raw_client(served) as client:
            await client.post("/generate", {"text": "x"})
            await until(lambda: worker.arrived)
            assert served.router.state.fleet.total_in_flight == 1
        await settled(served)
        await until(lambda: worker.aborted == [worker.arrived[0].json["rid"]])


@pytest.mark.parametrize("incremental", [False, True])
async def test_a_client_gone_in_mid_stream_leaves_exactly_what_was_received(
    incremental: bool,
) -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.event(answer_item([5], "a", finished=False))
        second = answer_item([5, 6, 7], "abc", finished=False)
        if incremental:
            second = answer_item([6, 7], "bc", finished=False, completion_tokens=3)
        await events.event(second)
        await trio.sleep_forever()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        async with raw_client(served) as client:
            await client.post("/generate", {"text": "x", "stream": True})
            await client.until(b'bc","output_ids"', step=4096)  # ids may hold "bc"
        await settled(served)
        call = worker.arrived[0].json["rid"]
        found = await served.trajectory(call)
        assert (found["outcome"], found["tokens"][-3:]) == ("partial", [5, 6, 7])
        assert found["answer_text"] == "abc"
        await until(lambda: worker.aborted == [call])


async def test_a_client_that_never_reads_is_given_up() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        for place in range(10_000):
            await events.event(answer_item([5], "a" * 20_000, finished=False, place=place))

    async with (
        fake_worker(answer) as worker,
        router_with(worker.url, client_stall_s=0.3) as served,
        raw_client(served) as client,
    ):
        await client.post("/generate", {"text": "x", "stream": True})
        await client.until(b"200")
        assert served.router.state.fleet.total_in_flight == 1
        await settled(served, within_s=10)


async def test_a_worker_stops_when_its_client_goes() -> None:
    async with embedded_worker(ms_per_token=20) as worker, router_with(worker.url) as served:
        async with raw_client(served) as client:
            params = {"max_new_tokens": 10_000, "ignore_eos": True}
            await client.post("/generate", {"text": "x", "stream": True, "sampling_params": params})
            await client.until(b"data: ")
        await settled(served)
        await until(lambda: worker.is_idle)


async def test_a_slot_is_taken_by_every_sample_and_given_back() -> None:
    go = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await go.wait()
        items = [answer_item([5], "a") for _ in range(6)]
        return http_response(json.dumps(items).encode())

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                await served.generate(text=["x", "y"], sampling_params={"n": 3})

            nursery.start_soon(ask)
            await until(lambda: worker.arrived)
            assert served.router.state.fleet.total_in_flight == 6
            go.set()
        await settled(served)


async def test_counts_that_go_wrong_within_a_stream_are_not_captured() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.event(answer_item([5], "a", finished=False))
        await events.event(answer_item([9, 6], "xb"))
        await events.end()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", stream=True)
        assert events_of(response.text)[-1] == "[DONE]"
        await settled(served)
        assert served.router.state.counters.answers_not_captured == 1
        assert not served.router.state.forest.calls


@pytest.mark.parametrize("field", ["prompt_tokens", "id", "cached_tokens", "weight_version"])
@pytest.mark.parametrize("finished", [False, True])
async def test_meta_info_of_the_wrong_type_within_a_stream_ends_every_call(
    field: str, finished: bool
) -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        await events.event(answer_item([5], "a", finished=False))
        item = answer_item([5, 6], "ab", finished=finished)
        item["meta_info"][field] = {"what": "is this"}
        await events.event(item)
        await events.end()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.generate(text="x", stream=True)
        assert "error" in events_of(response.text)[-1]
        await settled(served)
        assert served.router.state.counters.calls_opened == 1
        assert served.router.state.counters.answers_not_captured == 1
