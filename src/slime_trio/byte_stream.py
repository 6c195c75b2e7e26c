"""A byte stream as this router uses connections, and two that are one.

:class:`TcpStream` works on a plain non-blocking socket. ``trio.SocketStream`` yields to the
scheduler before and after each operation and takes a conflict detector and a cancel shield with
it; on a router's path that is several times the price of the system call (measured: about 100 µs
per relayed event against 30). Here a send first tries, a receive first waits, so each exchange
passes the scheduler at least once per read, which keeps cancellation and fairness.

:class:`TrioStream` adapts anything that speaks Trio's stream interface: TLS, and the memory
streams of ``trio.testing`` with which tests and simulations replace the network.

Connections to workers (:mod:`slime_trio.upstream`) and connections of clients
(:mod:`slime_trio.listener`) are both of these.
"""

from __future__ import annotations

import select
import socket
from typing import Final, Protocol, runtime_checkable

import trio

__all__ = ["STREAM_FAILURES", "ByteStream", "ClientStream", "TcpStream", "TrioStream"]

STREAM_FAILURES: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a stream may raise when the other side, or the way to it, is at fault.

``OSError`` covers refusals, resets, name resolution (``socket.gaierror``) and TLS
(``ssl.SSLError``).
"""

_PIECE: Final = 2**20
"""What is encrypted at once: TLS makes a copy of all it is given, and bodies can be very large."""

_AT_ONCE: Final = 64 * 1024
"""What one step of a send takes where no socket says how much it takes."""

_FAREWELL_S: Final = 1.0
"""How long the end of TLS may take to leave."""


class ByteStream(Protocol):
    """One connection's bytes. Only its one user calls it, one call at a time."""

    async def send_all(self, data: bytes, /) -> None:
        """Send everything. Raises one of ``STREAM_FAILURES``; if cancelled, part may be gone."""

    async def receive_some(self, max_bytes: int, /) -> bytes:
        """At least one byte, or ``b""`` at the end. Raises one of ``STREAM_FAILURES``."""

    def is_stale(self) -> bool:
        """Whether an *idle* connection is known to be ended, broken, or to hold stray bytes."""

    def socket_number(self) -> int:
        """The socket underneath, whatever lies between (TLS); -1 where there is none."""

    def close(self) -> None:
        """Close at once, without waiting and without a farewell; more than once is allowed."""


@runtime_checkable
class ClientStream(ByteStream, Protocol):
    """What a listener needs besides: sends in steps, each of which it bounds, and a decent end."""

    @property
    def sends_now(self) -> bool:
        """Whether :meth:`send_now` sends anything."""

    def send_now(self, data: bytes | memoryview, /) -> int:
        """Send what can be sent without waiting; how much that was. Raises as ``send_all``."""

    async def send_some(self, data: memoryview, /) -> int:
        """Wait, and send some; how much that was. Raises as ``send_all``."""

    async def send_eof(self) -> None:
        """Say that nothing more will be sent, where that can be said of one direction alone."""

    async def aclose(self) -> None:
        """Close, with TLS's farewell; never waits long, and closes at once if cancelled."""


