"""Distributions of lengths and times."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from math import e, exp, inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import ClientError
from slime_core.simulation.lengths import (
    Choice,
    Distribution,
    Exponential,
    Fixed,
    Lognormal,
    Uniform,
    draw_count,
)
from tests.core.simulation_support import Numbers, distributions


@pytest.mark.parametrize(
    ("distribution", "number", "drawn"),
    [
        (Fixed(7), None, 7),
        (Uniform(2, 6), 0.25, 3),
        (Lognormal(100, 0.5), 0.0, 100),
        (Lognormal(100, 0.5), 2.0, 100 * e),
        (Exponential(10), 0.0, 0),
        (Exponential(10), 1 - exp(-1), 10),
        (Choice((1, 2, 3)), 0.0, 1),
        (Choice((1, 2, 3)), 0.34, 2),
        (Choice((1, 2, 3), (0, 1, 3)), 0.0, 2),
        (Choice((1, 2, 3), (0, 1, 3)), 0.25, 3),
    ],
)
def test_a_number_is_drawn_by_the_rule(
    distribution: Distribution, number: float | None, drawn: float
) -> None:
    numbers = [] if number is None else [number]
    assert distribution.draw(Numbers(numbers)) == pytest.approx(drawn)


@pytest.mark.parametrize(
    "distribution",
    [
        Fixed(3),
        Uniform(1, 5),
        Lognormal(10, 0.6),
        Lognormal.with_mean(20, 0.6),
        Exponential(4),
        Choice((1, 10), (3, 1)),
    ],
)
def test_the_mean_is_the_mean_of_what_is_drawn(distribution: Distribution) -> None:
    chance = random.Random(1)
    drawn = [distribution.draw(chance) for _ in range(40_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(distribution.mean, rel=0.02)


def test_a_lognormal_can_be_named_by_its_mean() -> None:
    assert Lognormal.with_mean(20, 0.6).mean == pytest.approx(20)


@given(distributions(100), st.integers(0, 3), st.integers())
def test_a_count_is_the_rounded_number_and_at_least_so_much(
    distribution: Distribution, least: int, seed: int
) -> None:
    number = distribution.draw(random.Random(seed))
    count = draw_count(distribution, random.Random(seed), least)
    if isinstance(distribution, Uniform):
        low, high = round(distribution.low), round(distribution.high)
        assert max(least, low) <= count <= max(least, high)
    else:
        assert count == max(least, round(number))


def test_uniform_counts_are_all_equally_likely() -> None:
    chance = random.Random(1)
    drawn = Counter(draw_count(Uniform(2, 5), chance) for _ in range(40_000))
    assert sorted(drawn) == [2, 3, 4, 5]
    assert all(abs(times - 10_000) < 500 for times in drawn.values())
    assert draw_count(Uniform(2, 5), Numbers([0.0])) == 2
    assert draw_count(Uniform(2, 5), Numbers([1 - 2**-53])) == 5


@given(
    st.one_of(
        st.tuples(st.just(1e12), st.just(10.0)).map(lambda pair: Lognormal(*pair)),
        st.just(Exponential(1e12)),
        st.just(Uniform(0, 1e12)),
    ),
    st.integers(),
)
def test_the_largest_of_all_lengths_is_finite(distribution: Distribution, seed: int) -> None:
    assert draw_count(distribution, random.Random(seed)) >= 1


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Fixed(-1), "value"),
        (lambda: Fixed(1e13), "value"),
        (lambda: Fixed(nan), "value"),
        (lambda: Uniform(3, 2), "low"),
        (lambda: Uniform(0, inf), "low and high"),
        (lambda: Lognormal(0, 1), "median"),
        (lambda: Lognormal(1e13, 1), "median"),
        (lambda: Lognormal(1, -1), "sigma"),
        (lambda: Lognormal.with_mean(-1, 1), "mean"),
        (lambda: Lognormal.with_mean(1, 50), "sigma"),
        (lambda: Exponential(-1), "mean"),
        (lambda: Choice(()), "values"),
        (lambda: Choice((-1,)), "values"),
        (lambda: Choice((1, 2), (1,)), "weights"),
        (lambda: Choice((1, 2), (0, 0)), "weights"),
        (lambda: Choice((1, 2), (-1, 2)), "weights"),
    ],
)
def test_what_cannot_be_a_length_is_refused_by_name(
    make: Callable[[], Distribution], field: str
) -> None:
    with pytest.raises(ClientError) as caught:
        make()
    assert caught.value.param == field
