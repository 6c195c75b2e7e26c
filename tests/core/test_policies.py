"""Balancing policies, as pure functions of the fit workers and of what is to be placed."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.fleet import Fleet, Loads
from slime_core.health import READY
from slime_core.placing import place
from slime_core.policies import (
    OVERLOAD_CALLS,
    POLICIES,
    Placement,
    Policy,
    cache_aware,
    least_in_flight,
    least_load,
    not_overloaded,
    power_of_two,
    round_robin,
)
from slime_core.prefixes import page_digests
from slime_core.state import RouterState
from slime_core.transitions import SlotsGiven, SlotsTaken
from slime_core.types import CallId, WorkerUrl, pack_ids
from tests.fleet_support import joined

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


@pytest.mark.parametrize("workers", [2, 5, 12])
def test_a_worker_that_comes_takes_its_share_of_the_keys_and_moves_no_others(workers: int) -> None:
    fleet = _fleet(workers)
    before = _homes(fleet)
    _join(fleet, "new")
    after = _homes(fleet)
    moved = [key for key in before if before[key] != after[key]]
    assert {after[key] for key in moved} == {"new"}
    share = len(before) / (workers + 1)
    assert share / 2 < len(moved) < share * 2


def test_another_router_sends_a_key_to_the_same_worker() -> None:
    other = Fleet()
    for url in ("w2", "w0", "w1"):
        _join(other, url)
    assert _homes(other) == _homes(_fleet(3))


@every
@given(
    loads=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    chance=st.floats(0, 1, exclude_max=True),
    key=st.sampled_from([None, "k"]),
    matched=st.lists(st.integers(0, 500), max_size=5),
    reports=st.booleans(),
)
def test_one_of_those_given_is_chosen(
    name: str,
    loads: list[int],
    chance: float,
    key: str | None,
    matched: list[int],
    reports: bool,
) -> None:
    fleet = _fleet(len(loads))
    workers = fleet.fit()
    for worker, load in zip(workers, loads, strict=True):
        fleet.take(worker.url, tuple(CallId(f"{worker.url}{one}") for one in range(load)))
        if reports:
            fleet.set_loads(worker.url, Loads(running=load, waiting=0, token_usage=chance))
    place = Placement(
        key=key,
        chance=chance,
        prompt=pack_ids(range(500)),
        matched={one.url: held for one, held in zip(workers, matched, strict=False)},
    )
    assert POLICIES[name](workers, place) in workers


# -- loads that workers report -----------------------------------------------------------------


def _reported(*loads: tuple[int, int, float]) -> Fleet:
    fleet = _fleet(len(loads))
    for number, (running, waiting, usage) in enumerate(loads):
        told = Loads(running=running, waiting=waiting, token_usage=usage)
        fleet.set_loads(WorkerUrl(f"w{number}"), told)
    return fleet


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        ([(5, 0, 0.1), (2, 0, 0.1)], "w1"),
        ([(2, 4, 0.1), (5, 0, 0.1)], "w1"),
        ([(10, 0, 0.9), (12, 0, 0.2)], "w1"),
        ([(10, 0, 0.3), (12, 0, 0.2)], "w0"),
        ([(0, 0, 0.0), (0, 0, 0.0)], "w0"),
    ],
)
def test_the_least_load_is_by_what_workers_report(
    loads: list[tuple[int, int, float]], chosen: str
) -> None:
    assert least_load(_reported(*loads).fit(), ANY).url == chosen


def test_calls_sent_since_the_report_count_and_those_that_ended_do_not() -> None:
    fleet = _reported((3, 0, 0.0), (5, 0, 0.0))
    calls = tuple(map(CallId, "123"))
    fleet.take(WorkerUrl("w0"), calls)
    assert least_load(fleet.fit(), ANY).url == "w1"
    fleet.give(WorkerUrl("w0"), calls)
    assert least_load(fleet.fit(), ANY).url == "w0"


def test_where_one_worker_told_nothing_calls_in_flight_decide() -> None:
    fleet = _reported((9, 9, 0.9), (0, 0, 0.0))
    _join(fleet, "silent")
    fleet.take(WorkerUrl("w1"), (CallId("1"),))
    fleet.take(WorkerUrl("silent"), (CallId("2"),))
    assert least_load(fleet.fit(), ANY).url == "w0"


def test_equal_reports_are_dealt_round() -> None:
    fleet = _reported((1, 0, 0.0), (1, 0, 0.0), (1, 0, 0.0))
    assert _deal(fleet, "least-load", 6, end=True) == ["w0", "w1", "w2"] * 2


# -- prefixes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loads", "within"),
    [
        ([0, OVERLOAD_CALLS], [0, 1]),
        ([0, OVERLOAD_CALLS + 1], [0]),
        ([100, 149, 151], [0, 1]),
        ([7], [0]),
    ],
)
def test_the_load_guard_takes_a_difference_and_a_ratio(loads: list[int], within: list[int]) -> None:
    fleet = _fleet(len(loads))
    for number, load in enumerate(loads):
        calls = tuple(CallId(f"{number}.{one}") for one in range(load))
        fleet.take(WorkerUrl(f"w{number}"), calls)
    assert [one.number - 1 for one in not_overloaded(fleet.fit())] == within


def _chosen_by_work(held: int, ahead: int, typical: int) -> str:
    """Of a prompt of 1000 tokens ``w0`` holds some, and carries some calls more than ``w1``."""
    fleet = _fleet(2)
    fleet.take(WorkerUrl("w0"), tuple(CallId(str(one)) for one in range(ahead)))
    place = Placement(
        prompt=pack_ids(range(1000)), matched={WorkerUrl("w0"): held}, typical_uncached=typical
    )
    return cache_aware(fleet.fit(), place).url


@pytest.mark.parametrize(
    ("held", "ahead", "typical", "chosen"),
    [
        (1000, 3, 300, "w0"),
        (1000, 4, 300, "w1"),
        (100, 0, 300, "w0"),
        (100, 1, 300, "w1"),
        (1000, 7, 0, "w0"),
        (1000, 8, 0, "w1"),
    ],
)
def test_a_cache_is_worth_the_tokens_that_it_saves(
    held: int, ahead: int, typical: int, chosen: str
) -> None:
    assert _chosen_by_work(held, ahead, typical) == chosen


def test_a_prompt_that_nobody_holds_goes_to_the_least_loaded() -> None:
    fleet = _fleet(3)
    fleet.take(WorkerUrl("w0"), (CallId("1"),))
    assert cache_aware(fleet.fit(), Placement(prompt=pack_ids(range(100)))).url == "w1"


def _arrivals(policy: Policy, prompts: Sequence[Sequence[int]], workers: int = 4) -> RouterState:
    """Prompts that come one after another, each in flight until so many others came."""
    state, chance = RouterState(), random.Random(7)
    for number in range(workers):
        for fact in joined(f"w{number}"):
            state.apply(fact)
    flying: deque[tuple[WorkerUrl, CallId]] = deque()
    for number, prompt in enumerate(prompts):
        packed = pack_ids(prompt)
        pages = page_digests(packed)
        placement = Placement(chance=chance.random(), prompt=packed, pages=pages)
        url = place(state, policy, placement).url
        _COUNT[url] += 1
        _SAVED[url] += state.fleet.prefixes.matched(pages).get(url, 0)
        call = CallId(str(number))
        state.apply(SlotsTaken(worker=url, calls=(call,), pages=pages))
        flying.append((url, call))
        if len(flying) > chance.randint(20, 60):
            ended, call = flying.popleft()
            state.apply(SlotsGiven(worker=ended, calls=(call,)))
    return state


_COUNT: Counter[str] = Counter()
_SAVED: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _clean() -> None:
    _COUNT.clear()
    _SAVED.clear()


def test_a_fleet_under_one_system_prompt_spreads() -> None:
    chance = random.Random(1)
    system = list(range(4000))
    prompts = [system + [chance.randrange(9000) for _ in range(300)] for _ in range(400)]
    _arrivals(cache_aware, prompts)
    assert min(_COUNT.values()) > 60
    assert len(_COUNT) == 4
    # All but the first prompt of each worker find the system prompt there.
    assert sum(_SAVED.values()) > 0.9 * 400 * 4000


def test_conversations_stay_where_their_prefixes_are() -> None:
    chance = random.Random(2)
    texts = [[chance.randrange(9000) for _ in range(500)] for _ in range(20)]
    prompts = []
    for _ in range(15):
        for text in chance.sample(texts, len(texts)):
            text += [chance.randrange(9000) for _ in range(100)]
            prompts.append(list(text))
    _arrivals(cache_aware, prompts)
    saved, evenly = sum(_SAVED.values()), max(_COUNT.values()) < 2 * min(_COUNT.values())
    _SAVED.clear()
    _arrivals(least_in_flight, prompts)
    assert saved > 1.3 * sum(_SAVED.values())
    assert evenly


@every
def test_choosing_changes_nothing(name: str) -> None:
    fleet, place = _fleet(3), Placement(key="s", chance=0.4)
    before = fleet.facts()
    assert POLICIES[name](fleet.fit(), place) is POLICIES[name](fleet.fit(), place)
    assert fleet.facts() == before
