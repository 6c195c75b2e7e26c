"""The life of the server: binding, stopping, and what a stop waits for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import trio

from slime_core.segments import Outcome
from slime_trio.app import create_app
from slime_trio.config import ConfigurationError, Settings
from slime_trio.router import Router
from slime_trio.serve import bind, serve
from tests import listeners
from tests.listeners import BOTH_LISTENERS
from tests.server.harness import (
    CHECKPOINT,
    Arrived,
    FakeWorker,
    answer_item,
    checkpoint,
    embedded_worker,
    events_of,
    fake_worker,
    http_response,
)
from tests.server.relay_support import STREAM_HEAD, event_chunk

# Both: stopping is each listener's own.
pytestmark = BOTH_LISTENERS

ANSWER = json.dumps(answer_item([5], "a")).encode()


@dataclass(frozen=True, slots=True)
class _Running:
    """A router that a test may stop."""

    router: Router
    client: httpx.AsyncClient
    port: int
    stop: trio.Event
    ended: trio.Event
    statuses: list[int]
    """The exit status, once there is one."""


@asynccontextmanager
async def _running(*workers: str, **settings: Any) -> AsyncIterator[_Running]:
    # A probe of logprobs is a generation, which the workers here would take for a client's.
    more: dict[str, Any] = {"probe_logprobs": False, "listener": listeners.chosen()} | settings
    chosen = Settings(host="127.0.0.1", port=0, hf_checkpoint=CHECKPOINT, **more)
    router = Router(chosen, checkpoint=checkpoint())
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    stop, ended = trio.Event(), trio.Event()
    statuses: list[int] = []

    async def run(task_status: trio.TaskStatus[Any]) -> None:
        app = create_app(chosen, router=router)
        statuses.append(await serve(app, chosen, listener, until=stop, task_status=task_status))
        ended.set()

    with trio.fail_after(15):
        async with (
            trio.open_nursery() as nursery,
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False
            ) as client,
        ):
            await nursery.start(run)
            for worker in workers:
                (await client.post("/add_worker", params={"url": worker})).raise_for_status()
            yield _Running(router, client, port, stop, ended, statuses)
            stop.set()
            nursery.cancel_scope.cancel()


async def _until_asked(worker: FakeWorker) -> None:
    with trio.fail_after(5):
        while not worker.arrived:  # noqa: ASYNC110 - nothing to wait on
            await trio.sleep(0.005)


# -- binding -----------------------------------------------------------------------------------


def test_a_taken_port_is_named() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"):
            bind("127.0.0.1", port)


def test_an_address_of_six_is_bound() -> None:
    with bind("::1", 0) as listener:
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["256.1.1.1", "no such host", "203.0.113.1", "a..b"])
def test_an_address_that_cannot_be_had_is_named(host: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        bind(host, 0)


# -- stopping ----------------------------------------------------------------------------------


async def test_a_stop_does_not_wait_for_idle_connections() -> None:
    async with _running() as running:
        await running.client.get("/health")
        running.stop.set()
        with trio.fail_after(3):
            await running.ended.wait()


async def test_a_stop_lets_a_generation_finish() -> None:
    go = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await go.wait()
        return http_response(ANSWER)

    got: list[httpx.Response] = []
    async with (
        fake_worker(answer) as worker,
        _running(worker.url) as running,
        trio.open_nursery() as nursery,
    ):

        async def ask() -> None:
            got.append(await running.client.post("/generate", json={"text": "x"}))

        nursery.start_soon(ask)
        await _until_asked(worker)
        running.stop.set()
        await trio.sleep(0.7)
        assert not running.ended.is_set()
        go.set()
        with trio.fail_after(3):
            await running.ended.wait()
    assert got[0].json()["text"] == "a"
    assert running.router.state.counters.calls_captured == 1
    assert running.statuses == [0]


async def test_a_server_that_is_cancelled_keeps_no_connection_to_a_worker() -> None:
    async with embedded_worker() as worker:
        async with _running(worker.url) as running:
            body = {"text": "Once", "sampling_params": {"max_new_tokens": 1}}
            assert (await running.client.post("/generate", json=body)).status_code == 200
            pool = running.router.pool
            assert pool.idle(worker.url) == 1
        assert not running.ended.is_set()
        assert pool.stats().idle == 0


async def test_nothing_new_is_accepted_after_a_stop() -> None:
    async with (
        fake_worker(_hang) as worker,
        _running(worker.url, shutdown_grace_s=0.5) as running,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_ask_in_vain, running)
        await _until_asked(worker)
        running.stop.set()
        await trio.sleep(0.1)
        assert not running.ended.is_set()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", running.port)


async def test_a_generation_is_cut_when_the_grace_is_over() -> None:
    async with (
        fake_worker(_hang) as worker,
        _running(worker.url, shutdown_grace_s=0.3) as running,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_ask_in_vain, running)
        await _until_asked(worker)
        running.stop.set()
        with trio.fail_after(3):
            await running.ended.wait()
        state = running.router.state
        assert not state.open_calls
        assert not state.fleet.total_in_flight
        assert running.statuses == [1]
        assert worker.aborted


async def test_what_was_captured_of_a_stream_that_is_cut_is_kept() -> None:
    begun = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        await stream.send_all(STREAM_HEAD + event_chunk(answer_item([5], "a", finished=False)))
        begun.set()
        await trio.sleep_forever()

    got: list[httpx.Response] = []
    async with (
        fake_worker(answer) as worker,
        _running(worker.url, shutdown_grace_s=0.2) as running,
        trio.open_nursery() as nursery,
    ):

        async def ask() -> None:
            got.append(await running.client.post("/generate", json={"text": "x", "stream": True}))

        nursery.start_soon(ask)
        await begun.wait()
        running.stop.set()
        await running.ended.wait()
    (segment,) = running.router.state.forest.calls.values()
    assert segment.answer is not None
    assert segment.answer.outcome is Outcome.PARTIAL
    assert events_of(got[0].text)[-1]["error"]["code"] == "shutting_down"


async def test_whoever_waits_for_a_worker_is_sent_away_at_once() -> None:
    go = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await go.wait()
        return http_response(ANSWER)

    got: list[httpx.Response] = []
    async with (
        fake_worker(answer) as worker,
        _running(worker.url, max_concurrent_requests=1) as running,
        trio.open_nursery() as nursery,
    ):

        async def ask() -> None:
            got.append(await running.client.post("/generate", json={"text": "x"}))

        nursery.start_soon(ask)
        await _until_asked(worker)
        nursery.start_soon(ask)
        while not running.router.shared.dispatcher.room.waiting:  # noqa: ASYNC110 - as outside
            await trio.sleep(0.005)
        running.stop.set()
        while not got:  # noqa: ASYNC110 - likewise
            await trio.sleep(0.005)
        assert got[0].json()["error"]["code"] == "shutting_down"
        assert "retry-after" in got[0].headers
        assert got[0].headers["connection"] == "close"
        go.set()
        await running.ended.wait()
    assert [one.status_code for one in got] == [503, 200]
    assert running.statuses == [0]


async def test_a_router_that_is_being_stopped_is_not_ready_and_takes_nothing_new() -> None:
    async with fake_worker(_hang) as worker, _running(worker.url) as running:
        running.router.shared.dispatcher.refuse_all()
        told = await running.client.get("/readiness")
        assert (told.status_code, told.json()["reason"]) == (503, "shutting down")
        refused = await running.client.post("/generate", json={"text": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["connection"] == "close"
        assert not worker.arrived


async def _hang(arrived: Arrived, stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def _ask_in_vain(running: _Running) -> None:
    """Whose time is over is told so."""
    response = await running.client.post("/generate", json={"text": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")


async def test_a_client_that_takes_nothing_does_not_keep_the_server_from_ending() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(b"x" * 20_000_000)

    async with (
        fake_worker(answer) as worker,
        _running(worker.url, shutdown_grace_s=0.2, client_stall_s=0.5) as running,
        await trio.open_tcp_stream("127.0.0.1", running.port) as stalled,
    ):
        await stalled.send_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
        await _until_asked(worker)
        await trio.sleep(0.1)
        running.stop.set()
        with trio.fail_after(5):
            await running.ended.wait()


# -- signals -----------------------------------------------------------------------------------


@asynccontextmanager
async def _process(*words: str) -> AsyncIterator[tuple[trio.Process, str]]:
    """``slime-router`` as a process of its own, and the address it printed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLIME_ROUTER_")}
    words = ("--host", "127.0.0.1", "--port", "0", "--probe-logprobs", "off", *words)
    command = [sys.executable, "-m", "slime_trio", *words]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE, env=clean)
    assert process.stderr is not None
    said = b""
    try:
        with trio.fail_after(30):
            while (found := re.search(rb"listens on (http://\S+)\n", said)) is None:
                data = await process.stderr.receive_some()
                assert data, said
                said += data
            yield process, found[1].decode()
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stderr.aclose()


