"""From a run that breaks a rule to a small one that breaks the same rule.

A seed stays what it is; what is made smaller are its knobs. Every part of a world has its own
generator, derived from the seed by name, so leaving an agent or a fault out changes nothing of the
others, and a failure mostly survives what has nothing to do with it.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.simulate.knobs import Knobs

__all__ = ["shrink"]


def shrink(knobs: Knobs, still_fails: Callable[[Knobs], bool], *, tries: int = 300) -> Knobs:
    """The quietest knobs found with at most ``tries`` runs that still fail."""
    left = tries
    while left > 0:
        for candidate in knobs.quieter():
            left -= 1
            if still_fails(candidate):
                knobs = candidate
                break
            if left <= 0:
                return knobs
        else:
            return knobs
    return knobs
