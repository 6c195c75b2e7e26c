"""Policies that look at what workers carry, and what counts as carrying too much.

Ties go to the worker that has waited longest for work, so that equal loads are dealt round.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Final

from slime_core.fleet import Worker
from slime_core.policies.placement import Placement

__all__ = [
    "OVERLOAD_CALLS",
    "OVERLOAD_RATIO",
    "is_overloaded",
    "least_in_flight",
    "least_load",
    "not_overloaded",
    "power_of_two",
    "random_worker",
    "round_robin",
]

OVERLOAD_CALLS: Final = 16
"""How many calls more than the least loaded worker one may carry for the sake of its cache."""
OVERLOAD_RATIO: Final = 1.5
"""How many times as many."""


_rank: Final = attrgetter("rank")
"""A getter in C: of many workers most of the time would go into calling one of Python's."""


def is_overloaded(worker: Worker, workers: Sequence[Worker]) -> bool:
    """Whether the load guard (:func:`not_overloaded`) takes ``worker`` out of ``workers``."""
    return worker.load > OVERLOAD_CALLS and worker not in not_overloaded(workers)


def not_overloaded(workers: Sequence[Worker]) -> list[Worker]:
    """The load guard: ``workers`` without those that carry both :data:`OVERLOAD_CALLS` more than
    the least loaded of them and :data:`OVERLOAD_RATIO` times as much.

    What a worker holds in its cache (of a session, of a prefix) is worth that much and no more.
    """
    least = min(one.load for one in workers)
    most = max(least + OVERLOAD_CALLS, OVERLOAD_RATIO * least)
    return [one for one in workers if one.load <= most]


def least_in_flight(workers: Sequence[Worker], placement: Placement, /) -> Worker:
    """The worker with the fewest calls in flight."""
    return min(workers, key=_rank)


def round_robin(workers: Sequence[Worker], placement: Placement, /) -> Worker:
    """The worker that was chosen longest ago, whatever it carries."""
    return min(workers, key=lambda worker: (worker.last_chosen, worker.number))


def random_worker(workers: Sequence[Worker], placement: Placement, /) -> Worker:
    """Any worker, all with the same probability."""
    return workers[int(placement.chance * len(workers))]


def power_of_two(workers: Sequence[Worker], placement: Placement, /) -> Worker:
    """The less loaded one of two random workers (Mitzenmacher, "The Power of Two Choices")."""
    count = len(workers)
    if count == 1:
        return workers[0]
    # One number stands for the ordered pairs of different workers, all equally likely.
    first, second = divmod(int(placement.chance * count * (count - 1)), count - 1)
    return min(workers[first], workers[second + (second >= first)], key=_rank)


def least_load(workers: Sequence[Worker], placement: Placement, /) -> Worker:
    """The worker that has least to do by its own report, and what was sent to it since.

    Reports know of calls that other routers sent, and of how full the KV cache is: a full one
    counts twice as much as an empty one. Where any worker has told nothing, reports and calls in
    flight cannot be compared, and the fewest calls in flight decide.
    """
    if any(worker.reported is None for worker in workers):
        return least_in_flight(workers, placement)
    return min(workers, key=lambda worker: (_reported_load(worker), *worker.rank))


def _reported_load(worker: Worker) -> float:
    reported = worker.reported
    assert reported is not None
    since = worker.load - worker.load_at_report
    requests = max(0, reported.running + reported.waiting + since)
    return (1 + requests) * (1 + reported.token_usage**2)
