"""A world whose workers are halves of pairs: even ones prefill, odd ones decode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from slime_core.engine import Role
from tests.simulate.chance import derive
from tests.simulate.faults import FaultKind, FaultRates
from tests.simulate.knobs import Knobs
from tests.simulate.workers.pieces import Answering, Request
from tests.simulate.workers.worker import SimWorker
from tests.simulate.world import World

__all__ = ["PORT", "HalfWorker", "PairWorld", "pairs_of"]

PORT = 8998
"""Every prefill worker's bootstrap port: hosts tell them apart."""
_TRANSFER_S = 10.0
"""A worker that answers without computing keeps its other half waiting so long."""


def pairs_of(knobs: Knobs) -> Knobs:
    """These knobs for pairs: as many of each kind as there were workers.

    What workers say on purpose is left out: the two halves of an answer would not agree on it.
    """
    return replace(knobs, workers=2 * knobs.workers, scripts=0.0)


def role_of(url: str) -> Role:
    """Of ``http://w<number>:…``."""
    number = int(url.removeprefix("http://w").partition(":")[0])
    return Role.DECODE if number % 2 else Role.PREFILL


class HalfWorker(SimWorker):
    """A simulated worker that says when anything may have changed for its other half."""

    role: Role = Role.REGULAR
    stirred: Callable[[], None] = staticmethod(lambda: None)

    def receive(self, request: Request, now: float) -> Answering:
        answering = super().receive(request, now)
        self.stirred()
        return answering

    def hang_up(self, answering: Answering, now: float) -> None:
        super().hang_up(answering, now)
        self.stirred()

    def advance(self, now: float) -> list[Answering]:
        changed = super().advance(now)
        self.stirred()
        return changed

    def crash(self, now: float) -> None:
        super().crash(now)
        self.stirred()

    def restart(self, now: float, version: str) -> None:
        super().restart(now, version)
        self.stirred()


class PairWorld(World):
    """See the module."""

    def _worker(self, url: str) -> HalfWorker:
        knobs = self.knobs
        rates = {FaultKind(kind): rate for kind, rate in knobs.faults}
        role = role_of(url)
        worker = HalfWorker(
            url,
            tokens=self.tokens,
            story=self.story,
            chance=derive(knobs.seed, "worker", url),
            options=replace(knobs.engine_options(), role=role, transfer_timeout_s=_TRANSFER_S),
            faults=FaultRates(rates, probes=derive(knobs.seed, "probes").random() ** 3),
            incremental=knobs.incremental,
            seed=derive(knobs.seed, "samples", url).getrandbits(32),
        )
        worker.role = role
        return worker

    @property
    def halves(self) -> dict[str, HalfWorker]:
        """All workers."""
        return {url: one for url, one in self.workers.items() if isinstance(one, HalfWorker)}
