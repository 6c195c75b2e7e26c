"""Streams whose end only their reader can know: somebody must go on reading while requests are
served, lest a client that leaves be noticed too late."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from slime_trio.byte_stream import STREAM_FAILURES, ClientStream

__all__ = ["ReadAhead"]

_AHEAD: Final = 256 * 1024
"""How many bytes may wait to be wanted."""


class ReadAhead:
    """A stream that is read by :meth:`run`, a little ahead of who wants it, and written as before.

    For TLS and streams in memory; of a plain socket the kernel tells when its client has left.
    """

    def __init__(self, stream: ClientStream) -> None:
        self._stream = stream
        self._held: deque[bytes] = deque()
        self._bytes = 0
        self._has_ended = False
        self._changed = trio.lowlevel.ParkingLot()
        self.socket_number = stream.socket_number
        self.send_all = stream.send_all
        self.sends_now = stream.sends_now
        self.send_now = stream.send_now
        self.send_some = stream.send_some
        self.send_eof = stream.send_eof
        self.is_stale = stream.is_stale
        self.close = stream.close
        self.aclose = stream.aclose

    async def run(self, left: Callable[[], None]) -> None:
        """Read until the client has left or is lost, and call ``left`` then."""
        try:
            while data := await self._stream.receive_some(_AHEAD):
                self._held.append(data)
                self._bytes += len(data)
                self._changed.unpark_all()
                while self._bytes >= _AHEAD:
                    await self._changed.park()
        except STREAM_FAILURES:
            pass  # What is sent will meet it, too.
        self._has_ended = True
        self._changed.unpark_all()
        left()

    async def receive_some(self, _max_bytes: int) -> bytes:
        """What has been read, of one read; ``b""`` behind the last."""
        while not self._held and not self._has_ended:
            await self._changed.park()
        if not self._held:
            return b""
        data = self._held.popleft()
        self._bytes -= len(data)
        self._changed.unpark_all()
        return data
