"""One answer on its way to a client: few sends, each bounded in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import trio

from slime_trio.exchange import Headers
from slime_trio.listener.answer_writer import AnswerWriter
from slime_trio.listener.request_head import RequestHead

__all__ = ["Answer", "Sends"]

_JOINED: Final = 16 * 1024
"""Up to this size a piece is copied behind what goes before it, which is cheaper than a send."""


class Sends(Protocol):
    """Where an answer goes to. Sending raises ``ClientGone``."""

    async def send(self, data: bytes) -> None:
        """Send everything."""

    @property
    def sends_now(self) -> bool:
        """Whether :meth:`send_now` is of use."""

    def send_now(self, data: bytes) -> int:
        """Send what can be sent without waiting; how much that was."""


class Answer:
    """The answer to ``head``, by :meth:`start`, :meth:`send` and :meth:`end`.

    ``sends`` sends bytes to the client and raises ``ClientGone``; so does every method here. What
    is a bug of ours (a body of another length than announced) is an ``InvariantError``. The
    connection can be used again only if ``keeps_alive`` in the end.
    """

    __slots__ = ("_date", "_held", "_invitation", "_sends", "_writer", "started")

    def __init__(
        self,
        head: RequestHead,
        sends: Sends,
        date: Callable[[], bytes],
    ) -> None:
        self._writer = AnswerWriter(head)
        self._sends = sends
        self._date = date
        self._held = b""
        self._invitation: trio.Event | None = None
        self.started = False

    @property
    def keeps_alive(self) -> bool:
        """Whether it is complete and another request may follow."""
        return self._writer.keeps_alive

    @property
    def is_direct(self) -> bool:
        """Whether :meth:`send_now` is of use."""
        return self._sends.sends_now

    @property
    def flushed(self) -> bool:
        """Whether nothing of it waits to be sent."""
        return not self._held

    async def go_on(self) -> None:
        """Have the client send its body; before :meth:`start`, which another task may call."""
        self._invitation = trio.Event()
        try:
            await self._sends.send(self._writer.interim(100, date=self._date()))
        finally:
            self._invitation.set()

    async def start(self, status: int, headers: Headers, *, closes: bool = False) -> None:
        """Give status and header fields.

        Where a length is announced its body is about to follow, and the head leaves with it. A
        stream may take its time: its head leaves at once.
        """
        if self._invitation is not None:
            await self._invitation.wait()
        data = self._writer.start(status, headers, date=self._date(), closes=closes)
        self.started = True
        if self._writer.announces_length:
            self._held = data
        else:
            await self._sends.send(data)

    async def send(self, piece: bytes) -> None:
        """Send a piece of the body."""
        data = self._writer.data(piece)
        if self._held and len(data) > _JOINED:
            await self.flush()
        elif self._held:
            data, self._held = self._held + data, b""
        if data:
            await self._sends.send(data)

    def send_now(self, piece: bytes) -> bool:
        """Send a piece as far as that can be done without waiting; whether nothing of it waits."""
        data = self._writer.data(piece)
        if self._held:
            self._held += data
            return False
        sent = self._sends.send_now(data)
        if sent < len(data):
            self._held = data[sent:]
        return not self._held

    async def flush(self) -> None:
        """Send what waits."""
        held, self._held = self._held, b""
        if held:
            await self._sends.send(held)

    async def end(self) -> None:
        """The body is complete."""
        self._held += self._writer.end()
        if self._held:
            await self.flush()
