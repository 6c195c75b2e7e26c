"""The server stopped at any step of anything in it, by a signal or by cancellation.

All of the shell runs, Hypercorn included, over streams in memory and in virtual time; only the
kernel's listener is replaced.
"""

from __future__ import annotations

import functools
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair

from slime_trio.app import create_app
from slime_trio.config import Settings
from slime_trio.router import Router
from slime_trio.serve import bind, serve
from tests import listeners
from tests.server.relay_support import (
    AtStep,
    Journal,
    answering,
    assert_at_rest,
    kinds_of,
    leak_slots,
    relay_router,
    sweep,
)

GRACE_S = 2.0
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"text": "Hello", "stream": True}),
    ("/generate", {"text": "Hello", "sampling_params": {"n": 2}}),
    (
        "/v1/chat/completions",
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True},
    ),
    ("/other", {}),
    ("/retrieve_from_text", {"text": "Hello"}),
]


class _Address:
    family = socket.AF_INET

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 1)

    getsockname = getpeername


_Stapled = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


class _Door:
    """Stands for ``trio.serve_listeners``: clients come in by :meth:`connect`."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[_Stapled](100)
        self.open: set[_Stapled] = set()
        self._waiting: set[_Stapled] = set()
        self._is_closed = False

    async def serve(
        self, handler: Any, listeners: Any, *, handler_nursery: trio.Nursery, **_: Any
    ) -> None:
        try:
            async for stream in self._receive:
                self._waiting.discard(stream)
                handler_nursery.start_soon(self._handle, handler, stream)
        finally:
            for listener in listeners:
                listener.socket.close()
            self._is_closed = True
            for stream in self._waiting:  # whoever was not let in is told, as the kernel would
                self._close(stream)

    async def _handle(self, handler: Any, stream: _Stapled) -> None:
        try:
            await handler(stream)
        finally:
            self._close(stream)

    def _close(self, stream: _Stapled) -> None:
        self.open.discard(stream)
        stream.send_stream.close()
        stream.receive_stream.close()

    def connect(self) -> _Stapled:
        if self._is_closed:
            raise trio.BrokenResourceError
        ours, theirs = memory_stream_pair()
        theirs.socket = _Address()  # type: ignore[attr-defined]
        self.open.add(theirs)
        self._waiting.add(theirs)
        self._send.send_nowait(theirs)
        return ours


async def _ask(door: _Door, path: str, body: dict[str, Any], got: list[bytes]) -> None:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(data)}"
    answer = b""
    stream: _Stapled | None = None
    try:
        stream = door.connect()
        await stream.send_all(head.encode() + b"\r\n\r\n" + data)
        while piece := await stream.receive_some(65536):
            answer += piece
    except trio.BrokenResourceError:
        pass
    finally:
        got.append(answer)
        if stream is not None:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def _served(
    monkeypatch: pytest.MonkeyPatch, scope: trio.CancelScope, stop: trio.Event
) -> AsyncIterator[tuple[Router, Journal, _Door, trio.Event]]:
    """All of the shell, in ``scope``; the event is set once it has ended."""
    door = _Door()
    monkeypatch.setattr(trio, "serve_listeners", door.serve)
    settings = Settings(shutdown_grace_s=GRACE_S, poll_interval_s=0.05, listener=listeners.chosen())
    ended = trio.Event()
    async with relay_router(answering, shutdown_grace_s=GRACE_S) as (router, journal):

        async def told(request: httpx.Request) -> httpx.Response:
            await trio.sleep(0.01)
            return httpx.Response(200, json={"model_path": "m", "weight_version": "1"})

        async def serving(task_status: trio.TaskStatus[Any]) -> None:
            app = create_app(settings, router=router)
            with bind("127.0.0.1", 0) as listener, scope:
                await serve(app, settings, listener, until=stop, task_status=task_status)
            ended.set()

        async with (
            httpx.AsyncClient(transport=httpx.MockTransport(told)) as client,
            trio.open_nursery() as nursery,
        ):
            router.component_registry.register("admin_client", client)
            await nursery.start(serving)
            yield router, journal, door, ended
            nursery.cancel_scope.cancel()


async def _ended_at(monkeypatch: pytest.MonkeyPatch, gracefully: bool, at: int) -> AtStep:
    scope, stop = trio.CancelScope(), trio.Event()
    async with _served(monkeypatch, scope, stop) as (router, journal, door, ended):
        instrument = AtStep(at, stop.set if gracefully else scope.cancel, named=("",))
        got: list[bytes] = []
        with instrument.watching():
            with trio.fail_after(1 + GRACE_S + 1):
                async with trio.open_nursery() as nursery:
                    for path, body in REQUESTS:
                        nursery.start_soon(_ask, door, path, body, got)
                    nursery.start_soon(_stay, door, b"", ended)
                    nursery.start_soon(
                        _stay, door, b"POST /generate HTTP/1.1\r\nhost: x\r\n", ended
                    )
                    nursery.start_soon(_stop_later, stop)
            has_acted = instrument.has_acted
        assert ended.is_set()
        assert not door.open
        assert router.nursery is None
        assert_at_rest(router, [journal])
        assert len(got) == len(REQUESTS)
        if gracefully or not has_acted:
            _check_finished_or_never_begun(got)
        instrument.has_acted = has_acted
        return instrument


async def _stay(door: _Door, data: bytes, ended: trio.Event) -> None:
    """A client that says nothing, or half of something, until the server has gone."""
    with suppress(trio.BrokenResourceError):
        stream = door.connect()
        async with stream:
            await stream.send_all(data)
            await ended.wait()


async def _stop_later(stop: trio.Event) -> None:
    """Long after all requests have ended."""
    await trio.sleep(1)
    stop.set()


def _check_finished_or_never_begun(got: list[bytes]) -> None:
    """A signal cuts nothing off: the requests here end well within their time."""
    for answer in got:
        head, _, body = answer.partition(b"\r\n\r\n")
        if answer:
            assert head.startswith(b"HTTP/1.1 ")
            assert b"chunked" not in head or body.endswith(b"0\r\n\r\n"), answer


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the collection of garbage that a start brings, which takes longer than all else."""
    monkeypatch.setattr("slime_trio.app._settle_garbage", lambda: None)


@pytest.mark.parametrize("gracefully", [False, True])
def test_a_server_stopped_at_any_step_leaves_nothing_behind(
    gracefully: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run: Callable[[int], Awaitable[AtStep]] = functools.partial(_ended_at, monkeypatch, gracefully)
    assert sweep(run, stride=7) > 300
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert "rror" not in said


def test_a_slot_that_a_cancelled_server_keeps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    leak_slots(monkeypatch)
    with pytest.raises((AssertionError, ExceptionGroup)) as found:
        sweep(functools.partial(_ended_at, monkeypatch, False), first=50, stride=25)
    assert kinds_of(found.value) == {AssertionError}
