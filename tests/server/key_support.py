"""Routers with keys, and who asks them: for tests of keys and tenants."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx

from slime_trio.router import Router
from tests.server.harness import Answering, FakeWorker, Served, fake_worker, router_with, until

__all__ = [
    "ADMIN",
    "ADMIN_KEY",
    "FAR",
    "KEYS",
    "ONE",
    "ONE_KEY",
    "OTHER",
    "OTHER_KEY",
    "Keyed",
    "bearer",
    "keyed_router",
    "open_session",
    "scrubbed",
]

ADMIN_KEY: Final = "the-operators-own-key-0"
ONE_KEY: Final = "a-tenants-own-key-00001"
OTHER_KEY: Final = "a-tenants-own-key-00002"
KEYS: Final[dict[str, Any]] = {"admin_key": ADMIN_KEY, "api_key": (ONE_KEY, OTHER_KEY)}
FAR: Final = {"x-forwarded-for": "192.0.2.7"}
"""With this a caller is not on the router's own machine, as far as anybody can tell."""


def bearer(key: str) -> dict[str, str]:
    """The header fields that carry ``key``."""
    return {"authorization": f"Bearer {key}"}


ADMIN: Final = bearer(ADMIN_KEY)
ONE: Final = bearer(ONE_KEY)
OTHER: Final = bearer(OTHER_KEY)


@dataclass(frozen=True, slots=True)
class Keyed:
    """A router with keys and one fake worker."""

    served: Served
    worker: FakeWorker

    @property
    def client(self) -> httpx.AsyncClient:
        return self.served.client

    @property
    def one(self) -> Router:
        return self.served.router.shared.routers["tenant-1"]

    @property
    def other(self) -> Router:
        return self.served.router.shared.routers["tenant-2"]

    async def generate(self, key: Mapping[str, str], **fields: Any) -> httpx.Response:
        """``POST /generate`` with a key."""
        return await self.client.post("/generate", json=fields, headers=dict(key))


@asynccontextmanager
async def keyed_router(answer: Answering, **settings: Any) -> AsyncIterator[Keyed]:
    """A router with an operator's and two tenants' keys, and a worker that takes work."""
    async with (
        fake_worker(answer) as worker,
        router_with(worker_urls=(worker.url,), **(KEYS | settings)) as served,
    ):
        fleet = served.router.state.fleet
        await until(lambda: any(one.is_fit for one in fleet.listed()))
        yield Keyed(served, worker)


async def open_session(client: httpx.AsyncClient, key: Mapping[str, str]) -> tuple[str, str]:
    """A new session of this tenant: its id, and its key."""
    response = await client.post("/sessions", headers=dict(key))
    assert response.status_code == 200, response.text
    found = response.json()
    return found["session_id"], found["session_key"]


_OURS: Final = re.compile(r"[0-9a-f]{32}")
_TIME: Final = re.compile(r'"(created|idle_s|timestamp)":[0-9.]+')


def scrubbed(response: httpx.Response, *names: str) -> tuple[int, str]:
    """Status and body without ``names``, and without what differs from request to request."""
    text = response.text
    for name in names:
        text = text.replace(name, "NAME")
    return response.status_code, _TIME.sub("TIME", _OURS.sub("ID", text))
