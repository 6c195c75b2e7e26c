"""Pairs in virtual time: whatever fails on either side, what is captured is what was sampled."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from slime_trio.upstream import GivenAnswer
from tests.simulate.knobs import Knobs
from tests.simulate.pairs.harness import PairHarness, run
from tests.simulate.pairs.oracles import judge_pairs
from tests.simulate.pairs.world import pairs_of
from tests.simulate.run import Run
from tests.simulate.world import knobs_of

SEEDS = (3, 9, 14, 16, 22, 30, 36, 42, 54, 72)
"""14, 42, 54 and 72 were judged wrongly once, for whose answer was passed on."""


@cache
def corpus() -> tuple[dict[int, list[str]], Counter[str]]:
    """What every seed broke, and what happened in all of them."""
    broken, marks = {}, Counter[str]()
    for seed in SEEDS:
        one = run(pairs_of(knobs_of(seed)))
        broken[seed] = [str(found) for found in judge_pairs(one)]
        marks.update(one.story.marks)
    return broken, marks


def quiet() -> Run:
    return run(pairs_of(Knobs(seed=7)))


def test_a_quiet_run_goes_through_one_pair_without_complaint() -> None:
    one = quiet()
    assert judge_pairs(one) == []
    assert [whole.worker for whole in one.story.sampled] == ["http://w1:30000"]
    assert [first.worker for first in one.story.prefilled] == ["http://w0:30000"]


def test_no_seed_breaks_a_rule() -> None:
    assert {seed: broken for seed, broken in corpus()[0].items() if broken} == {}


@pytest.mark.parametrize(
    "mark", ["transferred", "prefill_gone", "decode_gone", "aborted_at_prefill"]
)
def test_every_situation_of_pairs_occurs(mark: str) -> None:
    assert corpus()[1][f"pairs:{mark}"]


def test_a_seed_is_the_same_run_again() -> None:
    knobs = pairs_of(knobs_of(33))
    assert run(knobs).digest == run(knobs).digest


def test_a_first_token_that_prefill_never_sampled_is_noticed() -> None:
    one = quiet()
    one.story.prefilled[0].ids[0] += 1
    assert "pairs" in {found.rule for found in judge_pairs(one)}


def test_halves_with_different_prompts_are_noticed() -> None:
    one = quiet()
    first = one.story.prefilled[0]
    one.story.prefilled[0] = replace(first, prompt_ids=(*first.prompt_ids, 1))
    assert "pairs" in {found.rule for found in judge_pairs(one)}


def test_an_answer_of_prefill_that_is_passed_on_without_an_abort_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def claim(harness: PairHarness) -> Run:
        harness._passed[0] = GivenAnswer(200, [], b"", worker_url="http://w0:30000")
        return told(harness)

    told = PairHarness._told
    monkeypatch.setattr(PairHarness, "_told", claim)
    assert any("aborted nothing" in str(found) for found in judge_pairs(quiet()))


def test_a_room_that_is_kept_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(harness: PairHarness) -> None:
        harness.router.shared.rooms.add(1)
        at_rest(harness)

    at_rest = PairHarness._at_rest
    monkeypatch.setattr(PairHarness, "_at_rest", keep)
    assert any("rooms were kept" in str(found) for found in judge_pairs(quiet()))
