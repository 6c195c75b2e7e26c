"""What a router answers before it is there, and what becomes of whoever comes that early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from slime_trio.app import create_app
from slime_trio.config import ConfigurationError, Settings
from slime_trio.serve import bind, serve
from slime_trio.starting import Starting
from tests.server.test_cli import _environment

Message = dict[str, Any]
Say = Callable[[str], None]

LISTENERS = pytest.mark.parametrize("listener", ["fast", "hypercorn"])


class Slow:
    """A load that takes until it is let go."""

    def __init__(self, settings: Settings, *, failure: Exception | None = None) -> None:
        self._settings = settings
        self._failure = failure
        self._go = threading.Event()

    def __call__(self, say: Say) -> Callable[[], Any]:
        say("the tokenizer")
        self._go.wait(10)
        if self._failure is not None:
            raise self._failure
        return lambda: create_app(self._settings)

    def go(self) -> None:
        self._go.set()


class Serving:
    """A server whose router is still loading."""

    def __init__(self, listener: str, *, failure: Exception | None = None) -> None:
        self.settings = Settings(host="127.0.0.1", port=0, capture=False, listener=listener)
        self.load = Slow(self.settings, failure=failure)
        self.starting = Starting(self.load)
        self.socket = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.stop = trio.Event()
        self.ready = trio.Event()

    async def run(self, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> int:
        return await serve(
            self.starting,
            self.settings,
            self.socket,
            until=self.stop,
            when_ready=self.ready.set,
            task_status=task_status,
        )

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=10)


@LISTENERS
async def test_while_loading_it_is_alive_and_not_ready(listener: str) -> None:
    serving = Serving(listener)
    with trio.fail_after(15):
        async with trio.open_nursery() as nursery, serving.client() as client:
            await nursery.start(serving.run)
            for path in ("/health", "/liveness"):
                alive = await client.get(path)
                assert (alive.status_code, alive.text) == (200, "OK")
            for _ in range(2):  # what is loaded is said once the thread has begun
                unready = await client.get("/readiness")
            assert unready.status_code == 503
            assert unready.headers["retry-after"] == "1"
            assert unready.json()["status"] == "not ready"
            assert unready.json()["reason"].startswith("starting: loading the ")
            assert not serving.ready.is_set()
            serving.load.go()
            await serving.ready.wait()
            unready = await client.get("/readiness")
            assert unready.json()["reason"] == "insufficient healthy workers"
            assert (await client.get("/health")).text == "OK"
            serving.stop.set()


@LISTENERS
async def test_who_comes_while_it_is_loading_is_held_and_then_served(listener: str) -> None:
    serving = Serving(listener)
    got: list[httpx.Response] = []
    with trio.fail_after(15):
        async with trio.open_nursery() as nursery, serving.client() as client:
            await nursery.start(serving.run)

            async def register() -> None:
                params = {"url": "http://127.0.0.1:9"}
                got.append(await client.post("/add_worker", params=params, content=b"x" * 9))

            async with trio.open_nursery() as asking:
                asking.start_soon(register)
                await client.get("/health")
                assert not got
                serving.load.go()
            assert got[0].status_code == 200
            assert serving.starting.router is not None
            assert len(serving.starting.router.state.fleet.listed()) == 1
            serving.stop.set()


@LISTENERS
async def test_what_cannot_start_ends_the_server_and_who_was_held(listener: str) -> None:
    serving = Serving(listener, failure=ConfigurationError("--hf-checkpoint: no such thing"))
    caught: list[BaseException] = []

    async def run() -> None:
        with pytest.raises(ConfigurationError, match="no such thing"):
            await serving.run()

    async def ask(client: httpx.AsyncClient) -> None:
        try:
            await client.post("/generate", json={"text": "a"})
        except httpx.TransportError as error:
            caught.append(error)

    with trio.fail_after(15):
        async with serving.client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(run)
            nursery.start_soon(ask, client)
            assert (await client.get("/health")).status_code == 200
            serving.load.go()
    assert len(caught) == 1
    assert serving.starting.router is None


@LISTENERS
async def test_a_stop_while_loading_waits_for_nothing(listener: str) -> None:
    serving = Serving(listener)
    statuses: list[int] = []

    async def run() -> None:
        statuses.append(await serving.run())

    with trio.fail_after(15):
        async with trio.open_nursery() as nursery, serving.client() as client:
            nursery.start_soon(run)
            await client.get("/health")
            serving.stop.set()
    assert statuses == [0]
    assert not serving.ready.is_set()
    serving.load.go()


# -- the life span inside the life span ----------------------------------------------------------


class Fake:
    """An application that keeps what it is told."""

    def __init__(self, *, failure: str | None = None) -> None:
        self.extensions = {"slime_router": object()}
        self.told: list[str] = []
        self._failure = failure

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        while len(self.told) < 2:
            self.told.append((await receive())["type"].removeprefix("lifespan."))
            if self._failure is not None:
                await send({"type": "lifespan.startup.failed", "message": self._failure})
                return
            await send({"type": f"lifespan.{self.told[-1]}.complete"})


async def _live(fake: Fake) -> tuple[Starting, list[str]]:
    starting = Starting(lambda say: lambda: fake)  # type: ignore[arg-type, return-value]
    out: list[str] = []
    to_app, receive = trio.open_memory_channel[Message](2)

    async def send(message: Message) -> None:
        out.append(message["type"])

    async with trio.open_nursery() as nursery:
        to_app.send_nowait({"type": "lifespan.startup"})
        nursery.start_soon(starting, {"type": "lifespan"}, receive.receive, send)
        await starting.run(nursery.cancel_scope)
        to_app.send_nowait({"type": "lifespan.shutdown"})
    return starting, out


async def test_the_application_lives_within_the_life_span_that_began_before_it() -> None:
    fake = Fake()
    starting, out = await _live(fake)
    assert fake.told == ["startup", "shutdown"]
    assert out == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert starting.failure is None


async def test_an_application_that_cannot_begin_is_a_failure_in_its_own_words() -> None:
    starting, _ = await _live(Fake(failure="a second process"))
    assert str(starting.failure) == "a second process"
    assert isinstance(starting.failure, ConfigurationError)
    assert starting.router is None


# -- the program ----------------------------------------------------------------------------------


@contextmanager
def _program(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """The program while it reads a tokenizer that takes its time, its URL, and the tokenizer."""
    slow = tmp_path / "tokenizer.json"
    os.mkfifo(slow)
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    words = ["--hf-checkpoint", str(tmp_path), "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        [sys.executable, "-m", "slime_trio", *words],
        stderr=subprocess.PIPE,
        env=_environment({}),
    ) as process:
        try:
            yield process, f"http://127.0.0.1:{port}", slow
        finally:
            process.kill()


def _until_reason(url: str, reason: str) -> None:
    transport = httpx.HTTPTransport(retries=20)
    with httpx.Client(base_url=url, trust_env=False, transport=transport, timeout=10) as client:
        while client.get("/readiness").json()["reason"] != reason:
            assert client.get("/health").text == "OK"


def test_a_signal_while_loading_ends_the_program_at_once(tmp_path: Path) -> None:
    with _program(tmp_path) as (process, url, _):
        _until_reason(url, "starting: loading the tokenizer")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_tokenizer_that_turns_out_unreadable_ends_the_program_with_one_line(
    tmp_path: Path,
) -> None:
    with _program(tmp_path) as (process, url, slow):
        _until_reason(url, "starting: loading the tokenizer")
        slow.write_text("{")
        assert process.wait(10) == 2
        assert process.stderr is not None
        (line,) = process.stderr.read().splitlines()
        assert line.startswith(b"slime-router: --hf-checkpoint: unusable checkpoint")


def test_listening_needs_little_of_the_program() -> None:
    code = (
        "import json, sys\n"
        "import slime_trio.cli, slime_trio.serve, slime_trio.starting\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    heavy = {"quart", "hypercorn", "httpx", "structlog", "asyncio", "tokenizers", "jinja2"}
    assert not heavy & set(json.loads(done.stdout))
