"""What the kernel tells of a connection that nobody reads from: that its peer has left."""

from __future__ import annotations

from collections.abc import Callable

import trio

from tests.simulate.shell.network import Network, SimStream

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
        stream = self._network.numbered.get(descriptor)
        if self._nursery is not None and stream is not None:
            scope = self._waits[descriptor] = trio.CancelScope()
            self._nursery.start_soon(self._wait, stream, descriptor, scope, ended)

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
        self,
        stream: SimStream,
        descriptor: int,
        scope: trio.CancelScope,
        ended: Callable[[], None],
    ) -> None:
        with scope:  # which may be over, and the stream closed, before this begins
            await stream.wait_hangup()
        if self._waits.pop(descriptor, None) is not None:
            ended()
