"""Every session to a worker of its own, without remembering anything."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from slime_core.fleet import Worker
from slime_core.policies.loads import least_in_flight
from slime_core.policies.placement import Placement

__all__ = ["consistent_hashing"]


def consistent_hashing(workers: Sequence[Worker], placement: Placement, /) -> Worker:
    """The worker that the key has for its own; without a key the least loaded one.

    Highest random weight (Thaler and Ravishankar, 1998): a worker that comes or goes moves only
    the keys that it gets or had, and another router, or this one after a restart, chooses alike.
    """
    if placement.key is None:
        return least_in_flight(workers, placement)
    key = placement.key.encode("utf-8", "surrogatepass")
    return max(workers, key=lambda worker: (_weight(key, worker), worker.number))


def _weight(key: bytes, worker: Worker) -> bytes:
    return blake2b(key, key=blake2b(worker.url.encode()).digest(), digest_size=8).digest()
