"""One worker's connections: where they come from, and who has them.

A connection is either in the stack of idle ones or in the hands of exactly one exchange. It passes
from hand to hand without an await in between.
"""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable, Sequence
from functools import partial

import trio

from slime_trio.byte_stream import STREAM_FAILURES, ByteStream
from slime_trio.upstream.connect import Connect
from slime_trio.upstream.connection import Connection
from slime_trio.upstream.end_watch import Watch
from slime_trio.upstream.failures import UpstreamError
from slime_trio.upstream.idle import IdleStack
from slime_trio.upstream.origin import Origin, parse_origin
from slime_trio.upstream.pins import Pins
from slime_trio.upstream.read_watch import ReadWatch

__all__ = ["Counts", "Site", "Terms"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How connections are made and kept; see :class:`~slime_trio.upstream.Pool`."""

    connect: Connect
    connect_timeout_s: float
    max_idle_per_origin: int
    idle_timeout_s: float
    max_head_bytes: int
    read_chunk: int
    tls: Callable[[], ssl.SSLContext]
    pins: Pins | None
    watch: Watch
    readers: ReadWatch


@dataclasses.dataclass(slots=True)
class Counts:
    """What has been done since a pool was made."""

    opened: int = 0
    closed: int = 0
    reused: int = 0
    """Requests that began on an idle connection."""
    retried: int = 0
    """Reused connections that turned out dead and were replaced."""


class Site:
    """The connections to one worker's URL. Raises ``ValueError`` for what is no worker's URL."""

    __slots__ = (
        "_counts",
        "_idle",
        "_is_forgotten",
        "_origin",
        "_terms",
        "_tls",
        "authority",
        "prefix",
        "url",
    )

    def __init__(self, url: str, terms: Terms, counts: Counts) -> None:
        self.url = url
        self._origin: Origin = parse_origin(url)
        self.authority = self._origin.authority.encode("ascii")
        self.prefix = self._origin.path_prefix.encode("ascii")
        self._tls = terms.tls() if self._origin.scheme == "https" else None
        self._terms = terms
        self._counts = counts
        self._idle: IdleStack[Connection] = IdleStack(
            limit=terms.max_idle_per_origin, timeout_s=terms.idle_timeout_s
        )
        self._is_forgotten = False

    @property
    def idle(self) -> int:
        """How many connections are idle."""
        return len(self._idle)

    def take(self) -> Connection | None:
        """The youngest idle connection that is still alive."""
        now = trio.current_time()
        while (connection := self._idle.take(now)) is not None:
            if not connection.is_stale():
                self._counts.reused += 1
                return connection
            self.discard(connection)
        self.expire(now)
        return None

    async def open(self) -> Connection:
        """A new connection. Raises :class:`UpstreamError`."""
        with trio.move_on_after(self._terms.connect_timeout_s):
            try:
                stream = await self._terms.connect(self._pinned(), self._tls)
            except STREAM_FAILURES as error:
                raise UpstreamError("connect_failed", worker_url=self.url) from error
            return self._opened(stream)
        raise UpstreamError("connect_timeout", worker_url=self.url)

    def note_retry(self) -> None:
        """A reused connection turned out dead; another follows."""
        self._counts.retried += 1

    def _pinned(self) -> Origin:
        """The origin with the addresses that it may be reached at. Raises ``OSError``."""
        origin, pins = self._origin, self._terms.pins
        if pins is None:
            return origin
        addresses = pins.addresses(origin.host, origin.port)
        return dataclasses.replace(origin, addresses=addresses) if addresses else origin

    def _opened(self, stream: ByteStream) -> Connection:
        terms = self._terms
        self._counts.opened += 1
        connection = Connection(
            stream,
            worker_url=self.url,
            max_head_bytes=terms.max_head_bytes,
            read_chunk=terms.read_chunk,
            readers=terms.readers,
        )
        terms.watch.add(connection.socket_number, partial(self._has_ended, connection))
        return connection

    def _has_ended(self, connection: Connection) -> None:
        connection.has_ended()
        if self._idle.remove(connection):
            self.discard(connection)

    def release(self, connection: Connection) -> None:
        """Keep a connection whose exchange is over, if it may be kept."""
        if self._is_forgotten or not connection.is_reusable:
            self.discard(connection)
            return
        now = trio.current_time()
        self.expire(now)
        surplus = self._idle.push(connection, now)
        if surplus is not None:
            self.discard(surplus)

    def discard(self, connection: Connection) -> None:
        """Close a connection that is not, or no longer, idle."""
        self._counts.closed += 1
        self._terms.watch.remove(connection.socket_number)
        connection.close()

    def expire(self, now: float) -> None:
        """Close connections that have been idle for too long."""
        if old := self._idle.expire(now):
            self._discard_all(old)

    def forget(self) -> None:
        """Close what is idle, and what is in use once it is free."""
        self._is_forgotten = True
        self._discard_all(self._idle.clear())

    def _discard_all(self, connections: Sequence[Connection]) -> None:
        for connection in connections:
            self.discard(connection)
