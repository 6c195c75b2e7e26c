"""What an event of a stream costs the router's process, whole and item by item.

Whole: the relay with everything on, between real sockets: its own upstream connections, and a
client's socket that each piece is sent to as a chunk. Worker and client are a process of their own.
``burst`` is a stream that comes at once, ``paced`` many streams whose events come one by one,
``memory`` the same without sockets, worker or client: a read passes the scheduler once, as one off
a socket does. Item by item: the same events through each part by itself.
"""

from __future__ import annotations

import gc
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import msgspec
import trio

from benchmarks.grove import checkpoint
from benchmarks.processes import server_process
from benchmarks.report import Cell, Table, run
from benchmarks.sse_streams import CASES, Case, events_of
from slime_core import openai, sglang, sse
from slime_core.chat.canonical import conversation
from slime_core.chat.plans import ChatAsk
from slime_core.health import READY, Event
from slime_core.lookup import Wish
from slime_core.transitions import WorkerAdded, WorkerHealth
from slime_core.types import WorkerUrl
from slime_trio.byte_stream import TcpStream
from slime_trio.capture import Capture
from slime_trio.chatting import load_chatting
from slime_trio.config import Settings
from slime_trio.dialects import (
    ChatDialect,
    CompletionsDialect,
    Dialect,
    NativeDialect,
    Serving,
)
from slime_trio.endpoints import chat_completions, completions, generate
from slime_trio.exchange import Headers, Inbound
from slime_trio.memory import keep_freed_memory
from slime_trio.router import Router
from slime_trio.upstream import Origin, Pool
from slime_trio.upstream.parser import ResponseParser

__all__ = ["COLUMNS", "ITEM_COLUMNS", "Options", "measure"]

COLUMNS = ("case", "shape", "streams", "events each", "µs per event", "µs per stream")
ITEM_COLUMNS = ("case", "events", "parser", "decoder", "assembler", "client's view", "MB in")
_ENDPOINTS = {
    "/generate": generate,
    "/v1/completions": completions,
    "/v1/chat/completions": chat_completions,
}
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``events`` in each stream; ``streams`` are paced at once, one event each ``gap_ms``. The
    cheapest of ``rounds`` counts. ``items`` 0 leaves the second table out, ``whole`` 0 the first,
    ``sockets`` 0 all rows of that but those in memory.
    """

    cases: tuple[str, ...] = tuple(CASES)
    events: int = 200
    streams: int = 64
    gap_ms: float = 10.0
    rounds: int = 5
    whole: int = 1
    sockets: int = 1
    items: int = 1


class _Canned:
    """A worker's end of a connection in memory: one event for each read."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._waiting = iter(pieces)

    async def send_all(self, data: bytes) -> None:
        self._waiting = iter(self._pieces)

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return next(self._waiting)

    def is_stale(self) -> bool:
        return False

    def socket_number(self) -> int:
        return -1

    def close(self) -> None:
        pass


class _Sink:
    """A reply that is thrown away, taken by plain calls as the listener's is."""

    started = False
    is_direct = True

    async def start(self, status: int, headers: Headers) -> None:
        assert status == 200, status
        self.started = True

    async def send(self, data: bytes) -> None:
        pass

    def send_now(self, data: bytes) -> bool:
        return True

    async def flush(self) -> None:
        pass


class _Client:
    """A reply that goes to a socket, each piece as a chunk."""

    def __init__(self, stream: TcpStream) -> None:
        self._stream = stream
        self._head = b""
        self.started = False

    async def start(self, status: int, headers: Headers) -> None:
        assert status == 200, status
        self.started, self._head = True, b"HTTP/1.1 200 OK\r\n\r\n"

    async def send(self, data: bytes) -> None:
        head, self._head = self._head, b""
        await self._stream.send_all(b"%b%x\r\n%b\r\n" % (head, len(data), data))


