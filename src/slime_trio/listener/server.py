"""The listener: it accepts connections, has them served, and ends them when the server is to end.

:class:`Listener` serves streams of any kind, one at a time by :meth:`Listener.serve_stream`;
:func:`serve_fast` puts it on sockets, with the application's life around it.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from slime_trio.byte_stream import STREAM_FAILURES, ClientStream, TcpStream, TrioStream
from slime_trio.config import BUILT_IN_CAPTURE, Settings
from slime_trio.limits.admissions import BUSY, Admissions, peer_of
from slime_trio.limits.head import HeadLimits
from slime_trio.listener.asgi import serve_asgi
from slime_trio.listener.connection import LINGER_S, Connection, Ends, Site
from slime_trio.listener.dates import Dates
from slime_trio.listener.deadlines import Deadlines
from slime_trio.listener.lifespan import Lifespan
from slime_trio.listener.read_ahead import ReadAhead
from slime_trio.listener.request_head import RequestHead
from slime_trio.upstream.end_watch import EndWatch, Watch

if TYPE_CHECKING:
    from slime_trio.listener.hot_paths import HotPaths
    from slime_trio.router import Router

__all__ = ["Listener", "has_middleware", "serve_fast"]

_KEEP_ALIVE_S: Final = 75.0
_READ: Final = 64 * 1024
_HAS_EPOLL: Final = hasattr(select, "epoll")

FindRouter = Callable[[], "Router | None"]
AnyStream = trio.abc.Stream | ClientStream


class Listener:
    """Serves ``app`` on streams, while :meth:`run` runs.

    ``find_router`` gives the router once there is one: until then, and where middleware must see
    every request, nothing goes past the application. ``state`` is what its life span left.
    ``watch`` tells of clients that leave; by default it is an :class:`EndWatch`.
    """

    def __init__(
        self,
        app: Any,
        settings: Settings,
        *,
        find_router: FindRouter,
        state: dict[str, Any] | None = None,
        keep_alive_s: float = _KEEP_ALIVE_S,
        date: Callable[[], bytes] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._app = app
        self._state = {} if state is None else state
        self._find_router = find_router
        self._hot: HotPaths | None = None
        self._admissions = Admissions(settings)
        self._connections: dict[Connection, None] = {}
        self._has_watch: Final = watch is not None or _HAS_EPOLL
        self._ends: Final = EndWatch() if watch is None else watch
        self._site = Site(
            settings=settings,
            limits=HeadLimits(
                head_bytes=settings.max_header_kb * 1024, body_bytes=settings.max_body_mb * 2**20
            ),
            serve=self._serve,
            deadlines=Deadlines(),
            date=date or Dates(),
            keep_alive_s=keep_alive_s,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch over the connections, until cancelled; they are not to outlive it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._site.deadlines.run)
            await nursery.start(self._ends.run)
            task_status.started()

    def stop(self) -> None:
        """The server is to end: idle connections at once, others once they have answered."""
        self._site.is_stopping = True
        for connection in list(self._connections):
            connection.stop()

    # -- connections -------------------------------------------------------------------------

    async def serve_stream(self, stream: AnyStream) -> None:
        """Serve one connection to its end, and close it. ``stream`` may be a socket's, TLS over
        one, any other of Trio's that can be closed at once, or one that a listener can use as it
        is. Raises nothing but a cancellation."""
        peer = peer_of(stream)
        if not self._admissions.enter(peer):
            await _turn_away(stream)
            return
        try:
            await self._admitted(stream)
        finally:
            self._admissions.leave(peer)

    async def _admitted(self, stream: AnyStream) -> None:
        ends = _ends_of(stream)
        if isinstance(stream, trio.SSLStream) and not await self._has_shaken_hands(stream):
            return
        plain = _as_client_stream(stream)
        try:
            if self._has_watch and _is_bare(plain):
                await self._watched(plain, ends)
            else:
                await self._read_ahead(plain, ends)
            with suppress(*STREAM_FAILURES):
                await plain.aclose()
        finally:
            plain.close()

    async def _watched(self, stream: ClientStream, ends: Ends) -> None:
        """The kernel tells when the client leaves, which costs a request nothing."""
        connection = Connection(self._site, stream, ends)
        self._ends.add(stream.socket_number(), connection.left)
        try:
            await self._run(connection)
        finally:
            self._ends.remove(stream.socket_number())

    async def _read_ahead(self, stream: ClientStream, ends: Ends) -> None:
        """A task reads on, to notice when the client leaves."""
        ahead = ReadAhead(stream)
        connection = Connection(self._site, ahead, ends)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ahead.run, connection.left)
            await self._run(connection)
            nursery.cancel_scope.cancel()

    async def _run(self, connection: Connection) -> None:
        self._connections[connection] = None
        try:
            if not self._site.is_stopping:
                await connection.run()
        finally:
            del self._connections[connection]

    async def _has_shaken_hands(self, stream: trio.SSLStream[Any]) -> bool:
        try:
            with trio.fail_after(self._site.settings.header_timeout_s):
                await stream.do_handshake()
        except (trio.TooSlowError, *STREAM_FAILURES):
            await trio.aclose_forcefully(stream)
            return False
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return True

    def _serve(self, connection: Connection, head: RequestHead) -> Awaitable[None]:
        """Have a request served: by the relay where it is on a hot path, else by the
        application."""
        paths = self._hot or self._find_hot_paths()
        hot = None if paths is None else paths.find(head.method, head.target)
        if paths is None or hot is None:
            return serve_asgi(self._app, self._state, connection, head)
        return paths.serve(connection, head, hot)

    def _find_hot_paths(self) -> HotPaths | None:
        router = self._find_router()
        if router is None or has_middleware(router.args):
            return None
        from slime_trio.listener.hot_paths import HotPaths

        self._hot = HotPaths(router)
        return self._hot


async def serve_fast(
    app: Any,
    settings: Settings,
    *,
    find_router: FindRouter,
    sockets: Sequence[socket.socket],
    tls: ssl.SSLContext | None,
    grace_s: float,
    shutdown_trigger: Callable[[], Awaitable[None]],
    until_settled: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` on sockets that listen, until ``shutdown_trigger`` returns.

    Then nothing new is accepted and what is in flight gets ``grace_s``. Once all connections have
    ended, ``until_settled`` is awaited before the application's life is. ``task_status`` gets the
    URLs.
    """
    lifespan = Lifespan(app)
    listener = Listener(app, settings, find_router=find_router, state=lifespan.state)
    async with trio.open_nursery() as life:
        life.start_soon(lifespan.run)
        await lifespan.start()
        await life.start(listener.run)
        async with trio.open_nursery() as connections:
            task_status.started([_url(one, tls) for one in sockets])
            async with trio.open_nursery() as accepting:
                doors = [_door(one, tls) for one in sockets]
                serving = partial(trio.serve_listeners, handler_nursery=connections)
                accepting.start_soon(serving, listener.serve_stream, doors)
                await shutdown_trigger()
                accepting.cancel_scope.cancel()
            listener.stop()
            connections.cancel_scope.deadline = trio.current_time() + grace_s
        await until_settled()
        await lifespan.end()
        life.cancel_scope.cancel()


