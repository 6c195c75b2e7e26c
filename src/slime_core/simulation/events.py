"""What befalls the fleet: workers that die and come back, and updates of the weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from slime_core.simulation.agenda import Agenda
from slime_core.simulation.lengths import Chance, Exponential
from slime_core.simulation.measure import Tally
from slime_core.simulation.router import SimulatedRouter
from slime_core.simulation.scenario import Faults, Updates

__all__ = ["Failures", "WeightUpdates"]


class Failures:
    """Each worker's failures by a generator of its own, so that no other thing changes them."""

    def __init__(
        self,
        agenda: Agenda,
        faults: Faults,
        router: SimulatedRouter,
        chances: Callable[[str], Chance],
    ) -> None:
        self._agenda = agenda
        self._faults = faults
        self._router = router
        self._until = Exponential(faults.mean_s_between_failures)
        self._chances = [chances(f"failures/{url}") for url in router.urls]

    def start(self) -> None:
        """Plans the first failure of each worker, if any ever fails."""
        if self._faults.mean_s_between_failures:
            for place in range(len(self._chances)):
                self._plan_crash(place)

    def _plan_crash(self, place: int) -> None:
        delay_s = self._until.draw(self._chances[place])
        self._agenda.after(delay_s, partial(self._crash, place))

    def _crash(self, place: int) -> None:
        self._router.crash(place)
        delay_s = self._faults.repair_s.draw(self._chances[place])
        self._agenda.after(delay_s, partial(self._repair, place))

    def _repair(self, place: int) -> None:
        self._router.repair(place)
        self._plan_crash(place)


class WeightUpdates:
    """All workers pause, get new weights, and go on."""

    def __init__(
        self, agenda: Agenda, updates: Updates, router: SimulatedRouter, tally: Tally
    ) -> None:
        self._agenda = agenda
        self._updates = updates
        self._router = router
        self._tally = tally

    def start(self) -> None:
        """Plans the first update, if there is to be any."""
        self._router.note_version("0")
        if self._updates.every_s:
            self._agenda.after(self._updates.every_s, self._begin)

    def _begin(self) -> None:
        for worker in self._router.workers:
            worker.pause(self._updates.mode)
        self._agenda.after(self._updates.takes_s, self._finish)
        self._agenda.after(self._updates.every_s, self._begin)

    def _finish(self) -> None:
        self._tally.weight_updates += 1
        self._router.note_version(str(self._tally.weight_updates))
        for worker in self._router.workers:
            worker.resume()