class _Scene:
    """A router and a worker behind it: one process for both its sides, or one in memory."""

    def __init__(self, case: Case, worker: str | list[bytes]) -> None:
        self._case = case
        self._clients: list[TcpStream] = []
        url = WorkerUrl("http://10.0.0.1:30000")
        pool = None
        if isinstance(worker, str):
            url = WorkerUrl(worker)
            port = urlsplit(url).port
            assert port is not None
            self._clients = [
                TcpStream(socket.create_connection(("127.0.0.1", port + 1))) for _ in range(64)
            ]
        else:
            pieces = worker

            async def connect(origin: Origin, tls: ssl.SSLContext | None) -> _Canned:
                return _Canned(pieces)

            pool = Pool(connect=connect)
        self.router = _router(case, url, pool)

    def close(self) -> None:
        for client in self._clients:
            client.close()

    async def stream(self, number: int) -> None:
        case = self._case
        inbound = Inbound(
            method="POST",
            path=case.path,
            target=case.path.encode(),
            headers=[
                (b"content-type", b"application/json"),
                *([(b"x-session-id", b"rollout")] if case.session else []),
            ],
            body=case.request,
            own_ids=case.keyed,
        )
        reply = _Client(self._clients[number]) if self._clients else _Sink()
        await _ENDPOINTS[case.path](self.router, inbound, reply)

    async def at_once(self, streams: int) -> None:
        async with trio.open_nursery() as nursery:
            self.router.nursery = nursery if self._case.session else None
            for number in range(streams):
                nursery.start_soon(self.stream, number)


def _router(case: Case, worker: WorkerUrl, pool: Pool | None) -> Router:
    source = checkpoint()
    settings = Settings(capture_max_mb=2**20)
    router = Router(settings, checkpoint=source if case.captured else None, pool=pool)
    if case.captured:
        chatting = load_chatting(source.path, source.tokenizer, router.args)
        router.shared.use_chatting(chatting)
    found = WorkerHealth(worker=worker, health=READY, event=Event.PROBE_PASSED)
    router.commit(WorkerAdded(worker=worker), found)
    return router


def measure(options: Options) -> list[Table]:
    """A table of whole costs and one of items, in microseconds of processor time."""
    keep_freed_memory()
    tables = []
    if options.whole:
        rows = [row for name in options.cases for row in _whole(name, options)]
        tables.append(Table(title="A relayed event", columns=COLUMNS, rows=tuple(rows)))
    if options.items:
        rows = [_items(name, options) for name in options.cases]
        title = "Its parts, µs per event"
        tables.append(Table(title=title, columns=ITEM_COLUMNS, rows=tuple(rows)))
    return tables


def _whole(name: str, options: Options) -> Iterator[tuple[Cell, ...]]:
    case = CASES[name]
    events = events_of(case, options.events)

    def row(shape: str, streams: int, cost: float) -> tuple[Cell, ...]:
        per_event = cost * 1e6 / streams / len(events)
        return name, shape, streams, len(events), per_event, cost * 1e6 / streams

    pieces = [_HEAD, *(b"%x\r\n%b\r\n" % (len(event), event) for event in events), b"0\r\n\r\n"]
    yield row("memory", 1, trio.run(_cost, case, pieces, 1, 8 * options.rounds))
    if not options.sockets:
        return
    with _worker(events, 0.0) as url:
        yield row("burst", 1, trio.run(_cost, case, url, 1, 8 * options.rounds))
    with _worker(events, options.gap_ms) as url:
        streams = options.streams
        yield row("paced", streams, trio.run(_cost, case, url, streams, options.rounds))


@contextmanager
def _worker(events: list[bytes], gap_ms: float) -> Iterator[str]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "events"
        path.write_bytes(msgspec.json.encode(events))
        with server_process("benchmarks.sse_worker", str(path), str(gap_ms)) as url:
            yield url


