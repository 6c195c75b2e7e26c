"""The last message of an answer is sent to its end, so that connections are closed when announced.

Hypercorn closes a connection (one that the client or the answer asked to close, or any of HTTP/1.0,
where the close is the end of the body) within the application's last ``send``, right after it has
told the application of the disconnect. Quart-Trio takes this for a client that left and cancels the
request, hence the closing too: the connection stays open, and the client waits for its end for
ever. So the last ``send`` is shielded, around everything that may cancel it, middleware included.

An answer may come before the request's body has: its end then waits a while for the rest. Closing
at once would reset the connection under a client that is still sending, and with it the answer that
the client has not read yet (RFC 9112, 9.6).
"""

from __future__ import annotations

from typing import Any, Final

import trio

__all__ = ["send_to_the_end"]

_CLOSING_S: Final = 10.0
"""Bounds the shield, should the server wait for somebody who was cancelled."""

_LINGER_S: Final = 5.0
"""How long the rest of a body is waited for once the whole answer has been sent."""


def send_to_the_end(app: Any) -> Any:
    """The ASGI application ``app``, its last message of each answer shielded."""

    async def shielding(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            exchange = _Exchange(receive, send)
            receive, send = exchange.receive, exchange.send
        await app(scope, receive, send)

    return shielding


class _Exchange:
    """The two directions of one request."""

    def __init__(self, receive: Any, send: Any) -> None:
        self._receive = receive
        self._send = send
        self._arrived = trio.Event()
        self._closes = False

    async def receive(self) -> Any:
        """A message of the client's, as it is; notices the last of its body."""
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._arrived.set()
        return message

    async def send(self, message: Any) -> None:
        """A message for the client; the last one closes the connection, if anything does."""
        if message["type"] == "http.response.start":
            self._closes = (b"connection", b"close") in [tuple(one) for one in message["headers"]]
        if message["type"] != "http.response.body" or message.get("more_body", False):
            await self._send(message)
            return
        if self._closes and not self._arrived.is_set():
            await self._send({**message, "more_body": True})
            message = {"type": "http.response.body"}
            with trio.move_on_after(_LINGER_S, shield=True):
                await self._arrived.wait()
        with trio.move_on_after(_CLOSING_S, shield=True):
            await self._send(message)
