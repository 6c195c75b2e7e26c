"""A router between a client that is a list and workers that are in memory: no system call is made.

The connections are the pool's own, over byte streams that hold a canned answer as soon as a request
was sent; a read passes the scheduler once, as a read off a socket does.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Final

import msgspec
import trio

from benchmarks.grove import Speech, checkpoint, take_turn
from slime_core.health import READY, Event
from slime_core.transitions import WorkerAdded, WorkerHealth
from slime_core.types import WorkerUrl
from slime_trio.chatting import load_chatting
from slime_trio.config import Settings
from slime_trio.endpoints import chat_completions, generate
from slime_trio.exchange import Headers, Inbound
from slime_trio.observability.about import ABOUT, About
from slime_trio.observability.logs import FactLog
from slime_trio.router import Router
from slime_trio.sessions import entered, used
from slime_trio.upstream import Origin, Pool

__all__ = ["CASES", "Scene"]

CASES: Final = ("passthrough", "ids", "text", "session", "chat", "tenant")
"""Kinds of requests: ``tenant`` is ``ids`` where keys are configured, ``session`` is ``ids`` in a
session, which makes it one that may be retried."""

_PROMPT: Final = 32
_ANSWER: Final = 12
_HELD: Final = 1000
_TWINS: Final = 8
"""Samples of one prompt, as GRPO asks for them."""
_ANSWERS: Final = 509
_PROMPTS: Final = 2048
_ID: Final = re.compile(rb'"rid":"([^"]*)"')
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ndate: Sun, 01 Jan 2034 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-length: %d\r\ncontent-type: application/json\r\n\r\n"
)
_FIELDS: Final[Headers] = [
    (b"host", b"127.0.0.1:30000"),
    (b"content-type", b"application/json"),
    (b"content-length", b"400"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"user-agent", b"python-httpx/0.28.1"),
    (b"x-request-id", b"0123456789abcdef0123456789abcdef"),
]
_KEY: Final = "sk-benchmark"


class _Canned:
    """A worker's end of a connection: each request finds the next answer behind it."""

    def __init__(self, answers: Iterator[tuple[bytes, bytes]]) -> None:
        self._answers = answers
        self._next = b""

    async def send_all(self, data: bytes) -> None:
        named = _ID.search(data)
        before, behind = next(self._answers)
        body = before + (b"canned" if named is None else named[1]) + behind
        self._next = _HEAD % len(body) + body

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        answer, self._next = self._next, b""
        return answer

    def is_stale(self) -> bool:
        return False

    def socket_number(self) -> int:
        return -1

    def close(self) -> None:
        self._next = b""


class _Client:
    """A reply that is thrown away."""

    __slots__ = ("size", "started", "status")

    def __init__(self) -> None:
        self.started = False
        self.status = 0
        self.size = 0

    async def start(self, status: int, headers: Headers) -> None:
        self.started, self.status = True, status

    async def send(self, data: bytes) -> None:
        self.size += len(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """A case: its path, what its body holds and its session."""

    path: str
    kind: str
    session: str | None = None


_SHAPES: Final = {
    "passthrough": _Shape(path="/generate", kind="ids"),
    "ids": _Shape(path="/generate", kind="ids"),
    "text": _Shape(path="/generate", kind="text"),
    "session": _Shape(path="/generate", kind="ids", session="rollout"),
    "chat": _Shape(path="/v1/chat/completions", kind="chat"),
    "tenant": _Shape(path="/generate", kind="ids"),
}


class Scene:
    """One case: a router with ``workers`` workers that are ready, and the requests of its clients.

    The router's nursery is whoever's who runs its clients.
    """

    def __init__(self, case: str, *, workers: int = 1) -> None:
        self._shape = _SHAPES[case]
        source = checkpoint()
        speech = Speech(source.tokenizer)
        self._speech = speech
        answers = cycle([_answer(*speech.say(_ANSWER)) for _ in range(_ANSWERS)])

        async def connect(origin: Origin, tls: ssl.SSLContext | None) -> _Canned:
            return _Canned(answers)

        self.router = Router(
            Settings(capture_max_mb=2**20, api_key=(_KEY,) if case == "tenant" else ()),
            checkpoint=None if case == "passthrough" else source,
            pool=Pool(connect=connect),
        )
        if case != "passthrough":
            chatting = load_chatting(source.path, source.tokenizer, self.router.args)
            self.router.shared.use_chatting(chatting)
        for number in range(workers):
            url = WorkerUrl(f"http://10.0.{number // 250}.{number % 250 + 1}:30000")
            found = WorkerHealth(worker=url, health=READY, event=Event.PROBE_PASSED)
            self.router.commit(WorkerAdded(worker=url), found)
        self.router.observers.append(FactLog())
        self.tenant = self.router.shared.routers["tenant-1"] if case == "tenant" else self.router
        self._bodies = self._made_bodies()
        self._endpoint = chat_completions if self._shape.kind == "chat" else generate
        self.statuses: dict[int, int] = {}

    async def fill(self, tokens: int) -> None:
        """Capture about so many tokens before anything is measured."""
        for _ in range(tokens // _HELD):
            ids, text = self._speech.say(_HELD)
            await take_turn(self.tenant, text[:40], ids, text)

    def _made_bodies(self) -> Iterator[bytes]:
        return cycle([body for body in islice(self._new_bodies(), _PROMPTS) for _ in range(_TWINS)])

    def _new_bodies(self) -> Iterator[bytes]:
        sampling = {"max_new_tokens": 64, "temperature": 0.7, "top_p": 0.9, "stop": ["\n\n\n"]}
        while True:
            ids, text = self._speech.say(_PROMPT)
            body: dict[str, Any]
            if self._shape.kind == "chat":
                body = {"model": "m", "messages": [{"role": "user", "content": text}]}
                body |= {"temperature": 0.7, "max_tokens": 64}
            elif self._shape.kind == "text":
                body = {"text": text, "sampling_params": sampling, "return_logprob": True}
            else:
                body = {"input_ids": ids, "sampling_params": sampling, "return_logprob": True}
            yield msgspec.json.encode(body)

    async def client(self, requests: int) -> None:
        """One client: one request after the other."""
        shape, router = self._shape, self.tenant
        fields = list(_FIELDS)
        if shape.session is not None:
            fields.append((b"x-session-id", shape.session.encode()))
        for body in (next(self._bodies) for _ in range(requests)):
            arrived = Inbound(
                method="POST",
                path=shape.path,
                target=shape.path.encode(),
                headers=list(fields),
                body=body,
            )
            reply = _Client()
            ABOUT.set(About("0123456789abcdef0123456789abcdef"))
            inbound = entered(router, arrived)
            with used(router, inbound.session):
                await self._endpoint(router, inbound, reply)
            self.statuses[reply.status] = self.statuses.get(reply.status, 0) + 1


def _answer(ids: list[int], text: str) -> tuple[bytes, bytes]:
    """A worker's answer as the bytes before and behind its id."""
    meta = {
        "id": "\x01",
        "finish_reason": {"type": "length", "length": len(ids)},
        "prompt_tokens": _PROMPT,
        "completion_tokens": len(ids),
        "cached_tokens": 0,
        "weight_version": "1",
        "e2e_latency": 0.0123,
        "output_token_logprobs": [
            (-(place % 1024) / 256 - 2**-20, token, None) for place, token in enumerate(ids)
        ],
    }
    body = msgspec.json.encode({"text": text, "output_ids": ids, "meta_info": meta})
    before, _, behind = body.partition(b"\\u0001")
    return before, behind