async def _cost(case: Case, worker: str | list[bytes], streams: int, rounds: int) -> float:
    """Seconds of the cheapest round."""
    scene = _Scene(case, worker)
    best = float("inf")
    await scene.at_once(streams)
    gc.collect()
    for _ in range(rounds):
        began = time.process_time()
        await scene.at_once(streams)
        best = min(best, time.process_time() - began)
    scene.close()
    await scene.router.pool.aclose()
    return best


def _items(name: str, options: Options) -> tuple[Cell, ...]:
    case = CASES[name]
    events = events_of(case, options.events)

    def best(make: Callable[[], Callable[[], None]]) -> float:
        costs = []
        for _ in range(max(3, options.rounds * 2000 // options.events)):
            once = make()
            began = time.process_time()
            once()
            costs.append(time.process_time() - began)
        return min(costs) * 1e6 / len(events)

    size = sum(map(len, events)) / 2**20
    parser, decoder = best(lambda: _parser(events)), best(lambda: _decoder(events))
    if not case.captured:
        return name, len(events), parser, decoder, None, None, size
    asked = trio.run(_dialect, case).asked
    assembler = best(lambda: _assembler(events, asked))
    view = best(lambda: _view(case, events))
    return name, len(events), parser, decoder, assembler, view, size


def _parser(events: list[bytes]) -> Callable[[], None]:
    parser = ResponseParser(max_head_bytes=2**16)
    parser.start()
    parser.feed(_HEAD)
    chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]

    def once() -> None:
        for chunk in chunks:
            parser.feed(chunk)
            parser.take()
        parser.close()

    return once


def _decoder(events: list[bytes]) -> Callable[[], None]:
    decoder = sse.Decoder()

    def once() -> None:
        for event in events:
            decoder.receive(event)

    return once


def _assembler(events: list[bytes], asked: sglang.Asked) -> Callable[[], None]:
    decoder = sse.Decoder()
    read = [one for event in events for one in decoder.receive(event)]
    assembler = sglang.StreamAssembler(asked)

    def once() -> None:
        for one in read:
            assembler.receive(one)

    return once


async def _dialect(case: Case) -> Dialect:
    """A dialect as an endpoint makes it, ready for the first event."""
    source = checkpoint()
    router = Router(Settings(), checkpoint=source)
    inbound = Inbound(method="POST", path=case.path, target=b"", headers=[], body=case.request)
    serving: Serving = {
        "vocabulary": source.tokenizer.vocabulary,
        "created": 0,
        "context_length": None,
        "can_constrain_behind_reasoning": False,
    }
    dialect: Dialect
    if case.path == "/generate":
        dialect = NativeDialect(sglang.parse_generate(inbound.body), inbound)
    elif case.path == "/v1/completions":
        completion = openai.parse_completion(inbound.body)
        dialect = CompletionsDialect(completion, inbound, **serving)
    else:
        chat = openai.parse_chat(inbound.body)
        chatting = load_chatting(source.path, source.tokenizer, Settings())
        said = conversation(chat.messages, tools=chat.tools, arguments={}, mode="text")
        ask = ChatAsk(conversation=said, history="exact", continues=False)
        dialect = ChatDialect(chat, inbound, ask=ask, chatting=chatting, **serving)
    capture = Capture(router, Wish())
    await dialect.prepare(capture)
    dialect.open(capture)
    dialect.worker_body(await capture.encode(), capture)
    dialect.begin()
    return dialect


def _view(case: Case, events: list[bytes]) -> Callable[[], None]:
    dialect = trio.run(_dialect, case)
    decoder, assembler = sse.Decoder(), sglang.StreamAssembler(dialect.asked)
    steps = [
        step
        for event in events
        for one in decoder.receive(event)
        for step in assembler.receive(one)
    ]

    def once() -> None:
        for step in steps:
            dialect.step(step)

    return once


if __name__ == "__main__":
    run(Options, measure)
