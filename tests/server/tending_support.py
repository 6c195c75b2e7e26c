"""Tending in virtual time: workers that are tables of what they tell, behind httpx's own seam."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio
import trio.testing

from slime_core.fleet import Worker
from slime_core.state import RouterState
from slime_core.transitions import Transition
from slime_core.types import WorkerUrl
from slime_trio.config import Settings
from slime_trio.router import Router
from slime_trio.tending import tend

__all__ = ["ONE", "TWO", "Tended", "Told", "tended"]

ONE, TWO = WorkerUrl("http://one.invalid:1"), WorkerUrl("http://two.invalid:1")


@dataclass(slots=True, kw_only=True)
class Told:
    """What a worker tells, which a test may change at any time.

    ``health`` is a status, or how it comes about; ``is_up``: whether it takes connections;
    ``hangs``: whether it then answers nothing; ``bug``: what the router's own client raises.
    ``asked`` holds when, in virtual seconds, which path was asked for.
    """

    version: str | None = "1"
    ready: int = 200
    health: int | Callable[[], Awaitable[int]] = 200
    loads: dict[str, Any] | None = None
    mode: str | None = None
    is_up: bool = True
    hangs: bool = False
    bug: Exception | None = None
    asked: list[tuple[float, str]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def times(self, path: str) -> list[float]:
        """When ``path`` was asked for."""
        return [round(at, 6) for at, asked in self.asked if asked == path]

    async def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        self.asked.append((trio.current_time(), path))
        self.keys.append(request.headers.get("authorization"))
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.bug is not None:
            raise self.bug
        if not self.is_up:
            raise httpx.ConnectError("refused")
        if path == "/ready":
            return httpx.Response(self.ready)
        if path == "/health":
            return httpx.Response(
                self.health if isinstance(self.health, int) else await self.health()
            )
        if path == "/v1/loads" and self.loads is not None:
            return httpx.Response(200, json=self.loads)
        if path == "/model_info":
            told = {"weight_version": self.version, "disaggregation_mode": self.mode}
            return httpx.Response(200, json={"model_path": "m"} | told)
        return httpx.Response(404)


@dataclass(slots=True)
class Tended:
    """A router that is looked after, and every transition it committed since."""

    router: Router
    facts: list[tuple[float, Transition]]

    def worker(self, url: WorkerUrl) -> Worker:
        return self.router.state.fleet.workers[url]

    def times(self, kind: type[Transition]) -> list[float]:
        """When transitions of this kind were committed."""
        return [round(at, 6) for at, fact in self.facts if isinstance(fact, kind)]

    def committed(self, fact: Transition) -> bool:
        return any(one == fact for _, one in self.facts)


@asynccontextmanager
async def tended(workers: dict[WorkerUrl, Told], **settings: Any) -> AsyncIterator[Tended]:
    """A router with these workers, contacted already. Chance is a constant: nothing is moved."""
    named: dict[str, Any] = {"worker_urls": tuple(workers)} | settings
    router = Router(Settings(capture=False, probe_logprobs=False, **named), chance=lambda: 0.5)
    facts: list[tuple[float, Transition]] = []

    def note(fact: Transition, _state: RouterState) -> None:
        facts.append((trio.current_time(), fact))

    async def answer(request: httpx.Request) -> httpx.Response:
        url = WorkerUrl(f"{request.url.scheme}://{request.url.host}:{request.url.port}")
        return await workers[url].answer(request)

    router.observers.append(note)
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client,
        trio.open_nursery() as nursery,
    ):
        router.component_registry.register("admin_client", client)
        await nursery.start(tend, router)
        await trio.testing.wait_all_tasks_blocked()
        yield Tended(router, facts)
        nursery.cancel_scope.cancel()
