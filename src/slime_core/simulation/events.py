"""What befalls the fleet: workers that die and come back, and updates of the weights."""

from __future__ import annotations

from functools import partial
from typing import Final

from slime_core.engine.generation import PauseMode
from slime_core.simulation.agenda import Agenda
from slime_core.simulation.lengths import Chances, Exponential, require
from slime_core.simulation.measure import Tally
from slime_core.simulation.router import SimulatedRouter
from slime_core.simulation.scenario import Faults, Updates

__all__ = ["Failures", "WeightUpdates"]

_PROOF: Final = 10


class Failures:
    """Each worker's failures and repairs by generators of their own: nothing else changes them."""

    def __init__(
        self,
        agenda: Agenda,
        faults: Faults,
        router: SimulatedRouter,
        chances: Chances,
    ) -> None:
        self._agenda = agenda
        self._faults = faults
        self._router = router
        self._until = Exponential(faults.mean_s_between_failures)
        self._failures = [chances(f"failures/{url}") for url in router.urls]
        self._repairs = [chances(f"repairs/{url}") for url in router.urls]

    def start(self) -> None:
        """Plans the first failure of each worker, if any ever fails."""
        if self._faults.mean_s_between_failures:
            for place in range(len(self._failures)):
                self._plan_crash(place)

    def _plan_crash(self, place: int) -> None:
        delay_s = self._until.draw(self._failures[place])
        self._agenda.after(delay_s, partial(self._crash, place))

    def _crash(self, place: int) -> None:
        self._router.crash(place)
        delay_s = self._faults.repair_s.draw(self._repairs[place])
        self._agenda.after(delay_s, partial(self._repair, place))

    def _repair(self, place: int) -> None:
        self._router.repair(place)
        self._plan_crash(place)


class WeightUpdates:
    """All workers pause, get new weights, and go on.

    Updates that retract may come so often that the work of every interval is thrown away at its
    end; as each interval is then like the one before, a few of them prove it.
    """

    def __init__(
        self, agenda: Agenda, updates: Updates, router: SimulatedRouter, tally: Tally
    ) -> None:
        self._agenda = agenda
        self._updates = updates
        self._router = router
        self._tally = tally
        self._progress: tuple[int, ...] = ()
        self._in_vain = 0

    def start(self) -> None:
        """Plans the first update, if there is to be any."""
        self._router.note_version("0")
        if self._updates.every_s:
            self._agenda.after(self._updates.every_s, self._begin)

    def _begin(self) -> None:
        for worker in self._router.workers:
            worker.pause(self._updates.mode)
        self._check_progress()
        self._agenda.after(self._updates.takes_s, self._finish)
        self._agenda.after(self._updates.every_s, self._begin)

    def _check_progress(self) -> None:
        """Raises ``ClientError`` if requests wait and none of them comes any further."""
        waiting, sampled = map(
            sum, zip(*(one.waiting for one in self._router.workers), strict=True)
        )
        tally = self._tally
        progress = (tally.requests, tally.completed, tally.failed, tally.retries, waiting, sampled)
        in_vain = waiting and self._updates.mode is PauseMode.RETRACT and progress == self._progress
        self._in_vain = self._in_vain + 1 if in_vain else 0
        self._progress = progress
        require(self._in_vain < _PROOF, "every_s", "leaves no time to compute anything")

    def _finish(self) -> None:
        self._tally.weight_updates += 1
        self._router.note_version(str(self._tally.weight_updates))
        for worker in self._router.workers:
            worker.resume()