async def _get(url: str) -> None:
    """Wait until the address answers."""
    async with httpx.AsyncClient(trust_env=False) as client:
        with trio.fail_after(10):
            while True:
                try:
                    if (await client.get(url)).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await trio.sleep(0.02)


async def test_a_signal_lets_the_generation_finish_and_ends_with_zero() -> None:
    go = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await go.wait()
        return http_response(ANSWER)

    got: list[int] = []
    async with (
        fake_worker(answer) as worker,
        _process("--capture", "off", "--worker-url", worker.url) as (process, url),
        httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client,
        trio.open_nursery() as nursery,
    ):
        await _get(f"{url}/readiness")

        async def ask() -> None:
            got.append((await client.post("/generate", json={"text": "x"})).status_code)

        nursery.start_soon(ask)
        await _until_asked(worker)
        process.send_signal(signal.SIGTERM)
        await trio.sleep(0.3)
        go.set()
        with trio.fail_after(3):
            assert await process.wait() == 0
    assert got == [200]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(number: signal.Signals) -> None:
    async with (
        fake_worker(_hang) as worker,
        _process("--capture", "off", "--worker-url", worker.url) as (process, url),
        httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client,
        trio.open_nursery() as nursery,
    ):
        await _get(f"{url}/readiness")

        async def ask() -> None:
            with pytest.raises(httpx.HTTPError):
                await client.post("/generate", json={"text": "x"})

        nursery.start_soon(ask)
        await _until_asked(worker)
        process.send_signal(number)
        await trio.sleep(0.3)
        assert process.poll() is None
        process.send_signal(number)
        with trio.fail_after(2):
            assert await process.wait() != 0
        assert process.stderr is not None
        said = b""
        while data := await process.stderr.receive_some():
            said += data
        assert b"Traceback" not in said
