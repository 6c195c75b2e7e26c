"""Every planted bug is found by the seeds that run with every change."""

from __future__ import annotations

import pytest

from tests.simulate.checking import check
from tests.simulate.corpus import SEEDS
from tests.simulate.planted import PLANTED
from tests.simulate.world import knobs_of

PAIRS = [(name, harness) for name, bug in PLANTED.items() for harness in bug.harnesses]


@pytest.mark.parametrize(("name", "harness"), PAIRS)
def test_a_planted_bug_is_found(name: str, harness: str) -> None:
    assert any(check(knobs_of(seed), harness, bug=name).violations for seed in SEEDS[harness]), (
        f"no seed of the corpus finds: {PLANTED[name].description}"
    )


def test_there_are_bugs_for_both_harnesses() -> None:
    assert len(PLANTED) >= 15
    assert {harness for _, harness in PAIRS} == {"core", "shell"}
