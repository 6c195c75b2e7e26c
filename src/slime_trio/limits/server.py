"""Serving within limits: how many connections, from whom, and how long each may keep us waiting.

Hypercorn's own server bounds none of these. So ``slime-router serve`` runs its connections, with
:class:`~slime_trio.limits.protocol.StrictProtocol` in them, instead of Hypercorn's; application,
life span and shutdown stay as in Hypercorn's ``worker_serve``.
"""

from __future__ import annotations

import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import repr_socket_addr, wrap_app

from slime_trio.config import Settings
from slime_trio.limits.admissions import BUSY, Admissions, peer_of
from slime_trio.limits.head import HeadLimits, Phase, Refusal
from slime_trio.limits.protocol import StrictProtocol

__all__ = ["serve_within_limits"]

_LINGER_S: Final = 2.0
"""How long what a refused client still sends is read, lest a reset destroy the answer on its way
to a client that has not read it yet (RFC 9112, 9.6)."""

_LINGER_TLS_S: Final = 0.5
"""The same over TLS, where no half of a connection can be closed to tell the client to go."""

_log: Any = structlog.get_logger("slime_router")

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class _Server(TCPServer):
    """One connection."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        state: Any,
        settings: Settings,
        admissions: Admissions,
        stream: Stream,
    ) -> None:
        super().__init__(app, config, context, state, stream)  # type: ignore[arg-type]
        self._settings = settings
        self._admissions = admissions
        self._limits = HeadLimits(
            head_bytes=settings.max_header_kb * 1024, body_bytes=settings.max_body_mb * 2**20
        )
        self._strict: StrictProtocol | None = None
        self._lingered = False
        self._has_ended = False
        self._client: Stream = stream

    async def run(self) -> None:
        """Serve it, or say that there are too many."""
        peer = peer_of(self._client)
        if not self._admissions.enter(peer):
            await self._turn_away()
            return
        try:
            await super().run()
        except Exception:
            # One connection's trouble must not end all the others.
            _log.exception("internal error", task="connection")
        finally:
            self._admissions.leave(peer)

    async def _turn_away(self) -> None:
        # Over TLS an answer would cost a handshake, which is what there is too much of.
        with trio.move_on_after(_LINGER_S), suppress(trio.BrokenResourceError, OSError):
            if isinstance(self._client, trio.SocketStream):
                await self._client.send_all(BUSY)
                await self._drain()
        await trio.aclose_forcefully(self._client)

    async def _read_data(self) -> None:
        """As in Hypercorn, each wait bounded by what is waited for."""
        protocol = self._strict = self._strictly()
        patience = _Patience(self._settings)
        while True:
            data = None
            with trio.move_on_at(patience.until(protocol.connection.phase)):
                try:
                    data = await self._client.receive_some(MAX_RECV)
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
            if data is None:
                await protocol.refuse(patience.refusal)
                await self.protocol_send(Closed())
                break
            await self.protocol.handle(RawData(bytes(data)))
            if not data:
                break
        self._has_ended = True
        await self.idle_task.stop()
        await self.protocol.handle(Closed())

    def _strictly(self) -> StrictProtocol:
        """The protocol, with a strict one put in the place of Hypercorn's."""
        plain = self.protocol
        assert isinstance(plain, ProtocolWrapper)
        strict = StrictProtocol(
            plain.app,
            plain.config,
            plain.context,
            plain.task_group,
            plain.state,
            plain.ssl,
            plain.client,
            plain.server,
            plain.send,
            limits=self._limits,
        )
        plain.protocol = strict
        return strict

    async def protocol_send(self, event: Event) -> None:
        """As in Hypercorn; before a refused client's connection is closed it may read why.

        A connection whose client has gone waits for no next request: Hypercorn would keep it, and
        its socket, for the whole keep-alive time.
        """
        if isinstance(event, Updated) and self._has_ended:
            return
        refused = self._strict is not None and self._strict.is_refused
        if isinstance(event, Closed) and refused and not self._lingered:
            self._lingered = True
            is_plain = isinstance(self._client, trio.SocketStream)
            patience = trio.move_on_after(_LINGER_S if is_plain else _LINGER_TLS_S)
            with patience, suppress(trio.BrokenResourceError, OSError):
                await self._drain()
        await super().protocol_send(event)

    async def _drain(self) -> None:
        """Read and forget what still comes."""
        with suppress(trio.ClosedResourceError, trio.BusyResourceError):
            if isinstance(self._client, trio.SocketStream):
                await self._client.send_eof()
            while await self._client.receive_some(MAX_RECV):
                pass


class _Patience:
    """Until when the next bytes of a connection are waited for.

    A head has one deadline from its first byte on; a body, one from piece to piece. Between
    requests Hypercorn's own clock runs, and while an answer is under way none.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._head_until = math.inf
        self._phase: Phase = "idle"

    def until(self, phase: Phase) -> float:
        """The deadline, on Trio's clock."""
        now = trio.current_time()
        if phase != "head":
            self._head_until = math.inf
        elif self._head_until == math.inf:
            self._head_until = now + self._settings.header_timeout_s
        self._phase = phase
        return now + self._settings.body_timeout_s if phase == "body" else self._head_until

    @property
    def refusal(self) -> Refusal:
        """What is said once it is over."""
        what = "body" if self._phase == "body" else "head"
        return Refusal(408, "request_timeout", f"the {what} of the request did not come in time")


async def serve_within_limits(
    app: Any,
    config: Config,
    settings: Settings,
    *,
    sockets: Sequence[socket.socket],
    tls: ssl.SSLContext | None,
    shutdown_trigger: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` on sockets that listen, until ``shutdown_trigger`` returns.

    Then nothing new is accepted and what is in flight gets ``config.graceful_timeout``.
    ``task_status`` gets the URLs.
    """
    app = wrap_app(app, 2**16, "asgi")
    context = WorkerContext(None)
    state: dict[str, Any] = {}
    lifespan = Lifespan(app, config, state)
    handler = partial(_Server, app, config, context, ConnectionState(state))
    handler = partial(handler, settings, Admissions(settings))
    async with trio.open_nursery() as life:
        await life.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        async with trio.open_nursery() as connections:
            listeners, urls = _listeners(sockets, tls)
            task_status.started(urls)
            async with trio.open_nursery() as accepting:
                serving = partial(trio.serve_listeners, handler_nursery=connections)
                accepting.start_soon(serving, lambda stream: handler(stream).run(), listeners)
                await shutdown_trigger()
                accepting.cancel_scope.cancel()
            # Idle connections end at once.
            await context.terminated.set()
            connections.cancel_scope.deadline = trio.current_time() + config.graceful_timeout
        await lifespan.wait_for_shutdown()
        life.cancel_scope.cancel()


def _listeners(
    sockets: Sequence[socket.socket], tls: ssl.SSLContext | None
) -> tuple[list[trio.abc.Listener[Any]], list[str]]:
    scheme = "http" if tls is None else "https"
    listeners: list[trio.abc.Listener[Any]] = []
    for one in sockets:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(one))
        secure = None if tls is None else trio.SSLListener(listener, tls, https_compatible=True)
        listeners.append(secure or listener)
    names = (repr_socket_addr(one.family, one.getsockname()) for one in sockets)
    return listeners, [f"{scheme}://{name}" for name in names]
