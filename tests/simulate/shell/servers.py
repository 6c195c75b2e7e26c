"""The two ways to serve the application, with connections handed to them instead of sockets."""

from __future__ import annotations

import logging
from typing import Any, Final, Protocol

import trio
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan as HypercornLifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from hypercorn.utils import wrap_app

from slime_trio.listener.lifespan import Lifespan
from slime_trio.listener.server import Listener
from slime_trio.router import Router
from slime_trio.upstream import Watch
from tests.simulate.shell.network import SimStream

__all__ = ["Server", "server_of"]

_KEEP_ALIVE_S: Final = 5.0
_REST_S: Final = 12.0
"""How long connections may take to end once the server is to."""


class Server(Protocol):
    """An application's life, and its connections."""

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Be it; ends after :meth:`stop`."""

    def accept(self, stream: SimStream) -> None:
        """Serve a connection."""

    @property
    def connections(self) -> list[str]:
        """Those that are still being served."""

    async def stop(self) -> None:
        """End, within :data:`_REST_S`."""


def server_of(listener: str, app: Any, router: Router, watch: Watch) -> Server:
    """The server of that name. ``watch`` tells it of clients that leave, if it listens."""
    return _Hypercorn(app) if listener == "hypercorn" else _Fast(app, router, watch)


class _Connections:
    """The nursery of the connections, while there is one."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery | None = None

    def start(self, serve: Any, stream: SimStream, *arguments: Any) -> None:
        assert self.nursery is not None
        self.nursery.start_soon(serve, *arguments, name=f"connection {stream.label}")

    @property
    def names(self) -> list[str]:
        tasks = () if self.nursery is None else self.nursery.child_tasks
        return sorted(task.name for task in tasks)

    def give_up(self) -> None:
        assert self.nursery is not None
        self.nursery.cancel_scope.deadline = trio.current_time() + _REST_S


class _Hypercorn:
    """As ``hypercorn.trio.run.worker_serve``."""

    def __init__(self, app: Any) -> None:
        self._config = Config()
        self._config.accesslog = None
        self._config.errorlog = logging.getLogger("simulate.hypercorn")
        self._config.include_date_header = self._config.include_server_header = False
        # Hypercorn keeps a connection whose client has gone for as long as an idle one.
        self._config.keep_alive_timeout = _KEEP_ALIVE_S
        self._app = wrap_app(app, 2**16, "asgi")
        self._state: LifespanState = {}
        self._lifespan = HypercornLifespan(self._app, self._config, self._state)
        self._context = WorkerContext(None)
        self._connections = _Connections()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as life:
            await life.start(self._lifespan.handle_lifespan)
            await self._lifespan.wait_for_startup()
            async with trio.open_nursery() as self._connections.nursery:
                task_status.started()
                await self._context.terminated.wait()
                self._connections.give_up()
            await self._lifespan.wait_for_shutdown()
            life.cancel_scope.cancel()

    def accept(self, stream: SimStream) -> None:
        state = ConnectionState(self._state.copy())
        # Of the stream Hypercorn wants what Trio's interface has, and a socket to ask for names.
        server = TCPServer(self._app, self._config, self._context, state, stream)  # type: ignore[arg-type]
        self._connections.start(server.run, stream)

    @property
    def connections(self) -> list[str]:
        return self._connections.names

    async def stop(self) -> None:
        await self._context.terminated.set()


class _Fast:
    """As :func:`slime_trio.listener.server.serve_fast`."""

    def __init__(self, app: Any, router: Router, watch: Watch) -> None:
        self._lifespan = Lifespan(app)
        self._listener = Listener(
            app,
            router.args,
            find_router=lambda: router,
            state=self._lifespan.state,
            keep_alive_s=_KEEP_ALIVE_S,
            date=lambda: b"Thu, 01 Jan 1970 00:00:00 GMT",
            watch=watch,
        )
        self._connections = _Connections()
        self._stopped = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as life:
            life.start_soon(self._lifespan.run)
            await self._lifespan.start()
            await life.start(self._listener.run)
            async with trio.open_nursery() as self._connections.nursery:
                task_status.started()
                await self._stopped.wait()
                self._listener.stop()
                self._connections.give_up()
            await self._lifespan.end()
            life.cancel_scope.cancel()

    def accept(self, stream: SimStream) -> None:
        self._connections.start(self._listener.serve_stream, stream, stream)

    @property
    def connections(self) -> list[str]:
        return self._connections.names

    async def stop(self) -> None:
        self._stopped.set()
