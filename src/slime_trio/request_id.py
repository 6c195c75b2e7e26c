"""``x-request-id``: every answer names the request that it belongs to.

Clients show it with their errors (the OpenAI SDKs as ``request_id``), so that one line of a log can
be found. A client that names its request itself is answered with that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from slime_trio.exchange import Headers

__all__ = ["RequestIds", "identified", "named_after"]

_HEADER: Final = b"x-request-id"
_USABLE: Final = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")
"""Printable ASCII of 128 characters at most, which is safe in a header field and in a log."""


def identified(headers: Iterable[tuple[bytes, bytes]], new_id: Callable[[], str]) -> Headers:
    """A request's fields with its id as the last of them: the client's own, where it is usable,
    else one by ``new_id``. Names are lower-case."""
    fields = list(headers)
    others = [field for field in fields if field[0] != _HEADER]
    own = None
    if len(others) < len(fields):
        own = next(value for name, value in fields if name == _HEADER)
    if own is None or not _USABLE.fullmatch(own):
        own = new_id().encode()
    others.append((_HEADER, own))
    return others


def named_after(headers: Iterable[tuple[bytes, bytes]], id: bytes) -> Headers:
    """An answer's fields with the id of its request, and with no other; names are lower-case."""
    named = [field for field in headers if field[0] != _HEADER]
    named.append((_HEADER, id))
    return named


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
        fields = [(name.lower(), value) for name, value in scope["headers"]]
        headers = identified(fields, self._new_id)
        id = headers[-1][1]

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                # Not all middleware gives names in lower case, as it should.
                fields = message.get("headers", ())
                others = [field for field in fields if field[0].lower() != _HEADER]
                message = {**message, "headers": [*others, (_HEADER, id)]}
            await send(message)

        await self._app({**scope, "headers": headers}, receive, answer)
