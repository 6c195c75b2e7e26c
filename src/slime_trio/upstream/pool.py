"""The pool: keep-alive connections to workers, and one request at a time on each of them.

How it works
    Each worker's URL has a stack of idle connections. A request takes the youngest, or opens one;
    there is no upper bound on connections in use, because how many requests a worker gets is the
    fleet's decision, made before. A response whose end was read gives its connection back; any
    other way out of a response closes it at once. That close *is* the message to the worker:
    SGLang aborts a generation whose client has gone.

The keep-alive race
    A worker may close an idle connection in the very moment a request is sent on it, and the
    request is lost without having been seen. An idle connection is therefore tested before use,
    and what the test cannot see is repaired: a *reused* connection that ends without one byte of
    an answer is replaced by a fresh one, once, and the request is sent again there, POST or not
    (RFC 9112, 9.3.1 leaves that to whoever knows that the request was not processed; a server
    that had begun to process it and then dies without a word is the risk we take, as browsers
    do). A fresh connection is never replaced, and nothing is sent again once a byte came back.

Cancellation
    A connection is either in a stack or in the hands of exactly one exchange, whose exit does not
    await. Anything raised while it is there, cancellation included, closes the connection.
"""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final

import trio

from slime_trio.upstream.connect import Connect, tcp_connect
from slime_trio.upstream.connection import Connection
from slime_trio.upstream.failures import STREAM_FAILURES, UpstreamError
from slime_trio.upstream.idle import IdleStack
from slime_trio.upstream.origin import Origin, parse_origin
from slime_trio.upstream.pins import Pins
from slime_trio.upstream.request_head import request_head
from slime_trio.upstream.response import Response

__all__ = ["Exchange", "Pool", "PoolStats"]

_KIB: Final = 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """What the pool holds, and what it has done since it was made."""

    idle: int
    in_use: int
    opened: int
    reused: int
    """Requests that began on an idle connection."""
    retried: int
    """Reused connections that turned out dead and were replaced."""


class _Site:
    """What the pool knows of one worker's URL."""

    __slots__ = ("authority", "idle", "is_forgotten", "origin", "prefix", "tls", "url")

    def __init__(
        self, url: str, tls: Callable[[], ssl.SSLContext], *, limit: int, timeout_s: float
    ) -> None:
        self.url = url
        self.origin: Origin = parse_origin(url)
        self.authority = self.origin.authority.encode("ascii")
        self.prefix = self.origin.path_prefix.encode("ascii")
        self.tls = tls() if self.origin.scheme == "https" else None
        self.idle: IdleStack[Connection] = IdleStack(limit=limit, timeout_s=timeout_s)
        self.is_forgotten = False


