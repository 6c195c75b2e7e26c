"""The same conversation with the real server: its processor time for each turn.

The router runs in a process of its own, under Hypercorn, in front of an embedded worker that says
what its script says. The client is here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from benchmarks.chat_probe import PATH
from benchmarks.chat_talk import Sizes, Talk, Words
from benchmarks.grove import checkpoint
from benchmarks.processes import Client, router_process, server_process
from benchmarks.report import Cell, Table, median
from slime_trio.worker.options import SHIPPED_CHECKPOINT

__all__ = ["SERVED_COLUMNS", "served_table"]

SERVED_COLUMNS = ("turns", "prompt tokens", "body KB", "router CPU µs", "client waits µs")
_CONTEXT: Final = "2000000"
_PROBE: Final = "benchmarks.chat_probe.CpuProbe"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """One turn; times in microseconds."""

    prompt_tokens: int
    body_bytes: int
    cpu: float
    waited: float


def served_table(sizes: Sizes, turns: int) -> Table:
    """The first turn of a loop with the shipped vocabulary, and each quarter of it."""
    served = _serve(sizes, turns)
    quarters = sorted({1, turns // 4, turns // 2, 3 * turns // 4, turns} - {0})
    windows = zip([0, *quarters[:-1]], quarters, strict=True)
    return Table(
        title="The same loop with the real server (medians)",
        columns=SERVED_COLUMNS,
        rows=tuple(_row(served[start:end], start + 1, end) for start, end in windows),
        notes=(
            "router CPU: of its process, Hypercorn and HTTP to both sides included;",
            "the client waits for the embedded worker too, which shares the cores",
        ),
    )


def _row(served: Sequence[_Served], first: int, last: int) -> tuple[Cell, ...]:
    return (
        str(last) if first == last else f"{first} to {last}",
        served[-1].prompt_tokens,
        served[-1].body_bytes / 1e3,
        median([turn.cpu for turn in served]),
        median([turn.waited for turn in served]),
    )


def _serve(sizes: Sizes, turns: int) -> list[_Served]:
    """The whole conversation; before it, one turn of another with what is loaded only once."""
    words = Words(checkpoint().tokenizer)
    talk, first = Talk(words, sizes), Talk(words, sizes)
    script = [words.sampled(text) for text in (first.answer(), *talk.script(turns))]
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "script.json"
        file.write_bytes(msgspec.json.encode(script))
        said = ("worker", "--port", "0", "--script", str(file), "--context-length", _CONTEXT)
        flags = ("--hf-checkpoint", str(SHIPPED_CHECKPOINT), "--middleware", _PROBE)
        with (
            server_process("slime_trio", *said) as worker,
            router_process((worker,), *flags) as url,
            closing(Client(url)) as client,
        ):
            _turn(client, first, 0.0)
            idle = min(-_cpu(client) + _cpu(client) for _ in range(5))
            return [_turn(client, talk, idle) for _ in range(turns)]


def _turn(client: Client, talk: Talk, idle: float) -> _Served:
    """``idle`` is what it takes to ask for the processor time."""
    body = talk.body()
    before = _cpu(client)
    started = time.perf_counter()
    answer = client.post("/v1/chat/completions", msgspec.Raw(body))
    waited = time.perf_counter() - started
    cpu = _cpu(client) - before - idle
    talk.take(answer["choices"][0]["message"])
    return _Served(
        prompt_tokens=answer["usage"]["prompt_tokens"],
        body_bytes=len(body),
        cpu=cpu,
        waited=waited * 1e6,
    )


def _cpu(client: Client) -> float:
    return float(client.get(PATH)["us"])
