"""The relay cancelled at every one of its steps: no slot stays taken, no call stays open."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from slime_core import sse
from slime_core.transitions import WorkerAdded
from slime_core.types import WorkerUrl
from slime_trio.config import Settings
from slime_trio.endpoints import chat_completions, completions, generate
from slime_trio.exchange import ClientGone, Headers, Inbound
from slime_trio.router import Router
from slime_trio.upstream import Pool
from tests.server.harness import answer_item, checkpoint, template
from tests.server.upstream_support import URL, Peer, Workers, answer

Serve = Callable[[Router, Inbound, Any], Awaitable[None]]

WHOLE = answer(
    json.dumps(answer_item([5, 6], "ab")).encode(), extra=b"content-type: application/json\r\n"
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(value: Any) -> bytes:
    return _chunk(sse.encode(json.dumps(value).encode()))


STREAM = [
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    _event(answer_item([5], "a", finished=False)),
    _event(answer_item([5, 6], "ab", finished=False)),
    _event(answer_item([5, 6, 7], "abc")),
    _chunk(sse.DONE) + b"0\r\n\r\n",
]


class Sink:
    """A client that takes everything; after ``leaves_after`` pieces it takes nothing more."""

    def __init__(self, leaves_after: int | None = None) -> None:
        self.started = False
        self.got: list[bytes] = []
        self._leaves_after = leaves_after

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        await trio.lowlevel.checkpoint()

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self._leaves_after is not None and len(self.got) >= self._leaves_after:
            raise ClientGone("gone")
        self.got.append(data)


class CancelAt(trio.abc.Instrument):
    """Cancels ``scope`` before the ``at``-th step of ``task``; counts the steps."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, 0
        self.task: trio.lowlevel.Task | None = None
        self.scope = trio.CancelScope()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.steps += 1
            if self.steps == self.at:
                self.scope.cancel()


def _inbound(path: str, stream: bool) -> Inbound:
    body: dict[str, Any] = {"stream": stream}
    if path == "/generate":
        body |= {"text": "Hello"}
    elif "chat" in path:
        body |= {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    else:
        body |= {"model": "m", "prompt": "Hello"}
    return Inbound(
        method="POST", path=path, target=path.encode(), headers=[], body=json.dumps(body).encode()
    )


@asynccontextmanager
async def _router(stream: bool) -> AsyncIterator[Router]:
    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            for piece in STREAM if stream else [WHOLE]:
                await peer.send(piece)
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        pool = Pool(connect=Workers(nursery, script))
        ids = iter(f"{number:032x}" for number in range(1000))
        router = Router(Settings(), checkpoint=checkpoint(), pool=pool, new_id=lambda: next(ids))
        router._template = template()
        router.commit(WorkerAdded(worker=WorkerUrl(URL)))
        yield router
        await pool.aclose()
        nursery.cancel_scope.cancel()


def _assert_at_rest(router: Router) -> None:
    state = router.state
    assert state.fleet.total_in_flight == 0
    assert not state.open_calls
    state.check()
    counters = state.counters
    assert counters.calls_opened == counters.calls_captured + counters.calls_lost


async def _cancelled_at(serve: Serve, path: str, stream: bool, at: int) -> bool:
    """Whether the request was cancelled before it was done."""
    async with _router(stream) as router:
        instrument = CancelAt(at)

        async def victim() -> None:
            instrument.task = trio.lowlevel.current_task()
            with instrument.scope:
                await serve(router, _inbound(path, stream), Sink())

        trio.lowlevel.add_instrument(instrument)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(victim)
        finally:
            trio.lowlevel.remove_instrument(instrument)
        _assert_at_rest(router)
        # The router works on as if nothing had been.
        sink = Sink()
        await serve(router, _inbound(path, stream), sink)
        assert sink.got
        _assert_at_rest(router)
        return instrument.scope.cancelled_caught


@pytest.mark.parametrize(
    ("path", "serve"),
    [("/generate", generate), ("/v1/chat/completions", chat_completions),
     ("/v1/completions", completions)],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_cancelled_at_any_step_leaves_nothing_behind(
    path: str, serve: Serve, stream: bool
) -> None:
    reached = 0
    for at in range(1, 300):
        run = functools.partial(_cancelled_at, serve, path, stream, at)
        if not trio.run(run, clock=MockClock(autojump_threshold=0)):
            break
        reached = at
    assert 5 < reached < 299


@pytest.mark.parametrize("pieces", [0, 1, 2, 3])
async def test_a_client_that_takes_nothing_more_leaves_what_had_come(pieces: int) -> None:
    async with _router(True) as router:
        with pytest.raises(ClientGone):
            await generate(router, _inbound("/generate", True), Sink(leaves_after=pieces))
        _assert_at_rest(router)
        (segment,) = router.state.forest.calls.values()
        assert segment.answer is not None
        expected = "complete" if pieces >= 2 else "partial"
        assert segment.answer.outcome.value == expected
        assert segment.tokens == min(pieces + 1, 3)
