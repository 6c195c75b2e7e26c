"""Responses: JSON as SGLang writes it, refusals, and event streams that can break on purpose."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType
from typing import Any

import msgspec
from quart import Response
from quart.wrappers.response import ResponseBody

from slime_core import sse
from slime_core.engine import Refusal

__all__ = ["EventBody", "StreamCut", "event", "json_reply", "refusal_reply", "stream_reply"]


class StreamCut(Exception):
    """Raised in a body to break the connection without the end of the message."""


def json_reply(value: Any, status: int = 200) -> Response:
    """``value`` as SGLang writes JSON."""
    return Response(msgspec.json.encode(value), status, content_type="application/json")


def refusal_reply(refusal: Refusal) -> Response:
    """A request that the engine refuses, in SGLang's shape."""
    return json_reply(refusal.body, refusal.status)


def event(value: Any) -> bytes:
    """One server-sent event that holds ``value`` as JSON."""
    return sse.encode(msgspec.json.encode(value))


Events = Callable[[], AsyncGenerator[bytes, None]]


class EventBody(ResponseBody):
    """A body that starts to work when it is sent, and is closed when the client has gone.

    ``events`` makes the generator; it is closed without awaiting anything but its own clean-up,
    which must be synchronous.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._running: AsyncGenerator[bytes, None] | None = None

    async def __aenter__(self) -> EventBody:
        self._running = self._events()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._running is not None:
            await self._running.aclose()

    def __aiter__(self) -> AsyncIterator[bytes]:
        assert self._running is not None
        return self._running


def stream_reply(events: Events) -> Response:
    """A ``text/event-stream`` answer without any time limit."""
    response = Response(EventBody(events), 200, content_type="text/event-stream; charset=utf-8")
    response.timeout = None
    return response
