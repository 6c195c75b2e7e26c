"""Balancing policies, as pure functions of the fit workers and of what is to be placed."""

from __future__ import annotations

from collections import Counter

import pytest

from slime_core.fleet import Fleet
from slime_core.health import READY
from slime_core.policies import POLICIES, Placement, least_in_flight, power_of_two, round_robin
from slime_core.types import CallId, WorkerUrl

ANY = Placement()
every = pytest.mark.parametrize("name", POLICIES)
dealing = pytest.mark.parametrize("name", ["least-in-flight", "round-robin"])


def _join(fleet: Fleet, url: str) -> None:
    fleet.add(WorkerUrl(url))
    fleet.set_health(WorkerUrl(url), READY)


def _fleet(count: int) -> Fleet:
    fleet = Fleet()
    for number in range(count):
        _join(fleet, f"w{number}")
    return fleet


def _deal(fleet: Fleet, name: str, calls: int, *, end: bool) -> list[str]:
    chosen = []
    for number in range(calls):
        url = POLICIES[name](fleet.fit(), ANY).url
        chosen.append(url)
        call = (CallId(f"{name}{number}"),)
        fleet.take(url, call)
        if end:
            fleet.give(url, call)
    return [str(url) for url in chosen]


def _spread(fleet: Fleet, name: str, many: int = 1000) -> Counter[str]:
    """How often each worker is chosen, over evenly spread chances; loads stay as they are."""
    places = (Placement(chance=number / many) for number in range(many))
    return Counter(POLICIES[name](fleet.fit(), place).url for place in places)


@dealing
@pytest.mark.parametrize("end", [True, False])
def test_equal_workers_are_dealt_round(name: str, end: bool) -> None:
    assert _deal(_fleet(3), name, 6, end=end) == ["w0", "w1", "w2"] * 2


def test_the_least_loaded_worker_is_chosen() -> None:
    fleet = _fleet(3)
    fleet.take(WorkerUrl("w0"), (CallId("1"), CallId("2")))
    fleet.take(WorkerUrl("w1"), (CallId("3"),))
    assert least_in_flight(fleet.fit(), ANY).url == "w2"


def test_round_robin_does_not_look_at_loads() -> None:
    fleet = _fleet(2)
    fleet.take(WorkerUrl("w1"), (CallId("1"),))
    fleet.take(WorkerUrl("w0"), tuple(map(CallId, "23456")))
    assert round_robin(fleet.fit(), ANY).url == "w1"


def test_a_newcomer_does_not_get_everything() -> None:
    fleet = _fleet(2)
    _deal(fleet, "round-robin", 10, end=True)
    _join(fleet, "new")
    assert Counter(_deal(fleet, "round-robin", 9, end=True)) == {"w0": 3, "w1": 3, "new": 3}


def test_chance_spreads_evenly() -> None:
    assert _spread(_fleet(4), "random") == {f"w{number}": 250 for number in range(4)}


def test_two_choices_spread_evenly_over_equal_workers() -> None:
    spread = _spread(_fleet(4), "power-of-two", 1200)
    # Of two equal workers the one that joined first is taken: a pair, not chance, decides.
    assert spread == {"w0": 600, "w1": 400, "w2": 200}


def test_the_most_loaded_worker_is_never_the_better_of_two() -> None:
    fleet = _fleet(4)
    fleet.take(WorkerUrl("w2"), (CallId("1"),))
    assert "w2" not in _spread(fleet, "power-of-two")


def test_the_better_of_two_is_the_only_one_there_is() -> None:
    assert power_of_two(_fleet(1).fit(), Placement(chance=0.99)).url == "w0"


def _homes(fleet: Fleet) -> dict[str, str]:
    choose = POLICIES["consistent-hashing"]
    return {name: choose(fleet.fit(), Placement(key=name)).url for name in map(str, range(300))}


def test_a_session_stays_with_its_worker_whatever_the_loads() -> None:
    fleet = _fleet(3)
    before = _homes(fleet)
    fleet.take(WorkerUrl("w1"), tuple(map(CallId, "12345")))
    assert _homes(fleet) == before
    assert min(Counter(before.values()).values()) > 60


def test_a_worker_that_leaves_moves_only_its_own_sessions() -> None:
    fleet = _fleet(3)
    before = _homes(fleet)
    fleet.remove(WorkerUrl("w1"))
    after = _homes(fleet)
    assert {name for name in before if before[name] != after[name]} == {
        name for name, home in before.items() if home == "w1"
    }


def test_without_a_session_the_least_loaded_worker_is_chosen() -> None:
    assert _deal(_fleet(3), "consistent-hashing", 6, end=False) == ["w0", "w1", "w2"] * 2


@every
def test_choosing_changes_nothing(name: str) -> None:
    fleet, place = _fleet(3), Placement(key="s", chance=0.4)
    before = fleet.facts()
    assert POLICIES[name](fleet.fit(), place) is POLICIES[name](fleet.fit(), place)
    assert fleet.facts() == before
