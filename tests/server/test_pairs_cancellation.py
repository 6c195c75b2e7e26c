"""An exchange of a pair, cancelled at each of its steps and at each of its prefill side."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio

from slime_core.errors import WorkerError
from slime_core.types import WorkerUrl
from slime_trio.config import Settings
from slime_trio.pairs import PairExchange, exchange
from slime_trio.router import Router
from slime_trio.upstream import Pool
from tests.server.harness import answer_item
from tests.server.relay_support import STREAM_HEAD, AtStep, chunk, event_chunk, sweep
from tests.server.test_pairs import Worker
from tests.server.upstream_support import HTTP_OK, Peer, Workers, answer

PREFILL = Worker(WorkerUrl("http://prefill:1"), 8998)
DECODE = Worker(WorkerUrl("http://decode:1"))
MERGED = {"return_logprob": True, "logprob_start_len": 0}


def first() -> Any:
    return answer_item([5], "x", finish={"type": "length", "length": 0}, input_token_logprobs=[1])


def whole(*, finished: bool = True) -> Any:
    return answer_item([5, 6], "xy", finished=finished, input_token_logprobs=[])


async def serve(peer: Peer) -> None:
    """Either worker, as the host says; the prompt takes two seconds."""
    while (request := await peer.request()) is not None:
        head, body = request
        if b"/abort_request" in head:
            await peer.send(HTTP_OK)
            continue
        is_prefill, streams = b"host: prefill" in head.lower(), json.loads(body).get("stream")
        await trio.sleep(2 if is_prefill else 1)
        if not streams:
            value = first() if is_prefill else whole()
            await peer.send(answer(json.dumps(value).encode()))
            continue
        await peer.send(STREAM_HEAD)
        for event in [first()] if is_prefill else [whole(finished=False), whole()]:
            await trio.sleep(1)
            await peer.send(event_chunk(event))
        await peer.send(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def asked(router: Router, fields: dict[str, Any]) -> PairExchange:
    body = json.dumps({"text": "a", "rid": "r"} | fields).encode()
    return exchange(router, PREFILL, DECODE, "POST", b"/generate", lambda _url: [], body)


async def read(router: Router, fields: dict[str, Any]) -> None:
    async with asked(router, fields) as response:
        async for _ in response.iter_bytes():
            pass


async def at_rest(router: Router, workers: Workers) -> None:
    """After the aborts that were sent, nothing is left."""
    await trio.sleep(10)
    assert not router.shared.rooms
    assert not router.pool.stats().in_use
    await router.pool.aclose()
    assert not workers.open


Running = Callable[[int], Any]


def run_of(fields: dict[str, Any], *, named: tuple[str, ...]) -> Running:
    """Runs an exchange; before the n-th step of the tasks of these names it is cancelled."""

    async def run(at: int) -> AtStep:
        async with trio.open_nursery() as nursery:
            workers = Workers(nursery, serve)
            router = Router(Settings(capture=False), pool=Pool(connect=workers))
            router.nursery = nursery
            scope = trio.CancelScope()
            acts = AtStep(at, scope.cancel, named=named)
            if not named:
                acts.task = trio.lowlevel.current_task()
            with acts.watching(), scope, suppress(WorkerError):
                await read(router, fields)
            await at_rest(router, workers)
            nursery.cancel_scope.cancel()
        return acts

    return run


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("merged", [False, True])
def test_cancelled_at_any_of_its_steps_it_leaves_nothing(stream: bool, merged: bool) -> None:
    fields = {"stream": stream} | (MERGED if merged else {})
    assert sweep(run_of(fields, named=())) > 3


@pytest.mark.parametrize("stream", [False, True])
def test_cancelled_at_any_step_of_its_prefill_side_it_leaves_nothing(stream: bool) -> None:
    steps = sweep(run_of(MERGED | {"stream": stream}, named=("PrefillLeg.run",)))
    assert steps > 3


def test_a_cancelled_prefill_side_alone_leaves_nothing() -> None:
    async def run(at: int) -> AtStep:
        async with trio.open_nursery() as nursery:
            workers = Workers(nursery, serve)
            router = Router(Settings(capture=False), pool=Pool(connect=workers))
            router.nursery = nursery
            pair = asked(router, {"stream": True})
            acts = AtStep(at, lambda: pair._prefill.scope.cancel(), named=("PrefillLeg.run",))
            with acts.watching():
                async with pair as response:
                    await response.read()
            await at_rest(router, workers)
            nursery.cancel_scope.cancel()
        return acts

    assert sweep(run) > 3