class Pool:
    """Pooled HTTP/1.1 requests to workers.

    ``connect`` opens streams, bounded by ``connect_timeout_s``. At most ``max_idle_per_origin``
    idle connections per worker URL are kept, none longer than ``idle_timeout_s`` (less than the
    5 s after which SGLang closes them). ``max_head_bytes`` bounds a response's head, and whatever
    else brings no body. ``read_chunk`` is the size of one read. ``tls`` is asked for each worker
    with an ``https`` URL; the default verifies certificates. ``pins`` say where names lead; without
    them names are looked up for every connection.

    There is no background task: old connections are dropped as requests come and go, and by
    :meth:`expire`, which a periodic task may call.
    """

    def __init__(
        self,
        *,
        connect: Connect = tcp_connect,
        connect_timeout_s: float = 10.0,
        max_idle_per_origin: int = 1024,
        idle_timeout_s: float = 4.0,
        max_head_bytes: int = 64 * _KIB,
        read_chunk: int = 256 * _KIB,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        pins: Pins | None = None,
    ) -> None:
        self.pins: Final = pins
        self._connect = connect
        self._connect_timeout_s = connect_timeout_s
        self._max_idle = max_idle_per_origin
        self._idle_timeout_s = idle_timeout_s
        self._max_head_bytes = max_head_bytes
        self._read_chunk = read_chunk
        self._tls = tls
        self._sites: dict[str, _Site] = {}
        self._is_closed = False
        self._opened = self._closed = self._reused = self._retried = 0

    def sibling(self) -> Pool:
        """A pool with the same ways to the same workers, and connections of its own."""
        return Pool(
            connect=self._connect,
            connect_timeout_s=self._connect_timeout_s,
            max_idle_per_origin=self._max_idle,
            idle_timeout_s=self._idle_timeout_s,
            max_head_bytes=self._max_head_bytes,
            read_chunk=self._read_chunk,
            tls=self._tls,
            pins=self.pins,
        )

    def request(
        self,
        method: bytes | str,
        url: str,
        target: bytes,
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        *,
        head_timeout_s: float | None = None,
        before_send: Callable[[], None] | None = None,
    ) -> Exchange:
        """A request, sent when the result is entered (``async with``), which gives a Response.

        ``url`` is the worker's base URL, ``target`` the path and query behind it. ``host`` and
        ``content-length`` are set here (see :func:`request_head`). ``head_timeout_s`` bounds the
        time from entering to the response's head, a second try included; the body's pace is the
        caller's business: a cancel scope around each ``receive_some``. ``before_send`` is called
        once a connection is there, before anything is written; entering raises what it raises.

        Raises ``ValueError`` for a URL, method, target or header that cannot be sent, and
        ``trio.ClosedResourceError`` after :meth:`aclose`. Entering raises
        :class:`UpstreamError`.
        """
        if self._is_closed:
            raise trio.ClosedResourceError("this pool is closed")
        site = self._sites.get(url) or self._new_site(url)
        verb = method.encode("ascii") if isinstance(method, str) else method
        if not target.startswith(b"/"):
            raise ValueError("the target must start with a slash")
        head = request_head(verb, site.authority, site.prefix + target, headers, len(body))
        return Exchange(
            self,
            site,
            head,
            body,
            is_head=verb == b"HEAD",
            head_timeout_s=head_timeout_s,
            before_send=before_send,
        )

    def _new_site(self, url: str) -> _Site:
        site = _Site(url, self._tls, limit=self._max_idle, timeout_s=self._idle_timeout_s)
        self._sites[url] = site
        return site

    def stats(self) -> PoolStats:
        """Counts over all workers."""
        idle = sum(len(site.idle) for site in self._sites.values())
        return PoolStats(
            idle=idle,
            in_use=self._opened - self._closed - idle,
            opened=self._opened,
            reused=self._reused,
            retried=self._retried,
        )

    def idle(self, url: str) -> int:
        """How many idle connections there are to this worker."""
        site = self._sites.get(url)
        return len(site.idle) if site is not None else 0

    def __repr__(self) -> str:
        stats = self.stats()
        state = "closed " if self._is_closed else ""
        return f"<Pool {state}idle={stats.idle} in_use={stats.in_use} opened={stats.opened}>"

    def expire(self) -> None:
        """Close connections that have been idle for too long."""
        now = trio.current_time()
        for site in self._sites.values():
            self._discard_all(site.idle.expire(now))

    def forget(self, url: str) -> None:
        """A worker is gone: close its idle connections, and those in use once they are free."""
        if self.pins is not None:
            self.pins.forget(url)
        self._close_site(url)

    def _close_site(self, url: str) -> None:
        site = self._sites.pop(url, None)
        if site is not None:
            site.is_forgotten = True
            self._discard_all(site.idle.clear())

    def close(self) -> None:
        """Close what is idle; what is in use closes when its exchange ends. May be repeated."""
        self._is_closed = True
        for url in list(self._sites):
            self._close_site(url)

    async def aclose(self) -> None:
        """:meth:`close`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    # What an exchange needs. A connection passes from hand to hand without an await in between.

    def _take(self, site: _Site) -> Connection | None:
        """The youngest idle connection that is still alive."""
        if not site.idle:
            return None
        self._discard_all(site.idle.expire(trio.current_time()))
        while (connection := site.idle.pop()) is not None:
            if not connection.is_stale():
                self._reused += 1
                return connection
            self._discard(connection)
        return None

    async def _open(self, site: _Site) -> Connection:
        with trio.move_on_after(self._connect_timeout_s):
            try:
                stream = await self._connect(self._pinned(site.origin), site.tls)
            except STREAM_FAILURES as error:
                raise UpstreamError("connect_failed", worker_url=site.url) from error
            self._opened += 1
            return Connection(
                stream,
                worker_url=site.url,
                max_head_bytes=self._max_head_bytes,
                read_chunk=self._read_chunk,
            )
        raise UpstreamError("connect_timeout", worker_url=site.url)

    def _pinned(self, origin: Origin) -> Origin:
        """The origin with the addresses that it may be reached at. Raises ``OSError``."""
        if self.pins is None:
            return origin
        addresses = self.pins.addresses(origin.host, origin.port)
        return dataclasses.replace(origin, addresses=addresses) if addresses else origin

    def _release(self, site: _Site, connection: Connection) -> None:
        """Keep a connection whose exchange is over, if it may be kept."""
        if self._is_closed or site.is_forgotten or not connection.is_reusable:
            self._discard(connection)
            return
        now = trio.current_time()
        self._discard_all(site.idle.expire(now))
        surplus = site.idle.push(connection, now)
        if surplus is not None:
            self._discard(surplus)

    def _discard(self, connection: Connection) -> None:
        self._closed += 1
        connection.close()

    def _discard_all(self, connections: Sequence[Connection]) -> None:
        for connection in connections:
            self._discard(connection)


class Exchange:
    """One request and its response, as an async context manager that is entered once.

    Entering sends the request and waits for the response's head. Leaving never awaits: it keeps
    the connection if all went well and the body was received to its end, and closes it if not.
    """

    __slots__ = (
        "_before_send",
        "_body",
        "_connection",
        "_head",
        "_head_timeout_s",
        "_is_answered",
        "_is_connecting",
        "_is_head",
        "_pool",
        "_site",
    )

    def __init__(
        self,
        pool: Pool,
        site: _Site,
        head: bytes,
        body: bytes,
        *,
        is_head: bool,
        head_timeout_s: float | None,
        before_send: Callable[[], None] | None,
    ) -> None:
        self._pool = pool
        self._site = site
        self._head = head
        self._body = body
        self._is_head = is_head
        self._head_timeout_s = head_timeout_s
        self._before_send = before_send
        self._connection: Connection | None = None
        self._is_answered = False
        self._is_connecting = False

    async def __aenter__(self) -> Response:
        if self._head_timeout_s is None:
            return await self._respond()
        with trio.move_on_after(self._head_timeout_s):
            return await self._respond()
        raise UpstreamError(
            "connect_timeout" if self._is_connecting else "worker_timeout",
            worker_url=self._site.url,
            first_byte_sent=self._is_answered,
        )

    async def _respond(self) -> Response:
        pool, site = self._pool, self._site
        connection = pool._take(site)
        if connection is not None:
            try:
                return await self._try(connection)
            except UpstreamError as error:
                if error.code != "connection_lost" or error.first_byte_sent:
                    raise
            pool._retried += 1
        self._is_connecting = True
        connection = await pool._open(site)
        self._is_connecting = False
        return await self._try(connection)

    async def _try(self, connection: Connection) -> Response:
        try:
            if self._before_send is not None:
                self._before_send()
            head = await connection.exchange_head(
                self._head, self._body, is_head_request=self._is_head
            )
        except BaseException:
            self._is_answered = connection.is_answered
            self._pool._discard(connection)
            raise
        self._connection = connection
        return Response(connection, head, worker_url=self._site.url)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None, "an exchange is left once, after it was entered"
        if exc_type is None:
            self._pool._release(self._site, connection)
        else:
            self._pool._discard(connection)
