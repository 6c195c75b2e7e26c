"""Who reads from many connections at once: pieces of streams are taken by plain calls.

A task that waits for its socket costs, for every event of a stream, a registration in the kernel
and out of it, a turn of the scheduler, and a walk through all the coroutines between the task and
its wait, down and up again: together more than the event itself. Here a connection is registered
once for as long as its stream lasts, and one task calls whoever wants what has come. Whatever is
not to be had by a plain call wakes the task whose stream it is.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

import outcome
import trio

__all__ = ["ReadWatch"]

_AT_ONCE: Final = 64
"""So many connections are read from, once each, before others have their turn: some 2 ms."""


class _Reader(NamedTuple):
    task: trio.lowlevel.Task
    readable: Callable[[], bool]


class ReadWatch:
    """One epoll descriptor for all that are read from, and one task (:meth:`run`) that waits for
    it. Where there is no epoll, or nobody runs it, it is of no use (:attr:`is_running`).
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._readers: dict[int, _Reader] = {}

    @property
    def is_running(self) -> bool:
        """Whether :meth:`read` may be called."""
        return self._epoll is not None

    async def read(self, descriptor: int, readable: Callable[[], bool]) -> bool:
        """Have ``readable`` called whenever there is something to read from this socket, until it
        returns false.

        Raises what ``readable`` raises. It is called in the context of the calling task, by another
        one. Returns early when :meth:`run` ends; false, at once, where the kernel has no room for
        another watch.
        """
        assert self._epoll is not None
        try:
            self._epoll.register(descriptor, select.EPOLLIN)
        except OSError:
            return False
        self._readers[descriptor] = _Reader(trio.lowlevel.current_task(), readable)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._forget(descriptor)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        return True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Call those who read, until cancelled."""
        if not hasattr(select, "epoll"):
            task_status.started()
            return
        with select.epoll() as epoll:
            self._epoll = epoll
            task_status.started()
            try:
                while True:
                    await trio.lowlevel.wait_readable(epoll.fileno())
                    for descriptor, _ in epoll.poll(0, _AT_ONCE):
                        if (reader := self._readers.get(descriptor)) is not None:
                            self._call(descriptor, reader)
            finally:
                for descriptor, reader in list(self._readers.items()):
                    self._end(descriptor, reader, outcome.Value(None))
                self._epoll = None

    def _call(self, descriptor: int, reader: _Reader) -> None:
        try:
            if reader.task.context.run(reader.readable):
                return
        except Exception as error:  # the reader's own, not that of all others
            self._end(descriptor, reader, outcome.Error(error))
        else:
            self._end(descriptor, reader, outcome.Value(None))

    def _end(self, descriptor: int, reader: _Reader, told: outcome.Outcome[None]) -> None:
        if self._readers.get(descriptor) is not reader:
            return  # What it was called with has cancelled it, and it wakes by that.
        self._forget(descriptor)
        trio.lowlevel.reschedule(reader.task, told)

    def _forget(self, descriptor: int) -> None:
        del self._readers[descriptor]
        assert self._epoll is not None
        with suppress(OSError):
            self._epoll.unregister(descriptor)
