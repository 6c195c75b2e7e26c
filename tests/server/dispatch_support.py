"""Workers on memory streams that do as a test says, one request at a time, in virtual time."""

from __future__ import annotations

import functools
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import memory_stream_pair

from slime_core.errors import SlimeError
from slime_core.types import WorkerUrl
from slime_trio.endpoints import chat_completions, completions, generate
from slime_trio.exchange import Headers
from slime_trio.router import Router
from slime_trio.upstream import Connect, Origin, TrioStream
from tests.server.harness import answer_item
from tests.server.relay_support import Journal, Sink, assert_at_rest, inbound, relay_router
from tests.server.upstream_support import HTTP_OK, Peer, answer

__all__ = ["Asked", "Station", "asking", "fleet", "refusing", "until"]

Answer = Callable[[dict[str, Any]], Awaitable[bytes | None]]
"""Answers a generation, or hangs up without a word."""


class Station:
    """A worker. ``answer`` serves ``/generate``; at first every generation ends at once."""

    def __init__(self, name: str) -> None:
        self.url = WorkerUrl(f"http://{name}:30000")
        self.answer: Answer = self.at_once
        self.begins_with = b""
        """Sent before anything is decided."""
        self.takes_connections = True
        self.connects_after_s = 0.0
        self.arrived: list[dict[str, Any]] = []
        self.heads: list[bytes] = []
        self.others: list[bytes] = []
        self.told: list[str] = []
        """What it was told to abort."""
        self.held: dict[str, trio.Event] = {}
        self._aborted: set[str] = set()

    async def at_once(self, asked: dict[str, Any]) -> bytes | None:
        return whole(asked)

    async def hold(self, asked: dict[str, Any]) -> bytes | None:
        """As an answer: generate until :meth:`finish` or :meth:`abort_all` says otherwise."""
        rid = asked["rid"]
        self.held[rid] = trio.Event()
        try:
            await self.held[rid].wait()
        finally:
            del self.held[rid]
        return whole(asked, aborted=rid in self._aborted)

    async def hang_up(self, asked: dict[str, Any]) -> bytes | None:
        """As an answer: none."""
        return None

    def finish(self, count: int | None = None) -> None:
        """Let the oldest generations that are held come to their end."""
        for event in list(self.held.values())[:count]:
            event.set()

    def abort(self, count: int | None = None) -> None:
        """As if somebody had told this worker so behind the router's back."""
        for rid in list(self.held)[:count]:
            self._aborted.add(rid)
            self.held[rid].set()

    async def serve(self, peer: Peer) -> None:
        """One connection."""
        while (request := await peer.request()) is not None:
            head, body = request
            if head.startswith(b"POST /abort_request"):
                self.told.append(json.loads(body)["rid"])
                await peer.send(HTTP_OK)
                continue
            if not head.startswith((b"POST /generate ", b"POST /v1/")):
                self.others.append(head)
                await peer.send(HTTP_OK)
                continue
            self.heads.append(head)
            asked = json.loads(body)
            self.arrived.append(asked)
            await peer.send(self.begins_with)
            data = await self.answer(asked)
            if data is None:
                return
            await peer.send(data)


def whole(asked: dict[str, Any], *, aborted: bool = False) -> bytes:
    """The whole answer to a request for one sample."""
    finish = {"type": "abort", "message": "Aborted"} if aborted else None
    item = answer_item([5, 6], "ab", rid=asked.get("rid", "r"), finish=finish)
    return answer(json.dumps(item).encode())


def refusing(status: bytes, body: bytes = b'{"error": "no"}') -> Answer:
    """Answers with a status other than 200."""

    async def refuse(asked: dict[str, Any]) -> bytes | None:
        return answer(body, status=status, extra=b"x-why: it\r\n")

    return refuse


class _Stations:
    """A ``connect`` that leads to stations by their hosts."""

    def __init__(self, nursery: trio.Nursery, stations: dict[str, Station]) -> None:
        self._nursery = nursery
        self._stations = stations
        self._count = 0

    async def __call__(self, origin: Origin, tls: ssl.SSLContext | None) -> TrioStream:
        station = self._stations[origin.host]
        await trio.sleep(station.connects_after_s)
        if not station.takes_connections:
            raise OSError("refused")
        ours, theirs = memory_stream_pair()
        self._count += 1
        self._nursery.start_soon(self._run, station, Peer(theirs, self._count))
        return TrioStream(ours)

    async def _run(self, station: Station, peer: Peer) -> None:
        try:
            await station.serve(peer)
        except trio.BrokenResourceError:
            pass
        finally:
            await peer.close()


@asynccontextmanager
async def fleet(
    *stations: Station, replays: bool = True, **settings: Any
) -> AsyncIterator[tuple[Router, Journal]]:
    """A router whose workers these are, in their order. Afterwards it must be at rest.

    ``replays``: its journal makes the same state again; not where several tenants wrote it.
    """
    by_host = {station.url.split("/")[2].split(":")[0]: station for station in stations}

    def connect(nursery: trio.Nursery) -> Connect:
        return _Stations(nursery, by_host)

    async def unused(peer: Peer) -> None:
        raise AssertionError("stations answer")

    urls = [station.url for station in stations]
    async with relay_router(unused, *urls, connect=connect, **settings) as (router, journal):
        yield router, journal
        assert router.nursery is not None
        while router.nursery.child_tasks:  # noqa: ASYNC110 - aborts tell nobody
            await trio.sleep(0.1)
        assert_at_rest(router, [journal] if replays else [])
        dispatcher = router.shared.dispatcher
        assert not dispatcher.live
        assert (dispatcher.room.running, dispatcher.room.waiting) == (0, [])
        assert router.shared.gate.readers == 0


class Asked:
    """A request that runs as a task of its own, and what came of it."""

    def __init__(self) -> None:
        self.sink = Sink()
        self.error: SlimeError | None = None
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    @property
    def json(self) -> Any:
        return json.loads(b"".join(self.sink.got))

    @property
    def status(self) -> int | None:
        return self.sink.status if self.error is None else self.error.status

    @property
    def code(self) -> str | None:
        return None if self.error is None else self.error.code

    def header(self, name: bytes) -> bytes | None:
        return dict(self.sink.headers).get(name)

    async def run(self, serve: Callable[[Sink], Awaitable[None]]) -> None:
        try:
            with self.scope:
                await serve(self.sink)
        except SlimeError as error:
            self.error = error
        finally:
            self.ended.set()


_SERVES = {
    "/generate": generate,
    "/v1/chat/completions": chat_completions,
    "/v1/completions": completions,
}


def asking(
    nursery: trio.Nursery,
    router: Router,
    *,
    path: str = "/generate",
    headers: Headers | None = None,
    **body: Any,
) -> Asked:
    """Ask in a task of its own."""
    asked = Asked()
    request = inbound(path, body or {"text": "Hello"}, headers)
    serve = functools.partial(_SERVES[path], router, request)
    nursery.start_soon(asked.run, serve)
    return asked


async def until(reached: Callable[[], Any]) -> None:
    """Wait, in virtual time, for what comes about by itself within a second."""
    with trio.fail_after(1):
        while not reached():  # noqa: ASYNC110 - it tells nobody
            await trio.sleep(0.001)
