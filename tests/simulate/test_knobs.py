"""The knobs: drawn from the seed, set by hand, and made smaller."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import cache

import pytest

from tests.simulate.knobs import Knobs

FAULTS = ("refuse", "hang", "slow", "garbage")
NAMES = [field.name for field in dataclasses.fields(Knobs) if field.name != "seed"]


@cache
def drawn(seed: int, faults: tuple[str, ...] = FAULTS) -> Knobs:
    return Knobs.draw(
        seed,
        fault_kinds=faults,
        action_kinds=("crash", "update"),
        link_kinds=("partition", "delay"),
        errand_kinds=("pause", "update"),
    )


def smallest(knobs: Knobs, fails: Callable[[Knobs], bool]) -> Knobs:
    """The first simpler knobs that still fail, again and again."""
    while True:
        simpler = next(filter(fails, knobs.quieter()), None)
        if simpler is None:
            return knobs
        knobs = simpler


def test_a_seed_always_draws_the_same() -> None:
    for seed in range(20):
        assert drawn(seed) == drawn.__wrapped__(seed)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("liveness_s", "absent", "listener")]
)
def test_every_knob_is_turned_by_some_seed(name: str) -> None:
    assert len({getattr(drawn(seed), name) for seed in range(100)}) > 1


def test_quick_runs_are_of_some_dozens_of_requests() -> None:
    for seed in range(200):
        knobs = drawn(seed)
        assert knobs.agents * knobs.turns * (1 + knobs.group) <= 80
        assert min(knobs.agents, knobs.turns, knobs.group) >= 1


def test_long_runs_have_more_to_do() -> None:
    def work(knobs: Knobs) -> int:
        return knobs.agents * knobs.turns

    quick = sum(work(Knobs.draw(seed)) for seed in range(50))
    long = sum(work(Knobs.draw(seed, quick=False)) for seed in range(50))
    assert long > 4 * quick


def test_which_kinds_are_live_differs_from_seed_to_seed() -> None:
    live = {tuple(kind for kind, _ in drawn(seed).faults) for seed in range(200)}
    assert () in live
    assert set(FAULTS) <= {kind for kinds in live for kind in kinds}
    assert any(len(kinds) > 1 for kinds in live)


def test_another_kind_leaves_all_others_as_they_were() -> None:
    for seed in range(50):
        more = drawn(seed, (*FAULTS, "new"))
        kept = tuple(pair for pair in more.faults if pair[0] != "new")
        assert dataclasses.replace(more, faults=kept) == drawn(seed)


def test_settings_are_read_by_the_type_of_their_knob() -> None:
    words = ["agents=2", "cut=0.25", "incremental=on", "tokenizer=bos", "faults=hang:0.5,slow:1"]
    knobs = Knobs(seed=1).with_settings(words)
    assert (knobs.agents, knobs.cut, knobs.incremental) == (2, 0.25, True)
    assert knobs.tokenizer == "bos"
    assert knobs.faults == (("hang", 0.5), ("slow", 1.0))
    assert knobs.with_settings(["faults="]).faults == ()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("agents", "NAME=VALUE"),
        ("agent=1", "NAME=VALUE"),
        ("seed=1", "NAME=VALUE"),
        ("agents=many", "invalid literal"),
        ("agents=-1", "at least 0"),
        ("cut=nan", "at least 0"),
        ("cut=-0.5", "at least 0"),
        ("incremental=maybe", "true or false"),
        ("faults=hang", "KIND:NUMBER"),
        ("faults=:1", "KIND:NUMBER"),
        ("tokenizer=llama", "expected one of bytes"),
        ("policy=best", "expected one of least-in-flight"),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        Knobs(seed=1).with_settings([setting])
    assert setting in str(raised.value)


def test_settings_repeat_what_was_drawn() -> None:
    for seed in range(50):
        assert Knobs(seed=seed).with_settings(drawn(seed).settings()) == drawn(seed)


def test_the_table_names_every_knob_and_marks_those_that_are_not_quiet() -> None:
    lines = Knobs(seed=7, agents=3).table().splitlines()
    assert [line[2:].split()[0] for line in lines] == ["seed", *NAMES]
    assert [line[2:].split()[:2] for line in lines if line.startswith("*")] == [["agents", "3"]]


def test_nothing_is_quieter_than_the_default() -> None:
    assert list(Knobs(seed=1).quieter()) == []


def test_quieter_knobs_differ_from_what_they_are_quieter_than() -> None:
    for seed in range(20):
        candidates = list(drawn(seed).quieter())
        assert drawn(seed) not in candidates
        assert all(one.seed == seed for one in candidates)


def test_any_way_of_getting_quieter_ends_at_the_default() -> None:
    for seed in range(10):
        chance, knobs = random.Random(seed), drawn(seed)
        while candidates := list(knobs.quieter()):
            knobs = chance.choice(candidates)
        assert knobs == Knobs(seed=seed)


def test_what_does_not_matter_is_left_out() -> None:
    seed = next(seed for seed in range(1000) if drawn(seed).agents >= 4)
    found = smallest(drawn(seed), lambda knobs: knobs.agents >= 3)
    assert dataclasses.replace(found, absent=()) == Knobs(seed=seed, agents=3)


def test_agents_that_do_not_matter_are_sent_away_though_a_later_one_does() -> None:
    seed = next(seed for seed in range(1000) if drawn(seed).agents >= 4)

    def fails(knobs: Knobs) -> bool:
        return "agent2" in knobs.cast_names() and "agent2" not in knobs.absent

    found = smallest(drawn(seed), fails)
    assert found == Knobs(seed=seed, agents=3, absent=("agent0", "agent1"))
    assert found.with_settings(["absent=agent1"]).absent == ("agent1",)


def test_one_fault_of_many_is_found() -> None:
    faults = tuple((kind, 0.5) for kind in ("a", "b", "c", "d", "e"))
    knobs = dataclasses.replace(drawn(1), faults=faults)
    found = smallest(knobs, lambda knobs: "c" in dict(knobs.faults))
    assert found == Knobs(seed=1, faults=(("c", 0.5),))


def test_two_knobs_that_fail_together_are_both_kept() -> None:
    knobs = dataclasses.replace(drawn(1), workers=4, reuse_tokens=0)
    found = smallest(knobs, lambda knobs: knobs.workers > 1 and knobs.reuse_tokens < 100)
    assert found.workers == 2
    assert dataclasses.replace(found, workers=1, reuse_tokens=10_000) == Knobs(seed=1)
