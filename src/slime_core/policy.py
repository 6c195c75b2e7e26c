"""Balancing policies: which fit worker gets the next call.

A policy is a pure function of the fit workers, which come in the order of joining and are never
none, and of what is to be placed; where it needs chance, that comes as a number. Ties go to the
worker that has waited longest for work, so that equal loads are dealt round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Protocol

from slime_core.fleet import Worker

__all__ = [
    "POLICIES",
    "Placement",
    "Policy",
    "consistent_hashing",
    "least_in_flight",
    "power_of_two",
    "random_worker",
    "round_robin",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What a policy may know of the call that it places.

    ``session``: the rollout that the call belongs to, if it says so. ``chance``: a number in
    [0, 1), drawn anew for every call.
    """

    session: str | None = None
    chance: float = 0.0


class Policy(Protocol):
    """Chooses one of ``workers`` (at least one, all fit) for a call."""

    def __call__(self, workers: Sequence[Worker], placement: Placement, /) -> Worker:
        """The worker that gets the call."""


def least_in_flight(workers: Sequence[Worker], placement: Placement, /) -> Worker:
    """The worker with the fewest calls in flight."""
    return min(workers, key=_load)


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
    return min(workers[first], workers[second + (second >= first)], key=_load)


def consistent_hashing(workers: Sequence[Worker], placement: Placement, /) -> Worker:
    """The worker that the session has for its own; without a session the least loaded one.

    Highest random weight (Thaler and Ravishankar, 1998): a worker that comes or goes moves only
    the sessions that it gets or had, and nothing has to be remembered.
    """
    if placement.session is None:
        return least_in_flight(workers, placement)
    key = placement.session.encode("utf-8", "surrogatepass")
    return max(workers, key=lambda worker: (_weight(key, worker), worker.number))


def _weight(key: bytes, worker: Worker) -> bytes:
    return blake2b(key, key=blake2b(worker.url.encode()).digest(), digest_size=8).digest()


def _load(worker: Worker) -> tuple[int, int, int]:
    return (worker.load, worker.last_chosen, worker.number)


POLICIES: Final[dict[str, Policy]] = {
    "least-in-flight": least_in_flight,
    "round-robin": round_robin,
    "random": random_worker,
    "power-of-two": power_of_two,
    "consistent-hashing": consistent_hashing,
}
"""Policies by the names that ``--policy`` takes."""
