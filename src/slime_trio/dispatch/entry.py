"""A request on its way to the fleet, its calls, and the errors by which the router ends it."""

from __future__ import annotations

import math
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import trio

from slime_core.admission import Ticket
from slime_core.errors import WorkerError
from slime_core.fleet import Worker
from slime_core.types import CallId, WorkerUrl
from slime_trio.dispatch.wish import Wish

if TYPE_CHECKING:
    from slime_trio.router import Router

__all__ = ["Entry", "Live", "StoppedError", "deadline_exceeded", "shutting_down"]

_RETRY_S: Final = 1.0


class Live:
    """A generating call from its admission to its end. ``rids``: the names it can be aborted by.

    ``workers``: where it is; none while it waits, two of a pair. ``aborted``: its abort was asked
    for here.
    """

    __slots__ = ("aborted", "call", "rids", "session", "tenant", "workers")

    def __init__(
        self, call: CallId, rids: tuple[str, ...], session: str | None, tenant: str
    ) -> None:
        self.call: Final = call
        self.rids: Final = rids
        self.session: Final = session
        self.tenant: Final = tenant
        self.workers: tuple[WorkerUrl, ...] = ()
        self.aborted = False

    @property
    def worker(self) -> WorkerUrl | None:
        """Where it samples, once it is there."""
        return self.workers[-1] if self.workers else None


_was_aborted: Final = attrgetter("aborted")


class Entry:
    """A request from its arrival to its end."""

    __slots__ = (
        "_settling",
        "aborted",
        "arrived",
        "deadline",
        "error",
        "excluded",
        "is_inside",
        "is_settled",
        "lives",
        "router",
        "ticket",
        "urls",
        "wish",
        "workers",
    )

    def __init__(self, router: Router, wish: Wish, lives: tuple[Live, ...]) -> None:
        self.router: Final = router
        self.wish: Final = wish
        self.lives: Final = lives
        self.arrived: Final = trio.current_time()
        self.deadline: Final = math.inf if wish.timeout_s is None else self.arrived + wish.timeout_s
        self.excluded: frozenset[WorkerUrl] = frozenset()
        self.ticket: Ticket | None = None
        self.workers: tuple[Worker, ...] = ()
        """Its workers: none, one, or a prefill and a decode worker."""
        self.urls: tuple[WorkerUrl, ...] = ()
        """Theirs, in the same order."""
        self.is_inside = False
        """Whether it is a reader of the gate."""
        self.error: Exception | None = None
        self.aborted = False
        self.is_settled = False
        """Whether it is known how its waiting ended: with a worker, aborted or refused."""
        self._settling: trio.Event | None = None

    @property
    def is_aborted(self) -> bool:
        """Whether the end of all its calls was asked for, be they here or at a worker."""
        return self.aborted or (bool(self.lives) and all(map(_was_aborted, self.lives)))

    @property
    def has_waited(self) -> bool:
        """Whether its task ever had to wait for its turn."""
        return self._settling is not None

    def occupy(self, workers: tuple[Worker, ...]) -> None:
        """These are its workers from now on, and those of its calls."""
        self.workers = workers
        self.urls = tuple([worker.url for worker in workers])
        for live in self.lives:
            live.workers = self.urls

    def refuse(self, error: Exception) -> None:
        """It ends with this, if it still waits."""
        if not self.is_settled:
            self.error = error
            self.settle()

    def abort(self) -> None:
        """It ends as one that was aborted in its queue, if it still waits."""
        if not self.is_settled:
            self.aborted = True
            self.settle()

    def settle(self) -> None:
        """Its waiting has ended."""
        self.is_settled = True
        if self._settling is not None:
            self._settling.set()

    def unsettle(self) -> None:
        """It waits again."""
        self.is_settled = False

    async def until_settled(self) -> None:
        """Wait until its waiting has ended: for its own task."""
        if not self.is_settled:
            self._settling = trio.Event()
            await self._settling.wait()


class StoppedError(WorkerError):
    """The router itself ended the request, wherever it was: its time is over, or the router's."""


def shutting_down() -> StoppedError:
    """What a request is told when the router is being stopped."""
    return StoppedError(
        "the router is being stopped",
        status=503,
        code="shutting_down",
        retry_after_s=_RETRY_S,
    )


def deadline_exceeded() -> StoppedError:
    """What a request is told whose time is over."""
    return StoppedError(
        "the answer was not complete within the time that was given for it",
        status=504,
        code="deadline_exceeded",
    )