class TcpStream:
    """A connected stream socket, which it owns from now on."""

    __slots__ = ("_filled", "_poll", "_socket")

    sends_now = True

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            # Without this an answer in two packets waits some 40 ms for an acknowledgement.
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._filled = False
        self._poll: select.poll | None = None

    async def send_all(self, data: bytes) -> None:
        """See :class:`ByteStream`. Does not pass the scheduler if the kernel takes all at once."""
        sent = self.send_now(data)
        if sent == len(data):
            return
        with memoryview(data) as view:
            while sent < len(data):
                with view[sent:] as rest:
                    sent += await self.send_some(rest)

    def send_now(self, data: bytes | memoryview) -> int:
        """See :class:`ClientStream`."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    async def send_some(self, data: memoryview) -> int:
        """See :class:`ClientStream`."""
        await trio.lowlevel.wait_writable(self._socket)
        return self.send_now(data)

    async def send_eof(self) -> None:
        """See :class:`ClientStream`."""
        self._socket.shutdown(socket.SHUT_WR)
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int) -> bytes:
        """See :class:`ByteStream`.

        A read that filled its buffer has left more behind, so the next one does not wait first;
        the one after that does, lest a fast worker keep every other task from running.
        """
        if not self._filled:
            await trio.lowlevel.wait_readable(self._socket)
        while True:
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._socket)
            else:
                self._filled = not self._filled and len(data) == max_bytes
                return data

    def receive_now(self, max_bytes: int) -> bytes | None:
        """What is there, ``b""`` at the end; ``None`` if there is nothing. Raises as
        ``receive_some``."""
        try:
            return self._socket.recv(max_bytes)
        except BlockingIOError:
            return None

    def socket_number(self) -> int:
        """See :class:`ByteStream`."""
        return self._socket.fileno()

    def is_stale(self) -> bool:
        """An idle connection has nothing to say: any byte, end or error makes it stale.

        A poll object of its own says so for a third of what a peek costs, which ends in an
        exception where nothing is wrong.
        """
        if self._poll is None:
            if self._socket.fileno() == -1:
                return True
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """See :class:`ByteStream`."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._poll = None

    async def aclose(self) -> None:
        """See :class:`ClientStream`. The kernel sends what it has taken."""
        self.close()
        await trio.lowlevel.checkpoint()


class TrioStream:
    """A Trio stream as a :class:`ByteStream`.

    If there is a socket underneath, an idle connection is tested there; otherwise only what a
    call has already met (the end, an error) tells that the connection is stale.
    """

    __slots__ = ("_broken", "_socket", "_stream")

    sends_now = False

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._socket = _socket_under(stream)
        self._broken = False

    async def send_all(self, data: bytes) -> None:
        """See :class:`ByteStream`."""
        self._broken = True  # until proved otherwise: a cancelled send ends in mid-message
        for start in range(0, len(data), _PIECE) or (0,):
            await self._stream.send_all(data[start : start + _PIECE])
        self._broken = False

    def send_now(self, data: bytes | memoryview) -> int:
        """See :class:`ClientStream`: such a stream tells only by waiting."""
        return 0

    async def send_some(self, data: memoryview) -> int:
        """See :class:`ClientStream`."""
        piece = bytes(data[:_AT_ONCE])
        await self.send_all(piece)
        return len(piece)

    async def send_eof(self) -> None:
        """See :class:`ClientStream`."""
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()

    async def receive_some(self, max_bytes: int) -> bytes:
        """See :class:`ByteStream`."""
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        except STREAM_FAILURES:
            self._broken = True
            raise
        if not data:
            self._broken = True
        return data

    def socket_number(self) -> int:
        """See :class:`ByteStream`."""
        return -1 if self._socket is None else self._socket.fileno()

    def is_stale(self) -> bool:
        """See :class:`ByteStream`."""
        if self._broken or self._socket is None:
            return self._broken
        poller = select.poll()
        poller.register(self._socket.fileno(), select.POLLIN)
        return bool(poller.poll(0))

    def close(self) -> None:
        """See :class:`ByteStream`."""
        self._broken = True
        _close_now(self._stream)

    async def aclose(self) -> None:
        """See :class:`ClientStream`."""
        self._broken = True
        with trio.move_on_after(_FAREWELL_S):
            await self._stream.aclose()


def _socket_under(stream: object) -> trio.socket.SocketType | None:
    if isinstance(stream, trio.SSLStream):
        return _socket_under(stream.transport_stream)
    return stream.socket if isinstance(stream, trio.SocketStream) else None


def _close_now(stream: object) -> None:
    """Close without awaiting: the streams at the bottom all can, only the interface cannot."""
    if isinstance(stream, trio.SSLStream):
        _close_now(stream.transport_stream)
    elif isinstance(stream, trio.StapledStream):
        _close_now(stream.send_stream)
        _close_now(stream.receive_stream)
    elif isinstance(stream, trio.SocketStream):
        stream.socket.close()
    else:
        # Memory streams, and whoever else offers it. A stream that cannot be closed at once
        # cannot be used here: AttributeError says so the first time.
        stream.close()  # type: ignore[attr-defined]
