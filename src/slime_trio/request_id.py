"""``x-request-id``: every answer names the request that it belongs to.

Clients show it with their errors (the OpenAI SDKs as ``request_id``), so that one line of a log can
be found. A client that names its request itself is answered with that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

__all__ = ["RequestIds"]

_HEADER: Final = b"x-request-id"
_USABLE: Final = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")
"""Printable ASCII of 128 characters at most, which is safe in a header field and in a log."""


class RequestIds:
    """An ASGI application whose answers all have an ``x-request-id``, one and no more.

    That is the client's own, where it is usable, else one by ``new_id``; never a worker's, whose
    answer may have been passed through. The application inside sees it in the request, and so does
    a worker.
    """

    def __init__(self, app: Any, new_id: Callable[[], str]) -> None:
        self._app = app
        self._new_id = new_id

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one scope; only requests over HTTP have ids."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        named = [value for key, value in scope["headers"] if key.lower() == _HEADER]
        id = named[0] if named and _USABLE.fullmatch(named[0]) else self._new_id().encode()

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                others = [(k, v) for k, v in message.get("headers", ()) if k.lower() != _HEADER]
                message = {**message, "headers": [*others, (_HEADER, id)]}
            await send(message)

        await self._app({**scope, "headers": _renamed(scope["headers"], id)}, receive, answer)


def _renamed(headers: Any, id: bytes) -> list[tuple[bytes, bytes]]:
    return [*((k, v) for k, v in headers if k.lower() != _HEADER), (_HEADER, id)]
