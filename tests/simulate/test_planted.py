"""Every planted bug is found by the seeds that run with every change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulate.checking import check
from tests.simulate.corpus import CHATTY, GOVERNED, SEEDS
from tests.simulate.planted import PLANTED
from tests.simulate.world import chatty_of, governed_of, knobs_of

CRASH = {"crash"}
"""What a bug breaks whose planting has gone wrong: that proves nothing of the rules."""
SOON_S = 300.0
"""What leaks never comes to an end: virtual hours of waiting for it would find nothing more."""


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    bug = PLANTED[name]
    harness = bug.harnesses[0]
    runs = [knobs_of(seed) for seed in SEEDS[harness]]
    if bug.of_chat:
        runs = [*(chatty_of(seed) for seed in CHATTY), *runs]
    if bug.of_control:
        runs = [*(governed_of(seed) for seed in GOVERNED), *runs]
    knobs = (replace(one, liveness_s=SOON_S) for one in runs)
    assert any(check(one, harness, bug=name).rules - CRASH for one in knobs), (
        f"no rule is seen to be broken in the corpus by: {bug.description}"
    )


def test_there_are_bugs_for_both_harnesses() -> None:
    assert len(PLANTED) >= 15
    assert {bug.harnesses[0] for bug in PLANTED.values()} == {"core", "shell"}
