"""The fixed corpus: no seed breaks a rule, and every situation occurs in some seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest

from tests.listeners import LISTENERS
from tests.simulate import marks, telling
from tests.simulate.checking import HARNESSES, check
from tests.simulate.corpus import CHATTY, FOUND, GOVERNED, SEEDS, UNDER_HYPERCORN, Found
from tests.simulate.knobs import Knobs
from tests.simulate.world import chatty_of, governed_of, knobs_of


class Corpus(NamedTuple):
    failures: list[str]
    marks: Counter[str]


@cache
def corpus(harness: str) -> Corpus:
    """Every seed of a harness, run once for all tests of this module."""
    found = Corpus([], Counter())
    runs = [knobs_of(seed) for seed in SEEDS[harness]]
    if harness == "core":
        runs += [chatty_of(seed) for seed in CHATTY]
    else:
        runs += [governed_of(seed) for seed in GOVERNED]
    for knobs in runs:
        checked = check(knobs, harness)
        if checked.run is not None:
            found.marks.update(checked.run.story.marks)
        if checked.violations:
            again = telling.command(checked.knobs, harness, quiet=False)
            found.failures.append(f"{checked.violations[0]}\n    again: {again}")
    return found


@pytest.mark.parametrize("harness", HARNESSES)
def test_no_seed_of_the_corpus_breaks_a_rule(harness: str) -> None:
    failures = corpus(harness).failures
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("seed", UNDER_HYPERCORN)
def test_no_seed_of_a_sample_breaks_a_rule_under_hypercorn(seed: int) -> None:
    checked = check(replace(knobs_of(seed), listener="hypercorn"), "shell")
    again = telling.command(checked.knobs, "shell", quiet=False)
    assert not checked.violations, f"{checked.violations[0]}\n    again: {again}"


@pytest.mark.parametrize("harness", HARNESSES)
def test_every_situation_occurs_in_the_corpus(harness: str) -> None:
    assert marks.missing(corpus(harness).marks, harness) == []


@pytest.mark.parametrize("found", FOUND, ids=lambda found: found.what.replace(" ", "-"))
def test_what_a_seed_once_found_stays_mended(found: Found) -> None:
    knobs = Knobs(seed=found.seed).with_settings(found.settings)
    for listener in LISTENERS if found.harness == "shell" else LISTENERS[:1]:
        assert check(replace(knobs, listener=listener), found.harness).violations == ()
