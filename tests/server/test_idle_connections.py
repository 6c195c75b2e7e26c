"""Thousands of clients that keep their connections and say nothing are in nobody's way."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator

import pytest
import trio

from slime_trio.app import create_app
from slime_trio.config import Settings
from slime_trio.router import Router
from slime_trio.serve import bind, serve
from tests import listeners
from tests.server.harness import (
    CHECKPOINT,
    answer_item,
    checkpoint,
    fake_worker,
    json_answer,
)

MANY = 2000
REQUEST = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
GENERATE = (
    b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"content-length: 12\r\n\r\n" + b'{"text":"x"}'
)


@pytest.fixture
def _enough_files() -> Iterator[None]:
    """Both ends of every connection are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MANY + 500
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"this machine allows {hard} open files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _answered(stream: trio.SocketStream, request: bytes) -> bytes:
    await stream.send_all(request)
    got = b""
    while not _is_whole(got):
        piece = await stream.receive_some(65536)
        assert piece, "the connection was closed"
        got += piece
    return got


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(end) and (length is None or len(body) >= int(length[1]))


@pytest.mark.usefixtures("_enough_files")
async def test_thousands_of_idle_connections_stay_and_everybody_is_served() -> None:
    settings = Settings(hf_checkpoint=CHECKPOINT, probe_logprobs=False, listener=listeners.chosen())
    router = Router(settings, checkpoint=checkpoint())
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    stop, streams = trio.Event(), list[trio.SocketStream]()
    limit = trio.CapacityLimiter(64)

    async def connect(asks: bool) -> None:
        async with limit:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            if asks:
                assert (await _answered(stream, REQUEST)).startswith(b"HTTP/1.1 200")
            streams.append(stream)

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        app = create_app(settings, router=router)
        await serve(app, settings, listener, until=stop, task_status=task_status)

    with trio.fail_after(120):
        async with (
            fake_worker(json_answer(answer_item([5], "a"))) as worker,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(run)
            async with trio.open_nursery() as clients:
                for number in range(MANY):
                    clients.start_soon(connect, number % 10 == 0)
            assert len(streams) == MANY
            await _register(port, worker.url)
            # The oldest and the youngest of them ask on the connections that they kept.
            for stream in (*streams[:3], *streams[-3:]):
                told = await _answered(stream, GENERATE)
                assert told.startswith(b"HTTP/1.1 200"), told
            stop.set()
            for stream in streams:
                stream.socket.close()


async def _register(port: int, url: str) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    request = b"POST /add_worker?url=%b HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    told = await _answered(stream, request % url.encode())
    assert told.startswith(b"HTTP/1.1 200"), told
    await stream.aclose()
