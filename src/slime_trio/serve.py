"""The life of a server: bind, serve, stop on a signal and let calls in flight finish.

Being stopped goes in three steps. At once: nothing new is let in, and whoever waits for a worker is
told so. While ``--shutdown-grace-s`` lasts: calls in flight end as usual. Then: what is still in
flight ends as far as it came, its workers are told to abort, and what was captured is kept as
partial. The exit status says whether the third step met anybody.

A router that is still loading is served as :class:`~slime_trio.starting.Starting`. What that does
not need is not imported here: it would have to wait for it.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from slime_trio.config import ConfigurationError, Settings
from slime_trio.listener.server import FindRouter, has_middleware, serve_fast
from slime_trio.starting import Starting
from slime_trio.tls import server_context

if TYPE_CHECKING:
    from quart_trio import QuartTrio

    from slime_trio.shared import Shared

__all__ = ["bind", "serve"]

_BACKLOG: Final = 4096
"""Thousands of rollouts may begin at once; Linux allows this many by default (``somaxconn``)."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_LOOK_S: Final = 0.05
_LAST_BYTES_S: Final = 0.5
"""What the last answer may take to its client once its call has ended, and workers to be told."""
_SETTLE_S: Final = 1.0
"""What calls that are aborted may take to their end."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises :class:`ConfigurationError` if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError(f"cannot listen on {host}:{port}: {words}") from error
    listener.setblocking(False)
    return listener


async def serve(
    app: QuartTrio | Starting,
    settings: Settings,
    listener: socket.socket,
    *,
    until: trio.Event | None = None,
    when_ready: Callable[[], None] = lambda: None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> int:
    """Serve ``app`` on ``listener`` until ``until`` is set, or a signal asks to stop.

    Then nothing new is accepted, and calls in flight get ``settings.shutdown_grace_s``. The exit
    status: 0 if all of them ended by themselves, 1 if some had to be aborted. ``when_ready`` is
    called once the router serves. Raises what kept an ``app`` that is starting from doing so.
    """
    tls = server_context(settings)
    _give_up_on_stalled_clients(listener, settings.client_stall_s)
    stop = trio.Event() if until is None else until
    starting = app if isinstance(app, Starting) else None
    find_router = _router_of(app)
    ending = _Ending(find_router, settings.shutdown_grace_s)
    async with trio.open_nursery() as nursery:
        if until is None:
            await nursery.start(_stop_on_signal, stop)
        nursery.start_soon(ending.run, stop, nursery.cancel_scope)
        nursery.start_soon(_start, starting, settings, when_ready, nursery.cancel_scope)
        serving = _way(app, settings, find_router, ending)
        await serving(
            sockets=[listener],
            tls=tls,
            shutdown_trigger=stop.wait,
            task_status=task_status,
        )
        nursery.cancel_scope.cancel()
    if starting is not None and starting.failure is not None:
        raise starting.failure
    return 1 if ending.aborted else 0


def _router_of(app: QuartTrio | Starting) -> FindRouter:
    """How to find the router; it gives ``None`` while it is loaded."""
    if isinstance(app, Starting):
        return lambda: app.router
    return lambda: app.extensions["slime_router"]


async def _start(
    starting: Starting | None,
    settings: Settings,
    when_ready: Callable[[], None],
    server: trio.CancelScope,
) -> None:
    if starting is not None:
        await starting.run(server)
        if starting.failure is not None:
            return
    when_ready()
    if has_middleware(settings) and settings.listener != "hypercorn":
        import structlog

        structlog.get_logger("slime_router").warning(
            "middleware: every request passes through it, so generations take the slow way there"
        )


def _give_up_on_stalled_clients(listener: socket.socket, stall_s: float) -> None:
    """Have the kernel break a connection whose client takes nothing for so long.

    Hypercorn shields its sends from cancellation: one such client would keep its request, and when
    the process is to end the process, for ever. Accepted connections inherit the option.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        stall_ms = max(1, round(stall_s * 1000))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall_ms)


def _way(
    app: QuartTrio | Starting, settings: Settings, find_router: FindRouter, ending: _Ending
) -> Callable[..., Awaitable[None]]:
    """How ``app`` is served: by the router's own listener, or by Hypercorn within its limits."""
    # What is still in flight by then is ended here, in order, and before the server does it.
    grace_s = settings.shutdown_grace_s + 2 * _SETTLE_S
    if settings.listener == "hypercorn":
        from slime_trio.limits.server import serve_within_limits

        return partial(serve_within_limits, app, _hypercorn(settings, grace_s), settings)
    return partial(
        serve_fast,
        app,
        settings,
        find_router=find_router,
        grace_s=grace_s,
        until_settled=ending.until_told,
    )


def _hypercorn(settings: Settings, grace_s: float) -> Any:
    from hypercorn.config import Config

    from slime_trio.observability.logs import server_logger

    config = Config()
    config.accesslog = None
    config.errorlog = server_logger()
    config.loglevel = "WARNING"
    config.graceful_timeout = grace_s
    config.keep_alive_timeout = 75.0
    config.keep_alive_max_requests = 1_000_000
    config.include_server_header = False
    config.ssl_handshake_timeout = settings.header_timeout_s
    return config


class _Ending:
    """What happens once the server is asked to stop."""

    def __init__(self, find_router: FindRouter, grace_s: float) -> None:
        self._find_router: Final = find_router
        self._grace_s: Final = grace_s
        self.aborted = 0
        """Requests that had to be aborted."""

    async def run(self, stop: trio.Event, server: trio.CancelScope) -> None:
        """Wait for calls in flight, not for clients that keep connections open."""
        await stop.wait()
        router = self._find_router()
        if router is not None:
            await self._end(router.shared)
        server.cancel()

    async def _end(self, shared: Shared) -> None:
        shared.dispatcher.refuse_all()
        with trio.move_on_after(self._grace_s):
            await _until_idle(shared)
        if not shared.is_idle:
            self.aborted = shared.dispatcher.stop_all()
            with trio.move_on_after(_SETTLE_S):
                await _until_idle(shared)
        await trio.sleep(_LAST_BYTES_S)

    async def until_told(self) -> None:
        """Wait until workers will have been told of what was aborted; who asked was told."""
        if self.aborted:
            await trio.sleep(_LAST_BYTES_S)


async def _until_idle(shared: Shared) -> None:
    while not shared.is_idle:  # noqa: ASYNC110 - nothing to wait on
        await trio.sleep(_LOOK_S)


async def _stop_on_signal(
    stop: trio.Event, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        task_status.started()
        async for _ in signals:
            break
    # Asked again, the process ends at once, whatever it still waits for.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    stop.set()
