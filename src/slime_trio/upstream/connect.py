"""How connections to workers are opened: the seam between the pool and the network."""

from __future__ import annotations

import socket
import ssl
from typing import Final, Protocol

import trio

from slime_trio.byte_stream import ByteStream, TcpStream, TrioStream
from slime_trio.upstream.origin import Origin

__all__ = ["Connect", "tcp_connect"]


class Connect(Protocol):
    """Opens a stream to an origin; ``tls`` is given for ``https`` and ``None`` otherwise.

    Raises one of ``STREAM_FAILURES``. Leaves nothing open when it raises or is cancelled.
    """

    async def __call__(self, origin: Origin, tls: ssl.SSLContext | None, /) -> ByteStream: ...


_NEXT_S: Final = 0.5
"""How long one pinned address is waited for while there is another to try."""


async def tcp_connect(origin: Origin, tls: ssl.SSLContext | None) -> ByteStream:
    """Connect over TCP, without Nagle's algorithm.

    To all addresses of the name (RFC 8305), or to those that are pinned, one after the other. TLS
    asks for, and checks, the name in either case.
    """
    stream = await _connected(origin)
    if tls is None:
        return TcpStream(socket.socket(fileno=stream.socket.detach()))
    secure = trio.SSLStream(stream, tls, server_hostname=origin.host, https_compatible=True)
    try:
        await secure.do_handshake()
    except BaseException:
        stream.socket.close()
        raise
    return TrioStream(secure)


async def _connected(origin: Origin) -> trio.SocketStream:
    *others, last = origin.addresses or (origin.host,)
    for address in others:
        try:
            with trio.move_on_after(_NEXT_S):
                return await _opened(address, origin.port)
        except OSError:
            continue
    return await _opened(last, origin.port)


async def _opened(host: str, port: int) -> trio.SocketStream:
    """Trio tries addresses in a nursery of its own, out of which a cancellation comes in a group;
    who waits for a connection expects it alone."""
    try:
        return await trio.open_tcp_stream(host, port)
    except BaseExceptionGroup as group:
        cancelled, other = group.split(trio.Cancelled)
        if cancelled is None or other is not None:
            raise
        alone: BaseException = cancelled
        while isinstance(alone, BaseExceptionGroup):
            alone = alone.exceptions[0]
        raise alone from None
