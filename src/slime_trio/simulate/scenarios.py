"""From choices to scenarios: one for each point of the sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from slime_core.errors import ClientError
from slime_core.simulation import (
    Faults,
    Fleet,
    Retries,
    Router,
    Scenario,
    Trace,
    Updates,
    WorkerSpeed,
    Workload,
)
from slime_trio.config import ConfigurationError
from slime_trio.simulate.choices import Choices
from slime_trio.simulate.fields import FIELDS

__all__ = ["Point", "points", "refusal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run: a scenario, a policy and a seed. ``swept``: what this point has of the sweeps."""

    swept: Mapping[str, Any]
    policy: str
    seed: int
    scenario: Scenario


def points(choices: Choices, trace: Trace | None) -> Iterator[Point]:
    """Every run that is asked for, in the order in which it is shown.

    Raises :class:`ConfigurationError`, naming flag or key, for what cannot be simulated.
    """
    for values in product(*(sweep.values for sweep in choices.sweeps)):
        names = [sweep.field.name for sweep in choices.sweeps]
        swept = dict(zip(names, values, strict=True))
        chosen = {**choices.values, **swept}
        scenario = _scenario(choices, chosen, trace)
        for policy in choices.policies:
            yield Point(swept=swept, policy=policy, seed=chosen["seed"], scenario=scenario)


def _scenario(choices: Choices, values: Mapping[str, Any], trace: Trace | None) -> Scenario:
    def made(part: type[Any], values: Mapping[str, Any] = values) -> Any:
        rows = [row for row in FIELDS if row.part is part]
        try:
            return part(**{row.inner: values[row.name] for row in rows})
        except ClientError as error:
            raise refusal(choices, error, part) from error

    kinds = choices.fleet or ({"workers": values["workers"]},)
    speeds = [(kind["workers"], made(WorkerSpeed, {**values, **kind})) for kind in kinds]
    try:
        fleet = Fleet(workers=tuple(speed for count, speed in speeds for _ in range(count)))
    except ClientError as error:
        problem = str(error).removeprefix("workers ")
        raise ConfigurationError(f"{choices.source('fleet')}: {problem}") from error
    return Scenario(
        fleet=fleet,
        workload=made(Workload) if trace is None else _traced(choices, values, trace),
        router=made(Router),
        updates=made(Updates),
        faults=made(Faults),
        retries=made(Retries),
    )


def _traced(choices: Choices, values: Mapping[str, Any], trace: Trace) -> Trace:
    try:
        return replace(trace, system_tokens=values["system_tokens"])
    except ClientError as error:
        raise refusal(choices, error, Workload) from error


def refusal(
    choices: Choices, error: ClientError, part: type[Any] | None = None
) -> ConfigurationError:
    """The error with the flag or key at fault; ``part``: the value whose field it names."""
    inner = error.param or ""
    rows = (row for row in FIELDS if row.inner == inner and part in (None, row.part))
    row = next(rows, None)
    source = _source(choices, inner if row is None else row.name)
    return ConfigurationError(f"{source}: {str(error).removeprefix(inner).strip()}")


def _source(choices: Choices, name: str) -> str:
    swept = name in {sweep.field.name for sweep in choices.sweeps}
    return f"--sweep {name}" if swept else choices.source(name)
