"""An abort of everything is told from aborts of single calls by how calls end."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.mass_aborts import AbortWatch, Emptied, Ending


def _end(
    watch: AbortWatch,
    request: int,
    others: list[int],
    ending: Ending = Ending.ABORTED,
    *,
    worker: str = "w",
    now: float = 0.0,
    tenant: str = "",
) -> float | None:
    """Since when, if all was aborted."""
    emptied = watch.ended(worker, request, ending, others, now, tenant=tenant)
    return None if emptied is None else emptied.since


def test_all_that_a_worker_had_ended_by_it_was_aborted_at_once() -> None:
    watch = AbortWatch()
    assert _end(watch, 1, [2, 3], now=5.0) is None
    assert _end(watch, 2, [3], now=5.1) is None
    assert _end(watch, 3, [], now=5.2) == 5.0
    assert watch.kept_free == 0


def test_the_only_call_of_a_worker_is_all_it_had() -> None:
    assert _end(AbortWatch(), 1, [], now=2.0) == 2.0


def test_what_came_to_the_worker_after_the_first_sign_was_not_meant() -> None:
    watch = AbortWatch()
    assert _end(watch, 1, [2]) is None
    assert _end(watch, 9, [2], Ending.BY_ITSELF) is None
    assert _end(watch, 2, [9], now=0.5) == 0.0


def test_one_call_that_was_aborted_among_many_is_no_abort_of_everything() -> None:
    watch = AbortWatch()
    _end(watch, 1, [2, 3])
    assert watch.kept_free == 1
    assert _end(watch, 2, [3], Ending.BY_ITSELF) is None
    assert watch.kept_free == 0
    assert _end(watch, 3, [], Ending.BY_ITSELF) is None


def test_of_many_a_few_may_come_to_their_own_end_meanwhile() -> None:
    watch, calls = AbortWatch(), list(range(40))
    found = None
    while calls:
        request = calls.pop()
        ending = Ending.BY_ITSELF if request in (7, 13) else Ending.ABORTED
        found = _end(watch, request, calls, ending)
    assert found == 0.0


def test_a_client_that_leaves_says_nothing_of_the_worker() -> None:
    watch = AbortWatch()
    _end(watch, 1, [2, 3])
    _end(watch, 2, [3], Ending.UNTOLD)
    assert _end(watch, 3, []) == 0.0


@pytest.mark.parametrize("ending", [Ending.BY_ITSELF, Ending.UNTOLD])
def test_without_a_sign_nothing_is_suspected(ending: Ending) -> None:
    watch = AbortWatch()
    assert _end(watch, 1, [], ending) is None
    assert watch.next_deadline == math.inf


def test_a_sign_that_no_other_follows_is_forgotten() -> None:
    watch = AbortWatch()
    _end(watch, 1, [2], now=0.0)
    _end(watch, 2, [3], Ending.UNTOLD, worker="another", now=0.0)
    assert watch.next_deadline == 1.0
    watch.expire(0.9)
    assert watch.kept_free == 1
    watch.expire(1.0)
    assert (watch.kept_free, watch.next_deadline) == (0, math.inf)
    assert _end(watch, 2, [], Ending.BY_ITSELF, now=1.1) is None


def test_each_further_sign_gives_more_time() -> None:
    watch = AbortWatch()
    _end(watch, 1, [2, 3], now=0.0)
    _end(watch, 2, [3], now=0.8)
    watch.expire(1.5)
    assert _end(watch, 3, [], now=1.6) == 0.0


def test_whoever_had_something_there_was_meant_and_nobody_else() -> None:
    watch = AbortWatch()
    _end(watch, 1, [2, 3], tenant="a")
    _end(watch, 2, [3], Ending.UNTOLD, tenant="gone")
    emptied = watch.ended("w", 3, Ending.ABORTED, [], 1.0, tenant="b")
    assert emptied == Emptied(since=0.0, tenants=("a", "b"))


def test_workers_are_judged_apart() -> None:
    watch = AbortWatch()
    _end(watch, 1, [2], worker="a")
    assert _end(watch, 3, [], worker="b", now=1.0) == 1.0
    assert _end(watch, 2, [], Ending.BY_ITSELF, worker="a") is None


@given(st.lists(st.sampled_from(list(Ending)), min_size=1, max_size=30))
def test_places_are_kept_free_only_while_it_is_not_known(endings: list[Ending]) -> None:
    watch, calls = AbortWatch(), list(range(len(endings)))
    for ending in endings:
        request = calls.pop()
        found = _end(watch, request, calls, ending)
        assert found is None or watch.kept_free == 0
    assert watch.kept_free == 0 or watch.next_deadline < math.inf
    watch.expire(math.inf)
    assert watch.kept_free == 0
