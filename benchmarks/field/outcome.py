"""What a cell of the large run brings, and the goals that its figures are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from benchmarks.report import Cell, Table

__all__ = [
    "GOALS",
    "YARDSTICKS",
    "Goal",
    "Outcome",
    "Yardstick",
    "goals_table",
    "ratios_table",
]


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
_LARGE: Final = "large/64/fast/cpu_us"
_IDS: Final = "ids32k/64/fast/cpu_us"
_IDS_OFF: Final = "ids32k/64/fast-off/cpu_us"
_TURN: Final = "multi/32/fast/cpu_us"
_PACED: Final = "stream/paced/fast/cpu_us"
_OURS: Final = ("/fast-off/", "/fast/")

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
    Goal(words="8k-token answer captured, µs", figure=_LARGE, limit=1200),
    Goal(
        words="8k-token answer captured, until the client has it, µs",
        figure="answered/large/fast/before_us",
        limit=600,
    ),
    Goal(words="32k ids in, captured, µs", figure=_IDS, limit=500),
    Goal(words="32k ids in, passed through, µs", figure=_IDS_OFF, limit=100),
    _ratio("32k ids: sglang-router / fast", "ids32k/64/sglang-router/cpu_us", _IDS, 8),
    _ratio("32k ids: sglang-router / fast-off", "ids32k/64/sglang-router/cpu_us", _IDS_OFF, 40),
    Goal(words="turn of 16-turn conversations, µs", figure=_TURN, limit=550),
    Goal(words="paced stream, µs per event", figure=_PACED, limit=30),
    _ratio("paced stream: sglang-router / fast", "stream/paced/sglang-router/cpu_us", _PACED, 1),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """A goal in µs, and what two peers took for the same on the machine where it was set."""

    words: str
    figure: str
    limit_us: float
    peers_us: Mapping[str, float]

    def ratios(self, figures: Mapping[str, float], peer: str) -> tuple[float, float | None]:
        """The limit as a multiple of the peer's cost there, and what was reached here."""
        found = figures.get(self.figure)
        divisor = figures.get(_of_peer(self.figure, peer))
        reached = found / divisor if found is not None and divisor else None
        return self.limit_us / self.peers_us[peer], reached


def _of_peer(figure: str, peer: str) -> str:
    for own in _OURS:
        figure = figure.replace(own, f"/{peer}/")
    return figure


def _yardstick(words: str, figure: str, limit: float, nginx: float, gateway: float) -> Yardstick:
    peers = {"nginx": nginx, "sglang-router": gateway}
    return Yardstick(words=words, figure=figure, limit_us=limit, peers_us=peers)


YARDSTICKS: Final = (
    _yardstick("small request", _SMALL, 45, 15, 90),
    _yardstick("8k-token answer captured", _LARGE, 1200, 178, 210),
    _yardstick("32k ids in, captured", _IDS, 500, 84, 4126),
    _yardstick("32k ids in, passed through", _IDS_OFF, 100, 84, 4126),
    _yardstick("turn of 16-turn conversations", _TURN, 550, 40, 180),
    _yardstick("event of a paced stream", _PACED, 30, 11, 24),
)
"""The goals in µs as ratios, which say the same on a machine that is slower or has a slow hour."""

_SCALE_BY: Final = "small/64/nginx/cpu_us"
_SCALE_US: Final = 15.0


def ratios_table(figures: Mapping[str, float]) -> Table:
    """Goals and what was reached in multiples of what peers took, each on the same machine."""
    scale = _SCALE_US / figures[_SCALE_BY] if figures.get(_SCALE_BY) else None
    return Table(
        title="Goals as multiples of other routers' cost in the same run",
        columns=(
            *("goal", "goal / nginx", "reached / nginx"),
            *("goal / sglang-router", "reached / sglang-router"),
            *("µs scaled by nginx", "goal µs"),
        ),
        rows=tuple(_ratio_row(one, figures, scale) for one in YARDSTICKS),
        notes=(
            "goals were set where nginx took 15 µs and sglang-router 90 for the small request: "
            "what they took there divides the goal, what they took here what was reached",
            "scaled by nginx: what was reached times 15 over what nginx took for the small one: "
            "a hint, as nginx is mostly kernel and this router mostly interpreter",
        ),
    )


def _ratio_row(
    one: Yardstick, figures: Mapping[str, float], scale: float | None
) -> tuple[Cell, ...]:
    found = figures.get(one.figure)
    scaled = found * scale if found is not None and scale is not None else None
    compared = (cell for peer in one.peers_us for cell in one.ratios(figures, peer))
    return (one.words, *compared, scaled, one.limit_us)


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
