"""Who looks after the workers: starts the chores that are due, and sleeps until the next one is.

One task looks at all workers, each time something happened or became due, and starts visits that
run beside each other; a visit that takes its time delays nobody. What happened is learnt from
committed transitions, whoever committed them: an answer of a client's call that names new weights
wakes the keeper as much as a poll does.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import structlog
import trio

from slime_core.fleet import Worker
from slime_core.health import Event
from slime_core.policies import least_load
from slime_core.state import RouterState
from slime_core.transitions import (
    Transition,
    VersionFellBack,
    VersionSeen,
    WorkerAdded,
    WorkerHealth,
    WorkerPaused,
    WorkerRemoved,
)
from slime_core.types import WorkerUrl
from slime_core.weights import fall_back, fall_back_deadline
from slime_trio.config import Settings
from slime_trio.policies import load_policy
from slime_trio.router import Router
from slime_trio.tending.chores import DUE, Known
from slime_trio.tending.diary import Diary
from slime_trio.tending.questions import ADMIN_CLIENT, Questions
from slime_trio.tending.visits import VISITS, Visitor

__all__ = ["KEEPERS_KINDS", "Keeper", "keeper_of"]

_LONGEST_SLEEP_S: Final = 3600.0
_WAKING: Final = (WorkerAdded, WorkerHealth, WorkerPaused, WorkerRemoved)
KEEPERS_KINDS: Final = (*_WAKING, VersionSeen, VersionFellBack)
"""What :meth:`Keeper.observe` is to be told of."""

_log: Any = structlog.get_logger("slime_router")


class Keeper:
    """Looks after the workers of one process."""

    def __init__(self, router: Router, questions: Questions) -> None:
        self._router = router
        self._questions = questions
        self._diaries: dict[WorkerUrl, Diary] = {}
        self._woken = trio.Event()
        self._sighting = -1
        self._wants_loads = _reads_loads(router.args)

    def observe(self, fact: Transition, state: RouterState) -> None:
        """An observer of committed transitions: wakes the keeper where one may concern it."""
        match fact:
            case WorkerPaused():
                self._diary(fact.worker).note_pause()
            case WorkerHealth(event=Event.UNREACHABLE):
                self._diary(fact.worker).refused = True
            case _:
                pass
        sighted = state.versions.sighting != self._sighting
        if sighted or isinstance(fact, _WAKING) or self._leaves_doubt(fact, state):
            self._sighting = state.versions.sighting
            self._woken.set()

    def _leaves_doubt(self, fact: Transition, state: RouterState) -> bool:
        """Whether an answer told of other weights than the worker was known to hold, and is the
        first to do so: after an update many answers that began before it will."""
        if not isinstance(fact, VersionSeen) or fact.sighting is not None:
            return False
        worker = state.fleet.workers.get(fact.worker)
        if worker is None or worker.confirmed >= state.versions.sighting:
            return False
        diary = self._diary(fact.worker)
        was_doubted, diary.is_doubted = diary.is_doubted, True
        return not was_doubted

    async def keep(self) -> None:
        """Look after them until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._woken = trio.Event()
                self._fall_back()
                soonest = self._start_what_is_due(nursery)
                self._forget_who_left()
                with trio.move_on_at(soonest):
                    await self._woken.wait()

    def knows(self, url: WorkerUrl) -> bool:
        """Whether anything of a worker is remembered."""
        return url in self._diaries

    async def poll(self, url: WorkerUrl) -> None:
        """Ask a worker for its weights now, whether or not somebody else does."""
        await self._visitor(url).poll()

    async def contact(self, url: WorkerUrl) -> None:
        """Contact a worker now, as first of all."""
        await self._visit("contact", url)

    def expect_another(self, url: WorkerUrl) -> None:
        """A worker has registered: another process may be there now, which nobody has paused."""
        self._diary(url).is_new = True

    def _visitor(self, url: WorkerUrl) -> Visitor:
        return Visitor(self._router, self._questions, url, self._diary(url))

    def _diary(self, url: WorkerUrl) -> Diary:
        diary = self._diaries.get(url)
        if diary is None:
            diary = self._diaries[url] = Diary(jitter=self._router.shared.chance())
        return diary

    def _start_what_is_due(self, nursery: trio.Nursery) -> float:
        """Start chores; when the next one is due, in seconds."""
        now = trio.current_time()
        soonest = now + _LONGEST_SLEEP_S
        deadline = fall_back_deadline(self._router.state, self._router.args.version_grace_s)
        if deadline is not None:
            soonest = min(soonest, deadline)
        for worker in self._router.state.fleet.listed():
            known = self._known(worker)
            for chore, due in DUE.items():
                at = None if chore in known.diary.busy else due(known)
                if at is not None and at <= now:
                    known.diary.busy.add(chore)
                    nursery.start_soon(partial(self._visit, chore, worker.url))
                elif at is not None:
                    soonest = min(soonest, at)
        return soonest

    def _known(self, worker: Worker) -> Known:
        shared = self._router.shared
        return Known(
            args=self._router.args,
            worker=worker,
            diary=self._diary(worker.url),
            sighting=shared.versions.sighting,
            newest=shared.versions.newest,
            answered=shared.worker_book.answered_at(worker.url),
            wants_loads=self._wants_loads,
        )

    async def _visit(self, chore: str, url: WorkerUrl) -> None:
        """Do a chore. A bug in it is reported, and must not end the tending of all."""
        diary = self._diary(url)
        diary.busy.add(chore)
        try:
            await VISITS[chore](self._visitor(url))
        except Exception:
            _log.exception("internal error", task=chore, worker=url)
        finally:
            diary.busy.discard(chore)
            diary.ended[chore] = trio.current_time()
            if chore == "check":
                diary.jitter = self._router.shared.chance()
            self._woken.set()

    def _fall_back(self) -> None:
        """Let the fleet's version follow a trainer that started over."""
        state, grace_s = self._router.state, self._router.args.version_grace_s
        while (fact := fall_back(state, trio.current_time(), grace_s)) is not None:
            self._router.commit(fact)

    def _forget_who_left(self) -> None:
        """Nothing is kept of workers that are gone but their ids."""
        shared = self._router.shared
        for url in [url for url in self._diaries if url not in shared.fleet.workers]:
            if not self._diaries[url].busy:
                del self._diaries[url]
                shared.worker_book.forget(url)
                shared.parses_reasoning.pop(url, None)
                shared.context_lengths.pop(url, None)
                shared.pool.forget(url)


def _reads_loads(args: Settings) -> bool:
    """Whether a policy in use reads what workers report of their loads."""
    names = (args.policy, args.prefill_policy, args.decode_policy)
    policies = map(load_policy, names)
    return any(one is least_load or getattr(one, "reads_loads", False) for one in policies)


def keeper_of(router: Router) -> Keeper:
    """Who tends the workers; where nobody does, one who knows nothing of them yet."""
    keeper = router.shared.keeper
    if keeper is None:
        client = router.component_registry.get(ADMIN_CLIENT)
        keeper = Keeper(router, Questions(router.shared, client))
    return keeper
