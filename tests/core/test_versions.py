"""Weight versions: their order, the epochs that they make, and runs over tokens."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import InvariantError
from slime_core.versions import (
    UNNUMBERED,
    VersionOrder,
    VersionRun,
    as_number,
    runs_problem,
    version_text,
)


def _seen(*versions: str) -> VersionOrder:
    order = VersionOrder()
    for version in versions:
        order.note(version)
    return order


@pytest.mark.parametrize(
    ("version", "number"),
    [
        *[("0", 0), ("7", 7), ("007", 7), ("9" * 18, 10**18 - 1)],
        *[("9" * 19, UNNUMBERED), ("default", UNNUMBERED), ("", UNNUMBERED), (None, UNNUMBERED)],
        *[("-1", UNNUMBERED), ("1.0", UNNUMBERED), ("٣", UNNUMBERED), ("²", UNNUMBERED)],
    ],
)
def test_decimal_versions_are_numbers(version: str | None, number: int) -> None:
    assert as_number(version) == number


@pytest.mark.parametrize(("given_", "text"), [(3, "3"), ("3", "3"), ("v", "v"), (None, None)])
def test_a_workers_version_becomes_a_string(given_: str | int | None, text: str | None) -> None:
    assert version_text(given_) == text


def test_numbers_are_ordered_as_numbers() -> None:
    assert _seen("9", "10", "2").newest == "10"


def test_numbers_outrank_names() -> None:
    assert _seen("1", "default").newest == "1"


def test_a_later_name_outranks_an_earlier_one() -> None:
    assert _seen("a", "b", "a").newest == "b"


@pytest.mark.parametrize(
    ("versions", "epoch"),
    [
        *[((), 0), (("5",), 0), (("5", "5"), 0), (("5", "8"), 3), (("8", "5"), 0)],
        *[(("default", "1"), 1), (("a", "b", "c"), 2), (("default", "7", "9"), 3)],
    ],
)
def test_epochs_grow_with_the_newest_version(versions: tuple[str, ...], epoch: int) -> None:
    assert _seen(*versions).epoch == epoch


@given(st.lists(st.sampled_from(["1", "2", "10", "a", "b"])))
def test_the_epoch_never_falls_and_the_newest_outranks_the_rest(versions: list[str]) -> None:
    order, last = VersionOrder(), 0
    for version in versions:
        order.note(version)
        assert order.epoch >= last
        last = order.epoch
    assert not any(order.outranks(version, order.newest) for version in versions)


def test_a_version_that_is_no_string_is_a_bug() -> None:
    with pytest.raises(InvariantError):
        VersionOrder().note(cast("str", 5))


def test_anything_outranks_nothing() -> None:
    assert VersionOrder().outranks("a", None)


@pytest.mark.parametrize(
    ("runs", "count", "is_fine"),
    [
        *[([], 0, True), ([(0, 3)], 3, True), ([(0, 1), (1, 3)], 3, True)],
        *[([(0, 0), (0, 2)], 2, False), ([(1, 3)], 3, False), ([(0, 2)], 3, False)],
        *[([(0, 2), (1, 3)], 3, False), ([(0, 1), (2, 3)], 3, False), ([(0, 4)], 3, False)],
        ([(0, 2), (2, 1)], 1, False),
    ],
)
def test_runs_cover_all_tokens_without_gap_or_overlap(
    runs: list[tuple[int, int]], count: int, is_fine: bool
) -> None:
    made = tuple(VersionRun("1", start, end) for start, end in runs)
    assert (runs_problem(made, count) is None) is is_fine
