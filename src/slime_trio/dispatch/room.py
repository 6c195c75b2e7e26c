"""Where requests wait for their turn and for a worker, and from which they are let in.

Nobody in here polls, and no task of its own runs: after every commit by which a place may have
come free, and whenever the gate opens, those whose turn it is are placed at once, synchronously and
on their behalf (:meth:`WaitingRoom.let_in`). A request that waits is therefore one that cannot be
placed, at any moment that anybody could look. Its task sleeps until it has been placed or refused,
and its ``finally`` gives back whatever it was given meanwhile, so that being cancelled between the
two leaks nothing.

Which worker a request would get depends on much, *whether* it gets any only on what it needs
(:func:`~slime_trio.dispatch.place.needs_of`). So requests with like needs are tried once for all,
and not again before the fleet has changed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final

import trio

from slime_core.admission import Queue
from slime_core.errors import WorkerError
from slime_core.placing import NoWorker
from slime_core.transitions import (
    SlotsGiven,
    Transition,
    VersionFellBack,
    VersionSeen,
    WorkerAdded,
    WorkerHealth,
    WorkerMismatch,
    WorkerPaused,
    WorkerRemoved,
)
from slime_core.types import WorkerUrl
from slime_trio.dispatch.entry import Entry, deadline_exceeded
from slime_trio.dispatch.place import Places, needs_of

if TYPE_CHECKING:
    from slime_trio.shared import Shared

__all__ = ["WaitingRoom"]

_CHANGES: Final = (
    VersionFellBack,
    WorkerAdded,
    WorkerHealth,
    WorkerMismatch,
    WorkerPaused,
    WorkerRemoved,
)
"""By these somebody may get a worker who could not before; see also :meth:`WaitingRoom._frees`."""
_MAY_FREE: Final = frozenset({*_CHANGES, SlotsGiven, VersionSeen})
_NEEDS_KEPT: Final = 1024
_RETRY_S: Final = 1.0


class WaitingRoom:
    """The queue of all tenants' generations; see the module."""

    def __init__(self, shared: Shared, places: Places, kept_free: Callable[[], int]) -> None:
        args = shared.args
        self._shared: Final = shared
        self._places: Final = places
        self._kept_free: Final = kept_free
        self._timeout_s: Final = args.queue_timeout_s or math.inf
        self._queue: Final = Queue(limit=args.max_concurrent_requests, places=args.queue_size)
        self._entries: Final[dict[int, Entry]] = {}
        """Those that have a place in the queue, waiting or not."""
        self._needs: dict[Hashable, int] = {}
        """Different needs by number: those are compared again and again."""
        self._blocked: Final[set[Hashable]] = set()
        """Needs that cannot be met as things are."""
        self._versions: Final[dict[WorkerUrl, object]] = {}
        """What was known of each worker's weights when somebody was last let in by it."""
        self._numbers: Final = itertools.count()
        self._is_letting_in = False
        shared.gate.opened = self.changed

    @property
    def running(self) -> int:
        """Generations that have been let in."""
        return self._queue.running

    @property
    def waiting(self) -> list[Entry]:
        """Requests that wait, those that are to be tried again included, by their arrival."""
        return [one for one in self._entries.values() if not one.is_settled]

    @property
    def waiting_count(self) -> int:
        """How many wait to be let in for the first time."""
        return self._queue.waiting

    # -- a request's way -----------------------------------------------------------------------

    def enter(self, entry: Entry) -> None:
        """Wait for a turn, or get it at once. Raises ``WorkerError`` (429) if no place is left."""
        if not entry.wish.generates:
            self._placed(entry)
        elif not self._runs_at_once(entry):
            self._stand_in_line(entry)

    def _runs_at_once(self, entry: Entry) -> bool:
        """Where nobody waits there is no turn to wait for: whether it has its worker, or the error
        that it ends with. Most requests pay no more than this for the queue."""
        if not self._queue.has_room(kept_free=self._kept_free()) or not self._placed(entry):
            return False
        if entry.error is None:
            wish = entry.wish
            entry.ticket = self._queue.run(
                tenant=entry.router.tenant, session=wish.key or "", priority=wish.priority
            )
            self._entries[entry.ticket.number] = entry
        return True

    def _stand_in_line(self, entry: Entry) -> None:
        ticket = self._queue.join(
            tenant=entry.router.tenant,
            session=entry.wish.key or "",
            priority=entry.wish.priority,
            needs=self._needs_of(entry),
            deadline=self._patience(entry),
        )
        entry.ticket = ticket
        self._entries[ticket.number] = entry
        self.let_in()
        surplus = None if entry.is_settled else self._queue.surplus(ticket)
        if surplus is not None:
            refused = self._entries[surplus.number]
            self._drop(refused)
            refused.refuse(_queue_full())

    def _patience(self, entry: Entry) -> float:
        """Until when it waits, if it waits from now on."""
        return min(entry.deadline, trio.current_time() + self._timeout_s)

    def _needs_of(self, entry: Entry) -> int:
        needs = needs_of(entry.wish, entry.excluded)
        if needs not in self._needs and len(self._needs) >= _NEEDS_KEPT:
            # Numbers are not given again, so those that wait keep theirs.
            self._needs = {}
        return self._needs.setdefault(needs, next(self._numbers))

    async def wait(self, entry: Entry) -> None:
        """Until it is placed or aborted. Raises what it is refused with."""
        if not entry.is_settled:
            deadline = math.inf if entry.ticket is None else entry.ticket.deadline
            with trio.move_on_at(deadline):
                await entry.until_settled()
            if not entry.is_settled:
                self._expire(trio.current_time())
        self.check(entry)

    def check(self, entry: Entry) -> None:
        """It has waited, if it had to: raise what it is refused with."""
        if entry.error is not None:
            raise entry.error

    def may_try_again(self, entry: Entry, failed: WorkerUrl) -> bool:
        """Whether another worker than those that failed it can take it now, or may soon."""
        try:
            self._places.find(entry.router, entry.wish, entry.excluded | {failed}, chance=None)
        except NoWorker as error:
            return error.may_come and entry.wish.generates
        except Exception:  # a policy of somebody's own: it is asked again, and told of then
            return False
        return True

    def step_back(self, entry: Entry, failed: WorkerUrl) -> None:
        """It gives its slots back and is not given any before it comes :meth:`again`."""
        self.give_back(entry)
        entry.excluded |= {failed}
        entry.unsettle()

    def again(self, entry: Entry) -> None:
        """Wait for another worker."""
        if entry.is_settled:
            return  # it was aborted meanwhile
        if entry.ticket is None:
            self._placed(entry)
            return
        entry.ticket = self._queue.rejoin(
            entry.ticket, needs=self._needs_of(entry), deadline=self._patience(entry)
        )
        self.let_in()

    def give_back(self, entry: Entry) -> None:
        """Its slots, and its way through the gate. Safe to repeat."""
        urls = entry.urls
        try:
            if urls:
                entry.occupy(())
                calls = entry.wish.calls
                entry.router.commit(*[SlotsGiven(worker=url, calls=calls) for url in urls])
        finally:
            if entry.is_inside:
                entry.is_inside = False
                self._shared.gate.end_reading()

    def withdraw(self, entry: Entry) -> None:
        """It waits no longer: what it ends with is known."""
        self._drop(entry)

    def leave(self, entry: Entry) -> None:
        """It is over, whatever it was at. Safe to repeat."""
        self._drop(entry)
        self.give_back(entry)
        if self._queue.waits:
            self.let_in()

    # -- letting in ----------------------------------------------------------------------------

    def committed(self, facts: tuple[Transition, ...]) -> None:
        """Transitions were committed."""
        if not self._queue.waits:
            self._blocked.clear()  # nobody is there to be let in
            return
        for fact in facts:
            if type(fact) in _MAY_FREE and self._frees(fact):
                self.changed()
                return

    def _frees(self, fact: Transition) -> bool:
        """Whether somebody may be placed by it who could not be before.

        By far the most transitions say what is known already, or give slots of workers that have
        room for any number of calls.
        """
        workers = self._shared.fleet.workers
        match fact:
            case SlotsGiven(worker=url):
                return url in workers and workers[url].health.allowance is not None
            case VersionSeen(worker=url):
                worker, versions = workers.get(url), self._shared.versions
                known = worker and (worker.version, worker.stale, versions.newest, versions.epoch)
                if self._versions.get(url) == known:
                    return False
                self._versions[url] = known
                return True
            case _:
                return isinstance(fact, _CHANGES)

    def changed(self) -> None:
        """Whatever could not be had may be there now."""
        self._blocked.clear()
        self.let_in()

    def let_in(self) -> None:
        """Place everybody whose turn it is."""
        if self._is_letting_in or not self._entries:
            return  # what is committed in here brings nobody nearer
        self._is_letting_in = True
        try:
            while True:
                ticket = self._queue.next(self._blocked, kept_free=self._kept_free())
                if ticket is None:
                    break
                entry = self._entries[ticket.number]
                if not self._placed(entry):
                    self._blocked.add(ticket.needs)
                elif entry.error is None:
                    self._queue.admit(ticket)
                else:
                    self._drop(entry)
        finally:
            self._is_letting_in = False

    def _placed(self, entry: Entry) -> bool:
        """Whether it need not wait: it has its workers, or the error that it ends with."""
        generates = entry.wish.generates
        if generates and not self._shared.gate.begin_reading():
            return False
        entry.is_inside = generates
        try:
            found = self._places.find(
                entry.router, entry.wish, entry.excluded, chance=self._shared.chance
            )
            for place in found:
                entry.router.commit(place.taken_by(entry.wish.calls))
                entry.occupy((*entry.workers, place.worker))
        except Exception as error:
            self.give_back(entry)
            if generates and isinstance(error, NoWorker) and error.may_come:
                return False
            entry.refuse(error)
            return True
        entry.settle()
        return True

    def _drop(self, entry: Entry) -> None:
        ticket = entry.ticket
        if ticket is not None and self._entries.pop(ticket.number, None) is not None:
            self._queue.leave(ticket)

    def _expire(self, now: float) -> None:
        for ticket in self._queue.expire(now):
            entry = self._entries.pop(ticket.number)
            entry.refuse(deadline_exceeded() if entry.deadline <= now else _queue_timeout())


def _queue_full() -> WorkerError:
    return WorkerError(
        "too many requests wait already (--queue-size)",
        status=429,
        code="queue_full",
        retry_after_s=_RETRY_S,
    )


def _queue_timeout() -> WorkerError:
    return WorkerError(
        "no worker had room for this request in time (--queue-timeout-s)",
        status=503,
        code="queue_timeout",
        retry_after_s=_RETRY_S,
    )
