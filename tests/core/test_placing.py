"""Which worker gets a call: who may have it, whom a client names, where a key is at home."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from slime_core.errors import ClientError, InvariantError
from slime_core.fleet import Worker, WorkerKind
from slime_core.health import Condition, Event, Health, HealthLimits
from slime_core.placing import NoWorker, health_change, pages_for, place, target_worker
from slime_core.policies import OVERLOAD_CALLS, POLICIES, Placement, cache_aware, least_in_flight
from slime_core.prefixes import page_digests
from slime_core.state import RouterState
from slime_core.transitions import (
    SlotsTaken,
    VersionSeen,
    WorkerAdded,
    WorkerHealth,
    WorkerMismatch,
    WorkerPaused,
    WorkerRemoved,
)
from slime_core.types import CallId, WorkerUrl, pack_ids
from slime_core.weights import parse_version_wish
from tests.fleet_support import joined, ready

ANY = Placement()
QUARANTINED = Health(condition=Condition.QUARANTINED, quarantines=1, until=9.0)
LIMITS = HealthLimits()


def _state(*urls: str) -> RouterState:
    state = RouterState()
    for url in urls:
        for fact in joined(url):
            state.apply(fact)
    return state


def _take(state: RouterState, url: str, calls: int, key: str | None = None) -> None:
    names = tuple(CallId(f"{url}{state.fleet.clock}{number}") for number in range(calls))
    state.apply(SlotsTaken(worker=WorkerUrl(url), calls=names, key=key))


def _placed(state: RouterState, placement: Placement = ANY) -> str:
    return place(state, least_in_flight, placement).url


def _refused(state: RouterState, placement: Placement = ANY) -> NoWorker:
    with pytest.raises(NoWorker) as caught:
        place(state, least_in_flight, placement)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1.0)
    return caught.value


# -- who may have it ---------------------------------------------------------------------------


def _make_unfit(state: RouterState, url: str, why: str) -> None:
    worker = WorkerUrl(url)
    match why:
        case "paused":
            state.apply(WorkerPaused(worker=worker, paused=True))
        case "in quarantine":
            fact = WorkerHealth(worker=worker, health=QUARANTINED, event=Event.UNREACHABLE)
            state.apply(fact)
        case "not contacted yet":
            state.apply(WorkerHealth(worker=worker, health=Health(), event=Event.REGISTERED))
        case "another tokenizer":
            state.apply(WorkerMismatch(worker=worker, reason=why))
        case "being removed":
            _take(state, url, 1)
            state.apply(WorkerRemoved(worker=worker))
        case _:
            state.apply(VersionSeen(worker=WorkerUrl("b"), version="2", sighting=0))
            state.apply(VersionSeen(worker=worker, version="1", sighting=1))


REASONS = [
    ("paused", True),
    ("in quarantine", False),
    ("not contacted yet", True),
    ("another tokenizer", False),
    ("being removed", False),
    ("holds old weights", True),
]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(("why", "_"), REASONS)
def test_no_policy_gives_work_to_who_is_unfit(name: str, why: str, _: bool) -> None:
    state = _state("a", "b")
    _make_unfit(state, "a", why)
    assert state.fleet.workers[WorkerUrl("a")].unfit == why
    chosen = {place(state, POLICIES[name], Placement(chance=one / 10)).url for one in range(10)}
    assert chosen == {"b"}


@pytest.mark.parametrize(("why", "may_come"), [one for one in REASONS if one[0] != "being removed"])
def test_no_worker_says_why_and_whether_waiting_makes_sense(why: str, may_come: bool) -> None:
    state = _state("a", "b")
    _make_unfit(state, "a", why)
    state.apply(WorkerRemoved(worker=WorkerUrl("b")))
    error = _refused(state)
    assert (error.code, error.may_come) == ("no_fit_workers", may_come)
    assert error.message == f"none of 1 workers can take work: {why}"


def test_no_workers_at_all_is_another_code() -> None:
    error = _refused(_state())
    assert (error.code, error.may_come) == ("no_workers", False)


def test_one_that_may_come_is_enough_to_wait_for() -> None:
    state = _state("a", "b")
    _make_unfit(state, "a", "in quarantine")
    _make_unfit(state, "b", "paused")
    assert _refused(state).may_come


def test_who_failed_this_request_is_out_and_not_waited_for() -> None:
    state = _state("a", "b")
    placement = Placement(excluded=frozenset({WorkerUrl("a")}))
    assert _placed(state, placement) == "b"
    _make_unfit(state, "b", "in quarantine")
    assert not _refused(state, placement).may_come


@pytest.mark.parametrize("kind", WorkerKind)
def test_workers_of_another_kind_are_no_candidates(kind: WorkerKind) -> None:
    state = RouterState()
    for one in WorkerKind:
        state.apply(WorkerAdded(worker=WorkerUrl(one.value), kind=one))
        state.apply(ready(one.value))
    assert {_placed(state, Placement(kind=kind, chance=one / 9)) for one in range(9)} == {
        kind.value
    }


def test_a_kind_that_is_missing_is_named() -> None:
    error = _refused(_state("a"), Placement(kind=WorkerKind.DECODE))
    assert (error.message, error.code) == ("no decode workers are registered", "no_workers")


def test_on_trial_a_worker_gets_what_its_allowance_says() -> None:
    state = _state("a")
    trial = Health(condition=Condition.TRIAL, quarantines=1, allowance=2)
    state.apply(WorkerHealth(worker=WorkerUrl("a"), health=trial, event=Event.PROBE_PASSED))
    for _ in range(2):
        assert _placed(state) == "a"
        _take(state, "a", 1)
    error = _refused(state)
    assert error.may_come
    assert "has as many calls as its trial allows" in error.message


def test_only_weights_as_wished() -> None:
    state = _state("a", "b")
    state.apply(VersionSeen(worker=WorkerUrl("a"), version="6"))
    state.apply(VersionSeen(worker=WorkerUrl("b"), version="7"))
    wish = Placement(versions=parse_version_wish("min-version:7"))
    _take(state, "b", 5)
    assert (_placed(state), _placed(state, wish)) == ("a", "b")
    error = _refused(state, Placement(versions=parse_version_wish("min-version:8")))
    assert error.may_come
    assert "holds other weights than asked for (min-version:8)" in error.message


# -- whom a client names -----------------------------------------------------------------------


@pytest.mark.parametrize("target", ["1", "http://b", "id-of-b"])
def test_a_target_is_a_place_an_id_or_a_url(target: str) -> None:
    state = RouterState()
    for letter in "abc":
        url = WorkerUrl(f"http://{letter}")
        state.apply(WorkerAdded(worker=url, id=f"id-of-{letter}"))
        state.apply(ready(url))
    _take(state, "http://b", 9)
    assert _placed(state, Placement(target=target)) == "http://b"


def test_places_count_the_workers_that_have_not_been_removed() -> None:
    state = _state("a", "b", "c")
    _make_unfit(state, "a", "being removed")
    assert target_worker(state, "1").url == "c"


@pytest.mark.parametrize("target", ["2", "-1", "", "٠", "nobody", "0.0", "9" * 30])
def test_an_unknown_target_names_its_header(target: str) -> None:
    with pytest.raises(ClientError) as caught:
        place(_state("a", "b"), least_in_flight, Placement(target=target))
    error = caught.value
    assert (error.status, error.param) == (400, "x-smg-target-worker")


def test_a_target_that_is_unfit_is_not_replaced() -> None:
    state = _state("a", "b")
    _make_unfit(state, "a", "paused")
    assert _refused(state, Placement(target="0")).may_come


def test_a_target_of_another_kind_is_not_replaced() -> None:
    assert not _refused(_state("a"), Placement(target="a", kind=WorkerKind.PREFILL)).may_come


# -- where a key is at home --------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_under_any_policy_a_key_stays_with_its_worker(name: str) -> None:
    state = _state("a", "b", "c")
    _take(state, "b", OVERLOAD_CALLS, key="session")
    placement = Placement(key="session", chance=0.9)
    assert place(state, POLICIES[name], placement).url == "b"


def test_without_affinity_the_policy_decides() -> None:
    state = _state("a", "b")
    _take(state, "b", 1, key="session")
    assert _placed(state, Placement(key="session", sticky=False)) == "a"


def test_a_home_that_carries_too_much_is_left() -> None:
    state = _state("a", "b")
    _take(state, "b", OVERLOAD_CALLS, key="session")
    assert _placed(state, Placement(key="session")) == "b"
    _take(state, "b", 1, key="session")
    assert _placed(state, Placement(key="session")) == "a"


@pytest.mark.parametrize("why", ["paused", "in quarantine", "being removed"])
def test_a_home_that_is_unfit_is_left_and_the_next_worker_becomes_it(why: str) -> None:
    state = _state("a", "b", "c")
    _take(state, "a", 1, key="session")
    _make_unfit(state, "a", why)
    placement = Placement(key="session")
    assert _placed(state, placement) == "b"
    _take(state, "b", 3, key="session")
    assert _placed(state, placement) == "b"


def test_a_target_goes_before_a_home() -> None:
    state = _state("a", "b")
    _take(state, "b", 1, key="session")
    assert _placed(state, Placement(key="session", target="a")) == "a"


# -- what policies are told --------------------------------------------------------------------


class _Nosy:
    """A policy of one's own that keeps what it was told."""

    reads_prefixes = True

    def __init__(self) -> None:
        self.told = ANY

    def __call__(self, workers: Sequence[Worker], placement: Placement, /) -> Worker:
        self.told = placement
        return workers[-1]


