"""The keeper of pauses: tells workers to go on when a lease ends, and when the router does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import structlog
import trio

from slime_core.types import WorkerUrl
from slime_trio.control.asking import fan_out
from slime_trio.control.outcomes import Outcome, Target
from slime_trio.control.pauses import Pause, Pauses
from slime_trio.control.teller import Teller

__all__ = ["LeaseKeeper"]

_CONTINUE: Final = "continue_generation"
_CONTINUE_S: Final = 10.0
_AGAIN_S: Final = 5.0
_FAREWELL_S: Final = 5.0
"""What the end of the router may wait for workers to go on."""

_log: Any = structlog.get_logger("slime_router")


class LeaseKeeper:
    """Holds the pauses and ends them in time. :meth:`run` belongs to the serving."""

    def __init__(self, teller: Teller, pauses: Pauses) -> None:
        self._teller = teller
        self._pauses = pauses
        self._changed = trio.Event()
        self._ending: dict[WorkerUrl, trio.Event] = {}

    async def until_free(self, worker: WorkerUrl) -> None:
        """Wait while the worker is being told to go on: a pause that is told at the same time might
        be overtaken."""
        while (ending := self._ending.get(worker)) is not None:
            await ending.wait()

    def hold(self, pause: Pause) -> None:
        """The worker has paused, for as long as its lease says."""
        self._pauses.hold(pause, trio.current_time())
        self._changed.set()

    def abandon(self, pauses: Iterable[Pause]) -> None:
        """Nobody wants these any more."""
        self._pauses.abandon(pauses, trio.current_time())
        self._changed.set()

    async def run(self) -> None:
        """End pauses whose lease is over, until cancelled; then end them all."""
        try:
            while True:
                self._changed = trio.Event()
                with trio.move_on_at(self._pauses.next_deadline):
                    await self._changed.wait()
                due = self._pauses.due(trio.current_time())
                if due:
                    _log.warning("a pause ends with its lease", workers=due)
                    await self._go_on(due)
        finally:
            if self._pauses.paused:
                with trio.move_on_after(_FAREWELL_S, shield=True):
                    await self._go_on(self._pauses.paused)

    async def _go_on(self, workers: list[WorkerUrl]) -> None:
        order = self._teller.own_order(_CONTINUE, b"{}", seconds=_CONTINUE_S)

        async def one(target: Target) -> Outcome:
            ended = self._ending[target.url] = trio.Event()
            try:
                outcome = await self._teller.ask(target, order)
            finally:
                del self._ending[target.url]
                ended.set()
            if outcome.succeeded or target.url not in self._teller.shared.fleet.workers:
                self._pauses.end(target.url)
            else:
                _log.warning("a worker does not go on", worker=target.url, why=outcome.message)
                self._pauses.put_off(target.url, trio.current_time() + _AGAIN_S)
            return outcome

        await fan_out([Target(worker, worker) for worker in workers], one)
