"""Two embedded workers and a router, each on a free port of this machine, in this process."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import httpx
import structlog
import trio

from slime_trio.app import create_app
from slime_trio.config import Settings
from slime_trio.demo.failure import DemoFailure
from slime_trio.demo.options import DemoOptions
from slime_trio.serve import bind, serve
from slime_trio.worker import SHIPPED_CHECKPOINT, WorkerOptions, serve_worker

__all__ = ["FIRST_VERSION", "Servers", "running_servers"]

FIRST_VERSION: Final = "0"

_HOST: Final = "127.0.0.1"
_WORKERS: Final = 2
_MS_PER_TOKEN: Final = 1.0
"""So that answers take a while: one weight update falls into the middle of some."""

_READY_S: Final = 15.0
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Base URLs."""

    router: str
    workers: tuple[str, ...]


@asynccontextmanager
async def running_servers(options: DemoOptions) -> AsyncIterator[Servers]:
    """Servers that are ready; stopped in order, the router first, when the block is left.

    Raises :class:`DemoFailure` if they do not become ready.
    """
    async with trio.open_nursery() as nursery:
        workers_stop, router_stop, router_gone = trio.Event(), trio.Event(), trio.Event()
        workers = [
            await nursery.start(partial(_serve_worker, options.seed + place, workers_stop))
            for place in range(_WORKERS)
        ]
        settings = Settings(
            host=_HOST,
            port=0,
            worker_urls=tuple(workers),
            hf_checkpoint=str(SHIPPED_CHECKPOINT),
            served_model_name="demo",
            shutdown_grace_s=1.0,
        )
        router = await nursery.start(_serve_router, settings, router_stop, router_gone)
        await _wait_until_ready(router)
        _report_from(logging.WARNING)
        yield Servers(router=router, workers=tuple(workers))
        router_stop.set()
        await router_gone.wait()
        workers_stop.set()


async def _serve_worker(seed: int, stop: trio.Event, *, task_status: trio.TaskStatus[str]) -> None:
    options = WorkerOptions(seed=seed, weight_version=FIRST_VERSION, ms_per_token=_MS_PER_TOKEN)
    await serve_worker(
        options, host=_HOST, port=0, shutdown_trigger=stop.wait, task_status=task_status
    )


async def _serve_router(
    settings: Settings,
    stop: trio.Event,
    gone: trio.Event,
    *,
    task_status: trio.TaskStatus[str],
) -> None:
    app = await trio.to_thread.run_sync(create_app, settings)
    _report_from(logging.ERROR)
    listener = bind(settings.host, settings.port)
    task_status.started(f"http://{_HOST}:{listener.getsockname()[1]}")
    try:
        await serve(app, settings, listener, until=stop)
    finally:
        gone.set()


def _report_from(level: int) -> None:
    """The router's log from this level on: its reports would run into the demonstration's, and
    while it makes contact it warns of workers that it does not know yet."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))


async def _wait_until_ready(router: str) -> None:
    """Until the router has made contact with every worker."""
    async with httpx.AsyncClient(base_url=router, trust_env=False) as client:
        with trio.move_on_after(_READY_S):
            while True:
                answer = await client.get("/readiness")
                if answer.status_code == 200 and answer.json()["healthy_workers"] == _WORKERS:
                    return
                await trio.sleep(_POLL_S)
    raise DemoFailure(f"the servers did not become ready within {_READY_S:.0f} s")
