"""Balancing policies: which fit worker gets the next call.

A policy is a pure function of the workers that may have it and of what is to be placed
(:class:`Placement`). Which workers those are is not its business
(:func:`slime_core.placing.place`).
"""

from __future__ import annotations

from typing import Final

from slime_core.policies.caching import CacheAware, cache_aware
from slime_core.policies.hashing import consistent_hashing
from slime_core.policies.loads import (
    OVERLOAD_CALLS,
    OVERLOAD_RATIO,
    is_overloaded,
    least_in_flight,
    least_load,
    not_overloaded,
    power_of_two,
    random_worker,
    round_robin,
)
from slime_core.policies.placement import Placement, Policy, reads_prefixes

__all__ = [
    "OVERLOAD_CALLS",
    "OVERLOAD_RATIO",
    "POLICIES",
    "CacheAware",
    "Placement",
    "Policy",
    "cache_aware",
    "consistent_hashing",
    "is_overloaded",
    "least_in_flight",
    "least_load",
    "not_overloaded",
    "power_of_two",
    "random_worker",
    "reads_prefixes",
    "round_robin",
]

POLICIES: Final[dict[str, Policy]] = {
    "least-in-flight": least_in_flight,
    "round-robin": round_robin,
    "random": random_worker,
    "power-of-two": power_of_two,
    "consistent-hashing": consistent_hashing,
    "cache-aware": cache_aware,
    "least-load": least_load,
}
"""Policies by the names that ``--policy`` takes."""
