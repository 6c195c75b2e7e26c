"""Who notices that a worker has closed a connection which nobody reads from."""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import trio

__all__ = ["EndWatch", "Watch"]

_AT_ONCE: Final = 64
"""So many ends are seen to without looking up: closing a connection takes some 10 µs."""


class Watch(Protocol):
    """Calls back once the other side of a connection has ended it."""

    def add(self, descriptor: int, ended: Callable[[], None]) -> None:
        """Call ``ended`` when this socket's peer closes, resets or half-closes; once."""

    def remove(self, descriptor: int) -> None:
        """The socket is about to be closed: forget it."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Notice ends of what is added from now on, until cancelled."""


class EndWatch:
    """One epoll descriptor for all connections, and one task (:meth:`run`) that waits for it.

    Each socket is registered once in its life, for the end of what its peer sends and nothing
    else, and edge-triggered: neither a request nor an answer costs anything here, and no idle
    socket is ever asked. Where there is no epoll, or nobody runs it, it notices nothing, and ends
    show when a connection is taken.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._ended: dict[int, Callable[[], None]] = {}

    def add(self, descriptor: int, ended: Callable[[], None]) -> None:
        """See :class:`Watch`. ``-1`` is no socket: it is let pass."""
        if self._epoll is None or descriptor < 0:
            return
        # The kernel may have no room for another watch: then this end is noticed later.
        with suppress(OSError):
            self._epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLET)
            self._ended[descriptor] = ended

    def remove(self, descriptor: int) -> None:
        """See :class:`Watch`. The kernel forgets a descriptor by itself when it is closed."""
        self._ended.pop(descriptor, None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See :class:`Watch`."""
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
                        if (ended := self._ended.get(descriptor)) is not None:
                            ended()
            finally:
                self._epoll = None
                self._ended.clear()
