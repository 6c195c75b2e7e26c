"""Retries at the relay: who joins whom, who is sent what again, and what is generated anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from slime_core import sse
from slime_core.errors import ClientError, SlimeError, WorkerError
from slime_core.segments import Outcome
from slime_core.transitions import CallLost, WorkerRemoved
from slime_core.types import WorkerUrl
from slime_trio.endpoints import chat_completions, completions, generate
from slime_trio.exchange import ClientGone, Headers, Inbound
from slime_trio.recording import Recording
from slime_trio.router import Router
from tests.fleet_support import joined
from tests.server.harness import answer_item
from tests.server.relay_support import (
    STREAM_HEAD,
    Link,
    Sink,
    answering,
    assert_at_rest,
    chunk,
    event_chunk,
    inbound,
    relay_router,
)
from tests.server.upstream_support import URL, Peer, answer

Serve = Callable[[Router, Inbound, Any], Awaitable[None]]

DIALECTS: dict[str, tuple[Serve, dict[str, Any]]] = {
    "/generate": (generate, {"text": "Hello"}),
    "/v1/chat/completions": (
        chat_completions,
        {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    ),
    "/v1/completions": (completions, {"model": "m", "prompt": "Hello"}),
}
KEY: Headers = [(b"idempotency-key", b"k")]
FIRST: Headers = [(b"x-stainless-retry-count", b"0")]
RETRY: Headers = [(b"x-stainless-retry-count", b"1")]
SESSION: Headers = [(b"x-session-id", b"s")]

every_dialect = pytest.mark.parametrize("path", DIALECTS)
whole_and_streamed = pytest.mark.parametrize("stream", [False, True])


def _asked(path: str = "/generate", headers: Headers = KEY, **more: Any) -> Inbound:
    return inbound(path, DIALECTS[path][1] | more, headers)


async def _ask(router: Router, request: Inbound, sink: Sink | None = None) -> Sink:
    """Serve a request to a client of its own."""
    sink = sink or Sink()
    await DIALECTS[request.path][0](router, request, sink)
    return sink


async def _left(router: Router, request: Inbound, sink: Sink) -> None:
    with pytest.raises(ClientGone):
        await _ask(router, request, sink)


def _header(sink: Sink, name: bytes) -> str | None:
    return next((value.decode() for key, value in sink.headers if key == name), None)


def _calls(sink: Sink) -> list[str]:
    return (_header(sink, b"x-slime-call-id") or "").split(",")


def _told(sink: Sink) -> str | None:
    return _header(sink, b"x-slime-retry")


def _flags(sink: Sink) -> list[str]:
    flags = _header(sink, b"x-slime-flags")
    return [] if flags is None else flags.split(",")


def _bytes(sink: Sink) -> bytes:
    return b"".join(sink.got)


class _Late(Peer):
    async def request(self) -> tuple[bytes, bytes] | None:
        request = await super().request()
        await trio.sleep(0.02)
        return request


async def late(peer: Peer) -> None:
    """Answers like :func:`answering`, 20 ms later: streams end 60 ms after their request."""
    await answering(_Late(peer.stream, peer.number))


async def _at_rest(router: Router) -> None:
    assert router.nursery is not None
    while router.nursery.child_tasks:  # noqa: ASYNC110 - they tell nobody
        await trio.sleep(0.1)
    assert_at_rest(router)


def _same_answer(one: Sink, other: Sink) -> bool:
    assert one.status == other.status == 200
    return _bytes(one) == _bytes(other) != b"" and _calls(one) == _calls(other)


# -- joining -----------------------------------------------------------------------------------


@every_dialect
@whole_and_streamed
@pytest.mark.parametrize("after_s", [0, 0.005, 0.015, 0.025])
@pytest.mark.parametrize(("first", "second"), [(KEY, KEY), (FIRST, RETRY), (SESSION, None)])
async def test_a_retry_joins_what_is_in_flight(
    path: str,
    stream: bool,
    after_s: float,
    first: Headers,
    second: Headers | None,
    autojump_clock: trio.testing.MockClock,
) -> None:
    second = SESSION + RETRY if second is None else second
    async with relay_router(late) as (router, _):
        sinks = [Sink(pause_s=0.02), Sink()]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask, router, _asked(path, first, stream=stream), sinks[0])
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(after_s)
            nursery.start_soon(_ask, router, _asked(path, second, stream=stream), sinks[1])
        assert _same_answer(*sinks)
        assert [_told(sink) for sink in sinks] == [None, "joined"]
        assert router.state.counters.calls_opened == 1
        await _at_rest(router)


@pytest.mark.parametrize("headers", [[], FIRST, SESSION, SESSION + FIRST])
async def test_twins_never_join(headers: Headers, autojump_clock: trio.testing.MockClock) -> None:
    async with relay_router(late) as (router, _):
        sinks = [Sink() for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for sink in sinks:
                nursery.start_soon(_ask, router, _asked(headers=headers), sink)
        assert len({call for sink in sinks for call in _calls(sink)}) == 5
        assert [(_told(sink), _flags(sink)) for sink in sinks] == [(None, [])] * 5
        await _at_rest(router)


async def test_nor_do_they_after_each_other(autojump_clock: trio.testing.MockClock) -> None:
    async with relay_router(late) as (router, _):
        sinks = [await _ask(router, _asked(headers=SESSION + FIRST)) for _ in range(3)]
        assert len({call for sink in sinks for call in _calls(sink)}) == 3


async def test_two_retries_of_one_chain_wait_for_the_same_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sinks = [Sink() for _ in range(3)]
    async with relay_router(late) as (router, _):
        async with trio.open_nursery() as nursery:
            for count, sink in enumerate(sinks):
                headers: Headers = [(b"x-stainless-retry-count", b"%d" % count)]
                nursery.start_soon(_ask, router, _asked(headers=headers, stream=True), sink)
                await trio.sleep(0.005)
        assert [_told(sink) for sink in sinks] == [None, "joined", "joined"]
        assert router.state.counters.calls_opened == 1


@whole_and_streamed
async def test_a_joiner_keeps_the_generation_going_when_the_first_client_leaves(
    stream: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with relay_router(late) as (router, _):
        sink = Sink()
        async with trio.open_nursery() as nursery, trio.open_nursery() as first:
            first.start_soon(_ask, router, _asked(stream=stream))
            await trio.sleep(0.005)
            nursery.start_soon(_ask, router, _asked(stream=stream), sink)
            await trio.sleep(0.001)
            first.cancel_scope.cancel()
        assert len(_bytes(sink)) > 10
        (segment,) = router.state.forest.calls.values()
        assert segment.answer is not None
        assert segment.answer.outcome is Outcome.COMPLETE
        await _at_rest(router)


async def test_a_slow_client_delays_no_other(autojump_clock: trio.testing.MockClock) -> None:
    async with relay_router(late) as (router, _):
        slow, fast = Sink(pause_s=1000), Sink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask, router, _asked(stream=True), slow)
            await trio.sleep(0.005)
            await _ask(router, _asked(stream=True), fast)
            assert not slow.got
        assert _same_answer(slow, fast)


async def test_a_refusal_is_told_to_all(autojump_clock: trio.testing.MockClock) -> None:
    async def refusing(peer: Peer) -> None:
        while await peer.request() is not None:
            await trio.sleep(0.01)
            await peer.send(answer(b'{"error":"no"}', status=b"400 Bad Request"))

    for path in DIALECTS:
        async with relay_router(refusing) as (router, _):
            told: list[object] = []

            async def client(router: Router, path: str, told: list[object]) -> None:
                try:
                    told.append((await _ask(router, _asked(path))).status)
                except SlimeError as error:
                    told.append(error.status)

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(client, router, path, told)
            assert told == [400, 400, 400]
            assert router.state.counters.calls_opened == 1
            await _at_rest(router)


# -- replaying ---------------------------------------------------------------------------------


@every_dialect
@whole_and_streamed
async def test_an_answer_is_replayed_for_its_key(
    path: str, stream: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with relay_router(late) as (router, _):
        sinks = [await _ask(router, _asked(path, stream=stream)) for _ in range(3)]
        assert _same_answer(sinks[0], sinks[1])
        assert _same_answer(sinks[0], sinks[2])
        assert [_told(sink) for sink in sinks] == [None, "replayed", "replayed"]
        assert router.state.counters.calls_opened == 1


async def test_an_answer_that_was_delivered_is_not_replayed_for_a_count_which_says_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with relay_router(late) as (router, _):
        first = await _ask(router, _asked(headers=SESSION + FIRST))
        second = await _ask(router, _asked(headers=SESSION + RETRY))
        assert _calls(first) != _calls(second)
        assert (_told(second), _flags(second)) == (None, ["unresolved_retry"])


ALICE: Headers = [(b"authorization", b"Bearer alice")]
others = pytest.mark.parametrize(
    ("one", "other"),
    [
        (ALICE, [(b"authorization", b"Bearer bob")]),
        (ALICE, []),
        ([(b"x-api-key", b"alice")], [(b"x-api-key", b"bob")]),
        ([(b"x-api-key", b"alice")], [(b"authorization", b"alice")]),
    ],
)


@others
@pytest.mark.parametrize(
    ("first", "second"), [(KEY, KEY), (FIRST, RETRY), (SESSION + FIRST, SESSION + RETRY)]
)
async def test_nobody_joins_what_another_credential_asked_for(
    first: Headers,
    second: Headers,
    one: Headers,
    other: Headers,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with relay_router(late) as (router, _):
        sinks = [Sink(), Sink()]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask, router, _asked(headers=one + first), sinks[0])
            await trio.sleep(0.001)
            nursery.start_soon(_ask, router, _asked(headers=other + second), sinks[1])
        assert _calls(sinks[0]) != _calls(sinks[1])
        assert (_told(sinks[1]), _flags(sinks[1])) == (None, [])


@others
async def test_nor_is_anybody_sent_its_answer_again(
    one: Headers, other: Headers, autojump_clock: trio.testing.MockClock
) -> None:
    async with relay_router(late) as (router, _):
        sinks = [await _ask(router, _asked(headers=who + KEY)) for who in (one, other, one)]
        assert [_told(sink) for sink in sinks] == [None, None, "replayed"]
        assert _same_answer(sinks[0], sinks[2])


@every_dialect
@whole_and_streamed
@pytest.mark.parametrize("headers", [KEY, SESSION, RETRY, SESSION + RETRY])
async def test_a_reply_that_was_lost_after_its_commit_is_replayed(
    path: str, stream: bool, headers: Headers, autojump_clock: trio.testing.MockClock
) -> None:
    first = [pair for pair in headers if pair not in RETRY] or FIRST
    async with relay_router(late) as (router, _):
        whole = await _ask(router, _asked(path, [], stream=stream))
        leaves_after = len([piece for piece in whole.got if piece]) - 1
        await _left(router, _asked(path, first, stream=stream), Sink(leaves_after))
        await _at_rest(router)
        retried = await _ask(router, _asked(path, headers, stream=stream))
        assert _told(retried) == "replayed"
        assert len(_bytes(retried)) == len(_bytes(whole))
        assert router.state.counters.calls_captured == router.state.counters.calls_opened == 2


@whole_and_streamed
async def test_a_replay_that_is_lost_too_is_replayed_again(
    stream: bool, autojump_clock: trio.testing.MockClock
) -> None:
    request = _asked(headers=SESSION, stream=stream)
    async with relay_router(late) as (router, _):
        for pieces in (2 if stream else 0, 0, 0):
            await _left(router, request, Sink(leaves_after=pieces))
            await _at_rest(router)
        assert _told(await _ask(router, request)) == "replayed"
        assert _told(await _ask(router, request)) is None
        assert router.state.counters.calls_opened == 2


async def test_a_stream_whose_client_left_at_its_very_end_was_delivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def lingering(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(STREAM_HEAD + event_chunk(answer_item([5], "a")) + chunk(sse.DONE))
            await trio.sleep(1)
            await peer.send(b"0\r\n\r\n")

    request = _asked(headers=SESSION, stream=True)
    async with relay_router(lingering) as (router, _):
        for opened in (1, 2):
            with trio.move_on_after(0.5):
                await _ask(router, request)
            await _at_rest(router)
            assert router.state.counters.calls_captured == opened


# -- generating anew ---------------------------------------------------------------------------


@pytest.mark.parametrize("retry", [SESSION, SESSION + RETRY])
async def test_what_a_client_left_in_the_middle_is_generated_anew_and_named(
    retry: Headers, autojump_clock: trio.testing.MockClock
) -> None:
    async with relay_router(late) as (router, _):
        await _left(router, _asked(headers=SESSION, stream=True), Sink(leaves_after=1))
        await _at_rest(router)
        ((lost, segment),) = router.state.forest.calls.items()
        assert segment.answer is not None
        assert segment.answer.outcome is Outcome.PARTIAL
        again = await _ask(router, _asked(headers=retry, stream=True))
        assert (_told(again), _flags(again)) == (None, ["retry", f"retry_of:{lost}"])
        answered = router.state.forest.calls[_calls(again)[0]].answer  # type: ignore[index]
        assert answered is not None
        assert {"retry", f"retry_of:{lost}"} <= set(answered.flags)


async def test_so_is_one_that_had_no_byte_yet(autojump_clock: trio.testing.MockClock) -> None:
    async with relay_router(late) as (router, journal):
        with trio.move_on_after(0.01):
            await _ask(router, _asked(headers=SESSION))
        await _at_rest(router)
        assert not router.state.forest.calls
        (lost,) = (fact.call for fact in journal.facts if isinstance(fact, CallLost))
        again = await _ask(router, _asked(headers=SESSION))
        assert _flags(again) == ["retry", f"retry_of:{lost}"]


@pytest.mark.parametrize("headers", [SESSION, SESSION + RETRY])
async def test_a_retry_of_what_found_no_worker_is_simply_new(
    headers: Headers, autojump_clock: trio.testing.MockClock
) -> None:
    async with relay_router(late) as (router, _):
        router.commit(WorkerRemoved(worker=WorkerUrl(URL)))
        with pytest.raises(WorkerError) as refused:
            await _ask(router, _asked(headers=SESSION))
        assert refused.value.status == 503
        router.commit(*joined(URL))
        again = await _ask(router, _asked(headers=headers))
        assert (_told(again), _flags(again)) == (None, [])


async def test_an_error_in_a_stream_is_not_replayed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def failing(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            if b"stream" in request[1]:
                await peer.send(STREAM_HEAD + event_chunk(answer_item([5], "a", finished=False)))
                return

    async with relay_router(failing) as (router, _):
        for path in DIALECTS:
            before = router.state.counters.calls_opened
            first = await _ask(router, _asked(path, stream=True))
            second = await _ask(router, _asked(path, stream=True))
            assert router.state.counters.calls_opened == before + 2
            assert _flags(second) == ["retry", f"retry_of:{_calls(first)[0]}"]


async def test_of_several_in_flight_none_is_guessed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with relay_router(late) as (router, _):
        retry = Sink()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(_ask, router, _asked(headers=FIRST))
            await trio.sleep(0.005)
            nursery.start_soon(_ask, router, _asked(headers=RETRY), retry)
        assert (_told(retry), _flags(retry)) == (None, ["unresolved_retry"])
        assert router.state.counters.calls_captured == 3


# -- what is refused, and bounds ---------------------------------------------------------------


async def test_a_key_for_another_body_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with relay_router(late) as (router, _):
        await _ask(router, _asked())
        with pytest.raises(ClientError) as refused:
            await _ask(router, _asked(text="Another"))
        assert (refused.value.status, refused.value.param) == (400, "Idempotency-Key")
        assert router.state.counters.calls_opened == 1


async def test_a_key_too_long_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with relay_router(late) as (router, _):
        await _ask(router, _asked(headers=[(b"idempotency-key", b"k" * 255)]))
        with pytest.raises(ClientError) as refused:
            await _ask(router, _asked(headers=[(b"idempotency-key", b"k" * 256)]))
        assert (refused.value.status, refused.value.param) == (400, "Idempotency-Key")


@pytest.mark.parametrize("word", [b"", b"-1", b"one", b"1.0", "²".encode("latin-1"), b"9" * 7])
async def test_a_count_that_is_none_is_no_evidence(
    word: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with relay_router(late) as (router, _):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                headers: Headers = [(b"x-stainless-retry-count", word)]
                nursery.start_soon(_ask, router, _asked(headers=headers))
        assert router.state.counters.calls_captured == 2


@whole_and_streamed
async def test_without_memory_nothing_is_joined_and_the_first_client_notices_nothing(
    stream: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with relay_router(late, retry_memory_mb=0) as (router, _):
        sinks = [Sink(), Sink()]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask, router, _asked(stream=stream), sinks[0])
            await trio.sleep(0.035)
            await _ask(router, _asked(stream=stream), sinks[1])
        assert len(_bytes(sinks[0])) == len(_bytes(sinks[1])) > 10
        assert _flags(sinks[1]) == ["unresolved_retry"]
        await _at_rest(router)


async def test_a_stream_that_none_reads_is_not_read_on_from_its_worker(
    autojump_clock: trio.testing.MockClock,
) -> None:
    sent = 0

    async def endless(peer: Peer) -> None:
        nonlocal sent
        request = await peer.request()
        assert request is not None
        if request[0].startswith(b"POST /generate "):
            await peer.send(STREAM_HEAD)
            while True:
                sent += 1
                text = "a" * sent
                await peer.send(event_chunk(answer_item([5] * sent, text, finished=False)))

    async with relay_router(endless, link=Link.LOCKSTEP) as (router, _):
        with trio.move_on_after(100):
            await _ask(router, _asked(stream=True), Sink(pause_s=1000))
        await _at_rest(router)
    assert sent < 5


async def test_a_bug_in_a_generation_is_its_clients_and_nobody_elses(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with relay_router(late) as (router, _):
        with monkeypatch.context() as patch:
            patch.setattr("slime_trio.relay._Exchange._relay_whole", _broken)
            with pytest.raises(ZeroDivisionError):
                await _ask(router, _asked())
        assert (await _ask(router, _asked())).status == 200
        await _at_rest(router)


async def _broken(*_: object) -> None:
    raise ZeroDivisionError


async def test_requests_without_evidence_have_no_task_of_their_own(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with relay_router(late) as (router, _):
        assert router.nursery is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask, router, _asked(headers=[]))
            await trio.sleep(0.005)
            assert not router.nursery.child_tasks
            nursery.start_soon(_ask, router, _asked())
            await trio.sleep(0.005)
            assert len(router.nursery.child_tasks) == 1


# -- a recording without room ------------------------------------------------------------------


async def test_without_room_a_reader_that_falls_behind_is_cut_and_the_fastest_is_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    recording = Recording(lambda _: False)
    fast, slow = Sink(), Sink(pause_s=1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recording.read_into, fast, [])
        nursery.start_soon(_cut_off, recording, slow)
        await trio.testing.wait_all_tasks_blocked()
        await recording.start(200, [])
        for number in range(5):
            await recording.send(b"%d" % number)
        recording.end()
    assert fast.got == [b"0", b"1", b"2", b"3", b"4"]
    assert slow.got == [b"0"]
    assert recording.was_delivered


async def _cut_off(recording: Recording, sink: Sink) -> None:
    with pytest.raises(ClientGone):
        await recording.read_into(sink, [])


async def test_without_room_what_all_have_had_is_let_go_of(
    autojump_clock: trio.testing.MockClock,
) -> None:
    room = iter([True, True, False])
    recording = Recording(lambda _: next(room))
    sinks = [Sink(), Sink(pause_s=0.001)]
    async with trio.open_nursery() as nursery:
        for sink in sinks:
            nursery.start_soon(recording.read_into, sink, [])
        await trio.testing.wait_all_tasks_blocked()
        await recording.start(200, [])
        for _ in range(1000):
            await recording.send(b"12345")
            await trio.sleep(0.002)
            assert recording._bytes <= 15
            assert len(recording._pieces) <= 6
        recording.end()
    assert [b"".join(sink.got) for sink in sinks] == [b"12345" * 1000] * 2
