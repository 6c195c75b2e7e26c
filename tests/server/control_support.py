"""Workers for tests of the control plane: in virtual time, or on real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from slime_core.fleet import Worker
from slime_trio.control.outcomes import Outcome
from slime_trio.control.paths import PATHS
from slime_trio.control.requests import ControlCall
from slime_trio.control.targets import targets_of
from slime_trio.router import Router
from tests.server.harness import Served
from tests.server.relay_support import relay_router
from tests.server.upstream_support import Peer, answer

__all__ = ["OK", "Engine", "Engines", "call", "controlled", "ids_of", "paused", "serve", "told"]

OK = {"success": True, "message": "ok"}


def call(path: str, body: Any = None, *, query: str = "", method: str = "POST") -> ControlCall:
    """A control call that has arrived."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    return ControlCall(method=method, path=path, query=query.encode(), headers=[], body=data)


async def serve(router: Router, arrived: ControlCall) -> list[Outcome]:
    """What comes of it, for the workers that it means."""
    shared = router.shared
    targets = targets_of(shared, arrived)
    return await shared.control.serve(arrived, PATHS[arrived.path], targets)


@dataclass
class Engine:
    """A worker in virtual time: what it was told, and how it answers."""

    told: list[tuple[float, str, Any]] = field(default_factory=list)
    """Time, path and body of each call."""
    slow_s: dict[str, float] = field(default_factory=dict)
    """How long a path takes."""
    refusing: set[str] = field(default_factory=set)
    """Paths that it answers with 400."""
    silent: set[str] = field(default_factory=set)
    """Paths on which it closes the connection without an answer."""

    def paths(self) -> list[str]:
        """The paths it was called on, in order."""
        return [path for _, path, _ in self.told]

    async def answer(self, head: bytes, body: bytes) -> bytes | None:
        """Its answer to a request; ``None``: it closes the connection."""
        path = head.split(b" ")[1].decode().partition("?")[0].strip("/")
        self.told.append((trio.current_time(), path, json.loads(body) if body else None))
        await trio.sleep(self.slow_s.get(path, 0.0))
        if path in self.silent:
            return None
        status = b"400 Bad Request" if path in self.refusing else b"200 OK"
        said = {"success": path not in self.refusing, "message": path}
        kind = b"content-type: application/json\r\n"
        return answer(json.dumps(said).encode(), status=status, extra=kind)


class Engines:
    """Workers ``http://w0``, ``http://w1``, … that are told apart by where they are called."""

    def __init__(self, count: int) -> None:
        self.engines = [Engine() for _ in range(count)]
        self.urls = [f"http://w{number}:30000" for number in range(count)]

    def __getitem__(self, number: int) -> Engine:
        return self.engines[number]

    async def run(self, peer: Peer) -> None:
        """One connection to one of them."""
        while (request := await peer.request()) is not None:
            head, body = request
            number = int(head.split(b"host: w")[1].split(b":")[0])
            said = await self.engines[number].answer(head, body)
            if said is None:
                return
            await peer.send(said)


@asynccontextmanager
async def controlled(count: int, **settings: Any) -> AsyncIterator[tuple[Router, Engines]]:
    """A router with so many engines, whose pauses are kept. For virtual time."""
    engines = Engines(count)
    async with (
        relay_router(engines.run, *engines.urls, **settings) as (router, _),
        trio.open_nursery() as nursery,
    ):
        await nursery.start(router.shared.control.run)
        yield router, engines
        nursery.cancel_scope.cancel()


def ids_of(served: Served) -> list[str]:
    """The workers' ids in the order of their joining."""
    return [one.id for one in served.router.shared.fleet.listed()]


def paused(router: Router) -> list[str]:
    """The workers that are known as paused."""
    hosts = (one.url.removeprefix("http://").partition(":")[0] for one in _paused(router))
    return list(hosts)


def _paused(router: Router) -> list[Worker]:
    return [one for one in router.shared.fleet.listed() if one.paused]


def told(engines: Engines) -> list[list[str]]:
    """The paths each was called on."""
    return [engine.paths() for engine in engines.engines]
