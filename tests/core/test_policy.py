"""Balancing policies, as pure functions of the fit workers."""

from __future__ import annotations

from collections import Counter

import pytest

from slime_core.fleet import Fleet
from slime_core.policy import POLICIES, least_in_flight, round_robin
from slime_core.types import CallId, WorkerUrl


def _fleet(count: int) -> Fleet:
    fleet = Fleet()
    for number in range(count):
        fleet.add(WorkerUrl(f"w{number}"))
    return fleet


def _deal(fleet: Fleet, name: str, calls: int, *, end: bool) -> list[str]:
    chosen = []
    for number in range(calls):
        url = POLICIES[name](fleet.fit()).url
        chosen.append(url)
        call = (CallId(f"{name}{number}"),)
        fleet.take(url, call)
        if end:
            fleet.give(url, call)
    return [str(url) for url in chosen]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("end", [True, False])
def test_equal_workers_are_dealt_round(name: str, end: bool) -> None:
    assert _deal(_fleet(3), name, 6, end=end) == ["w0", "w1", "w2"] * 2


def test_the_least_loaded_worker_is_chosen() -> None:
    fleet = _fleet(3)
    fleet.take(WorkerUrl("w0"), (CallId("1"), CallId("2")))
    fleet.take(WorkerUrl("w1"), (CallId("3"),))
    assert least_in_flight(fleet.fit()).url == "w2"


def test_round_robin_does_not_look_at_loads() -> None:
    fleet = _fleet(2)
    fleet.take(WorkerUrl("w1"), (CallId("1"),))
    fleet.take(WorkerUrl("w0"), tuple(map(CallId, "23456")))
    assert round_robin(fleet.fit()).url == "w1"


def test_a_newcomer_does_not_get_everything() -> None:
    fleet = _fleet(2)
    _deal(fleet, "round-robin", 10, end=True)
    fleet.add(WorkerUrl("new"))
    assert Counter(_deal(fleet, "round-robin", 9, end=True)) == {"w0": 3, "w1": 3, "new": 3}


def test_choosing_changes_nothing() -> None:
    fleet = _fleet(2)
    before = fleet.facts()
    assert least_in_flight(fleet.fit()) is least_in_flight(fleet.fit())
    assert fleet.facts() == before
