"""A router, workers and clients on real sockets, for tests of the whole shell.

Workers are either the embedded one (true sampling, its own records) or a :class:`FakeWorker`
that answers exactly what a test wants and keeps every request as it arrived. Everything runs in
the test's own Trio run, on free ports of the loopback address, and ends with the test.
"""

from __future__ import annotations

import functools
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_asgi

from slime_core.engine import Reply
from slime_core.engine import Script as Answers
from slime_core.types import WorkerUrl
from slime_trio.app import create_app
from slime_trio.chat_template import ChatTemplate
from slime_trio.chatting import Chatting, load_chatting
from slime_trio.config import Settings
from slime_trio.observability.logs import FactLog
from slime_trio.router import Router
from slime_trio.serve import bind, serve
from slime_trio.tokenizer import Checkpoint, Tokenizer, load_checkpoint
from slime_trio.worker import SHIPPED_CHECKPOINT, WorkerOptions, create_worker_app
from slime_trio.worker.service import Worker
from tests import listeners

__all__ = [
    "CHECKPOINT",
    "ENDLESS",
    "Arrived",
    "EmbeddedWorker",
    "Events",
    "FakeWorker",
    "Raw",
    "Served",
    "answer_item",
    "chatting",
    "checkpoint",
    "embedded_worker",
    "events_of",
    "fake_worker",
    "http_response",
    "json_answer",
    "raw_client",
    "router_with",
    "scripted",
    "settled",
    "template",
    "tokenizer",
    "until",
]

CHECKPOINT = str(SHIPPED_CHECKPOINT)
TEST_S = 20.0
"""No test may take longer than this, whatever hangs."""

ENDLESS = 100_000


@functools.cache
def checkpoint() -> Checkpoint:
    """The shipped checkpoint, loaded once for all tests."""
    return load_checkpoint(CHECKPOINT)


def tokenizer() -> Tokenizer:
    """Its tokenizer."""
    return checkpoint().tokenizer


@functools.cache
def _tls() -> ssl.SSLContext:
    """Nobody speaks TLS here, but every client would read all certificates: 20 ms for each."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@functools.cache
def chatting() -> Chatting:
    """Its chat template and parsers, loaded once for all tests."""
    return load_chatting(SHIPPED_CHECKPOINT, tokenizer(), Settings())


def template() -> ChatTemplate:
    """Its chat template."""
    return chatting().template


# -- workers -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EmbeddedWorker:
    """An embedded worker that is being served."""

    url: str
    worker: Worker

    @property
    def records(self) -> list[Any]:
        """What it sampled, oldest first."""
        return list(self.worker.engine.records)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits in its engine."""
        return self.worker.engine.idle


@asynccontextmanager
async def embedded_worker(**options: Any) -> AsyncIterator[EmbeddedWorker]:
    """An embedded worker with these :class:`WorkerOptions`, on a free port."""
    app = create_worker_app(WorkerOptions(**options))
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    config.graceful_timeout = 0.1
    async with trio.open_nursery() as nursery:
        start = functools.partial(serve_asgi, app, config)
        (url,) = await nursery.start(start)
        yield EmbeddedWorker(url, app.extensions["slime_worker"])
        nursery.cancel_scope.cancel()


def scripted(*answers: Sequence[int] | str) -> Answers:
    """A script that gives these answers in turn; a text ends with the end-of-turn token."""
    end = min(tokenizer().eos_ids)
    replies = [
        Reply(ids=tuple([*encode(answer), end] if isinstance(answer, str) else answer))
        for answer in answers
    ]
    waiting = iter(replies)
    return lambda _prompt: next(waiting, None)


def encode(text: str) -> list[int]:
    """The ids of a text, without special tokens before it."""
    from slime_core.types import Encoding, unpack_ids

    return unpack_ids(tokenizer().encode_packed(text, encoding=Encoding.RENDERED, first=True))


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request as a fake worker got it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answering = Callable[[Arrived, trio.SocketStream], Awaitable[bytes | None]]
"""Answers a request: with the bytes of a whole response, or ``None`` after sending by itself and
closing the connection."""


