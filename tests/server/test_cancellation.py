"""The relay cancelled at every one of its steps: no slot stays taken, no call stays open."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from slime_core import sse
from slime_core.errors import InvariantError, SlimeError
from slime_trio.endpoints import chat_completions, completions, generate
from slime_trio.exchange import ClientGone, Inbound
from slime_trio.relay import forward
from slime_trio.router import Router
from tests.server.harness import answer_item
from tests.server.relay_support import (
    STREAM_HEAD,
    AtStep,
    Link,
    Sink,
    all_in_threads,
    answering,
    assert_at_rest,
    chunk,
    event_chunk,
    inbound,
    kinds_of,
    leak_slots,
    relay_router,
    sweep,
)
from tests.server.upstream_support import HTTP_OK, Peer, WorkerScript, answer

Serve = Callable[[Router, Inbound, Any], Awaitable[None]]

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "Hello"}
DIALECTS: dict[str, tuple[Serve, dict[str, Any]]] = {
    "/generate": (generate, {"text": "Hello"}),
    "/v1/chat/completions": (chat_completions, CHAT),
    "/v1/completions": (completions, TEXT),
}


async def _ask(router: Router, serve: Serve, request: Inbound, sink: Sink) -> None:
    """A request whose named errors are its own affair."""
    try:
        await serve(router, request, sink)
    except InvariantError:
        raise
    except SlimeError:
        pass


async def _cancelled(
    serve: Serve,
    request: Inbound,
    at: int,
    *,
    script: WorkerScript = answering,
    link: Link = Link.MEMORY,
    pause_s: float = 0.0,
    serves_on: bool = True,
) -> AtStep:
    """Cancel a request at its step ``at``; afterwards nothing is held, and all goes on."""
    async with relay_router(script, link=link) as (router, journal):
        scope = trio.CancelScope()
        instrument = AtStep(at, scope.cancel)

        async def victim() -> None:
            instrument.task = trio.lowlevel.current_task()
            with scope:
                await _ask(router, serve, request, Sink(pause_s=pause_s))

        with instrument.watching():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(victim)
        await _until_aborts_are_done(router)
        assert_at_rest(router, [journal])
        sink = Sink()
        await _ask(router, serve, request, sink)
        assert bool(sink.got) >= serves_on
        assert_at_rest(router, [journal])
        return instrument


async def _until_aborts_are_done(router: Router) -> None:
    assert router.nursery is not None
    while router.nursery.child_tasks:  # noqa: ASYNC110 - they tell nobody
        await trio.sleep(0.1)


def _swept(serve: Serve, request: Inbound, *, stride: int = 1, **more: Any) -> int:
    async def run(at: int) -> AtStep:
        return await _cancelled(serve, request, at, **more)

    return sweep(run, stride=stride)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DIALECTS)
def test_a_request_cancelled_at_any_step_leaves_nothing_behind(path: str, stream: bool) -> None:
    serve, body = DIALECTS[path]
    assert _swept(serve, inbound(path, body | {"stream": stream})) > 5


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DIALECTS)
def test_so_does_one_whose_every_byte_waits_for_its_reader(path: str, stream: bool) -> None:
    serve, body = DIALECTS[path]
    assert _swept(serve, inbound(path, body | {"stream": stream}), link=Link.LOCKSTEP) > 5


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DIALECTS)
def test_so_does_one_whose_answer_comes_byte_by_byte(path: str, stream: bool) -> None:
    serve, body = DIALECTS[path]
    request = inbound(path, body | {"stream": stream})
    stride = 89 if stream else 31  # there are thousands of steps
    assert _swept(serve, request, link=Link.TRICKLE, stride=stride) > 100


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DIALECTS)
def test_so_does_one_whose_work_is_done_in_threads(
    path: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_in_threads(monkeypatch)
    serve, body = DIALECTS[path]
    assert _swept(serve, inbound(path, body | {"stream": stream})) > 8


@pytest.mark.parametrize("path", DIALECTS)
def test_so_does_one_whose_client_is_slow(path: str) -> None:
    serve, body = DIALECTS[path]
    assert _swept(serve, inbound(path, body | {"stream": True}), pause_s=0.05) > 5


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/generate", {"text": ["a", "b", "c"]}),
        ("/generate", {"sampling_params": {"n": 2}}),
        ("/generate", {"text": ["a", "b"], "sampling_params": {"n": 2}}),
        ("/v1/chat/completions", {"n": 3}),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}),
        ("/v1/completions", {"prompt": [[5, 6], [7]]}),
    ],
)
def test_so_does_one_of_many_samples(path: str, more: dict[str, Any], stream: bool) -> None:
    serve, body = DIALECTS[path]
    assert _swept(serve, inbound(path, body | more | {"stream": stream})) > 4


@pytest.mark.parametrize("reason", [None, "not_capturable"])
@pytest.mark.parametrize("stream", [False, True])
def test_so_does_one_that_is_passed_through(reason: str | None, stream: bool) -> None:
    serve = functools.partial(forward, reason=reason)
    assert _swept(serve, inbound("/generate", {"text": "Hello", "stream": stream})) > 4


@pytest.mark.parametrize("stream", [False, True])
def test_so_does_one_that_cannot_be_captured(stream: bool) -> None:
    body = {"text": "Hello", "session_params": {"id": "s"}, "stream": stream}
    assert _swept(generate, inbound("/generate", body)) > 4


# -- workers that fail in the middle -----------------------------------------------------------

BEGUN = [
    STREAM_HEAD,
    event_chunk(answer_item([5], "a", finished=False)),
    event_chunk(answer_item([5, 6], "ab", finished=False)),
]
FAILURES: dict[str, list[bytes]] = {
    "an error event": [
        *BEGUN,
        event_chunk({"error": {"message": "no", "code": 500}}),
        chunk(sse.DONE) + b"0\r\n\r\n",
    ],
    "a cut": BEGUN,
    "a clean end too early": [*BEGUN, b"0\r\n\r\n"],
    "no JSON": [*BEGUN, chunk(b"data: {\n\n"), b"0\r\n\r\n"],
    "no HTTP": [*BEGUN, b"\xff\xff"],
    "an abort": [
        *BEGUN,
        event_chunk(answer_item([5, 6], "ab", finish={"type": "abort", "message": "m"})),
        chunk(sse.DONE) + b"0\r\n\r\n",
    ],
    "another list of tokens": [
        *BEGUN,
        event_chunk(answer_item([9, 6, 7], "xyz")),
        chunk(sse.DONE) + b"0\r\n\r\n",
    ],
    "a refusal": [answer(b'{"error":{"message":"no"}}', status=b"400 Bad Request")],
    "half a refusal": [answer(b'{"error":{"message":"no"}}', status=b"503 No")[:-4]],
    "half an answer": [b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{"],
    "no answer": [],
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_so_does_one_whose_worker_fails_meanwhile(path: str, failure: str) -> None:
    async def failing(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            if request[0].startswith(b"POST /abort_request"):
                await peer.send(HTTP_OK)
                continue
            for piece in FAILURES[failure]:
                await peer.send(piece)
                await trio.sleep(0.01)
            return

    serve, body = DIALECTS[path]
    request = inbound(path, body | {"stream": True})
    assert _swept(serve, request, script=failing, serves_on=False) > 2


# -- twins -------------------------------------------------------------------------------------


async def _one_of_twins_cancelled(path: str, stream: bool, at: int) -> AtStep:
    serve, body = DIALECTS[path]
    request = inbound(path, body | {"stream": stream})
    async with relay_router(answering) as (router, journal):
        scope = trio.CancelScope()
        instrument = AtStep(at, scope.cancel)
        sinks = [Sink(), Sink()]

        async def victim() -> None:
            instrument.task = trio.lowlevel.current_task()
            with scope:
                await serve(router, request, Sink())

        with instrument.watching():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, router, request, sinks[0])
                nursery.start_soon(victim)
                nursery.start_soon(serve, router, request, sinks[1])
        await _until_aborts_are_done(router)
        assert_at_rest(router, [journal])
        assert router.state.counters.calls_captured >= 2
        first, second = (b"".join(sink.got) for sink in sinks)
        assert len(first) == len(second) > 0
        return instrument


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DIALECTS)
def test_a_cancelled_twin_does_not_disturb_the_others(path: str, stream: bool) -> None:
    assert sweep(functools.partial(_one_of_twins_cancelled, path, stream)) > 5


# -- the sweep itself --------------------------------------------------------------------------


@pytest.mark.parametrize("path", DIALECTS)
def test_a_slot_given_back_only_when_all_went_well_is_found(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leak_slots(monkeypatch)
    serve, body = DIALECTS[path]
    with pytest.raises((AssertionError, ExceptionGroup)) as found:
        _swept(serve, inbound(path, body))
    assert kinds_of(found.value) == {AssertionError}


# -- clients that leave ------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [0, 1, 2, 3])
async def test_a_client_that_takes_nothing_more_leaves_what_had_come(pieces: int) -> None:
    async with relay_router(answering) as (router, journal):
        body = {"text": "Hello", "stream": True}
        with pytest.raises(ClientGone):
            await generate(router, inbound("/generate", body), Sink(leaves_after=pieces))
        await _until_aborts_are_done(router)
        assert_at_rest(router, [journal])
        (segment,) = router.state.forest.calls.values()
        assert segment.answer is not None
        expected = "complete" if pieces >= 2 else "partial"
        assert segment.answer.outcome.value == expected
        assert segment.tokens == min(pieces + 1, 3)
