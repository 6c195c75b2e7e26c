"""What a turn costs in a long conversation with tools, step by step, and what is held of it.

Every turn goes through the router's own code in the order of the relay, with the real template and
tokenizer. A client sends its whole history every time, so reading that (JSON, canonical form) and
writing all ids for the worker grow with it; they stand apart. All else should cost what is new. The
naive way, in the same run, renders and encodes the whole prompt. Further tables: how the cost grows
(in a uniform loop, and in one whose steps differ), many tools, the canonical form of long
histories, memory, and the same conversation with the real server.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from benchmarks.chat_served import served_table
from benchmarks.chat_sides import canonical_table, memory_table, tools_table
from benchmarks.chat_talk import KINDS, Sizes
from benchmarks.chat_turns import (
    READING,
    STEPS,
    Model,
    Turned,
    against_naive,
    conversation,
    load_model,
    step_median,
)
from benchmarks.report import Cell, Table, median, run

__all__ = ["GROWTH_COLUMNS", "TURN_COLUMNS", "Options", "measure"]

TURN_COLUMNS = (
    *("turns", "prompt tokens", "body KB"),
    *(f"{step} µs" for step in STEPS),
    *("own µs", "naive µs", "own / naive"),
)
GROWTH_COLUMNS = (
    *("conversation", "step", "early µs", "late µs", "late / early"),
    *("µs per 1,000 tokens of history", "claim", "holds"),
)

_MOST: Final = 1.25
"""What a step that must not grow may cost late, against early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Sizes in tokens are approximate: texts are cut by characters. ``served_turns`` 0 leaves the
    real server out. Vocabularies are ``shipped`` and the families of the tests that speak ChatML;
    the first of them is taken for tools, canonical form and memory.
    """

    vocabularies: tuple[str, ...] = ("shipped", "qwen3")
    turns: int = 64
    rounds: int = 2
    system_tokens: int = 500
    answer_tokens: int = 200
    result_tokens: int = 1_300
    tools: int = 12
    tool_counts: tuple[int, ...] = (1, 12, 50)
    histories: tuple[int, ...] = (64, 256)
    served_turns: int = 64

    @property
    def sizes(self) -> Sizes:
        """What conversations are made of."""
        return Sizes(
            system=self.system_tokens,
            answer=self.answer_tokens,
            result=self.result_tokens,
            tools=self.tools,
        )


def measure(options: Options) -> list[Table]:
    """Two tables for each vocabulary; then those that one vocabulary is enough for."""
    models = [(name, load_model(name)) for name in options.vocabularies]
    gc.collect()
    gc.freeze()  # as the router does once it has loaded a template
    try:
        tables = [table for one in models for table in trio.run(_turns, options, *one)]
        (_, model), sizes = models[0], options.sizes
        tables += [
            trio.run(tools_table, model, sizes, options.tool_counts, min(options.turns, 16)),
            canonical_table(model, sizes, options.histories),
            trio.run(memory_table, model, sizes, options.turns),
        ]
    finally:
        gc.unfreeze()
    if options.served_turns:
        tables.append(served_table(sizes, options.served_turns))
    return tables


async def _turns(options: Options, vocabulary: str, model: Model) -> list[Table]:
    """What turns cost, and how that grows."""
    turns, sizes = options.turns, options.sizes
    await conversation(model, sizes, "loop", min(turns, 4))  # what is loaded only once
    windows = _windows(turns)
    ends = [last for _, last in windows]
    naive = {*ends, *range(1, turns + 1, max(1, turns // 12))}
    rounds = {
        kind: [
            await conversation(model, sizes, kind, turns, naive=() if number else naive)
            for number in range(options.rounds)
        ]
        for kind in KINDS
    }
    title = f"vocabulary {vocabulary}, {turns} turns with {options.tools} tools"
    return [
        Table(
            title=f"A turn in a loop of tool calls, {title} (medians)",
            columns=TURN_COLUMNS,
            rows=tuple(_turn_row(*window, rounds["loop"]) for window in windows),
            notes=(
                f"own: all but {', '.join(READING)}, which read or write the whole history",
                "naive: rendering and encoding the whole prompt; the same reading comes on top",
            ),
        ),
        Table(
            title=f"How it grows, {title} (medians of the second and of the last quarter)",
            columns=GROWTH_COLUMNS,
            rows=tuple(row for kind in KINDS for row in _growth(kind, rounds[kind], turns)),
            notes=(f"turns that did not extend the one before: {_branches(rounds)}",),
        ),
    ]


def _windows(turns: int) -> list[tuple[int, int]]:
    """First and last of groups of turns: the first, then up to 1/8, 1/4, 1/2, 3/4 of all."""
    ends = sorted({1, turns // 8, turns // 4, turns // 2, 3 * turns // 4, turns} - {0})
    starts = [1, *(end + 1 for end in ends[:-1])]
    return list(zip(starts, ends, strict=True))


def _within(rounds: Sequence[Sequence[Turned]], first: int, last: int) -> list[Turned]:
    return [turn for turns in rounds for turn in turns[first - 1 : last]]


def _turn_row(first: int, last: int, rounds: Sequence[Sequence[Turned]]) -> tuple[Cell, ...]:
    turns = _within(rounds, first, last)
    return (
        str(last) if first == last else f"{first} to {last}",
        turns[-1].prompt_tokens,
        turns[-1].body_bytes / 1e3,
        *(step_median(turns, step) for step in STEPS),
        *against_naive(turns),
    )


def _branches(rounds: dict[str, list[list[Turned]]]) -> int:
    turns = [turn for talks in rounds.values() for talk in talks for turn in talk]
    return sum("branch" in turn.flags for turn in turns)


def _growth(kind: str, rounds: Sequence[Sequence[Turned]], turns: int) -> list[tuple[Cell, ...]]:
    """A row for each step, and for the sums."""
    early = _within(rounds, turns // 4 + 1, max(turns // 2, turns // 4 + 1))
    late = _within(rounds, 3 * turns // 4 + 1, turns)
    tokens = median([turn.prompt_tokens for turn in late])
    tokens -= median([turn.prompt_tokens for turn in early])

    def row(name: str, cost: Callable[[Sequence[Turned]], float]) -> tuple[Cell, ...]:
        before, after = cost(early), cost(late)
        ratio = after / before if before else None
        may_grow = name in (*READING, "naive")
        holds = None if may_grow or ratio is None else "yes" if ratio <= _MOST else "no"
        slope = (after - before) / tokens * 1e3 if tokens else None
        return kind, name, before, after, ratio, slope, None if may_grow else f"≤ {_MOST}", holds

    def step_row(step: str) -> tuple[Cell, ...]:
        return row(step, lambda some: step_median(some, step))

    return [
        *map(step_row, STEPS),
        row("own", lambda some: median([turn.own for turn in some])),
        row("naive", lambda some: median([turn.naive for turn in some if turn.naive is not None])),
    ]


if __name__ == "__main__":
    run(Options, measure)
