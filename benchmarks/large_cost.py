"""What large requests and answers cost, step by step and as a whole.

The steps are calls of the functions that read, keep and show: an answer of 8k tokens with logprobs,
32k ids and 64 KB of text coming in. The whole is a router with everything on, between a client and
a worker that are in memory (no system call is made), one request at a time: the processor time
until its client has the answer, and until nothing is left to be done. The cheapest round counts.
"""

from __future__ import annotations

import random
import ssl
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

import msgspec
import trio

from benchmarks.grove import checkpoint
from benchmarks.prose import prose
from benchmarks.report import Cell, Table, run
from slime_core import sglang
from slime_core.forest import Forest
from slime_core.health import READY, Event
from slime_core.lookup import find_ids
from slime_core.prefixes import page_digests
from slime_core.transitions import WorkerAdded, WorkerHealth
from slime_core.types import WorkerUrl, pack_ids, unpack_ids
from slime_trio.config import Settings
from slime_trio.endpoints import generate
from slime_trio.exchange import Headers, Inbound
from slime_trio.limits.json_depth import check_depth
from slime_trio.memory import keep_freed_memory
from slime_trio.observability.about import ABOUT, About
from slime_trio.router import Router
from slime_trio.upstream import Origin, Pool

__all__ = ["STEP_COLUMNS", "WHOLE_COLUMNS", "Options", "measure"]