@dataclass(slots=True)
class FakeWorker:
    """A server of raw bytes. ``answer`` serves every path but the ones that first contact uses."""

    answer: Answering
    model_info: Mapping[str, Any] | None = None
    tokenize: Callable[[str], list[int]] | None = None
    ready: int = 200
    """The status of ``/ready``: 503 while paused, 404 of an older worker."""
    health: Callable[[], Awaitable[int]] | None = None
    """Gives the status of ``/health``, in its own time; ``None``: 200 at once."""
    loads: Mapping[str, Any] | None = None
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """The paths on which it was asked about itself, in their order."""
    arrived: list[Arrived] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection."""
        buffer = bytearray()
        try:
            while True:
                arrived = await _read_request(stream, buffer)
                if arrived is None:
                    return
                response = await self._respond(arrived, stream)
                if response is None:
                    return
                await stream.send_all(response)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def _respond(self, arrived: Arrived, stream: trio.SocketStream) -> bytes | None:
        path = arrived.target.partition("?")[0]
        if path in ("/model_info", "/tokenize", "/ready", "/health", "/v1/loads"):
            self.asked.append(path)
        if path == "/ready":
            return http_response(b"", status=f"{self.ready} As Told")
        if path == "/health":
            status = 200 if self.health is None else await self.health()
            return http_response(b"", status=f"{status} As Told")
        if path == "/v1/loads" and self.loads is not None:
            return http_response(json.dumps(self.loads).encode())
        if path in ("/model_info", "/get_model_info") and arrived.method == "GET":
            info = {"model_path": "fake", "weight_version": "1"}
            return http_response(json.dumps(self.model_info or info).encode())
        if path == "/tokenize" and arrived.method == "POST":
            if self.tokenize is None:
                return http_response(b'{"detail":"Not Found"}', status="404 Not Found")
            return http_response(
                json.dumps({"tokens": self.tokenize(arrived.json["prompt"])}).encode()
            )
        if path == "/abort_request":
            self.aborted.append(arrived.json["rid"])
            return http_response(b"")
        self.arrived.append(arrived)
        return await self.answer(arrived, stream)


async def _read_request(stream: trio.SocketStream, buffer: bytearray) -> Arrived | None:
    while b"\r\n\r\n" not in buffer:
        data = await stream.receive_some(65536)
        if not data:
            return None
        buffer += data
    head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ", 2)
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines[1:])
    }
    size = int(headers.get("content-length", "0"))
    buffer[:] = rest
    while len(buffer) < size:
        data = await stream.receive_some(65536)
        if not data:
            return None
        buffer += data
    body = bytes(buffer[:size])
    del buffer[:size]
    return Arrived(method, target, headers, body)


@asynccontextmanager
async def fake_worker(answer: Answering, **more: Any) -> AsyncIterator[FakeWorker]:
    """A fake worker on a free port."""
    fake = FakeWorker(answer, **more)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            functools.partial(trio.serve_tcp, fake.serve, 0, host="127.0.0.1")
        )
        fake.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield fake
        nursery.cancel_scope.cancel()


def http_response(
    body: bytes, *, status: str = "200 OK", kind: str = "application/json", more: str = ""
) -> bytes:
    """A whole response with an announced length. ``more``: further header lines."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def answer_item(
    ids: Sequence[int],
    text: str,
    *,
    rid: str = "r",
    finish: Mapping[str, Any] | None = None,
    finished: bool = True,
    **meta: Any,
) -> dict[str, Any]:
    """One answer as SGLang words it; the logprob of the token at ``i`` is ``-(i + 1) / 4``."""
    triples = [[-(place + 1) / 4, token, None] for place, token in enumerate(ids)]
    reason = dict(finish or {"type": "stop", "matched": 2}) if finished else None
    info = {
        "id": rid,
        "finish_reason": reason,
        "prompt_tokens": 1,
        "completion_tokens": len(ids),
        "weight_version": "1",
        "output_token_logprobs": triples,
    }
    return {"text": text, "output_ids": list(ids), "meta_info": info | meta}


def json_answer(value: Any) -> Answering:
    """Answers everything with this JSON; a callable is asked for it, with the request."""

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        return http_response(json.dumps(value(arrived) if callable(value) else value).encode())

    return answer


class Events:
    """An event stream that a fake worker sends piece by piece."""

    HEAD = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def begin(self) -> None:
        await self._stream.send_all(self.HEAD)

    async def raw(self, data: bytes) -> None:
        await self._stream.send_all(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, value: Any) -> None:
        await self.raw(b"data: " + json.dumps(value).encode() + b"\n\n")

    async def end(self, *, done: bool = True) -> None:
        if done:
            await self.raw(b"data: [DONE]\n\n")
        await self._stream.send_all(b"0\r\n\r\n")


# -- the router --------------------------------------------------------------------------------