def test_a_policy_that_reads_prefixes_is_told_who_holds_what() -> None:
    state, nosy, prompt = _state("a", "b"), _Nosy(), pack_ids(range(100))
    pages = pages_for(nosy, prompt)
    assert pages == page_digests(prompt) != ()
    state.apply(SlotsTaken(worker=WorkerUrl("a"), calls=(CallId("1"),), pages=pages[:2]))
    for given in (Placement(prompt=prompt), Placement(prompt=prompt, pages=pages)):
        assert place(state, nosy, given).url == "b"
        assert nosy.told.matched == {"a": 32}
        assert nosy.told == replace(given, matched={WorkerUrl("a"): 32}, typical_uncached=2)


def test_others_are_spared_the_pages() -> None:
    assert pages_for(least_in_flight, pack_ids(range(100))) == ()
    assert pages_for(cache_aware, pack_ids(range(100))) != ()


def test_a_policy_that_makes_up_a_worker_is_found_out() -> None:
    other = _state("x").fleet.workers[WorkerUrl("x")]
    with pytest.raises(InvariantError, match="chose none"):
        place(_state("a"), lambda workers, placement: other, ANY)


# -- health ------------------------------------------------------------------------------------


def _change(state: RouterState, event: Event) -> WorkerHealth | None:
    return health_change(state, WorkerUrl("a"), event, 0.0, LIMITS)


@pytest.mark.parametrize("event", [Event.ANSWERED, Event.PROBE_PASSED, Event.REGISTERED])
def test_what_is_no_news_is_no_transition(event: Event) -> None:
    assert _change(_state("a"), event) is None


def test_a_failure_is_a_transition_that_says_why() -> None:
    change = _change(_state("a"), Event.UNREACHABLE)
    assert change is not None
    assert (change.health.condition, change.event) == (Condition.QUARANTINED, Event.UNREACHABLE)


@pytest.mark.parametrize(
    ("event", "counts"),
    [(Event.CALL_FAILED, False), (Event.PROBE_FAILED, False), (Event.UNREACHABLE, True)],
)
def test_a_paused_worker_is_not_sick(event: Event, counts: bool) -> None:
    state = _state("a")
    _make_unfit(state, "a", "paused")
    assert (_change(state, event) is not None) is counts


def test_who_is_gone_has_no_health() -> None:
    assert _change(RouterState(), Event.UNREACHABLE) is None
