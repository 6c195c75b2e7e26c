"""A readers–writer lock on Trio: many readers or one writer, fair to both, safe to cancel.

Who waits for whom
    A writer that holds or waits for the lock keeps out every reader that comes later, so writers
    do not starve. When a writer leaves, all readers that wait by then get in before the next
    writer, so readers do not starve either: none waits for more than one writer's turn and the
    end of the one before it. Writers take their turns in order of arrival.

Two ways to write
    ``write(drain=True)`` is the usual exclusion: it begins when the last reader has left.
    ``write(drain=False)`` excludes other writers and stops new readers, and does not wait for
    those inside: for an action that must not race with what *begins*, and minds nothing that runs.

How it stays right under cancellation
    Whoever leaves hands the lock over in the same synchronous step: counts are changed on behalf
    of those who are woken, never by them. A waiter is therefore either in its queue, where its
    abort function takes it out again, or it holds the lock, and ``trio`` no longer cancels its
    wait. There is no moment between, so there are no lost wake-ups and nothing is leaked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

import trio

__all__ = ["ReadersWriterLock"]

_Queue: TypeAlias = OrderedDict[trio.lowlevel.Task, None]


class ReadersWriterLock:
    """See the module. Not re-entrant: who reads and then drains waits for itself."""

    __slots__ = (
        "_draining",
        "_entering",
        "_is_opening",
        "_is_written",
        "_readers",
        "_waiting_readers",
        "_waiting_writers",
        "opened",
    )

    def __init__(self) -> None:
        self._readers = 0
        self._entering = 0
        self._is_written = self._is_opening = False
        self._draining: _Queue = OrderedDict()
        self._waiting_readers: _Queue = OrderedDict()
        self._waiting_writers: _Queue = OrderedDict()
        self.opened: Callable[[], None] = _nothing
        """Called when readers are let in, before the next writer's turn: for those who wait
        elsewhere and get in by :meth:`begin_reading`. It must not raise or await."""

    @property
    def readers(self) -> int:
        """How many readers are inside."""
        return self._readers

    @property
    def is_written(self) -> bool:
        """Whether a writer holds the lock, be it that it still waits for readers to leave."""
        return self._is_written

    @property
    def waiting(self) -> int:
        """How many wait, to read or to write."""
        return len(self._waiting_readers) + len(self._waiting_writers) + len(self._draining)

    def __repr__(self) -> str:
        written = "written " if self._is_written else ""
        return f"<ReadersWriterLock {written}readers={self._readers} waiting={self.waiting}>"

    def read(self) -> AbstractAsyncContextManager[None]:
        """Be inside with other readers. Entering is a checkpoint; leaving does not await."""
        return self._reading()

    def begin_reading(self) -> bool:
        """Be inside with other readers if that needs no waiting; whether it did not.

        Synchronous; :meth:`end_reading` must follow.
        """
        if self._is_written or (self._waiting_writers and not self._is_opening):
            return False
        self._readers += 1
        return True

    def end_reading(self) -> None:
        """Leave again after :meth:`begin_reading`."""
        self._readers -= 1
        if not self._readers:
            _wake_all(self._draining)

    def write(self, *, drain: bool) -> AbstractAsyncContextManager[None]:
        """Be the only writer, without new readers; with ``drain`` without any.

        Entering is a checkpoint; leaving does not await. Cancelled while it waits for readers to
        leave, it lets those in that it kept out.
        """
        return self._writing(drain)

    async def drained(self) -> None:
        """For the writer inside: wait until no reader is. A checkpoint.

        What ``drain=True`` does on entering, for those who want to bound only this wait.
        """
        assert self._is_written, "only the writer can wait for readers to leave"
        await trio.lowlevel.checkpoint()
        if self._readers:
            await _wait_in(self._draining)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        if self._is_written or self._waiting_writers:
            await _wait_in(self._waiting_readers)
            self._entering -= 1
            self._pass_on()
        else:
            self._readers += 1
        try:
            yield
        finally:
            self.end_reading()

    @asynccontextmanager
    async def _writing(self, drain: bool) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        if self._is_written or self._entering:
            await _wait_in(self._waiting_writers)
        else:
            self._is_written = True
        try:
            if drain:
                await self.drained()
            yield
        finally:
            self._is_written = False
            self._let_readers_in()
            self._pass_on()

    def _let_readers_in(self) -> None:
        self._entering = _wake_all(self._waiting_readers)
        self._readers += self._entering
        self._is_opening = True
        self.opened()
        self._is_opening = False

    def _pass_on(self) -> None:
        """The next writer's turn, once all readers that were let in have really begun: woken in
        the same step, they could begin after it."""
        if self._is_written or self._entering:
            return
        if self._waiting_writers:
            self._is_written = True
            task, _ = self._waiting_writers.popitem(last=False)
            trio.lowlevel.reschedule(task)
        else:
            self._let_readers_in()


def _nothing() -> None:
    pass


async def _wait_in(queue: _Queue) -> None:
    """Wait in ``queue`` until woken by whoever takes this task out of it."""
    task = trio.lowlevel.current_task()
    queue[task] = None

    def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        del queue[task]
        return trio.lowlevel.Abort.SUCCEEDED

    await trio.lowlevel.wait_task_rescheduled(abort)


def _wake_all(queue: _Queue) -> int:
    """Wake all that wait in ``queue``; how many."""
    woken = len(queue)
    while queue:
        task, _ = queue.popitem(last=False)
        trio.lowlevel.reschedule(task)
    return woken
