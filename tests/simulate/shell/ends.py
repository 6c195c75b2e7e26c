"""What the kernel tells of a connection that nobody reads from: that its peer has left."""

from __future__ import annotations

from collections.abc import Callable

import trio

from tests.simulate.shell.network import Network

__all__ = ["NetworkWatch"]


class NetworkWatch:
    """A :class:`slime_trio.upstream.Watch` over the streams of a network that have a number.

    As the kernel's, it tells of ends only, once for each stream, also of an end behind bytes that
    are still unread; and while nobody runs it, of none.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._nursery: trio.Nursery | None = None
        self._waits: dict[int, trio.CancelScope] = {}

    def add(self, descriptor: int, ended: Callable[[], None]) -> None:
        """See ``Watch``."""
        if self._nursery is not None and descriptor in self._network.numbered:
            scope = self._waits[descriptor] = trio.CancelScope()
            self._nursery.start_soon(self._wait, descriptor, scope, ended)

    def remove(self, descriptor: int) -> None:
        """See ``Watch``."""
        if (scope := self._waits.pop(descriptor, None)) is not None:
            scope.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See ``Watch``."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._waits.clear()

    async def _wait(
        self, descriptor: int, scope: trio.CancelScope, ended: Callable[[], None]
    ) -> None:
        with scope:
            await self._network.numbered[descriptor].wait_hangup()
        if self._waits.pop(descriptor, None) is not None:
            ended()
