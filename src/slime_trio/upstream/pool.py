"""The pool: keep-alive connections to workers, and one request at a time on each of them.

How it works
    Each worker's URL has a stack of idle connections. A request takes the youngest, or opens one;
    there is no upper bound on connections in use, because how many requests a worker gets is the
    fleet's decision, made before. A response whose end was read gives its connection back; any
    other way out of a response closes it at once. That close *is* the message to the worker:
    SGLang aborts a generation whose client has gone.

Ends of idle connections
    A worker that closes an idle connection is noticed when it does so (:class:`EndWatch`), not
    when a request comes, and no idle socket is ever asked. All the same a connection is tested
    when it is taken (0.5 µs, the one that is taken and no other): the end, or bytes that nobody
    asked for, may have arrived a moment ago, and the next request would take these for its answer.

The keep-alive race
    A worker may close an idle connection in the very moment a request is sent on it, and the
    request is lost without having been seen. What the test could not see is repaired: a *reused*
    connection that ends without one byte of an answer is replaced by a fresh one, once, and the
    request is sent again there, POST or not (RFC 9112, 9.3.1 leaves that to whoever knows that the
    request was not processed; a server that had begun to process it and then dies without a word
    is the risk we take, as browsers do). A fresh connection is never replaced, and nothing is sent
    again once a byte came back.

Cancellation
    A connection is either in a stack or in the hands of exactly one exchange, whose exit does not
    await. Anything raised while it is there, cancellation included, closes the connection.
"""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable, Sequence
from typing import Final

import trio

from slime_trio.upstream.connect import Connect, tcp_connect
from slime_trio.upstream.end_watch import EndWatch, Watch
from slime_trio.upstream.exchange import Exchange
from slime_trio.upstream.pins import Pins
from slime_trio.upstream.read_watch import ReadWatch
from slime_trio.upstream.request_head import request_head
from slime_trio.upstream.site import Counts, Site, Terms

__all__ = ["Pool", "PoolStats"]

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


class Pool:
    """Pooled HTTP/1.1 requests to workers.

    ``connect`` opens streams, bounded by ``connect_timeout_s``. At most ``max_idle_per_origin``
    idle connections per worker URL are kept, none longer than ``idle_timeout_s`` (less than the
    5 s after which SGLang closes them). ``max_head_bytes`` bounds a response's head, and whatever
    else brings no body. ``read_chunk`` is the size of one read. ``tls`` is asked for each worker
    with an ``https`` URL; the default verifies certificates. ``pins`` say where names lead; without
    them names are looked up for every connection. ``watch`` notices ends of idle connections; by
    default it is an :class:`EndWatch`, which somebody has to run. ``readers`` reads streams for
    their tasks; it may be run likewise.

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
        watch: Watch | None = None,
        readers: ReadWatch | None = None,
    ) -> None:
        self.pins: Final = pins
        self.watch: Final = EndWatch() if watch is None else watch
        self.readers: Final = ReadWatch() if readers is None else readers
        self._terms = Terms(
            connect=connect,
            connect_timeout_s=connect_timeout_s,
            max_idle_per_origin=max_idle_per_origin,
            idle_timeout_s=idle_timeout_s,
            max_head_bytes=max_head_bytes,
            read_chunk=read_chunk,
            tls=tls,
            pins=pins,
            watch=self.watch,
            readers=self.readers,
        )
        self._counts = Counts()
        self._sites: dict[str, Site] = {}
        self._is_closed = False

    def sibling(self) -> Pool:
        """A pool with the same ways to the same workers, and connections of its own."""
        names = (field.name for field in dataclasses.fields(Terms))
        return Pool(**{name: getattr(self._terms, name) for name in names})

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
            site,
            head,
            body,
            is_head=verb == b"HEAD",
            head_timeout_s=head_timeout_s,
            before_send=before_send,
        )

    def _new_site(self, url: str) -> Site:
        site = self._sites[url] = Site(url, self._terms, self._counts)
        return site

    def stats(self) -> PoolStats:
        """Counts over all workers."""
        counts = self._counts
        idle = sum(site.idle for site in self._sites.values())
        return PoolStats(
            idle=idle,
            in_use=counts.opened - counts.closed - idle,
            opened=counts.opened,
            reused=counts.reused,
            retried=counts.retried,
        )

    def idle(self, url: str) -> int:
        """How many idle connections there are to this worker."""
        site = self._sites.get(url)
        return site.idle if site is not None else 0

    def __repr__(self) -> str:
        stats = self.stats()
        state = "closed " if self._is_closed else ""
        return f"<Pool {state}idle={stats.idle} in_use={stats.in_use} opened={stats.opened}>"

    def expire(self) -> None:
        """Close connections that have been idle for too long."""
        now = trio.current_time()
        for site in self._sites.values():
            site.expire(now)

    def forget(self, url: str) -> None:
        """A worker is gone: close its idle connections, and those in use once they are free."""
        if self.pins is not None:
            self.pins.forget(url)
        self._close_site(url)

    def _close_site(self, url: str) -> None:
        site = self._sites.pop(url, None)
        if site is not None:
            site.forget()

    def close(self) -> None:
        """Close what is idle; what is in use closes when its exchange ends. May be repeated."""
        self._is_closed = True
        for url in list(self._sites):
            self._close_site(url)

    async def aclose(self) -> None:
        """:meth:`close`, and a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()
