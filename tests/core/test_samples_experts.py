"""Rows of routed experts along a trajectory: the first observed of every position, or a problem."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.samples import Wanted, collect, take
from slime_core.samples.assembly import Sample
from tests.core.capture import Driver
from tests.core.sessions_support import SESSION

_WIDTH = 3


def _rows(call: int, first: int, last: int, width: int = _WIDTH) -> list[int]:
    """The rows of positions ``first`` to ``last``, which tell who observed what."""
    return [1000 * call + 10 * at + place for at in range(first, last) for place in range(width)]


def _encoded(numbers: Sequence[int]) -> bytes:
    return json.dumps(base64.b64encode(array("i", numbers).tobytes()).decode()).encode()


def _turn(driver: Driver, call: int, prompt: list[int], answer: list[int], start: int) -> list[int]:
    """A call by ids whose rows begin at ``start``; the ids held then."""
    whole = prompt + answer
    extras = (
        ("routed_experts", _encoded(_rows(call, start, len(whole) - 1))),
        ("routed_experts_start_len", str(start).encode()),
    )
    opened = driver.open_ids(str(call), prompt, session=SESSION)
    driver.apply(driver.captured(opened, answer, extras=extras))
    return whole


def _only(driver: Driver, *, max_seq_len: int | None = None) -> Sample:
    (sample,) = collect(take(driver.state, SESSION), Wanted(max_seq_len=max_seq_len)).samples
    return sample


def _numbers(sample: Sample) -> list[int]:
    assert sample.rows is not None, sample.rows_problem
    found = array("i")
    found.frombytes(sample.rows.data)
    assert len(found) == sample.rows.count * sample.rows.width
    return found.tolist()


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.booleans()), min_size=1))
@settings(max_examples=60, deadline=None)
def test_the_first_observed_row_of_every_position_is_kept(
    turns: list[tuple[int, int, bool]],
) -> None:
    driver = Driver()
    held: list[int] = []
    expected: list[int] = []
    for call, (asked, answered, again) in enumerate(turns):
        start = 0 if again else max(0, len(held) - 1)
        prompt = [*held, *range(97, 97 + asked)]
        held = _turn(driver, call, prompt, list(range(65, 65 + answered)), start)
        expected += _rows(call, len(expected) // _WIDTH, len(held) - 1)
    assert _numbers(_only(driver)) == expected


def test_a_limit_shortens_the_rows() -> None:
    driver = Driver()
    _turn(driver, 1, [97, 98], [65, 66, 67], 0)
    assert _numbers(_only(driver, max_seq_len=4)) == _rows(1, 0, 3)


def test_rows_of_tokens_that_were_left_behind_are_not_taken() -> None:
    driver = Driver()
    held = _turn(driver, 1, [97, 98], [65, 66, 67], 0)
    _turn(driver, 2, [*held[:3], 99], [68], 0)
    assert _numbers(_only(driver)) == [*_rows(1, 0, 3), *_rows(2, 3, 4)]


def test_a_call_without_rows_is_filled_by_the_next_that_has_them() -> None:
    driver = Driver()
    opened = driver.open_ids("1", [97], session=SESSION)
    driver.apply(driver.captured(opened, [65]))
    _turn(driver, 2, [97, 65, 98], [66], 0)
    assert _numbers(_only(driver)) == _rows(2, 0, 3)


def test_rows_may_come_in_the_wrong_order() -> None:
    driver = Driver()
    held = _turn(driver, 1, [97, 98, 99], [65], 2)
    _turn(driver, 2, [*held, 100], [66], 0)
    assert _numbers(_only(driver)) == [*_rows(2, 0, 2), *_rows(1, 2, 3), *_rows(2, 3, 5)]


def test_no_rows_at_all_are_no_problem() -> None:
    driver = Driver()
    driver.apply(driver.captured(driver.open_ids("1", [97], session=SESSION), [65]))
    sample = _only(driver)
    assert (sample.rows, sample.rows_problem) == (None, None)


@pytest.mark.parametrize(
    ("raw", "start", "words"),
    [
        (_encoded([1, 2, 3, 4]), b"0", "cannot be rows for positions 0 to 2"),
        (_encoded([]), b"0", "cannot be rows"),
        (_encoded([1, 2, 3]), b"9", "cannot be rows"),
        (_encoded([1, 2, 3]), b"-1", "cannot be rows"),
        (_encoded([1, 2]), b"1", "no rows for positions 0 to 0"),
        (_encoded([1, 2, 3]), b'"x"', "is no number"),
        (b"[1,2,3]", b"0", "no JSON string"),
        (b'"!!!!!!!!!!!!!!!!"', b"0", "not base64"),
    ],
)
def test_rows_that_do_not_fit_are_reported_and_not_guessed(
    raw: bytes, start: bytes, words: str
) -> None:
    driver = Driver()
    opened = driver.open_ids("1", [97, 98], session=SESSION)
    extras = (("routed_experts", raw), ("routed_experts_start_len", start))
    driver.apply(driver.captured(opened, [65, 66], extras=extras))
    sample = _only(driver)
    assert sample.rows is None
    assert words in (sample.rows_problem or "")


def test_rows_of_two_widths_are_reported() -> None:
    driver = Driver()
    held = _turn(driver, 1, [97, 98], [65], 0)
    opened = driver.open_ids("2", [*held, 99], session=SESSION)
    extras = (("routed_experts", _encoded(_rows(2, 0, 4, width=2))),)
    driver.apply(driver.captured(opened, [66], extras=extras))
    assert "rows of 2 numbers follow rows of 3" in (_only(driver).rows_problem or "")


def test_escaped_base64_is_read() -> None:
    driver = Driver()
    opened = driver.open_ids("1", [97], session=SESSION)
    raw = _encoded([-1, -1, 63]).replace(b"/", b"\\/")
    assert b"\\/" in raw
    driver.apply(driver.captured(opened, [65], extras=(("routed_experts", raw),)))
    assert _numbers(_only(driver)) == [-1, -1, 63]
