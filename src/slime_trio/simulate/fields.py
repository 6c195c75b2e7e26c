"""Every field of a scenario: its name, how it is written, and where it belongs.

A row of :data:`FIELDS` is at once a flag (``--update-every-s``), a key of a TOML file
(``update_every_s``) and something that ``--sweep`` can vary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from slime_core.engine.generation import PauseMode
from slime_core.simulation import (
    MOST_WORKERS,
    Faults,
    Fixed,
    Retries,
    Router,
    Updates,
    WorkerSpeed,
    Workload,
)
from slime_trio.simulate.words import count, distribution, number, switch

__all__ = ["FIELDS", "Field", "field_named", "parse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field. ``part`` is the value it belongs to, in which it is called ``inner``."""

    name: str
    part: type[Any] | None
    inner: str
    kind: Callable[[str], Any]
    help: str
    default: Any
    metavar: str
    many: bool = False

    @property
    def flag(self) -> str:
        """Its flag."""
        return "--" + self.name.replace("_", "-")


def _workers(word: str) -> int:
    value = count(word)
    if not 1 <= value <= MOST_WORKERS:
        raise ValueError(f"expected 1 to {MOST_WORKERS}")
    return value


def _pause_mode(word: str) -> PauseMode:
    try:
        return PauseMode(word)
    except ValueError:
        known = ", ".join(mode.value for mode in PauseMode)
        raise ValueError(f"expected one of {known}") from None


_METAVARS: Final[dict[Callable[[str], Any], str]] = {
    count: "N",
    number: "X",
    switch: "on|off",
    distribution: "DIST",
    _pause_mode: "MODE",
}


def _row(
    part: type[Any],
    inner: str,
    kind: Callable[[str], Any],
    help_text: str,
    *,
    name: str = "",
    default: Any = dataclasses.MISSING,
    many: bool = False,
) -> Field:
    if default is dataclasses.MISSING:
        default = next(one.default for one in dataclasses.fields(part) if one.name == inner)
    return Field(
        name=name or inner,
        part=part,
        inner=inner,
        kind=kind,
        help=help_text,
        default=default,
        metavar=_METAVARS[kind],
        many=many,
    )


_FLEET: Final = (
    Field(
        name="workers",
        part=None,
        inner="workers",
        kind=_workers,
        help="equal workers",
        default=4,
        metavar="N",
    ),
    _row(
        WorkerSpeed,
        "prefill_tokens_per_s",
        number,
        "prompt tokens that a worker computes per second; 0: no time at all",
    ),
    _row(WorkerSpeed, "s_per_token", number, "seconds for one token of an answer that runs alone"),
    _row(
        WorkerSpeed,
        "s_per_token_per_other",
        number,
        "seconds that each other answer of the batch adds to that",
        # With none, one worker would be as good as many.
        default=0.0002,
    ),
    _row(WorkerSpeed, "prefill_stops_decode", switch, "no answer grows while a prompt is computed"),
    _row(WorkerSpeed, "max_running", count, "size of a worker's batch; other calls wait"),
    _row(WorkerSpeed, "prefix_cache_tokens", count, "tokens that a worker keeps for reuse"),
    _row(
        WorkerSpeed,
        "encode_tokens_per_s",
        number,
        "tokens of text that a worker encodes per second, with --capture off; 0: no time at all",
        name="worker_encode_tokens_per_s",
    ),
)

_ROUTER: Final = (
    _row(
        Router,
        "capture",
        switch,
        "on: the router encodes what is new and sends ids; off: workers encode whole texts",
    ),
    _row(
        Router,
        "encode_tokens_per_s",
        number,
        "tokens that the router encodes per second; 0: no time at all",
    ),
    _row(Router, "reuse_tokens", count, "tokens that the router keeps of sessions that are over"),
    _row(Router, "overhead_s", number, "seconds of the router's process for each call"),
    _row(Router, "network_s", number, "seconds from router to worker, one way"),
)

_WORKLOAD: Final = (
    _row(Workload, "sessions", count, "sessions (rollouts) in all"),
    _row(Workload, "concurrency", count, "sessions under way at once"),
    _row(
        Workload,
        "sessions_per_s",
        number,
        "instead of --concurrency: sessions that begin per second, by chance",
    ),
    _row(Workload, "group_size", count, "sessions that share their first prompt"),
    _row(Workload, "system_tokens", count, "tokens that all prompts begin with"),
    _row(Workload, "turns", distribution, "turns of a session", default=Fixed(3)),
    _row(
        Workload,
        "input_tokens",
        distribution,
        "new prompt tokens of the first turn, the second, …; the last holds for all later ones",
        many=True,
    ),
    _row(Workload, "answer_tokens", distribution, "tokens of an answer"),
    _row(Workload, "answer_tokens_max", count, "where answers are cut short"),
    _row(Workload, "think_s", distribution, "seconds between an answer and the next turn"),
    _row(
        Workload,
        "drift",
        number,
        "share of answers that encode to other ids than were sampled, with --capture off",
    ),
)

_LIFE: Final = (
    _row(
        Updates,
        "every_s",
        number,
        "seconds between two weight updates; 0: none",
        name="update_every_s",
    ),
    _row(
        Updates, "takes_s", number, "seconds that one stops the workers for", name="update_takes_s"
    ),
    _row(
        Updates,
        "mode",
        _pause_mode,
        "what it does to running calls: abort, retract, in_place",
        name="update_mode",
    ),
    _row(
        Faults,
        "mean_s_between_failures",
        number,
        "seconds that a worker runs until it dies, on average; 0: for ever",
    ),
    _row(Faults, "repair_s", distribution, "seconds until it is back, with an empty cache"),
    _row(
        Retries, "most", count, "times that a client repeats a call that was lost", name="retries"
    ),
    _row(Retries, "after_s", number, "seconds that it waits before each", name="retry_after_s"),
)

_SEED: Final = Field(
    name="seed",
    part=None,
    inner="seed",
    kind=count,
    help="same seed, same numbers",
    default=0,
    metavar="N",
)

FIELDS: Final[tuple[Field, ...]] = (*_FLEET, *_ROUTER, *_WORKLOAD, *_LIFE, _SEED)
"""Every field, in the order of the help text."""


def field_named(name: str) -> Field | None:
    """The field of that name; blanks, dashes and underscores are the same."""
    known = name.strip().removeprefix("--").replace("-", "_")
    return next((field for field in FIELDS if field.name == known), None)


def parse(field: Field, word: str) -> Any:
    """The value that ``word`` stands for. Raises ``ValueError``."""
    if not field.many:
        return field.kind(word.strip())
    parts = word.replace(",", " ").split()
    if not parts:
        raise ValueError("expected at least one")
    return tuple(field.kind(part) for part in parts)
