"""A worker on a real socket, and a client for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import trio

from slime_trio.worker import WorkerOptions, serve_worker

__all__ = [
    "PROMPT",
    "events_of",
    "has_records",
    "is_running",
    "is_waiting",
    "load_of",
    "running_worker",
    "until",
]

PROMPT = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"


@asynccontextmanager
async def running_worker(**options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of a worker that is stopped at the end of the block."""
    chosen = WorkerOptions(**({"seed": 1} | options))
    async with trio.open_nursery() as nursery:
        url = await nursery.start(partial(serve_worker, chosen, port=0))
        async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
            yield client
        nursery.cancel_scope.cancel()


async def events_of(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> list[dict[str, Any]]:
    """The JSON of every event of a stream, which must end with the end mark."""
    async with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        raw = (await response.aread()).decode()
    events = [event.removeprefix("data: ") for event in raw.split("\n\n") if event]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


async def until(
    holds: Callable[[httpx.AsyncClient], Awaitable[bool]], client: httpx.AsyncClient
) -> None:
    """Asks again and again until it holds; five seconds at most."""
    with trio.fail_after(5):
        while True:
            if await holds(client):
                return
            await trio.sleep(0.005)


async def load_of(client: httpx.AsyncClient) -> dict[str, Any]:
    """The worker's one entry of ``/v1/loads``."""
    load: dict[str, Any] = (await client.get("/v1/loads")).json()["loads"][0]
    return load


async def is_running(client: httpx.AsyncClient) -> bool:
    return bool((await load_of(client))["num_running_reqs"])


async def is_waiting(client: httpx.AsyncClient) -> bool:
    return bool((await load_of(client))["num_waiting_reqs"])


async def has_records(client: httpx.AsyncClient) -> bool:
    return bool((await client.get("/slime_worker/records")).json()["records"])
