"""When another worker is tried, and after how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.second_tries import delay_s, is_busy


def test_only_overload_and_faults_of_others_ask_for_another_worker() -> None:
    assert [status for status in range(600) if is_busy(status)] == [429, 502, 503, 504]


def test_each_wait_is_twice_the_one_before_up_to_a_bound() -> None:
    waits = [delay_s(failures, 0.1, 0.999999) for failures in range(1, 12)]
    assert waits[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8], rel=1e-4)
    assert max(waits) == pytest.approx(10.0, rel=1e-4)


@given(st.integers(1, 1000), st.floats(0.001, 100), st.floats(0, 1, exclude_max=True))
def test_chance_moves_it_between_half_and_all(failures: int, base: float, chance: float) -> None:
    least, most = delay_s(failures, base, 0.0), delay_s(failures, base, 0.9999999)
    assert least <= delay_s(failures, base, chance) <= max(most, 2 * least)
    assert 0 < 2 * least <= 10.0
