"""A reply that is written once and read by any number of clients, each from its first byte.

The writer goes as fast as the fastest reader: while none takes anything, nothing more is asked of
the worker, just as with a single client. The slower ones read what was recorded at their own pace.
Where there is no room to record any more, what every reader has had is let go of, and a reader that
falls further behind than what was recorded so far is cut off, so that it delays nobody.

A reader that has had everything and can be given more by a plain call is given it by the writer:
then neither waits for the other, and a piece wakes no task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, cast

import trio

from slime_trio.exchange import ClientGone, Headers, Reply, direct

__all__ = ["Flushing", "Recording"]

_AT_ONCE: Final = 64 * 1024
"""Up to this many bytes are sent in one piece to a reader that is behind."""


class Flushing(Protocol):
    """A reply that knows whether what it was given has left for the client."""

    @property
    def flushed(self) -> bool:
        """Whether all of it has."""

    async def flush(self) -> None:
        """Wait until it has. Raises :class:`ClientGone`."""


def _flushing(reply: Reply) -> Flushing | None:
    """``reply``, if it is one; asking a protocol whether it is costs a tenth of a request."""
    return cast("Flushing", reply) if hasattr(reply, "flushed") else None


class _Reader:
    """``at``: how many pieces it has had. While it ``waits``, it has had all of them."""

    __slots__ = ("at", "direct", "error", "owes", "waits")

    def __init__(self, reply: Reply) -> None:
        self.at = 0
        self.direct = direct(reply)
        self.waits = False
        self.owes = False
        """Whether of the next piece, which it was given, something has not left yet."""
        self.error: Exception | None = None
        """What giving it a piece has come to."""

    def give(self, data: bytes) -> bool:
        """Give it a piece by a plain call; whether its own task need not see to it."""
        if self.direct is None or not self.waits:
            return False
        try:
            self.owes = not self.direct.send_now(data)
        except Exception as error:  # its own task raises it: no other reader is to suffer
            self.error = error
        if self.owes or self.error is not None:
            self.waits = False
            return False
        self.at += 1
        return True


class Recording:
    """To its writer a :class:`slime_trio.exchange.Reply`, which never fails.

    ``grow`` is told of so many more bytes, and says whether there is room for them.
    """

    def __init__(self, grow: Callable[[int], bool]) -> None:
        self.started = False
        self.is_direct = True
        self.status = 0
        self.ended = False
        self._error: Exception | None = None
        self._headers: Headers = []
        self._grow: Final = grow
        self._pieces: Final[list[bytes]] = []
        self._before = 0  # pieces that are no longer in the list
        self._first = 0  # the first piece that is still held
        self._bytes = 0
        self._window: int | None = None  # bytes held at the most, once there is no more room
        self._delivered = -1  # pieces that some reader was given and that have left for it
        self._readers: Final[list[_Reader]] = []
        self._written: Final = trio.lowlevel.ParkingLot()
        self._taken: Final = trio.lowlevel.ParkingLot()

    @property
    def has_readers(self) -> bool:
        """Whether anybody is there."""
        return bool(self._readers)

    @property
    def was_delivered(self) -> bool:
        """Whether some client was given all of it, as far as can be known."""
        return self.ended and self._delivered == self._count

    @property
    def _count(self) -> int:
        return self._before + len(self._pieces)

    # -- the writer ----------------------------------------------------------------------------

    async def start(self, status: int, headers: Headers) -> None:
        """Give status and header fields, once."""
        self.started, self.status, self._headers = True, status, headers
        self._written.unpark_all()
        if not self._readers:
            await trio.lowlevel.checkpoint()

    async def send(self, data: bytes) -> None:
        """Record a piece, and wait until a reader has had it, if there is one."""
        if not data:
            return
        self._record(data)
        if not self._readers:
            await trio.lowlevel.checkpoint()
        await self.flush()

    def send_now(self, data: bytes) -> bool:
        """Record a piece; whether nobody need be waited for."""
        self._record(data)
        if self._readers and self._fastest < self._count:
            return False
        if self._window is not None:
            self._shrink(self._window)
        return True

    async def flush(self) -> None:
        """Wait until a reader has had everything, if there is one."""
        while self._readers and self._fastest < self._count:
            await self._taken.park()
        if self._window is not None:
            self._shrink(self._window)

    def _record(self, data: bytes) -> None:
        if self._window is None and not self._grow(len(data)):
            self._window = self._bytes
        self._pieces.append(data)
        self._bytes += len(data)
        given = [reader.give(data) for reader in self._readers]
        if not all(given):
            self._written.unpark_all()

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes. Readers that have had everything are told ``error``."""
        self.ended, self._error = True, error
        self._written.unpark_all()

    @property
    def _fastest(self) -> int:
        readers = self._readers
        if len(readers) == 1:  # as nearly always
            return readers[0].at
        return max((reader.at for reader in readers), default=self._count)

    def _shrink(self, most: int) -> None:
        """Let go of what all have had, and of more where that is over ``most`` bytes."""
        fastest = self._fastest
        all_had = min((reader.at for reader in self._readers), default=fastest)
        while self._first < fastest and (self._first < all_had or self._bytes > most):
            place = self._first - self._before
            self._bytes -= len(self._pieces[place])
            self._pieces[place] = b""
            self._first += 1
        gone = self._first - self._before
        if 2 * gone >= len(self._pieces):
            del self._pieces[:gone]
            self._before = self._first

    # -- the readers ---------------------------------------------------------------------------

    async def read_into(self, reply: Reply, marks: Headers) -> None:
        """Give everything to ``reply``, with ``marks`` among the header fields.

        It is a reader from the call on. Raises what :meth:`end` was told and what ``reply`` raises.
        """
        reader, flushing = _Reader(reply), _flushing(reply)
        self._readers.append(reader)
        try:
            while not self.started and not self.ended:
                await self._written.park()
            if self.started:
                await reply.start(self.status, self._headers + marks)
                await self._copy(reader, reply)
            if self._error is not None:
                raise self._error
            if flushing is not None:
                await flushing.flush()
        finally:
            if self.started and (flushing is None or flushing.flushed):
                self._delivered = max(self._delivered, reader.at)
            self._readers.remove(reader)
            self._taken.unpark_all()

    async def _copy(self, reader: _Reader, reply: Reply) -> None:
        while True:
            reader.waits = False
            if reader.error is not None:
                raise reader.error
            if reader.owes:
                assert reader.direct is not None
                await reader.direct.flush()
                reader.owes = False
                reader.at += 1
                self._taken.unpark_all()
            if reader.at < self._first:
                raise ClientGone("it fell behind, and what comes next is not held any more")
            pieces = self._pieces_from(reader.at)
            if pieces:
                await reply.send(pieces[0] if len(pieces) == 1 else b"".join(pieces))
                reader.at += len(pieces)
                self._taken.unpark_all()
            elif self.ended:
                return
            else:
                reader.waits = True
                await self._written.park()

    def _pieces_from(self, at: int) -> list[bytes]:
        """The next pieces: one, or as many as are few bytes together."""
        first = end = at - self._before
        size = 0
        while end < len(self._pieces):
            size += len(self._pieces[end])
            if size > _AT_ONCE and end > first:
                break
            end += 1
        return self._pieces[first:end]
