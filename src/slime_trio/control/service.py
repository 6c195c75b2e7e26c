"""The control plane: what each kind of control call does, to workers and to the router.

A call is told to its targets side by side; what is known of them afterwards is committed in one
step. What must not stay half done (a pause, the end of one, an abort) goes on when its caller has
gone; a weight update does not: its connections are closed, and all workers are asked what they
hold.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from slime_core.state import RouterState
from slime_core.transitions import SlotsGiven, Transition, WorkerPaused, WorkerRemoved
from slime_core.types import WorkerUrl
from slime_trio.control.aborting import Aborting
from slime_trio.control.engine_sessions import EngineSessions
from slime_trio.control.lease_keeper import LeaseKeeper
from slime_trio.control.outcomes import Outcome, Target
from slime_trio.control.paths import How, Kind
from slime_trio.control.pauses import Pauses
from slime_trio.control.pausing import Pausing
from slime_trio.control.requests import ControlCall
from slime_trio.control.role_switch import RoleSwitch
from slime_trio.control.teller import Teller
from slime_trio.control.updating import Updating

if TYPE_CHECKING:
    from slime_trio.shared import Shared

__all__ = ["Control"]

_Serve: TypeAlias = Callable[[ControlCall, How, Sequence[Target]], Awaitable[list[Outcome]]]


class Control:
    """The control plane of one process; :meth:`run` belongs to the serving."""

    def __init__(self, shared: Shared) -> None:
        teller = Teller(shared)
        self._teller = teller
        self._shared = shared
        self.pauses: Final = Pauses(self._note_paused)
        self._keeper = LeaseKeeper(teller, self.pauses)
        self.engine_sessions: Final = EngineSessions(teller)
        self.aborting: Final = Aborting(teller)
        pausing = Pausing(teller, self.pauses, self._keeper)
        self._updating = updating = Updating(teller, self.pauses)
        self._kinds: Final[dict[Kind, _Serve]] = {
            Kind.PLAIN: self._plain,
            Kind.PAUSE: pausing.pause,
            Kind.CONTINUE: pausing.go_on,
            Kind.FLUSH: updating.flush,
            Kind.WEIGHTS: updating.update,
            Kind.VERSION: updating.update_version,
            Kind.RELEASE: updating.release,
            Kind.RESUME: updating.resume,
            Kind.OPEN_SESSION: self.engine_sessions.open,
            Kind.CLOSE_SESSION: self.engine_sessions.close,
            Kind.LOADS: self._plain,
            Kind.METRICS: self._plain,
            Kind.HEALTH: self._health,
            Kind.ROLE: RoleSwitch(teller, self.pauses).switch,
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the pauses until cancelled; then end them, and close the connections."""
        task_status.started()
        self._shared.observers.append(self._observe, of=(SlotsGiven, WorkerPaused, WorkerRemoved))
        try:
            await self._keeper.run()
        finally:
            self._shared.observers.remove(self._observe)
            self._teller.pool.close()

    def _observe(self, fact: Transition, _state: RouterState) -> None:
        """A worker that somebody else had go on is under no lease any more: ending it would end a
        later pause that somebody else begins."""
        if isinstance(fact, WorkerPaused) and not fact.paused:
            self.pauses.drop(fact.worker)
        self._updating.note(fact)

    async def serve(self, call: ControlCall, how: How, targets: Sequence[Target]) -> list[Outcome]:
        """What came of the call, for each worker that was asked. Raises ``SlimeError``."""
        return await self._kinds[how.kind](call, how, targets)

    def forget(self, worker: WorkerUrl) -> None:
        """Another process answers at this URL now, or none: what was told to it is void."""
        self.pauses.forget(worker)

    def _note_paused(self, worker: WorkerUrl, paused: bool) -> None:
        known = self._shared.fleet.workers.get(worker)
        if known is not None and known.paused != paused:
            self._teller.commit([WorkerPaused(worker=worker, paused=paused)])

    async def _plain(self, call: ControlCall, how: How, targets: Sequence[Target]) -> list[Outcome]:
        return await self._teller.tell(self._teller.order(call, how), targets)

    async def _health(
        self, call: ControlCall, how: How, targets: Sequence[Target]
    ) -> list[Outcome]:
        """A paused worker fails its check after a long while, and is not sick: it is not asked."""
        patient = replace(how, seconds=self._shared.args.health_check_timeout_s)
        asked = [one for one in targets if not self._shared.fleet.workers[one.url].paused]
        return await self._plain(call, patient, asked)
