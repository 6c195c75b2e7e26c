"""Errands under the core's harness: what the control plane commits of them, without its requests.

There is nobody who waits and no way on which anything could be lost, so an errand is what it
changes: the worker, and in the same step what the router knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from slime_core.engine import PauseMode
from slime_core.transitions import VersionSeen, WorkerFlushed, WorkerPaused
from slime_core.types import WorkerUrl
from tests.simulate.control.errands import Errand
from tests.simulate.workers.worker import SimWorker

if TYPE_CHECKING:
    from tests.simulate.core.harness import CoreHarness

__all__ = ["CORE_KINDS", "CoreErrands"]


class CoreErrands:
    """Carries out those of :data:`CORE_KINDS`."""

    def __init__(self, harness: CoreHarness) -> None:
        self._harness: Final = harness
        self._world: Final = harness.world
        self._router: Final = harness.router

    def schedule(self) -> None:
        """Each begins in its time."""
        for at, errand in self._world.errands:
            if errand.kind in _DOES:
                self._harness.after(at, partial(self._begin, errand))

    def _begin(self, errand: Errand) -> None:
        _DOES[errand.kind](self, errand)
        self._world.story.marks[f"control:{errand.kind}"] += 1
        self._harness.carry_all()

    def _meant(self, errand: Errand) -> Iterator[tuple[WorkerUrl, SimWorker]]:
        """Those that are in the fleet and alive."""
        for known in self._router.state.fleet.listed():
            worker = self._world.workers[known.url]
            if worker.alive and (not errand.aimed or known.url == errand.url):
                yield known.url, worker

    def _pause(self, errand: Errand) -> None:
        for url, worker in list(self._meant(errand)):
            worker.pause(PauseMode(errand.mode or "abort"))
            self._note(url, paused=True)
        ends_s = errand.lease_s if errand.kind == "pause_leased" else errand.lasts_s
        self._harness.after(min(ends_s, errand.lasts_s), partial(self._go_on, errand))

    def _go_on(self, errand: Errand) -> None:
        for url, worker in list(self._meant(errand)):
            worker.resume()
            self._note(url, paused=False)
        self._harness.carry_all()

    def _note(self, url: WorkerUrl, *, paused: bool) -> None:
        known = self._router.state.fleet.workers.get(url)
        if known is not None and known.paused is not paused:
            self._router.commit(WorkerPaused(worker=url, paused=paused))

    def _update(self, errand: Errand) -> None:
        version = self._world.operator.next_version()
        for url, worker in list(self._meant(errand)):
            worker.update_version(version)
            self._world.operator.learn(url, version)
            if worker.engine.flush():
                self._router.commit(WorkerFlushed(worker=url))
            sighting = self._router.state.versions.sighting
            self._router.commit(VersionSeen(worker=url, version=version, sighting=sighting))

    def _flush(self, errand: Errand) -> None:
        for url, worker in list(self._meant(errand)):
            if worker.engine.flush():
                self._router.commit(WorkerFlushed(worker=url))

    def _abort(self, errand: Errand) -> None:
        for _, worker in self._meant(errand):
            worker.engine.abort(everything=True)

    def _enlist(self, errand: Errand) -> None:
        if errand.word % 4 != 3:
            self._router.remove_worker(errand.url)
        self._harness.after(errand.lasts_s, partial(self._harness.join, errand.url))


_DOES: Final[dict[str, Callable[[CoreErrands, Errand], None]]] = {
    "pause": CoreErrands._pause,
    "pause_leased": CoreErrands._pause,
    "update": CoreErrands._update,
    "flush_cache": CoreErrands._flush,
    "abort_everything": CoreErrands._abort,
    "enlist": CoreErrands._enlist,
}
CORE_KINDS: Final = tuple(_DOES)
"""What makes sense without requests to the router."""
