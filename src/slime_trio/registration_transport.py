"""The way of probes and control calls to workers: to the pinned addresses, like the requests'."""

from __future__ import annotations

import ssl

import httpx

from slime_trio.upstream import Pins, UnpinnedError

__all__ = ["PinnedTransport"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


class PinnedTransport(httpx.AsyncBaseTransport):
    """Connects where ``pins`` say that a name leads; ``host`` field and TLS keep the name.

    ``inner`` carries the requests. Raises ``httpx.ConnectError`` for a name that was never looked
    up. It opens no connection through a proxy, whatever the environment says.
    """

    def __init__(
        self,
        pins: Pins | None,
        *,
        tls: ssl.SSLContext | bool = True,
        inner: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._pins = pins
        self._inner = inner or httpx.AsyncHTTPTransport(
            verify=tls, trust_env=False, limits=httpx.Limits(max_connections=None)
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx asks; an address that cannot be reached is followed by the next one."""
        *others, last = self._targets(request)
        for target in others:
            try:
                return await self._inner.handle_async_request(target)
            except httpx.ConnectError:
                continue
        return await self._inner.handle_async_request(last)

    def _targets(self, request: httpx.Request) -> list[httpx.Request]:
        if self._pins is None:
            return [request]
        url = request.url
        port = url.port or _DEFAULT_PORTS.get(url.scheme, 0)
        try:
            addresses = self._pins.addresses(url.host, port)
        except UnpinnedError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        if not addresses:
            return [request]
        return [
            httpx.Request(
                request.method,
                url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": url.host},
            )
            for address in addresses
        ]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()
