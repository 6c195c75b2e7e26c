"""A router on memory streams without a listener, a client that is a list, and sweeps of both.

A sweep runs one thing again and again, and does something to it at its first, second, … step until
it has no such step: every checkpoint is visited, and what holds afterwards must hold each time.
"""

from __future__ import annotations

import enum
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair

from slime_core import sse
from slime_core.state import RouterState
from slime_core.transitions import Transition
from slime_trio.config import Settings
from slime_trio.dispatch.dispatcher import Asking, Dispatcher
from slime_trio.exchange import ClientGone, Headers, Inbound
from slime_trio.router import Router
from slime_trio.upstream import Connect, Origin, Pool, TrioStream
from tests.fleet_support import joined
from tests.server.harness import answer_item, chatting, checkpoint
from tests.server.upstream_support import URL, Peer, Workers, WorkerScript, answer

__all__ = [
    "STREAM_HEAD",
    "AtStep",
    "Journal",
    "Link",
    "Sink",
    "all_in_threads",
    "answering",
    "assert_at_rest",
    "chunk",
    "event_chunk",
    "inbound",
    "kinds_of",
    "leak_slots",
    "link_to",
    "relay_router",
    "sweep",
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
    """A client that takes everything, each piece after ``pause_s``.

    After ``leaves_after`` pieces it takes nothing more.
    """

    def __init__(self, leaves_after: int | None = None, *, pause_s: float = 0.0) -> None:
        self.started = False
        self.status: int | None = None
        self.headers: Headers = []
        self.got: list[bytes] = []
        self._leaves_after = leaves_after
        self._pause_s = pause_s

    async def start(self, status: int, headers: Headers) -> None:
        self.started, self.status, self.headers = True, status, headers
        await trio.lowlevel.checkpoint()

    async def send(self, data: bytes) -> None:
        await trio.sleep(self._pause_s)
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


class Link(enum.Enum):
    """What lies between the pool and a worker."""

    MEMORY = "memory"
    LOCKSTEP = "lockstep"
    """Every send waits for its receive."""
    TRICKLE = "trickle"
    """The worker's bytes come one by one."""


def link_to(nursery: trio.Nursery, script: WorkerScript, link: Link) -> Workers:
    """A ``connect`` for the pool over such streams."""
    return Workers(nursery, script) if link is Link.MEMORY else _Linked(nursery, script, link)


class _Linked(Workers):
    def __init__(self, nursery: trio.Nursery, script: WorkerScript, link: Link) -> None:
        super().__init__(nursery, script)
        self._link = link

    async def __call__(self, origin: Origin, tls: ssl.SSLContext | None) -> TrioStream:
        await trio.lowlevel.checkpoint()
        lockstep = self._link is Link.LOCKSTEP
        ours, theirs = lockstep_stream_pair() if lockstep else memory_stream_pair()
        peer = (Peer if lockstep else _TricklingPeer)(theirs, self.connected)
        self.connected += 1
        self._nursery.start_soon(self._run, peer)
        return TrioStream(ours)


class _TricklingPeer(Peer):
    async def send(self, data: bytes) -> None:
        for at in range(len(data)):
            await super().send(data[at : at + 1])


@asynccontextmanager
async def relay_router(
    script: WorkerScript,
    *urls: str,
    link: Link = Link.MEMORY,
    connect: Callable[[trio.Nursery], Connect] | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[Router, Journal]]:
    """A tended router whose workers (one at ``URL``, unless ``urls`` name others) run ``script``,
    or are what ``connect`` leads to.

    ``router.nursery`` is where its aborts run; whoever ends it ends the tending.
    """
    async with trio.open_nursery() as nursery:
        leads = link_to(nursery, script, link) if connect is None else connect(nursery)
        pool = Pool(connect=leads)
        ids = iter(f"{number:032x}" for number in range(100_000))
        router = Router(
            Settings(**settings), checkpoint=checkpoint(), pool=pool, new_id=lambda: next(ids)
        )
        router.shared.use_chatting(chatting())
        router.nursery = await nursery.start(_outliving)
        journal = Journal(router)
        for url in urls or (URL,):
            router.commit(*joined(url))
        yield router, journal
        await pool.aclose()
        nursery.cancel_scope.cancel()


async def _outliving(task_status: trio.TaskStatus[trio.Nursery]) -> None:
    async with trio.open_nursery() as nursery:
        task_status.started(nursery)
        await trio.sleep_forever()


async def answering(peer: Peer) -> None:
    """Answers ``/generate`` as asked, whole or in four events, and everything else with 200."""
    while (request := await peer.request()) is not None:
        head, body = request
        if not head.startswith(b"POST /generate "):
            await peer.send(answer(b"{}"))
            continue
        asked = json.loads(body)
        for piece in _generated(asked):
            await peer.send(piece)
            await trio.sleep(0.01)


def _generated(asked: Any) -> list[bytes]:
    ids = asked.get("input_ids", [5])
    batch = isinstance(ids[0], list)
    params = asked.get("sampling_params") or {}
    n = (params[0] if isinstance(params, list) else params).get("n", 1)
    many = batch or n > 1
    samples = range((len(ids) if batch else 1) * n)
    if not asked.get("stream"):
        items = [answer_item([5, 6], "ab", rid=f"r{sample}") for sample in samples]
        return [answer(json.dumps(items if many else items[0]).encode())]
    events = [
        answer_item([5, 6, 7][:count], "abc"[:count], rid=f"r{sample}", finished=count == 3)
        | ({"index": sample} if many else {})
        for count in (1, 2, 3)
        for sample in samples
    ]
    return [STREAM_HEAD, *map(event_chunk, events), chunk(sse.DONE) + b"0\r\n\r\n"]


class AtStep(trio.abc.Instrument):
    """Does ``act`` before the ``at``-th step of ``task``, or of all tasks whose names end so."""

    def __init__(self, at: int, act: Callable[[], None], *, named: tuple[str, ...] = ()) -> None:
        self._at, self._act, self._named = at, act, named
        self.task: trio.lowlevel.Task | None = None
        self.steps = 0
        self.has_acted = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio is about to run a step."""
        if task is self.task or task.name.endswith(self._named):
            self.steps += 1
            if self.steps == self._at:
                self._act()
                self.has_acted = True

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the steps taken in here."""
        trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            # Had acting failed, Trio would have said so in the log and dropped the instrument.
            trio.lowlevel.remove_instrument(self)
            assert self.has_acted == (self.steps >= self._at)


def all_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have even the shortest work done in threads, as long work is."""
    for limit in ("offload.INLINE_BYTES", "tokenizer.INLINE_CHARS", "router._TELL_INLINE_BYTES"):
        monkeypatch.setattr(f"slime_trio.{limit}", 0)


def sweep(
    run: Callable[[int], Awaitable[AtStep]], *, first: int = 1, stride: int = 1, most: int = 5000
) -> int:
    """Run ``run(n)`` for every step ``n`` there is; how many there were.

    Each run has a Trio and a virtual time of its own.
    """
    for at in range(first, most, stride):
        done = trio.run(run, at, clock=MockClock(autojump_threshold=0))
        if not done.has_acted:
            return done.steps
    raise AssertionError(f"still not done after {most} steps")


def leak_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant a bug: a slot is given back only if all went well."""
    proper = Dispatcher._end

    def leaking(self: Dispatcher, asking: Asking) -> None:
        if asking.is_complete:
            proper(self, asking)

    monkeypatch.setattr(Dispatcher, "_end", leaking)


def kinds_of(error: BaseException) -> set[type[BaseException]]:
    """What kinds of errors there are in a group of groups."""
    if isinstance(error, BaseExceptionGroup):
        return {kind for each in error.exceptions for kind in kinds_of(each)}
    return {type(error)}


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
