"""A request's body that nobody reads must not stand in the way of the next request.

Hypercorn answers such a request and keeps the connection, but the rest of the body is still on its
way, and the next request on that connection is never answered. So the connection is closed.
"""

from __future__ import annotations

from typing import Any, Final

from quart import Response, request
from quart_trio import QuartTrio
from quart_trio.wrappers import TrioRequest

__all__ = ["close_after_unread_bodies"]

_READ: Final = "slime_router.body_was_read"


class _WatchedRequest(TrioRequest):
    """Remembers that its body was read to the end."""

    async def get_data(self, *arguments: Any, **keywords: Any) -> Any:
        """As in Quart, whose other ways to the body lead through here."""
        data = await super().get_data(*arguments, **keywords)
        scope: Any = self.scope
        scope[_READ] = True
        return data


def close_after_unread_bodies(app: QuartTrio) -> None:
    """Have ``app`` close a connection whose request's body was not read to its end."""
    app.request_class = _WatchedRequest

    @app.after_request
    async def close(response: Response) -> Response:
        has_body = request.headers.get("content-length", "0") != "0"
        has_body = has_body or "transfer-encoding" in request.headers
        scope: Any = request.scope
        if has_body and _READ not in scope:
            response.headers["connection"] = "close"
        return response
