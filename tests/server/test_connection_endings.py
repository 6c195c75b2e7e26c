"""How connections end: at once where a client asks for it."""

from __future__ import annotations

import pytest
import trio

from tests.listeners import BOTH_LISTENERS
from tests.server.harness import embedded_worker, router_with

# Both: how an answer ends a connection is each listener's own.
pytestmark = BOTH_LISTENERS

_ENDS_WITHIN_S = 3.0
"""Far below the keep-alive time-out, far above what an answer takes."""


async def _all_of(port: int, request: bytes) -> bytes:
    """What comes back until the other side closes."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(request)
        data = bytearray()
        with trio.fail_after(_ENDS_WITHIN_S):
            while piece := await stream.receive_some():
                data += piece
        return bytes(data)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ],
)
async def test_the_router_closes_where_the_client_wants_it(head: bytes) -> None:
    async with router_with() as served:
        assert b"OK" in await _all_of(served.port, head)


async def test_a_stream_to_an_old_client_ends_with_its_connection() -> None:
    body = b'{"text":"a","stream":true,"sampling_params":{"max_new_tokens":1}}'
    head = b"POST /generate HTTP/1.0\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with embedded_worker() as worker, router_with(worker.url) as served:
        assert (await _all_of(served.port, head + body)).endswith(b"data: [DONE]\n\n")


async def test_the_embedded_worker_closes_where_the_client_wants_it() -> None:
    async with embedded_worker() as worker:
        port = int(worker.url.rpartition(":")[2])
        assert await _all_of(port, b"GET /ping HTTP/1.0\r\n\r\n")