STEP_COLUMNS = ("of", "step", "KB", "µs")
WHOLE_COLUMNS = ("request", "in KB", "out KB", "until answered µs", "in all µs")
_WORKER: Final = WorkerUrl("http://10.0.0.1:30000")
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ncontent-type: application/json\r\n\r\n"
_DEPTH: Final = 256
_ANSWERS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``answer`` and ``ids`` in tokens, ``text`` in characters."""

    answer: int = 8192
    ids: int = 32_768
    text: int = 65_536
    rounds: int = 15


def measure(options: Options) -> list[Table]:
    """The steps, and the whole."""
    keep_freed_memory()
    return [_steps(options), trio.run(_whole, options)]


def _best(work: Callable[[], object], rounds: int) -> int:
    """Nanoseconds of processor time that the cheapest of ``rounds`` took."""
    least = 10**12
    for _ in range(rounds):
        began = time.process_time_ns()
        work()
        least = min(least, time.process_time_ns() - began)
    return least


# -- what goes in and out ----------------------------------------------------------------------


def _answer_body(tokens: int, seed: int) -> bytes:
    """As SGLang writes it: an id of six digits or fewer, a logprob of ``float32`` in full."""
    draw = random.Random(seed)
    ids = [draw.randrange(260, 6000) for _ in range(tokens)]
    single = array("f", [-draw.random() * 4 for _ in ids]).tolist()
    meta = {
        "id": "\x01",
        "finish_reason": {"type": "length", "length": tokens},
        "prompt_tokens": 32,
        "weight_version": "1",
        "input_token_logprobs": [],
        "output_token_logprobs": [
            (one, token, None) for one, token in zip(single, ids, strict=True)
        ],
        "completion_tokens": tokens,
        "cached_tokens": 0,
        "e2e_latency": 12.5,
    }
    text = prose(seed, 4 * tokens)
    return msgspec.json.encode({"text": text, "output_ids": ids, "meta_info": meta})


def _ids_body(tokens: int, seed: int, *, logprobs: bool) -> bytes:
    draw = random.Random(seed)
    ids = [draw.randrange(260, 6000) for _ in range(tokens)]
    return _body({"input_ids": ids}, logprobs=logprobs)


def _body(prompt: dict[str, Any], *, logprobs: bool) -> bytes:
    sampling = {"max_new_tokens": 64, "temperature": 0.7, "top_p": 0.9}
    return msgspec.json.encode(
        prompt | {"sampling_params": sampling, "return_logprob": logprobs, "stream": False}
    )


# -- the steps ---------------------------------------------------------------------------------


def _steps(options: Options) -> Table:
    rows: list[tuple[Cell, ...]] = []

    def add(of: str, name: str, size: int, work: Callable[[], object]) -> None:
        rows.append((of, name, round(size / 1024), round(_best(work, options.rounds) / 1000, 1)))

    body = _answer_body(options.answer, 1)
    shows = sglang.parse_generate(b'{"input_ids":[1],"return_logprob":true}')
    hides = sglang.parse_generate(b'{"input_ids":[1]}')
    add("answer", "parse_answer", len(body), lambda: sglang.parse_answer(body, shows))
    add("answer", "strip_logprobs", len(body), lambda: sglang.strip_logprobs(body, hides))
    (answer,) = sglang.parse_answer(body, shows)
    add("answer", "unpack_ids", len(answer.ids), lambda: unpack_ids(answer.ids))

    asked = _ids_body(options.ids, 2, logprobs=True)
    unasked = _ids_body(options.ids, 2, logprobs=False)
    add("ids", "check_depth", len(asked), lambda: check_depth(asked, _DEPTH))
    add("ids", "parse_generate", len(asked), lambda: sglang.parse_generate(asked))
    request, other = sglang.parse_generate(asked), sglang.parse_generate(unasked)
    add("ids", "encode_generate, nothing to add but rid", len(asked), lambda: _encoded(request))
    add("ids", "encode_generate, with logprobs", len(asked), lambda: _encoded(other))
    (prompt,) = request.prompts
    assert isinstance(prompt, sglang.IdsPrompt)
    ids = prompt.ids
    add("ids", "page_digests", len(ids), lambda: page_digests(ids))
    _add_forest(add, ids)

    text = _body({"text": prose(3, options.text)}, logprobs=True)
    code = _body({"text": "f(a[0], {'b': \"[\\\\\"});\n" * (options.text // 24)}, logprobs=True)
    for name, one in (("text", text), ("code", code)):
        add(name, "check_depth", len(one), lambda one=one: check_depth(one, _DEPTH))  # type: ignore[misc]
        add(name, "parse_generate", len(one), lambda one=one: sglang.parse_generate(one))  # type: ignore[misc]
    add("answer", "check_depth", len(body), lambda: check_depth(body, _DEPTH))
    return Table(title="Steps", columns=STEP_COLUMNS, rows=tuple(rows))


def _encoded(request: sglang.GenerateRequest) -> bytes:
    return sglang.encode_generate(request, input_ids=None, rids="0123456789abcdef")


def _add_forest(add: Callable[[str, str, int, Callable[[], object]], None], ids: Any) -> None:
    forest = Forest()

    def insert() -> None:
        node = forest.ids.insert_at(ids, forest.ids.root, 0)
        forest.ids.mark(node, node)
        forest.ids.unmark(node, node)

    add("ids", "insert into the tree and remove", len(ids), insert)
    forest.ids.mark(forest.ids.insert_at(ids, forest.ids.root, 0), None)
    longer = pack_ids([*unpack_ids(ids), 7, 8, 9])
    found = Forest()
    found.ids.insert_at(ids, found.ids.root, 0)
    add("ids", "look up, all known", len(ids), lambda: find_ids(found, longer))


# -- the whole ---------------------------------------------------------------------------------


class _Worker:
    """A worker's end of a connection, with the next answer behind every request."""

    def __init__(self, answers: Iterator[bytes]) -> None:
        self._answers = answers
        self._next = b""

    async def send_all(self, data: bytes) -> None:
        at = data.find(b'"rid":"')
        name = data[at + 7 : data.find(b'"', at + 7)] if at >= 0 else b"canned"
        body = next(self._answers).replace(b"\\u0001", name)
        self._next = _HEAD % len(body) + body

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        answer, self._next = self._next[:max_bytes], self._next[max_bytes:]
        return answer

    def is_stale(self) -> bool:
        return False

    def socket_number(self) -> int:
        return -1

    def close(self) -> None:
        self._next = b""