def _door(listening: socket.socket, tls: ssl.SSLContext | None) -> trio.abc.Listener[Any]:
    plain = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    return plain if tls is None else trio.SSLListener(plain, tls, https_compatible=True)


def _url(listening: socket.socket, tls: ssl.SSLContext | None) -> str:
    host, port = listening.getsockname()[:2]
    name = f"[{host}]" if listening.family == socket.AF_INET6 else host
    return f"{'http' if tls is None else 'https'}://{name}:{port}"


def has_middleware(settings: Settings) -> bool:
    """Whether every request must go through middleware."""
    return any(path != BUILT_IN_CAPTURE for path in settings.slime_router_middleware_paths)


def _as_client_stream(stream: AnyStream) -> ClientStream:
    """``stream`` as connections use it, which own it from now on."""
    if isinstance(stream, trio.SocketStream):
        return TcpStream(socket.socket(fileno=stream.socket.detach()))
    return stream if isinstance(stream, ClientStream) else TrioStream(stream)


def _is_bare(stream: ClientStream) -> bool:
    """Whether the end of its socket is its own: TLS has one besides."""
    return not isinstance(stream, TrioStream) and stream.socket_number() >= 0


def _ends_of(stream: AnyStream) -> Ends:
    is_secure = isinstance(stream, trio.SSLStream)
    named: Any = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    try:
        beneath = named.socket
        return Ends(
            client=_address(beneath.getpeername()),
            server=_address(beneath.getsockname()),
            is_secure=is_secure,
        )
    except (AttributeError, OSError):
        return Ends(is_secure=is_secure)


def _address(name: Any) -> tuple[str, int] | None:
    return (name[0], name[1]) if isinstance(name, tuple) else None


async def _turn_away(stream: AnyStream) -> None:
    """Say that there are too many. Over TLS that would cost a handshake, of which there are too
    many."""
    plain = _as_client_stream(stream)
    try:
        with trio.move_on_after(LINGER_S), suppress(*STREAM_FAILURES):
            if not isinstance(stream, trio.SSLStream):
                await plain.send_all(BUSY)
                await plain.send_eof()
                while await plain.receive_some(_READ):
                    pass
    finally:
        plain.close()
