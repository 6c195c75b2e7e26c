"""Embedded workers that are killed and come back on their port, with old weights or new ones."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from benchmarks.soak_ledger import Ledger
from slime_trio.worker import WorkerOptions, create_worker_app
from slime_trio.worker.service import Worker

__all__ = ["FIRST_VERSION", "SoakWorker"]

FIRST_VERSION: Final = "1"
_REBIND_S: Final = 0.05


class SoakWorker:
    """One place in the fleet, and the workers that follow each other in it."""

    def __init__(self, nursery: trio.Nursery, ledger: Ledger, options: dict[str, Any]) -> None:
        self._nursery = nursery
        self._ledger = ledger
        self._options = options
        self._worker: Worker | None = None
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self.url = ""
        self.starts = 0

    @property
    def is_up(self) -> bool:
        """Whether it serves."""
        return self._worker is not None

    async def start(self, version: str) -> None:
        """Serve with these weights."""
        self._worker = await self._nursery.start(self._serve, version)
        self.starts += 1

    async def _serve(self, version: str, *, task_status: trio.TaskStatus[Worker]) -> None:
        app = await trio.to_thread.run_sync(
            create_worker_app, WorkerOptions(weight_version=version, **self._options)
        )
        worker: Worker = app.extensions["slime_worker"]
        config = Config()
        config.bind = [self.url.removeprefix("http://") or "127.0.0.1:0"]
        config.accesslog = config.errorlog = None
        config.backlog = 1024
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    (self.url,) = await nursery.start(functools.partial(serve, app, config))
                    task_status.started(worker)
        finally:
            # What it was at is over with it; its records are not.
            worker.engine.abort(everything=True)
            worker.engine.advance(trio.current_time())
            self._ledger.take(_taken(worker))
            self._ended.set()

    async def kill(self) -> None:
        """End at once, whatever it was at."""
        self._worker = None
        self._scope.cancel()
        await self._ended.wait()
        await trio.sleep(_REBIND_S)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits in it."""
        return self._worker is None or self._worker.engine.idle

    def collect(self) -> None:
        """Enter into the ledger what was sampled since the last time."""
        if self._worker is not None:
            self._ledger.take(_taken(self._worker))


def _taken(worker: Worker) -> Iterator[Any]:
    records = worker.engine.records
    while records:
        yield records.popleft()
