"""Capacity and policy planning: clients, router and workers simulated by lengths.

A discrete-event simulation with the router's own fleet and balancing policies; prompts and answers
are counts of tokens, so that a million requests take minutes. See :func:`simulate`.
"""

from slime_core.simulation.lengths import (
    Chance,
    Chances,
    Choice,
    Distribution,
    Exponential,
    Fixed,
    Lognormal,
    Uniform,
)
from slime_core.simulation.result import Result, Spread, TurnResult, WorkerResult
from slime_core.simulation.run import Progress, simulate
from slime_core.simulation.scenario import (
    MOST_WORKERS,
    Faults,
    Fleet,
    Retries,
    Router,
    Scenario,
    Trace,
    TraceEntry,
    Updates,
    WorkerSpeed,
    Workload,
)

__all__ = [
    "MOST_WORKERS",
    "Chance",
    "Chances",
    "Choice",
    "Distribution",
    "Exponential",
    "Faults",
    "Fixed",
    "Fleet",
    "Lognormal",
    "Progress",
    "Result",
    "Retries",
    "Router",
    "Scenario",
    "Spread",
    "Trace",
    "TraceEntry",
    "TurnResult",
    "Uniform",
    "Updates",
    "WorkerResult",
    "WorkerSpeed",
    "Workload",
    "simulate",
]
