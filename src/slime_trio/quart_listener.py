"""The way from Quart to the relay: who owns a request's worker slot, and how the body flows.

Quart sends the response's head before it enters the body's context manager, and cancels the
request's nursery when the client goes. A slot taken in a handler and released when the body ends
would therefore leak if the client left in between. So the relay runs as a task of its own in the
request's nursery and owns everything it takes in plain ``try``/``finally``; the handler only waits
for the status, and the body only drains a channel.

The channel has no capacity: a client that does not read stops the reading from the worker. Since
Hypercorn shields its sends from cancellation, a client that never reads could hold the relay for
ever; the relay's own send is bounded instead, and gives up.

If the relay fails after the head was sent, the request is cancelled: Hypercorn then closes the
connection without the end of the message, which is how a client can tell that it was cut.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Final

import trio
from quart import Response, current_app, request
from quart.wrappers.response import ResponseBody

from slime_core.errors import ClientError, SlimeError
from slime_trio.connection_endings import EndingConnection
from slime_trio.exchange import ClientGone, Headers, Inbound
from slime_trio.limits.json_depth import check_depth
from slime_trio.offload import off_loop

__all__ = [
    "MAX_JSON_DEPTH",
    "RelayConnection",
    "body_bytes",
    "inbound",
    "pass_as",
    "relayed",
    "written_path",
]

MAX_JSON_DEPTH: Final = "SLIME_ROUTER_MAX_JSON_DEPTH"
"""Where the application's configuration holds how deep a request's JSON may be."""

_PASSED_AS: Final = "slime_router.passed_as"
_READ_AS: Final = "slime_router.read_as"
_NURSERY: Final = "slime_router.nursery"
_SERVER: Final = re.compile(rb"\Ahttps?://[^/]*", re.IGNORECASE)

Serve = Callable[[Inbound, "ChannelReply"], Awaitable[None]]


class RelayConnection(EndingConnection):
    """Lets a handler start tasks in its request's nursery."""

    async def handle_request(self, nursery: trio.Nursery, request: Any, send: Any) -> None:  # type: ignore[override]
        """Remember the nursery; everything else as usual."""
        request.scope[_NURSERY] = nursery
        await super().handle_request(nursery, request, send)


class _Pieces:
    """The pieces of a body as Quart asks for them, each once the one before has left."""

    def __init__(self, channel: trio.MemoryReceiveChannel[bytes]) -> None:
        self._channel = channel
        self._changed = trio.lowlevel.ParkingLot()
        self._is_closed = False
        self.left = -1
        """How many have left: all that were asked for but the latest; -1 before the first."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self.left += 1
        self._changed.unpark_all()
        return await self._channel.__anext__()

    async def until_left(self, number: int) -> bool:
        """Wait until so many have left, or no more will; whether they have."""
        while self.left < number and not self._is_closed:
            await self._changed.park()
        return self.left >= number

    def close(self) -> None:
        """Nothing more is asked for."""
        self._is_closed = True
        self._changed.unpark_all()
        self._channel.close()


class ChannelReply:
    """A :class:`slime_trio.exchange.Reply` whose pieces go through a channel to Quart's body."""

    def __init__(
        self,
        channel: trio.MemorySendChannel[bytes],
        pieces: _Pieces,
        task_status: trio.TaskStatus[tuple[int, Headers]],
        stall_s: float,
    ) -> None:
        self._channel = channel
        self._pieces = pieces
        self._task_status = task_status
        self._stall_s = stall_s
        self._sent = 0
        self.started = False

    @property
    def flushed(self) -> bool:
        """Whether all that was sent has left for the client."""
        return self._pieces.left >= self._sent

    async def flush(self) -> None:
        """Wait until it has. Raises ``ClientGone`` if it does not in time, or never will."""
        with trio.move_on_after(self._stall_s):
            if await self._pieces.until_left(self._sent):
                return
        raise ClientGone("the client takes nothing any more")

    async def start(self, status: int, headers: Headers) -> None:
        """Give the handler the status and header fields."""
        self.started = True
        self._task_status.started((status, headers))
        await trio.lowlevel.checkpoint()

    async def send(self, data: bytes) -> None:
        """Hand over a piece. Raises ``ClientGone`` if it is not taken in time, or never."""
        if not data:
            return
        try:
            with trio.fail_after(self._stall_s):
                await self._channel.send(data)
                self._sent += 1
        except (trio.TooSlowError, trio.BrokenResourceError) as error:
            raise ClientGone("the client takes nothing any more") from error


class _ChannelBody(ResponseBody):
    """Quart's side of the channel."""

    def __init__(self, pieces: _Pieces) -> None:
        self._pieces = pieces

    async def __aenter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._pieces.close()


async def body_bytes() -> bytes:
    """The body of the request being served. Raises ``ClientError`` for JSON that is too deep."""
    data = await request.get_data(cache=False, as_text=False)
    assert isinstance(data, bytes)
    await off_loop(len(data), check_depth, data, current_app.config[MAX_JSON_DEPTH])
    return data


async def inbound() -> Inbound:
    """The request being served, as the relay wants it. Reads the whole body.

    Raises ``ClientError`` for a target that is no path, such as the ``*`` of ``OPTIONS``.
    """
    scope: Any = request.scope
    query = scope["query_string"]
    return Inbound(
        method=request.method,
        path=scope.get(_READ_AS, request.path),
        target=scope.get(_PASSED_AS, written_path(scope)) + (b"?" + query if query else b""),
        headers=[(bytes(key).lower(), bytes(value)) for key, value in scope["headers"]],
        body=await body_bytes(),
    )


def pass_as(scope: Any, raw: bytes, path: str) -> None:
    """Have :func:`inbound` say that the path was written as ``raw``, and means ``path``."""
    scope[_PASSED_AS], scope[_READ_AS] = raw, path


def written_path(scope: Any) -> bytes:
    """The path as it was written; of a whole URL, which is as good (RFC 9112, 3.2.2), its path.

    Raises ``ClientError`` for a target that is none.
    """
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    path = _SERVER.sub(b"", raw.split(b"?")[0]) or b"/"
    if not path.startswith(b"/"):
        raise ClientError("the request's target is no path", code="invalid_target")
    return path


async def relayed(serve: Serve, *, stall_s: float) -> Response:
    """Have the relay serve this request. Raises what it raises before the head was given."""
    scope: Any = request.scope
    nursery: trio.Nursery = scope[_NURSERY]
    arrived = await inbound()
    sender, receiver = trio.open_memory_channel[bytes](0)
    pieces = _Pieces(receiver)
    status, headers = await nursery.start(_run, serve, arrived, sender, pieces, nursery, stall_s)
    response = Response(_ChannelBody(pieces), status)
    response.timeout = None
    response.headers.clear()
    for key, value in headers:
        response.headers.add(key.decode("latin-1"), value.decode("latin-1"))
    return response


async def _run(
    serve: Serve,
    arrived: Inbound,
    channel: trio.MemorySendChannel[bytes],
    pieces: _Pieces,
    nursery: trio.Nursery,
    stall_s: float,
    *,
    task_status: trio.TaskStatus[tuple[int, Headers]],
) -> None:
    reply = ChannelReply(channel, pieces, task_status, stall_s)
    with channel:
        try:
            await serve(arrived, reply)
        except ClientGone:
            nursery.cancel_scope.cancel()
        except SlimeError:
            if not reply.started:
                raise
            nursery.cancel_scope.cancel()
