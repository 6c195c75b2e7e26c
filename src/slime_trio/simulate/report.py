"""Results as JSON. All times are seconds, all lengths tokens; names end in their units.

There is nothing in it of the machine or the moment: same scenario, policy and seed, same bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from slime_core.simulation import Result
from slime_trio.simulate.choices import Choices
from slime_trio.simulate.scenarios import Point
from slime_trio.simulate.words import shown

__all__ = ["FORMAT", "Run", "as_json"]

FORMAT: Final = 1
"""Grows when a name changes its meaning or goes."""

Run = tuple[Point, Result]
"""A point and what came of it."""


def as_json(choices: Choices, runs: Sequence[Run], *, orphans: int = 0) -> str:
    """Everything: what was asked for and what came of it."""
    swept = [sweep.field.name for sweep in choices.sweeps]
    told = {name: value for name, value in choices.values.items() if name not in swept}
    if choices.trace is not None:
        told["trace"] = str(choices.trace)
    if choices.fleet:
        told["fleet"] = [{k: shown(v) for k, v in kind.items()} for kind in choices.fleet]
    report = {
        "format": FORMAT,
        "scenario": {name: _told(value) for name, value in told.items()},
        "sweep": {sweep.field.name: shown(sweep.values) for sweep in choices.sweeps},
        "calls_continuing_untraced_calls": orphans,
        "runs": [_run(point, result) for point, result in runs],
    }
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def _told(value: Any) -> Any:
    return value if isinstance(value, list) else shown(value)


def _run(point: Point, result: Result) -> Mapping[str, Any]:
    told = dataclasses.asdict(result)
    for worker, one in zip(told["workers"], result.workers, strict=True):
        worker["cache_hit_rate"] = one.cache_hit_rate
    swept = {name: shown(value) for name, value in point.swept.items()}
    return {"policy": told.pop("policy"), "seed": point.seed, "sweep": swept, **told}
