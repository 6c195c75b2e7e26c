"""Each prompt to where least of it has to be computed: by prefixes of token ids, and by load.

Matching alone would send all to one place: agents of one fleet share a system prompt, so whoever
had the first of them holds the longest prefix of every other. What counts is the *work* until the
first token: the tokens of this prompt that the worker does not hold, and those that stand before it
in the queue, which are as many calls as it carries times what a call usually brings. So a worker
without the system prompt gets it as soon as the others carry that much more; and past the load
guard no cache is worth waiting for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from slime_core.fleet import Worker
from slime_core.policies.loads import least_in_flight, not_overloaded
from slime_core.policies.placement import Placement

__all__ = ["CacheAware", "cache_aware"]

_LEAST_TYPICAL: Final = 128
"""Calls also generate: where prompts bring hardly anything new, each still counts as so many
tokens."""


class CacheAware:
    """The policy; it has no state."""

    reads_prefixes: Final = True

    def __call__(self, workers: Sequence[Worker], placement: Placement, /) -> Worker:
        """The worker that has least to compute until this prompt's first token."""
        near = not_overloaded(workers)
        if not placement.matched:
            return least_in_flight(near, placement)
        typical = max(_LEAST_TYPICAL, placement.typical_uncached)

        def work(worker: Worker) -> tuple[int, int, int, int]:
            # The length of the prompt is the same for all, so what is held stands for what is not.
            held, load = placement.matched.get(worker.url, 0), worker.load
            return (load * typical - held, load, worker.last_chosen, worker.number)

        return min(near, key=work)


cache_aware: Final = CacheAware()
"""The worker that has least to compute until this prompt's first token."""