@dataclass(slots=True)
class Served:
    """A router that is being served, and a client for it."""

    router: Router
    client: httpx.AsyncClient
    url: str
    port: int

    async def generate(self, **fields: Any) -> httpx.Response:
        """``POST /generate``."""
        return await self.client.post("/generate", json=fields)

    async def retrieve(self, text: str, **more: Any) -> Any:
        """``POST /retrieve_from_text``; its JSON, which must come with 200."""
        response = await self.client.post("/retrieve_from_text", json={"text": text, **more})
        assert response.status_code == 200, response.text
        return response.json()

    async def trajectory(self, name: str) -> Any:
        """``GET /trajectories/{name}``; its JSON, which must come with 200."""
        response = await self.client.get(f"/trajectories/{name}")
        assert response.status_code == 200, response.text
        return response.json()

    @property
    def at_rest(self) -> bool:
        """Whether no slot is taken and no call is open."""
        state = self.router.state
        return not state.fleet.total_in_flight and not state.open_calls


async def until(condition: Callable[[], object], *, within_s: float = 5.0) -> None:
    """Wait for what happens on the other side of a socket, where no event can tell of it."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - see above
            await trio.sleep(0.002)


async def settled(served: Served, *, within_s: float = 5.0) -> None:
    """Wait until nothing is in flight, then check the state's own books."""
    await until(lambda: served.at_rest, within_s=within_s)
    served.router.state.check()


def events_of(text: str) -> list[Any]:
    """The events of a whole stream: JSON values, and ``"[DONE]"`` as it is."""
    data = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


@asynccontextmanager
async def router_with(
    *workers: str,
    middleware: Sequence[str] = (),
    capture: bool = True,
    served: tuple[Checkpoint, Chatting] | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """A router with these workers, already contacted, on a free port; ends within bounded time.

    ``served`` is what it has loaded, instead of the shipped checkpoint.
    """
    # A probe generates: workers would record it, and give it an answer of their script.
    more: dict[str, Any] = {"probe_logprobs": False, "listener": listeners.chosen()} | settings
    chosen = Settings(
        host="127.0.0.1",
        port=0,
        hf_checkpoint=CHECKPOINT if capture else None,
        capture=capture,
        slime_router_middleware_paths=tuple(middleware),
        shutdown_grace_s=0.2,
        **more,
    )
    own, chats = served or (checkpoint(), chatting())
    router = Router(chosen, checkpoint=own if capture else None)
    router.observers.append(FactLog(verbose=chosen.verbose))
    if capture:
        router.shared.use_chatting(chats)
    app = create_app(chosen, router=router)
    listener = bind(chosen.host, chosen.port)
    port = listener.getsockname()[1]
    stop = trio.Event()
    ended = trio.Event()

    async def serving(task_status: trio.TaskStatus[Any]) -> None:
        try:
            await serve(app, chosen, listener, until=stop, task_status=task_status)
        finally:
            ended.set()

    with trio.fail_after(TEST_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(serving)
            url = f"http://127.0.0.1:{port}"
            try:
                async with httpx.AsyncClient(
                    base_url=url, timeout=TEST_S, trust_env=False, verify=_tls()
                ) as client:
                    for worker in workers:
                        added = await client.post("/add_worker", params={"url": worker})
                        added.raise_for_status()
                    yield Served(router, client, url, port)
            finally:
                # A test that fails must not leave sockets to the next one.
                stop.set()
                with trio.move_on_after(2, shield=True):
                    await ended.wait()


class Raw:
    """A client of plain bytes, for what HTTP libraries are too polite to do."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.got = bytearray()

    async def post(self, path: str, body: Any, *, more: str = "") -> None:
        """Send a request and read nothing."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n{more}\r\n"
        )
        await self.stream.send_all(head.encode() + data)

    async def until(self, wanted: bytes, *, step: int = 1) -> bytes:
        """Read ``step`` bytes at a time until ``wanted`` has come; all that has come so far."""
        while wanted not in self.got:
            data = await self.stream.receive_some(step)
            assert data, bytes(self.got)
            self.got += data
        return bytes(self.got)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while data := await self.stream.receive_some(65536):
            self.got += data
        return bytes(self.got)


@asynccontextmanager
async def raw_client(served: Served) -> AsyncIterator[Raw]:
    """A connection to the router."""
    stream = await trio.open_tcp_stream("127.0.0.1", served.port)
    async with stream:
        yield Raw(stream)


def worker_url(url: str) -> WorkerUrl:
    """``url`` as the state knows workers."""
    return WorkerUrl(url)