class _Client:
    """A reply that notes when its last byte came."""

    def __init__(self) -> None:
        self.started = False
        self.status = 0
        self.size = 0
        self.answered = 0

    async def start(self, status: int, headers: Headers) -> None:
        self.started, self.status = True, status

    async def send(self, data: bytes) -> None:
        self.size += len(data)
        self.answered = time.process_time_ns()


async def _whole(options: Options) -> Table:
    small = [_answer_body(12, seed) for seed in range(_ANSWERS)]
    large = [_answer_body(options.answer, seed) for seed in range(_ANSWERS)]
    text = prose(5, 4 * options.text)

    def ids_in(seed: int, *, logprobs: bool = True) -> bytes:
        return _ids_body(options.ids, seed, logprobs=logprobs)

    def few(seed: int, *, logprobs: bool = True) -> bytes:
        return _ids_body(32, seed, logprobs=logprobs)

    def text_in(seed: int) -> bytes:
        return _body({"text": f"{seed} " + text[seed:][: options.text]}, logprobs=True)

    def grown_text_in(seed: int) -> bytes:
        return _body({"text": text[: options.text] + f"<|im_end|>{seed} and so on"}, logprobs=True)

    cases: list[tuple[str, bool, list[bytes], Callable[[int], bytes]]] = [
        ("8k tokens out, shown", True, large, few),
        ("8k tokens out, hidden", True, large, lambda seed: few(seed, logprobs=False)),
        ("8k tokens out, passed through", False, large, few),
        ("32k ids in", True, small, ids_in),
        ("32k ids in, same prompt", True, small, lambda seed: ids_in(seed // 8)),
        ("32k ids in, logprobs hidden", True, small, lambda seed: ids_in(seed, logprobs=False)),
        ("32k ids in, passed through", False, small, ids_in),
        ("64 KB of text in", True, small, text_in),
        ("64 KB of text in, known but for the end", True, small, grown_text_in),
        ("small", True, small, few),
    ]
    rows = [await _case(options, *case) for case in cases]
    return Table(title="The whole request", columns=WHOLE_COLUMNS, rows=tuple(rows))


async def _case(
    options: Options,
    name: str,
    captured: bool,
    answers: list[bytes],
    make: Callable[[int], bytes],
) -> tuple[Cell, ...]:
    source = cycle(answers)

    async def connect(origin: Origin, tls: ssl.SSLContext | None) -> _Worker:
        return _Worker(source)

    router = Router(
        Settings(capture_max_mb=2**20),
        checkpoint=checkpoint() if captured else None,
        pool=Pool(connect=connect),
    )
    found = WorkerHealth(worker=_WORKER, health=READY, event=Event.PROBE_PASSED)
    router.commit(WorkerAdded(worker=_WORKER), found)
    answered, whole = list[int](), list[int]()
    size = 0
    async with trio.open_nursery() as nursery:
        router.nursery = nursery
        for seed in range(options.rounds + 3):
            body, reply = make(seed), _Client()
            size = len(body)
            began = time.process_time_ns()
            await _request(router, body, reply)
            await _settled(router)
            if seed >= 3:
                whole.append(time.process_time_ns() - began)
                answered.append(reply.answered - began)
            assert reply.status == 200
        nursery.cancel_scope.cancel()
    return (
        name,
        round(size / 1024),
        round(len(answers[0]) / 1024),
        round(min(answered) / 1000),
        round(min(whole) / 1000),
    )


async def _request(router: Router, body: bytes, reply: _Client) -> None:
    arrived = Inbound(
        method="POST",
        path="/generate",
        target=b"/generate",
        headers=[(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        body=body,
    )
    ABOUT.set(About("0123456789abcdef0123456789abcdef"))
    await generate(router, arrived, reply)


async def _settled(router: Router) -> None:
    """Until the router has done what it left for after the answer."""
    settle: Callable[[], Awaitable[None]] | None = getattr(router, "settle", None)
    if settle is not None:
        with suppress(AttributeError):
            await settle()


if __name__ == "__main__":
    run(Options, measure)
