"""Samples of a session for a trainer: a snapshot of what was captured, and everything made of it.

:func:`take` copies what a session captured; :func:`collect` makes samples of the copy, in which
every sampled token is trained at most once, and accounts for all of them; :mod:`.wire` words them.
"""

from slime_core.samples.accounting import Accounting, Unused
from slime_core.samples.assembly import Collected, Sample, Wanted, collect
from slime_core.samples.policies import DEFAULT_POLICY, POLICIES, SamplePolicy
from slime_core.samples.snapshot import Snapshot, take
from slime_core.samples.tree import CallTree, grow, status_of

__all__ = [
    "DEFAULT_POLICY",
    "POLICIES",
    "Accounting",
    "CallTree",
    "Collected",
    "Sample",
    "SamplePolicy",
    "Snapshot",
    "Unused",
    "Wanted",
    "collect",
    "grow",
    "status_of",
    "take",
]
