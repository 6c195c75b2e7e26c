"""What a cell of the large run brings, and the goals that its figures are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from benchmarks.report import Cell, Table

__all__ = ["GOALS", "Goal", "Outcome", "goals_table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Tables to read, figures by name (``cell/row/peer/what``), and what was left out and why."""

    tables: tuple[Table, ...]
    figures: Mapping[str, float] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure, or the ratio of two, that shall not be above (``at_least``: below) a limit."""

    words: str
    figure: str
    limit: float
    over: str = ""
    """The figure to divide by; empty: none."""
    at_least: bool = False

    def reached(self, figures: Mapping[str, float]) -> float | None:
        """What was reached; ``None`` where it was not measured."""
        found = figures.get(self.figure)
        if not self.over or found is None:
            return found
        divisor = figures.get(self.over)
        return found / divisor if divisor else None


def _ratio(words: str, over: str, under: str, limit: float) -> Goal:
    return Goal(words=words, figure=over, over=under, limit=limit, at_least=True)


_SMALL: Final = "small/64/fast/cpu_us"
_IDS: Final = "ids32k/64/fast/cpu_us"
_IDS_OFF: Final = "ids32k/64/fast-off/cpu_us"

GOALS: Final = (
    Goal(words="small request, µs", figure=_SMALL, limit=45),
    _ratio("small: sglang-router / fast", "small/64/sglang-router/cpu_us", _SMALL, 2),
    _ratio("small: fastapi / fast", "small/64/fastapi/cpu_us", _SMALL, 50),
    Goal(
        words="small: 1024 connections / 64",
        figure="connections/1024/fast/cpu_us",
        over="connections/64/fast/cpu_us",
        limit=1.2,
    ),
    Goal(words="8k-token answer captured, µs", figure="large/64/fast/cpu_us", limit=1200),
    Goal(words="32k ids in, captured, µs", figure=_IDS, limit=500),
    Goal(words="32k ids in, passed through, µs", figure=_IDS_OFF, limit=100),
    _ratio("32k ids: sglang-router / fast", "ids32k/64/sglang-router/cpu_us", _IDS, 8),
    _ratio("32k ids: sglang-router / fast-off", "ids32k/64/sglang-router/cpu_us", _IDS_OFF, 40),
    Goal(words="turn of 16-turn conversations, µs", figure="multi/32/fast/cpu_us", limit=550),
    Goal(words="paced stream, µs per event", figure="stream/paced/fast/cpu_us", limit=30),
    Goal(
        words="first byte of a paced stream after the worker's, ms",
        figure="stream/paced/fast/first_byte_late_ms",
        limit=1,
    ),
    Goal(words="retrieval of 18k tokens, µs", figure="retrieval/18k/fast/cpu_us", limit=1000),
    Goal(words="memory per cached token, bytes", figure="memory/bytes_per_token", limit=16),
    Goal(words="longest stall with 200k-token prompts, ms", figure="stalls/longest_ms", limit=5),
    Goal(words="ready without a tokenizer, s", figure="start/fast-off/ready_s", limit=1.5),
    Goal(words="ready with a tokenizer, s", figure="start/fast/ready_s", limit=3),
)
"""The goals of this project for the fast listener, everything switched on."""


def goals_table(figures: Mapping[str, float]) -> Table:
    """Every goal with what was reached. Above 1, ``reached / goal`` misses it; for ``≥`` below."""
    return Table(
        title="Goals",
        columns=("goal", "limit", "reached", "reached / goal", "met"),
        rows=tuple(_row(goal, goal.reached(figures)) for goal in GOALS),
        notes=("a dash: not measured in this run",),
    )


def _row(goal: Goal, reached: float | None) -> tuple[Cell, ...]:
    limit = f"{'≥' if goal.at_least else '≤'} {goal.limit:g}"
    if reached is None:
        return (goal.words, limit, None, None, "-")
    met = reached >= goal.limit if goal.at_least else reached <= goal.limit
    return (goal.words, limit, reached, reached / goal.limit, "yes" if met else "no")
