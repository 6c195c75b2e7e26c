"""Two workers asked as one: who answers, who is stopped, and what is said of whom."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio

from slime_core.errors import ClientError
from slime_core.types import WorkerUrl
from slime_trio.config import Settings
from slime_trio.pairs import PairError, PairExchange, exchange
from slime_trio.router import Router
from tests.server.harness import (
    TEST_S,
    Answering,
    Arrived,
    Events,
    FakeWorker,
    answer_item,
    fake_worker,
    http_response,
    until,
)

BODY = {"text": "a", "rid": "r"}
MERGED = BODY | {"return_logprob": True, "logprob_start_len": 0}
STREAM = {"stream": True}


@dataclass(frozen=True)
class Worker:
    """What a pair must know of a worker."""

    url: WorkerUrl
    bootstrap_port: int | None = None


@dataclass
class Pair:
    """A router's view of two fake workers."""

    router: Router
    prefill: FakeWorker
    decode: FakeWorker
    port: int | None = 8998
    headers: dict[str, list[tuple[bytes, bytes]]] = field(default_factory=dict)

    def ask(self, body: Any, path: bytes = b"/generate") -> PairExchange:
        return exchange(
            self.router,
            Worker(WorkerUrl(self.prefill.url), self.port),
            Worker(WorkerUrl(self.decode.url)),
            "POST",
            path,
            lambda url: self.headers.get(url, [(b"content-type", b"application/json")]),
            body if isinstance(body, bytes) else json.dumps(body).encode(),
        )

    async def whole(self, body: Any) -> tuple[int, bytes]:
        async with self.ask(body) as response:
            return response.status, await response.read()

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing of any exchange is left."""
        return not self.router.shared.rooms and not self.router.pool.stats().in_use


@asynccontextmanager
async def pair_of(prefill: Answering, decode: Answering, **settings: Any) -> AsyncIterator[Pair]:
    router = Router(Settings(capture=False, **settings))
    async with fake_worker(prefill) as first, fake_worker(decode) as second:
        with trio.fail_after(TEST_S):
            async with trio.open_nursery() as nursery:
                router.nursery = nursery
                pair = Pair(router, first, second)
                yield pair
                await until(lambda: pair.is_at_rest)
                nursery.cancel_scope.cancel()
        await router.pool.aclose()


def item(*, first: bool = False, **meta: Any) -> dict[str, Any]:
    if first:
        meta = {"finish": {"type": "length", "length": 0}} | meta
    return answer_item([5] if first else [5, 6], "x", **meta)


def saying(value: Any, status: str = "200 OK") -> Answering:
    async def answer(_arrived: Arrived, _stream: trio.SocketStream) -> bytes:
        return http_response(json.dumps(value).encode(), status=status)

    return answer


async def hanging(_arrived: Arrived, stream: trio.SocketStream) -> None:
    """Never answers, and sees its client go."""
    await stream.receive_some(1)


async def dying(_arrived: Arrived, stream: trio.SocketStream) -> None:
    """Breaks off without a word."""
    await stream.aclose()


def streaming(*events: Any, then: Answering | None = None) -> Answering:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        told = Events(stream)
        await told.begin()
        for event in events:
            await told.event(event)
        if then is not None:
            await then(arrived, stream)
        else:
            await told.end()
            await stream.aclose()

    return answer


def after(event: trio.Event, answer: Answering) -> Answering:
    async def later(arrived: Arrived, stream: trio.SocketStream) -> bytes | None:
        await event.wait()
        return await answer(arrived, stream)

    return later


async def test_both_get_the_same_body_with_the_fields_of_one_room() -> None:
    async with pair_of(saying(item(first=True)), saying(item())) as pair:
        status, body = await pair.whole(b'{"text" : "a","x":1e-07,"rid":"r"}')
    assert (status, json.loads(body)) == (200, item())
    (first,), (second,) = pair.prefill.arrived, pair.decode.arrived
    assert first.body == second.body
    assert first.body.startswith(b'{"text" : "a","x":1e-07,"rid":"r"')
    assert first.json["bootstrap_host"] == "127.0.0.1"
    assert first.json["bootstrap_port"] == 8998
    assert 0 <= first.json["bootstrap_room"] < 2**63


async def test_each_worker_gets_its_own_fields() -> None:
    async with pair_of(saying(item(first=True)), saying(item())) as pair:
        pair.headers = {
            pair.prefill.url: [(b"authorization", b"Bearer p")],
            pair.decode.url: [(b"authorization", b"Bearer d")],
        }
        await pair.whole(BODY)
    assert pair.prefill.arrived[0].headers["authorization"] == "Bearer p"
    assert pair.decode.arrived[0].headers["authorization"] == "Bearer d"


async def test_decode_s_bytes_and_fields_are_the_answer_where_nothing_is_merged() -> None:
    raw = b'{"text" : "x",  "n":1e-07}'

    async def decode(_arrived: Arrived, _stream: trio.SocketStream) -> bytes:
        return http_response(raw, more="x-own: 1\r\n")

    async with pair_of(saying(item(first=True)), decode) as pair, pair.ask(BODY) as response:
        assert response.worker_url == pair.decode.url
        assert response.header(b"x-own") == b"1"
        assert response.content_length == len(raw)
        assert await response.read() == raw


async def test_whole_answers_are_merged_and_their_length_is_right() -> None:
    first = item(first=True, input_token_logprobs=[[None, 1, None]])
    second = item(input_token_logprobs=[])
    async with pair_of(saying(first), saying(second)) as pair, pair.ask(MERGED) as response:
        length, body = response.header(b"content-length"), await response.read()
    assert length == b"%d" % len(body)
    assert json.loads(body) == item(input_token_logprobs=[[None, 1, None]])


async def test_a_merge_waits_for_the_slower_prefill() -> None:
    release = trio.Event()
    first = after(release, saying(item(first=True, input_token_logprobs=[1])))
    async with (
        pair_of(first, saying(item(input_token_logprobs=[]))) as pair,
        trio.open_nursery() as nursery,
    ):
        got: list[Any] = []

        async def ask() -> None:
            got.append(await pair.whole(MERGED))

        nursery.start_soon(ask)
        await until(lambda: pair.decode.arrived)
        release.set()
    assert json.loads(got[0][1])["meta_info"]["input_token_logprobs"] == [1]


async def test_nobody_asks_for_compression_where_answers_are_merged() -> None:
    first, second = saying(item(first=True, input_token_logprobs=[])), saying(item())
    async with pair_of(first, second) as pair:
        squeezed = [(b"accept-encoding", b"gzip")]
        pair.headers = {pair.prefill.url: squeezed, pair.decode.url: squeezed}
        await pair.whole(MERGED)
        await pair.whole(BODY)
    told = ["accept-encoding" in arrived.headers for arrived in pair.decode.arrived]
    assert told == [False, True]


async def test_a_stream_flows_before_prefill_has_ended_where_nothing_is_merged() -> None:
    release = trio.Event()
    prefill = after(release, saying(item(first=True)))
    async with (
        pair_of(prefill, streaming(item(finished=False), item())) as pair,
        pair.ask(BODY | STREAM) as response,
    ):
        got = b"".join([data async for data in response.iter_bytes()])
        release.set()
    assert got.endswith(b"data: [DONE]\n\n")
    assert got.count(b"data: ") == 3
    assert pair.prefill.aborted == pair.decode.aborted == []


async def test_a_stream_s_events_get_the_prompt_s_logprobs() -> None:
    first = item(first=True, input_token_logprobs=[[None, 1, None]])
    events = [item(finished=False, input_token_logprobs=[]), item(input_token_logprobs=[])]
    async with (
        pair_of(streaming(first), streaming(*events)) as pair,
        pair.ask(MERGED | STREAM) as response,
    ):
        assert response.content_length is None
        got = await response.read()
    shown = [json.loads(line[6:]) for line in got.split(b"\n\n")[:2]]
    assert [one["meta_info"]["input_token_logprobs"] for one in shown] == [[[None, 1, None]]] * 2
    assert got.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_side_that_breaks_off_before_the_answer_is_named_and_the_other_is_stopped(
    side: str, stream: bool
) -> None:
    answers = {"prefill": hanging, "decode": hanging, side: dying}
    async with pair_of(answers["prefill"], answers["decode"]) as pair:
        with pytest.raises(PairError) as caught:
            await pair.whole(BODY | {"stream": stream})
        failed, other = pair.prefill, pair.decode
        if side == "decode":
            failed, other = other, failed
        await until(lambda: other.aborted == ["r"])
    error = caught.value
    assert (error.code, error.status, error.cause) == (
        f"{side}_connection_lost",
        502,
        "connection_lost",
    )
    assert error.worker_url == failed.url
    assert not error.first_byte_sent


@pytest.mark.parametrize("side", ["prefill", "decode"])
async def test_a_side_that_takes_no_connection_is_named(side: str) -> None:
    async with pair_of(hanging, hanging) as pair:
        setattr(pair, side, FakeWorker(hanging, url="http://127.0.0.1:1"))
        with pytest.raises(PairError) as caught:
            await pair.whole(BODY)
    assert caught.value.code == f"{side}_unreachable"
    assert caught.value.cause == "connect_failed"


@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize(("status", "stream"), [(503, False), (500, True), (429, False)])
async def test_an_error_that_another_pair_might_not_have_is_raised_with_its_status(
    side: str, status: int, stream: bool
) -> None:
    said = saying({"object": "error", "message": "full"}, f"{status} Told")
    answers = {"prefill": hanging, "decode": hanging, side: said}
    async with pair_of(answers["prefill"], answers["decode"]) as pair:
        with pytest.raises(PairError) as caught:
            await pair.whole(BODY | {"stream": stream})
        other = pair.decode if side == "prefill" else pair.prefill
        await until(lambda: other.aborted == ["r"])
    error = caught.value
    assert (error.code, error.status, error.cause) == (f"{side}_error", status, None)
    assert "full" in error.message
    assert "127.0.0.1" not in error.message


@pytest.mark.parametrize("side", ["prefill", "decode"])
async def test_a_refused_request_is_answered_in_the_worker_s_own_words(side: str) -> None:
    words = {"error": {"message": "too long"}}
    answers = {"prefill": hanging, "decode": hanging, side: saying(words, "400 Bad")}
    async with pair_of(answers["prefill"], answers["decode"]) as pair:
        assert await pair.whole(BODY) == (400, json.dumps(words).encode())
        other = pair.decode if side == "prefill" else pair.prefill
        await until(lambda: other.aborted == ["r"])


async def test_an_abort_at_prefill_is_the_answer_and_decode_is_stopped() -> None:
    aborted = item(first=True, finish={"type": "abort", "message": "Aborted"})
    async with pair_of(saying(aborted), hanging) as pair:
        status, body = await pair.whole(BODY)
        await until(lambda: "r" in pair.decode.aborted)
    assert (status, json.loads(body)) == (200, aborted)


async def test_an_abort_at_decode_is_the_answer_and_prefill_is_stopped() -> None:
    aborted = item(finish={"type": "abort", "message": "Aborted"}, input_token_logprobs=[])
    for body in (BODY, MERGED):
        async with pair_of(hanging, saying(aborted)) as pair:
            assert json.loads((await pair.whole(body))[1]) == aborted
            await until(lambda: pair.prefill.aborted == ["r"])


async def test_a_failed_transfer_is_put_down_to_the_side_whose_connection_is_lost() -> None:
    lost = trio.Event()

    async def told(_arrived: Arrived, _stream: trio.SocketStream) -> bytes:
        lost.set()
        return http_response(b'{"message":"KV transfer failed"}', status="500 Internal")

    async with pair_of(after(lost, dying), told) as pair:
        with pytest.raises(PairError) as caught:
            await pair.whole(BODY)
    assert caught.value.code == "prefill_connection_lost"
    async with pair_of(told, after(lost, dying)) as pair:
        with pytest.raises(PairError) as caught:
            await pair.whole(BODY)
    assert caught.value.code == "decode_connection_lost"


async def test_a_failure_worded_as_an_abort_is_a_failure() -> None:
    failed = item(
        first=True, finish={"type": "abort", "message": "KV transfer failed", "status_code": 500}
    )
    async with pair_of(streaming(failed), hanging) as pair:
        with pytest.raises(PairError) as caught:
            await pair.whole(BODY | STREAM)
    assert (caught.value.code, caught.value.status) == ("prefill_error", 500)


@pytest.mark.parametrize("status", [500, 503])
async def test_a_stream_that_begins_with_a_failure_has_not_begun(status: int) -> None:
    told = {"type": "abort", "message": "KV transfer failed", "status_code": status}
    async with pair_of(hanging, streaming(item(finish=told))) as pair:
        with pytest.raises(PairError) as caught:
            await pair.whole(BODY | STREAM)
        await until(lambda: pair.prefill.aborted == ["r"])
    assert (caught.value.code, caught.value.status) == ("decode_error", status)
    assert not caught.value.first_byte_sent


async def test_a_long_stream_survives_the_loss_of_a_prefill_worker_that_has_done_its_part() -> None:
    broken, seen = trio.Event(), trio.Event()

    async def prefill(arrived: Arrived, stream: trio.SocketStream) -> None:
        await broken.wait()
        await stream.aclose()
        seen.set()

    async def more(arrived: Arrived, stream: trio.SocketStream) -> None:
        await seen.wait()
        await trio.sleep(0.02)
        await Events(stream).event(item())
        await Events(stream).end()

    async with (
        pair_of(prefill, streaming(item(finished=False), then=more)) as pair,
        pair.ask(BODY | STREAM) as response,
    ):
        pieces = response.iter_bytes()
        await anext(pieces)
        broken.set()
        rest = b"".join([data async for data in pieces])
    assert rest.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("body", [MERGED, {"text": ["a", "b"], "rid": ["x", "y"]}])
async def test_the_loss_of_a_prefill_worker_that_is_still_needed_breaks_the_stream_off(
    body: dict[str, Any],
) -> None:
    broken = trio.Event()
    event = item(finished=False) | {"index": 0}
    async with pair_of(after(broken, dying), streaming(event, then=hanging)) as pair:
        async with pair.ask(body | STREAM) as response:
            pieces = response.iter_bytes()
            await anext(pieces)
            broken.set()
            with pytest.raises(PairError) as caught:
                await anext(pieces)
        await until(lambda: pair.decode.aborted)
    assert caught.value.code == "prefill_connection_lost"
    assert caught.value.first_byte_sent


async def test_a_decode_worker_that_breaks_off_in_mid_stream_is_named() -> None:
    async with (
        pair_of(saying(item(first=True)), streaming(item(finished=False), then=dying)) as pair,
        pair.ask(BODY | STREAM) as response,
    ):
        with pytest.raises(PairError) as caught:
            await response.read()
    assert caught.value.code == "decode_connection_lost"
    assert caught.value.first_byte_sent


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_goes_stops_both(begun: bool) -> None:
    decode = streaming(item(finished=False), then=hanging) if begun else hanging
    async with pair_of(hanging, decode) as pair:
        async with trio.open_nursery() as nursery:
            reading = trio.Event()

            async def ask() -> None:
                async with pair.ask(BODY | STREAM) as response:
                    reading.set()
                    await response.read()

            nursery.start_soon(ask)
            await until(lambda: pair.prefill.arrived and pair.decode.arrived)
            if begun:
                await reading.wait()
            nursery.cancel_scope.cancel()
        await until(lambda: pair.prefill.aborted == pair.decode.aborted == ["r"])


async def test_a_cancellation_leaves_as_one_cancellation_and_no_group() -> None:
    async with pair_of(hanging, hanging) as pair:
        seen: list[type[BaseException]] = []
        with trio.CancelScope() as scope:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_when, lambda: pair.decode.arrived, scope)
                    try:
                        await pair.whole(BODY)
                    except BaseException as error:
                        seen.append(type(error))
                        raise
            finally:
                pass
    assert seen == [trio.Cancelled]


async def _cancel_when(condition: Callable[[], object], scope: trio.CancelScope) -> None:
    await until(condition)
    scope.cancel()


async def test_the_caller_s_own_error_leaves_as_it_is() -> None:
    async with pair_of(hanging, streaming(item(finished=False), then=hanging)) as pair:
        with pytest.raises(KeyError):
            async with pair.ask(BODY | STREAM):
                raise KeyError
        await until(lambda: pair.prefill.aborted == pair.decode.aborted == ["r"])


@pytest.mark.parametrize("decode", [hanging, streaming(item(finished=False), then=hanging)])
async def test_a_pair_that_takes_too_long_is_stopped(decode: Answering) -> None:
    async with pair_of(hanging, decode, pd_timeout_s=0.05) as pair:
        with pytest.raises(PairError) as caught:
            await pair.whole(BODY | STREAM)
        await until(lambda: pair.prefill.aborted == pair.decode.aborted == ["r"])
    assert (caught.value.code, caught.value.status) == ("pd_timeout", 504)
    assert caught.value.first_byte_sent


async def test_aborts_of_single_elements_reach_the_other_side() -> None:
    def batch(*finishes: str) -> list[dict[str, Any]]:
        return [
            item(first=True, rid=f"r{place}", finish={"type": kind, "message": "Aborted"})
            for place, kind in enumerate(finishes)
        ]

    body = {"text": ["a", "b"], "rid": ["r0", "r1"]}
    async with pair_of(saying(batch("length", "abort")), hanging) as pair:
        with trio.move_on_after(5) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.whole, body)
                await until(lambda: pair.decode.aborted == ["r1"])
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught


async def test_a_body_that_is_no_object_reaches_no_worker() -> None:
    async with pair_of(hanging, hanging) as pair:
        with pytest.raises(ClientError):
            await pair.whole(b"[1]")
    assert pair.prefill.arrived == pair.decode.arrived == []


async def test_a_chat_that_is_passed_on_goes_to_both_in_the_same_way() -> None:
    chat = {"messages": [{"role": "user", "content": "x"}], "rid": "r"}
    async with (
        pair_of(saying({"choices": []}), saying({"choices": [1]})) as pair,
        pair.ask(chat, b"/v1/chat/completions?x=1") as response,
    ):
        assert json.loads(await response.read()) == {"choices": [1]}
    assert pair.prefill.arrived[0].target == "/v1/chat/completions?x=1"
    assert isinstance(pair.prefill.arrived[0].json["bootstrap_room"], int)


async def test_many_pairs_at_once_use_different_rooms() -> None:
    async with (
        pair_of(saying(item(first=True)), saying(item())) as pair,
        trio.open_nursery() as nursery,
    ):
        for _ in range(20):
            nursery.start_soon(partial(pair.whole, BODY))
    rooms = [arrived.json["bootstrap_room"] for arrived in pair.decode.arrived]
    assert len(set(rooms)) == 20
