"""How a connection goes on, or ends, after an answer: two mends for Quart-Trio on Hypercorn.

*Unread bodies.* A request whose body nobody reads is answered and its connection kept, but the rest
of the body is still on its way, and the next request on that connection is never answered. So such
a connection is closed, once the rest has come or a while has passed: closed at once, it would be
reset under a client that is still sending, and with it an answer that the client has not read yet
(RFC 9112, 9.6).

*Closing.* Where a client wants the connection closed (``Connection: close``, HTTP/1.0), Hypercorn
closes it within the sending of the answer's last piece. Quart-Trio notices the closing as a client
that has gone and cancels the request, and with it the closing: the client waits for the end until
the keep-alive time-out. So the last piece is sent in a scope that is not cancelled. Nor is it
bounded in time: Hypercorn does not let go of a send that waits for its client anyway, and a bound
would strike behind it, where the connection is made ready for the next request, which then would
never be answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import trio
from quart import Response, request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest

from slime_core.errors import ClientError
from slime_trio.limits.head import judge_fields

__all__ = ["EndingConnection", "close_after_unread_bodies", "refuse_two_framings"]

_READ: Final = "slime_router.body_was_read"
_LINGER_S: Final = 5.0
"""How long the rest of a body is waited for once the answer has been sent."""


class EndingConnection(TrioASGIHTTPConnection):
    """Lets Hypercorn finish what the last piece of an answer begins."""

    def __init__(self, app: Any, scope: Any) -> None:
        super().__init__(app, scope)
        self._arrived = trio.Event()
        self._closes = False

    async def handle_messages(self, nursery: trio.Nursery, request: Any, receive: Any) -> None:  # type: ignore[override]
        """As usual; notices the end of the request's body, whoever reads it."""

        async def watched() -> Any:
            event = await receive()
            if event["type"] != "http.request" or not event.get("more_body", False):
                self._arrived.set()
            return event

        await super().handle_messages(nursery, request, watched)

    async def handle_request(self, nursery: trio.Nursery, request: Any, send: Any) -> None:  # type: ignore[override]
        """As usual, with the last piece shielded."""

        async def send_to_the_end(event: Any) -> None:
            if event["type"] == "http.response.start":
                self._closes = (b"connection", b"close") in event["headers"]
            if event["type"] != "http.response.body" or event.get("more_body", False):
                await send(event)
                return
            if self._closes:
                with trio.move_on_after(_LINGER_S, shield=True):
                    await self._arrived.wait()
            with trio.CancelScope(shield=True):
                await send(event)

        await super().handle_request(nursery, request, send_to_the_end)


def _never() -> bool:
    return False


class _WatchedRequest(TrioRequest):
    """Remembers that its body was read to the end."""

    async def get_data(self, *arguments: Any, **keywords: Any) -> Any:
        """As in Quart, whose other ways to the body lead through here."""
        data = await super().get_data(*arguments, **keywords)
        scope: Any = self.scope
        scope[_READ] = True
        return data


def refuse_two_framings(app: QuartTrio) -> None:
    """Have ``app`` refuse requests that announce their length in two ways.

    ``slime-router serve`` refuses them, and more, before they are parsed; this is for applications
    that plain Hypercorn serves, which takes them.
    """

    @app.before_request
    async def judge() -> None:
        scope: Any = request.scope
        fields = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        refusal = judge_fields(fields, scope["http_version"].encode())
        if refusal is not None:
            raise ClientError(refusal.message, status=refusal.status, code=refusal.code)


def close_after_unread_bodies(app: QuartTrio, *, is_stopping: Callable[[], bool] = _never) -> None:
    """Have ``app`` close a connection whose request's body was not read to its end, and every
    connection after its answer while the server is being stopped."""
    app.request_class = _WatchedRequest

    @app.after_request
    async def close(response: Response) -> Response:
        has_body = request.headers.get("content-length", "0") != "0"
        has_body = has_body or "transfer-encoding" in request.headers
        scope: Any = request.scope
        if is_stopping() or (has_body and _READ not in scope):
            response.headers["connection"] = "close"
        return response
