"""Balancing policies: which fit worker gets the next call.

A policy is a pure function of the fit workers, which come in the order of joining and are never
none. Ties go to the worker that has waited longest for work, so that equal loads are dealt round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from slime_core.fleet import Worker

__all__ = ["POLICIES", "Policy", "least_in_flight", "round_robin"]


class Policy(Protocol):
    """Chooses one of ``workers`` (at least one, all fit)."""

    def __call__(self, workers: Sequence[Worker], /) -> Worker:
        """The worker that gets the call."""


def least_in_flight(workers: Sequence[Worker], /) -> Worker:
    """The worker with the fewest calls in flight."""
    return min(workers, key=lambda worker: (worker.load, worker.last_chosen, worker.number))


def round_robin(workers: Sequence[Worker], /) -> Worker:
    """The worker that was chosen longest ago, whatever it carries."""
    return min(workers, key=lambda worker: (worker.last_chosen, worker.number))


POLICIES: Final[dict[str, Policy]] = {
    "least-in-flight": least_in_flight,
    "round-robin": round_robin,
}
"""Policies by the names that ``--policy`` takes."""
