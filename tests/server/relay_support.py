"""A router on memory streams without a listener, and a client that is a list: for sweeps."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from slime_core import sse
from slime_core.state import RouterState
from slime_core.transitions import Transition, WorkerAdded
from slime_core.types import WorkerUrl
from slime_trio.config import Settings
from slime_trio.exchange import ClientGone, Headers, Inbound
from slime_trio.router import Router
from slime_trio.upstream import Pool
from tests.server.harness import checkpoint, template
from tests.server.upstream_support import URL, Workers, WorkerScript

__all__ = [
    "STREAM_HEAD",
    "Journal",
    "Sink",
    "assert_at_rest",
    "chunk",
    "event_chunk",
    "inbound",
    "relay_router",
]

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event_chunk(value: Any) -> bytes:
    """One event with this JSON, as a chunk."""
    return chunk(sse.encode(json.dumps(value).encode()))


def inbound(path: str, body: Any, headers: Headers | None = None) -> Inbound:
    """A ``POST`` that has arrived."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Inbound(method="POST", path=path, target=path.encode(), headers=headers or [], body=data)


class Sink:
    """A client that takes everything; after ``leaves_after`` pieces it takes nothing more."""

    def __init__(self, leaves_after: int | None = None) -> None:
        self.started = False
        self.status: int | None = None
        self.headers: Headers = []
        self.got: list[bytes] = []
        self._leaves_after = leaves_after

    async def start(self, status: int, headers: Headers) -> None:
        self.started, self.status, self.headers = True, status, headers
        await trio.lowlevel.checkpoint()

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self._leaves_after is not None and len(self.got) >= self._leaves_after:
            raise ClientGone("gone")
        self.got.append(data)


class Journal:
    """Every transition that a router commits from now on, for a replay."""

    def __init__(self, router: Router) -> None:
        self.facts: list[Transition] = []
        checkpoint = router.checkpoint
        self._one_text_root = checkpoint is None or not checkpoint.tokenizer.adds_special_tokens
        router.observers.append(self._note)

    def _note(self, fact: Transition, _state: RouterState) -> None:
        self.facts.append(fact)

    def replayed(self) -> RouterState:
        """The state that these facts make of an empty one."""
        state = RouterState(one_text_root=self._one_text_root)
        for fact in self.facts:
            state.apply(fact)
        return state


@asynccontextmanager
async def relay_router(
    script: WorkerScript, *urls: str, connect: Any = None, **settings: Any
) -> AsyncIterator[tuple[Router, Journal]]:
    """A router whose workers (one at ``URL``, unless ``urls`` name others) run ``script``."""
    async with trio.open_nursery() as nursery:
        pool = Pool(connect=connect or Workers(nursery, script))
        ids = iter(f"{number:032x}" for number in range(100_000))
        router = Router(
            Settings(**settings), checkpoint=checkpoint(), pool=pool, new_id=lambda: next(ids)
        )
        router._template = template()
        journal = Journal(router)
        for url in urls or (URL,):
            router.commit(WorkerAdded(worker=WorkerUrl(url)))
        yield router, journal
        await pool.aclose()
        nursery.cancel_scope.cancel()


def assert_at_rest(router: Router, journals: Sequence[Journal] = ()) -> None:
    """Nothing is taken, open or in use; every call has ended once; replay gives the same."""
    state = router.state
    assert state.fleet.total_in_flight == 0
    assert not state.open_calls
    state.check()
    counters = state.counters
    assert counters.calls_opened == counters.calls_captured + counters.calls_lost
    assert router.pool.stats().in_use == 0
    for journal in journals:
        replayed = journal.replayed()
        replayed.check()
        assert replayed.digest() == state.digest()
