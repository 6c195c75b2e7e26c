"""Every event in every condition, and what long stories of them come to."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.health import (
    JOINING,
    READY,
    TABLE,
    Condition,
    Event,
    Health,
    HealthLimits,
    next_look,
    step,
)

LIMITS = HealthLimits(failure_threshold=3, quarantine_s=30.0)
NOW = 100.0
FAILED_ONCE = replace(READY, failures=1)
FAILED_TWICE = replace(READY, failures=2)
TRIAL = Health(condition=Condition.TRIAL, quarantines=1, allowance=1)
LAST_OF_TRIAL = replace(TRIAL, allowance=32)
DUE = Health(condition=Condition.QUARANTINED, quarantines=1, until=NOW)
EARLY = replace(DUE, until=NOW + 0.5)
FIRST = Health(condition=Condition.QUARANTINED, quarantines=1, until=NOW + 1.0)
SECOND = replace(FIRST, quarantines=2, until=NOW + 2.0)

# What each event makes of each health, in the order of `Event`: answered, call failed,
# unreachable, probe passed, probe failed, registered.
EXPECTED: dict[str, tuple[Health, tuple[Health, ...]]] = {
    "joining": (JOINING, (JOINING, JOINING, FIRST, READY, FIRST, JOINING)),
    "ready": (READY, (READY, FAILED_ONCE, FIRST, READY, FAILED_ONCE, READY)),
    "failed once": (FAILED_ONCE, (READY, FAILED_TWICE, FIRST, READY, FAILED_TWICE, FAILED_ONCE)),
    "failed twice": (FAILED_TWICE, (READY, FIRST, FIRST, READY, FIRST, FAILED_TWICE)),
    "trial": (
        TRIAL,
        (replace(TRIAL, allowance=2), SECOND, SECOND, replace(TRIAL, allowance=2), SECOND, JOINING),
    ),
    "last of trial": (LAST_OF_TRIAL, (READY, SECOND, SECOND, READY, SECOND, JOINING)),
    "quarantine over": (DUE, (DUE, DUE, SECOND, TRIAL, SECOND, JOINING)),
    "quarantined": (EARLY, (EARLY, EARLY, EARLY, EARLY, EARLY, JOINING)),
}


@pytest.mark.parametrize(("name", "event"), list(product(EXPECTED, Event)))
def test_every_event_in_every_condition(name: str, event: Event) -> None:
    health, expected = EXPECTED[name]
    assert step(health, event, NOW, LIMITS) == expected[list(Event).index(event)]


def test_the_table_is_complete_and_the_expectations_cover_it() -> None:
    assert set(TABLE) == set(product(Condition, Event))
    assert {health.condition for health, _ in EXPECTED.values()} == set(Condition)


@pytest.mark.parametrize(("name", "event"), list(product(EXPECTED, Event)))
def test_what_changes_nothing_gives_the_very_same_health(name: str, event: Event) -> None:
    health, _ = EXPECTED[name]
    after = step(health, event, NOW, LIMITS)
    assert (after == health) == (after is health)


def _lengths(count: int, limits: HealthLimits) -> list[float]:
    """How long a worker is let alone that fails every look at it."""
    health, now, lengths = JOINING, 0.0, []
    for _ in range(count):
        health = step(health, Event.PROBE_FAILED, now, limits)
        assert health.until is not None
        lengths.append(health.until - now)
        now = health.until
    return lengths


def test_each_quarantine_is_twice_as_long_up_to_the_longest() -> None:
    assert _lengths(7, LIMITS) == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_longest_quarantine_below_the_first_holds_for_the_first_too() -> None:
    assert _lengths(3, HealthLimits(quarantine_s=0.25)) == [0.25] * 3


def test_a_worker_that_fails_for_years_is_looked_at_as_often_as_ever() -> None:
    health = Health(condition=Condition.QUARANTINED, quarantines=10**6, until=NOW)
    again = step(health, Event.PROBE_FAILED, NOW, LIMITS)
    assert again.until == NOW + 30.0


def test_a_thousand_calls_that_break_off_at_once_are_one_quarantine() -> None:
    health = READY
    for _ in range(1000):
        health = step(health, Event.CALL_FAILED, NOW, LIMITS)
    assert health == FIRST


def test_a_trial_admits_twice_as_much_with_every_answer() -> None:
    health, allowances = TRIAL, []
    while health.condition is Condition.TRIAL:
        allowances.append(health.allowance)
        health = step(health, Event.ANSWERED, NOW, LIMITS)
    assert allowances == [1, 2, 4, 8, 16, 32]
    assert health == READY


def test_a_relapse_on_trial_lasts_longer_and_one_after_it_does_not() -> None:
    relapsed = step(TRIAL, Event.CALL_FAILED, NOW, LIMITS)
    assert relapsed.until == NOW + 2.0
    later = step(READY, Event.UNREACHABLE, NOW, LIMITS)
    assert later.until == NOW + 1.0


def test_failures_count_only_in_a_row() -> None:
    health = READY
    for event in (Event.CALL_FAILED, Event.CALL_FAILED, Event.ANSWERED) * 10:
        health = step(health, event, NOW, LIMITS)
    assert health == READY


def test_a_probe_that_began_before_the_quarantine_does_not_end_it() -> None:
    assert step(EARLY, Event.PROBE_PASSED, NOW, LIMITS) is EARLY


def test_the_next_look_is_at_the_end_of_the_first_quarantine() -> None:
    assert next_look([READY, FIRST, SECOND, TRIAL]) == NOW + 1.0
    assert next_look([READY, JOINING]) is None


_EVENTS = st.lists(st.tuples(st.sampled_from(Event), st.floats(0.0, 40.0)), max_size=60)


@given(_EVENTS, st.integers(1, 4))
def test_whatever_happens_a_health_is_of_one_piece(
    events: list[tuple[Event, float]], threshold: int
) -> None:
    limits = HealthLimits(failure_threshold=threshold, quarantine_s=8.0)
    health, now = JOINING, 0.0
    for event, wait_s in events:
        now += wait_s
        health = step(health, event, now, limits)
        is_trial = health.condition is Condition.TRIAL
        is_confined = health.condition is Condition.QUARANTINED
        assert (health.allowance is not None) == is_trial
        assert (health.until is not None) == is_confined
        assert health.until is None or health.until <= now + limits.quarantine_s
        assert health.failures < threshold
        assert health.failures == 0 or health.condition is Condition.READY
        assert (health.quarantines > 0) == (is_trial or is_confined)


@given(_EVENTS)
def test_a_worker_that_is_well_from_now_on_is_ready_before_long(
    events: list[tuple[Event, float]],
) -> None:
    health, now = JOINING, 0.0
    for event, wait_s in events:
        now += wait_s
        health = step(health, event, now, LIMITS)
    looks = 0
    while health.condition is not Condition.READY:
        now = max(now, health.until or now)
        health = step(health, Event.PROBE_PASSED, now, LIMITS)
        looks += 1
    assert looks <= 7
