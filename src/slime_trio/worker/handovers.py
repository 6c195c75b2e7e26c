"""How a prompt gets from a prefill worker to a decode worker: one short TCP conversation each.

The decode worker connects to the room's host and port as soon as it has the request, and sends
``{"room": n, "sample": i}``. The prefill worker answers when it has computed the prompt of that
room, which may not even have been asked for yet: ``{"handover": {…}}``, or ``{"error": "…"}`` if it
never will. The decode worker confirms with ``{}``. Each message is a line of JSON. A connection
that ends before the confirmation fails the request on both sides, so that neither waits for one
that is gone.

SGLang does this with RDMA and a protocol of its own; what a router can see of it is the same.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import msgspec
import trio

from slime_core.engine import Generation, Handover, Room
from slime_trio.worker.service import Worker

__all__ = ["fetch_handovers", "serve_handovers"]

_LINE_MAX: Final = 2**20
_PIECE: Final = 2**16
_BROKEN: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class _Wanted(msgspec.Struct):
    room: int
    sample: int = 0


class _Told(msgspec.Struct):
    handover: Handover | None = None
    error: str = ""


class _GoneError(Exception):
    """The other side has gone, or speaks in riddles."""


async def serve_handovers(
    worker: Worker, host: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Gives a prefill worker's prompts away, until cancelled; ``worker.bootstrap_port`` tells
    where. Raises ``OSError`` for a port that is taken."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(worker.options.bootstrap_port, host=host)
        worker.bootstrap_port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(partial(_give, worker), listeners, handler_nursery=nursery)


async def _give(worker: Worker, stream: trio.SocketStream) -> None:
    engine, key = worker.engine, None
    try:
        async with stream:
            wanted = msgspec.json.decode(await _line(stream), type=_Wanted)
            key = wanted.room, wanted.sample
            told = await _offered_unless_gone(worker, key, stream)
            await stream.send_all(msgspec.json.encode(told) + b"\n")
            await _line(stream)
            engine.given(key)
    except (*_BROKEN, _GoneError, msgspec.DecodeError):
        if key is not None:
            engine.transfer_failed(key, "KV transfer failed: the decode worker has gone.")
    worker.host.poke()


async def _offered_unless_gone(
    worker: Worker, key: tuple[int, int], stream: trio.SocketStream
) -> _Told:
    """What waits in this room, as soon as it does. Raises :class:`_GoneError`."""
    told: list[_Told] = []

    async def wait(scope: trio.CancelScope) -> None:
        while not told:
            stepped, offer = worker.host.stepped, worker.engine.offered(key)
            if offer is not None:
                told.append(_Told(handover=offer))
            elif worker.engine.is_over(key):
                told.append(_Told(error="KV transfer failed: the prefill worker gave up."))
            else:
                await stepped.wait()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, nursery.cancel_scope)
        # Nothing is to be said meanwhile: whatever comes is the end, or nonsense.
        await stream.receive_some(1)
        nursery.cancel_scope.cancel()
    if not told:
        raise _GoneError
    return told[0]


async def fetch_handovers(worker: Worker) -> None:
    """Fetches what a decode worker waits for, until cancelled."""
    fetching: dict[str, trio.CancelScope] = {}
    async with trio.open_nursery() as nursery:
        while True:
            stepped, wanted = worker.host.stepped, worker.engine.wanted()
            named = {generation.rid for generation in wanted}
            for rid in [rid for rid in fetching if rid not in named]:
                fetching.pop(rid).cancel()
            for generation in wanted:
                if generation.rid not in fetching:
                    scope = fetching[generation.rid] = trio.CancelScope()
                    nursery.start_soon(_fetch, worker, generation, scope)
            await stepped.wait()


async def _fetch(worker: Worker, generation: Generation, scope: trio.CancelScope) -> None:
    room = generation.room
    assert room is not None
    with scope:
        try:
            told = await _asked(room, room.port or worker.options.bootstrap_port)
        except (*_BROKEN, _GoneError, msgspec.DecodeError):
            told = _Told(error="KV transfer failed: the prefill worker has gone.")
        if told.handover is None:
            worker.engine.transfer_failed(room.key, told.error)
        else:
            worker.engine.received(room.key, told.handover)
        worker.host.poke()


async def _asked(room: Room, port: int) -> _Told:
    stream = await trio.open_tcp_stream(room.host.strip("[]"), port)
    async with stream:
        wanted = _Wanted(room=room.number, sample=room.sample)
        await stream.send_all(msgspec.json.encode(wanted) + b"\n")
        told = msgspec.json.decode(await _line(stream), type=_Told)
        if told.handover is not None:
            await stream.send_all(b"{}\n")
        return told


async def _line(stream: trio.SocketStream) -> bytes:
    """One message. Raises :class:`_GoneError` if there is none."""
    line = b""
    while not line.endswith(b"\n"):
        data = await stream.receive_some(_PIECE)
        if not data or len(line) > _LINE_MAX:
            raise _GoneError
        line += bytes(data)
    return line
