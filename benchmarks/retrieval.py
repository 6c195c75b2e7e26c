"""How long a captured trajectory takes to retrieve by text: looking up, deriving, JSON.

Each trajectory has eight turns, half of its tokens sampled, and stands in a forest among others
that share its system prompt. What is timed is the handler of ``POST /retrieve_from_text`` between
the request's bytes and the answer's; the documents promise 1 to 5 ms.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import trio

from benchmarks.grove import Speech, checkpoint, new_router, take_turn
from benchmarks.prose import prose
from benchmarks.report import Cell, Table, median, percentile, run
from slime_core.decide import plan_retrieval
from slime_core.types import PackedIds
from slime_trio.retrieval import by_text
from slime_trio.router import Router

__all__ = ["COLUMNS", "Options", "measure"]

COLUMNS = (
    "tokens",
    "others",
    "look-up ms",
    "derive ms",
    "JSON and rest ms",
    "total ms",
    "p95 ms",
    "answer KB",
    "claim",
    "holds",
)
_TURNS = 8
_SYSTEM = "<|im_start|>system\n" + prose(9, 3000) + "<|im_end|>\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``sizes`` in tokens, ``others`` in trajectories, ``repeats`` per figure."""

    sizes: tuple[int, ...] = (1_000, 4_000, 18_000, 64_000)
    others: tuple[int, ...] = (10, 1_000, 10_000)
    repeats: int = 40


def measure(options: Options) -> list[Table]:
    """One table: sizes × surroundings."""
    return [trio.run(_measure, options)]


async def _measure(options: Options) -> Table:
    router = new_router(checkpoint())
    speech = Speech(router.tokenizer)
    texts = {size: await _long(router, speech, size) for size in options.sizes}
    rows, planted = [], 0
    for others in sorted(options.others):
        while planted < others:
            await _other(router, speech, planted)
            planted += 1
        for text in texts.values():
            rows.append(await _row(router, text, others, options.repeats))
    return Table(
        title="Retrieval by text",
        columns=COLUMNS,
        rows=tuple(rows),
        notes=("medians; the JSON has five columns of one value a token, and the text",),
    )


async def _long(router: Router, speech: Speech, tokens: int) -> str:
    """A trajectory of about ``tokens``; its text."""
    text, part = _SYSTEM, max(8, (tokens - 800) // (2 * _TURNS))
    for turn in range(_TURNS):
        text += f"<|im_start|>user\n{prose(tokens + turn, part * 3)}<|im_end|>\n"
        ids, said = speech.say(part)
        await take_turn(router, text, ids, said)
        text += said
    return text


async def _other(router: Router, speech: Speech, number: int) -> None:
    """A short trajectory with the same system prompt."""
    question = f"<|im_start|>user\n{prose(10**6 + number, 150)}<|im_end|>\n"
    ids, said = speech.say(100)
    await take_turn(router, _SYSTEM + question, ids, said)


async def _row(router: Router, text: str, others: int, repeats: int) -> tuple[Cell, ...]:
    body = msgspec.json.encode({"text": text})
    encoded = await by_text(router, body)
    answer = msgspec.json.decode(encoded)
    assert answer["token_length"] == answer["matched_length"]
    state, facts = router.state, router.facts
    total = [await _handler_ms(router, body) for _ in range(repeats)]
    plan = plan_retrieval(state, facts, text, None)
    planned = _ms(lambda: plan_retrieval(state, facts, text, None), repeats)
    derived = _ms(lambda: plan.result(state.forest, PackedIds(b"")), repeats)
    worst = percentile(total, 95)
    return (
        answer["token_length"],
        others,
        planned,
        derived,
        median(total) - planned - derived,
        median(total),
        worst,
        len(encoded) / 1e3,
        "≤ 5 ms",
        "yes" if worst <= 5 else "no",
    )


async def _handler_ms(router: Router, body: bytes) -> float:
    """One retrieval, from bytes to bytes."""
    started = time.perf_counter()
    await by_text(router, body)
    return (time.perf_counter() - started) * 1e3


def _ms(call: Callable[[], object], repeats: int) -> float:
    """The median time of ``call``."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) * 1e3)
    return median(times)


if __name__ == "__main__":
    run(Options, measure)
