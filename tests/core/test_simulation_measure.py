"""How evenly calls lie on the workers, against a plain list of moments."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.simulation.measure import Balance

_WORKERS = 3


@given(
    st.lists(
        st.tuples(
            st.integers(0, _WORKERS - 1),
            st.sampled_from(["take", "give", "up"]),
            st.integers(0, 4),
        ),
        max_size=30,
    )
)
def test_the_balance_is_what_a_list_of_moments_gives(steps: list[tuple[int, str, int]]) -> None:
    balance, loads, up, now = Balance(_WORKERS), [0] * _WORKERS, _WORKERS, 0
    peak_time, even_time, load_time = 0, 0, [0] * _WORKERS
    for worker, what, wait in steps:
        if what == "up":
            up = worker
            balance.set_up(up, now)
        elif what == "take" or loads[worker]:
            by = 1 if what == "take" else -1
            loads[worker] += by
            balance.change(worker, by, now)
        if up:
            peak_time += max(loads) * wait
            even_time += ceil(sum(loads) / up) * wait
        load_time = [time + load * wait for time, load in zip(load_time, loads, strict=True)]
        now += wait
    assert balance.total == sum(loads)
    assert balance.imbalance(now) == (peak_time / even_time if even_time else 1.0)
    means = [time / now if now else 0.0 for time in load_time]
    assert [balance.mean_load(worker, now) for worker in range(_WORKERS)] == pytest.approx(means)
