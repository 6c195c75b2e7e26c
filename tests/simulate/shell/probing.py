"""The router's own httpx client on the simulated network: httpx and httpcore as they are.

Only the bottom is replaced, by httpcore's public interface for that. httpx takes a whole transport
or none, so its transport's pool, a private name, is set here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx
import trio

from slime_trio.upstream import STREAM_FAILURES, Origin
from tests.simulate.shell.network import Network, SimStream

__all__ = ["PROBE_S", "admin_client"]

PROBE_S = 10.0
"""The patience of the client that the router makes itself."""


def admin_client(network: Network) -> httpx.AsyncClient:
    """A client whose connections are the network's."""
    return httpx.AsyncClient(transport=_Transport(network), timeout=PROBE_S, trust_env=False)


class _Transport(httpx.AsyncHTTPTransport):
    def __init__(self, network: Network) -> None:
        # Idle connections are kept until the worker closes them: httpcore's own patience with them
        # is measured by the wall clock.
        self._pool = httpcore.AsyncConnectionPool(
            network_backend=_Backend(network), keepalive_expiry=None
        )


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, network: Network) -> None:
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _named(httpcore.ConnectTimeout, httpcore.ConnectError):
            with trio.fail_after(float("inf") if timeout is None else timeout):
                stream = await self._network.connect(Origin(scheme="http", host=host, port=port))
        return _Stream(stream)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: SimStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        with _named(httpcore.ReadTimeout, httpcore.ReadError):
            with trio.fail_after(float("inf") if timeout is None else timeout):
                return await self._stream.receive_some(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        with _named(httpcore.WriteTimeout, httpcore.WriteError):
            with trio.fail_after(float("inf") if timeout is None else timeout):
                await self._stream.send_all(buffer)

    async def aclose(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.is_stale() if info == "is_readable" else None


@contextmanager
def _named(late: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """What a stream may raise, in httpcore's words."""
    try:
        yield
    except trio.TooSlowError as error:
        raise late(str(error)) from error
    except STREAM_FAILURES as error:
        raise failed(str(error)) from error
