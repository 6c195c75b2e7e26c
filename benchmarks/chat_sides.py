"""Beside what a turn costs: many tools, the canonical form of long histories, and memory."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from benchmarks.chat_talk import Sizes, Talk, Words
from benchmarks.chat_turns import (
    Model,
    Scene,
    Turned,
    against_naive,
    canonical,
    conversation,
    parsed,
    step_median,
)
from benchmarks.report import Cell, Table
from slime_core.forest import Forest

__all__ = [
    "CANONICAL_COLUMNS",
    "MEMORY_COLUMNS",
    "TOOL_COLUMNS",
    "canonical_table",
    "memory_table",
    "tools_table",
]

TOOL_COLUMNS = (
    *("tools", "turns", "prompt tokens", "body KB"),
    *("read µs", "digest µs", "look-up µs", "render µs", "encode µs"),
    *("own µs", "naive µs", "own / naive"),
)
CANONICAL_COLUMNS = (
    *("results", "turns", "messages", "KB", "read µs", "digest µs"),
    *("digest µs per message", "digest MB/s"),
)
MEMORY_COLUMNS = (
    *("every turn", "turns", "tokens", "bytes per token", "by the books"),
    *("of that messages", "claim", "holds"),
)

_REPEATS: Final = 5
_MOST: Final = 1.25
"""What a token of a whole session may take, against one of its first quarter."""


async def tools_table(model: Model, sizes: Sizes, counts: Sequence[int], turns: int) -> Table:
    """Loops with more and with fewer tools: the first turns, and those of the last quarter."""
    rows: list[tuple[Cell, ...]] = []
    late = 3 * turns // 4
    for count in counts:
        talk = replace(sizes, tools=count)
        naive = (1, 2, *range(late + 1, turns + 1))
        done = await conversation(model, talk, "loop", turns, naive=naive)
        named = {"1": done[:1], "2": done[1:2], f"{late + 1} to {turns}": done[late:]}
        rows += [(count, name, *_tools_cells(some)) for name, some in named.items()]
    return Table(
        title="A turn with so many tools (medians)",
        columns=TOOL_COLUMNS,
        rows=tuple(rows),
    )


def _tools_cells(turns: Sequence[Turned]) -> tuple[Cell, ...]:
    steps = ("read", "digest", "look-up", "render", "encode")
    return (
        turns[-1].prompt_tokens,
        turns[-1].body_bytes / 1e3,
        *(step_median(turns, step) for step in steps),
        *against_naive(turns),
    )


def canonical_table(model: Model, sizes: Sizes, histories: Sequence[int]) -> Table:
    """Reading requests with long histories, of which nothing was captured."""
    words = Words(model.checkpoint.tokenizer)
    tenth = replace(sizes, result=max(1, sizes.result // 10))
    rows = [
        _canonical_row(model, words, some, turns) for turns in histories for some in (tenth, sizes)
    ]
    return Table(
        title="Reading long histories, and their canonical form (the best of a few times)",
        columns=CANONICAL_COLUMNS,
        rows=tuple(rows),
    )


def _canonical_row(model: Model, words: Words, sizes: Sizes, turns: int) -> tuple[Cell, ...]:
    talk = Talk(words, sizes)
    for turn in range(turns):
        talk.take(
            {
                "role": "assistant",
                "content": words.text(turn, sizes.answer // 4),
                "reasoning_content": words.text(turn + 1, sizes.answer // 2),
                "tool_calls": [
                    {
                        "id": f"call_{turn}",
                        "type": "function",
                        "function": {"name": "tool_0", "arguments": '{"query": "x", "limit": 3}'},
                    }
                ],
            }
        )
    body, reading, digesting = talk.body(), [], []
    for _ in range(_REPEATS):
        started = time.process_time()
        chat = parsed(body, model)
        between = time.process_time()
        canonical(chat)
        digesting.append((time.process_time() - between) * 1e6)
        reading.append((between - started) * 1e6)
    messages, digest = len(talk.messages), min(digesting)
    return (
        f"{sizes.result} tokens",
        turns,
        messages,
        len(body) / 1e3,
        min(reading),
        digest,
        digest / messages,
        len(body) / digest,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weight:
    """Bytes; ``taken`` as measured, ``messages`` are those kept with turns."""

    tokens: int
    taken: int
    books: int
    messages: int

    @property
    def per_token(self) -> float:
        """Bytes as measured."""
        return self.taken / self.tokens


async def memory_table(model: Model, sizes: Sizes, turns: int) -> Table:
    """What a session takes, by its length; also where nothing can be proved of the template."""
    lengths = sorted({max(1, turns // 4), max(1, turns // 2), turns})
    shorter = lengths[:-1] or lengths
    await _weigh(model, sizes, (1,), refuses=False)  # what is allocated only once
    rows: list[tuple[Cell, ...]] = []
    for name, refuses, ends in (("extends", False, lengths), ("branches", True, shorter)):
        weights = await _weigh(model, sizes, ends, refuses=refuses)
        rows += [
            _memory_row(name, length, weight, weights[0])
            for length, weight in zip(ends, weights, strict=True)
        ]
    return Table(
        title="Memory of one session (tracemalloc, without what the client holds)",
        columns=MEMORY_COLUMNS,
        rows=tuple(rows),
        notes=(
            "branches: the template is one of which nothing can be proved, so that every turn is",
            "rendered whole; what it shares with the turn before is found as text",
        ),
    )


def _memory_row(name: str, length: int, weight: _Weight, first: _Weight) -> tuple[Cell, ...]:
    is_claimed = weight is not first
    holds = weight.per_token <= _MOST * first.per_token
    return (
        name,
        length,
        weight.tokens,
        weight.per_token,
        weight.books / weight.tokens,
        weight.messages / weight.tokens,
        f"≤ {_MOST} × first" if is_claimed else None,
        ("yes" if holds else "no") if is_claimed else None,
    )


async def _weigh(
    model: Model, sizes: Sizes, lengths: Sequence[int], *, refuses: bool
) -> list[_Weight]:
    """What the router holds of one conversation, each time that it is so many turns long."""
    gc.collect()
    tracemalloc.start()
    try:
        scene = Scene(model, refuses=refuses)
        talk = Talk(scene.words, sizes)
        empty = _traced() - _held_by(talk)
        weights = []
        for turn in range(1, lengths[-1] + 1):
            await scene.turn(talk)
            if turn in lengths:
                weights.append(
                    _weight(scene.router.state.forest, _traced() - _held_by(talk) - empty)
                )
        return weights
    finally:
        tracemalloc.stop()


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _held_by(talk: Talk) -> int:
    """What the client's messages take: as much as a copy of them."""
    before = _traced()
    copy = msgspec.json.decode(msgspec.json.encode(talk.messages))
    taken = _traced() - before
    assert len(copy) == len(talk.messages)
    return taken


def _weight(forest: Forest, taken: int) -> _Weight:
    answers = (segment.answer for segment in forest.segments.values())
    turns = (answer.turn for answer in answers if answer is not None)
    return _Weight(
        tokens=forest.total_tokens,
        taken=taken,
        books=forest.total_bytes,
        messages=sum(turn.size for turn in turns if turn is not None),
    )
