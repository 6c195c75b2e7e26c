"""Versions that workers hold: sightings, who is stale, falling back, and what requests ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import ClientError
from slime_core.fleet import WorkerKind
from slime_core.health import Condition, Event, Health
from slime_core.state import RouterState
from slime_core.transitions import (
    NewestUnheld,
    SlotsTaken,
    Transition,
    VersionFellBack,
    VersionSeen,
    WorkerAdded,
    WorkerHealth,
    WorkerMismatch,
    WorkerPaused,
    WorkerRemoved,
)
from slime_core.types import CallId, WorkerUrl
from slime_core.versions import VersionOrder
from slime_core.weights import (
    ANY_VERSION,
    Demand,
    VersionWish,
    fall_back,
    fall_back_deadline,
    parse_version_wish,
    unsettled,
)
from tests.fleet_support import joined, ready

GRACE_S = 60.0
LOST = Health(condition=Condition.QUARANTINED, quarantines=1, until=1.0)


class Town:
    """A fleet of workers by letters, and what is seen of their weights."""

    def __init__(self, letters: str, *, max_staleness: int = 0) -> None:
        self.state = RouterState(versions=VersionOrder(max_staleness=max_staleness))
        for letter in letters:
            self.apply(*joined(letter))

    def apply(self, *facts: Transition) -> None:
        for fact in facts:
            self.state.apply(fact)

    def polled(self, letters: str, version: str, *, sighting: int | None = None) -> None:
        """They were asked, by default just now."""
        for letter in letters:
            now = self.state.versions.sighting if sighting is None else sighting
            self.apply(VersionSeen(worker=WorkerUrl(letter), version=version, sighting=now))

    def answered(self, letter: str, version: str) -> None:
        self.apply(VersionSeen(worker=WorkerUrl(letter), version=version))

    def lost(self, letter: str) -> None:
        self.apply(WorkerHealth(worker=WorkerUrl(letter), health=LOST, event=Event.UNREACHABLE))

    def back(self, letter: str) -> None:
        self.apply(ready(letter))

    def pause(self, letters: str, *, paused: bool = True) -> None:
        for letter in letters:
            self.apply(WorkerPaused(worker=WorkerUrl(letter), paused=paused))

    @property
    def fit(self) -> str:
        return "".join(worker.url for worker in self.state.fleet.fit())

    @property
    def stale(self) -> str:
        return "".join(worker.url for worker in self.state.fleet.listed() if worker.stale)

    @property
    def newest(self) -> str | None:
        return self.state.versions.newest

    def unsettled(self) -> str:
        return "".join(worker.url for worker in unsettled(self.state))

    def falls_back(self, now: float) -> str | None:
        """Let time come to ``now``: what the newest falls back to, if it does."""
        found = None
        while (fact := fall_back(self.state, now, GRACE_S)) is not None:
            found = fact.version if isinstance(fact, VersionFellBack) else found
            self.apply(fact)
        return found


def _town(letters: str, version: str, *, max_staleness: int = 0) -> Town:
    town = Town(letters, max_staleness=max_staleness)
    town.polled(letters, version)
    return town


# -- an ordinary update ------------------------------------------------------------------------


def test_an_update_that_all_have_by_the_time_they_are_asked_stops_nobody() -> None:
    town = _town("abc", "5")
    town.answered("a", "6")
    assert (town.fit, town.unsettled()) == ("abc", "abc")
    town.polled("abc", "6")
    assert (town.fit, town.stale, town.unsettled()) == ("abc", "", "")


def test_who_lags_behind_gets_no_work_until_its_version_matches() -> None:
    town = _town("abc", "5")
    town.polled("a", "6")
    town.polled("b", "5")
    assert town.fit == "ac"
    town.polled("b", "6")
    assert town.fit == "abc"


def test_a_poll_that_began_before_the_sighting_confirms_nothing() -> None:
    town = _town("ab", "5")
    before = town.state.versions.sighting
    town.answered("a", "6")
    town.polled("b", "5", sighting=before)
    assert (town.fit, town.stale) == ("ab", "")
    assert "b" in town.unsettled()


def test_answers_alone_confirm_nothing() -> None:
    town = _town("ab", "5")
    town.answered("a", "6")
    for _ in range(5):
        town.answered("b", "5")
    assert town.fit == "ab"


def test_what_brings_the_news_itself_needs_not_be_asked_again() -> None:
    town = _town("ab", "5")
    town.polled("a", "6")
    assert town.unsettled() == "b"


def test_who_tells_no_version_is_neither_stale_nor_asked_again_and_again() -> None:
    town = Town("ab")
    town.polled("a", "5")
    assert (town.fit, town.unsettled()) == ("ab", "")


def test_who_is_out_of_reach_is_not_asked() -> None:
    town = _town("ab", "5")
    town.lost("b")
    town.polled("a", "6")
    assert town.unsettled() == ""


# -- a worker that comes back with old weights -------------------------------------------------


def test_a_worker_that_comes_back_with_old_weights_gets_no_work_until_they_match() -> None:
    town = _town("ab", "7")
    town.lost("b")
    town.polled("b", "default")
    town.back("b")
    assert (town.fit, town.stale) == ("a", "b")
    town.polled("b", "7")
    assert town.fit == "ab"


def test_it_stays_stale_through_the_next_update_of_the_others() -> None:
    town = _town("ab", "7")
    town.polled("b", "3")
    town.answered("a", "8")
    assert (town.fit, town.stale) == ("a", "b")


def test_an_answer_with_the_newest_weights_ends_it() -> None:
    town = _town("ab", "7")
    town.polled("b", "3")
    town.answered("b", "7")
    assert town.fit == "ab"


def test_a_worker_that_restarted_in_silence_is_doubted_by_its_first_answer() -> None:
    town = _town("ab", "7")
    town.answered("b", "1")
    assert (town.fit, town.unsettled()) == ("ab", "b")
    town.polled("b", "1")
    assert town.fit == "a"


def test_an_answer_that_began_before_the_update_takes_nothing_back() -> None:
    town = _town("ab", "5")
    town.polled("ab", "6")
    town.answered("b", "5")
    worker = town.state.fleet.get(WorkerUrl("b"))
    assert (worker.version, worker.stale, town.unsettled()) == ("6", False, "b")


def test_the_name_of_unnamed_weights_is_never_news() -> None:
    town = _town("ab", "step-one")
    town.polled("b", "default")
    assert (town.newest, town.fit) == ("step-one", "a")


def test_new_weights_empty_what_a_worker_holds_of_prompts() -> None:
    town = _town("a", "5")
    pages = (b"page",)
    town.apply(SlotsTaken(worker=WorkerUrl("a"), calls=(CallId("1"),), pages=pages))
    assert town.state.fleet.prefixes.matched(pages)
    town.polled("a", "6")
    assert not town.state.fleet.prefixes.matched(pages)


# -- tolerance -------------------------------------------------------------------------------


@pytest.mark.parametrize(("held", "fit"), [("8", "ab"), ("7", "ab"), ("6", "a"), ("default", "a")])
def test_weights_may_lag_by_so_many_versions(held: str, fit: str) -> None:
    town = _town("ab", "4", max_staleness=2)
    town.polled("a", "9")
    town.polled("b", held)
    assert town.fit == fit


def test_names_lag_by_the_versions_that_came_since() -> None:
    town = _town("ab", "one", max_staleness=1)
    town.polled("a", "two")
    town.polled("b", "one")
    assert town.fit == "ab"
    town.polled("a", "three")
    town.polled("b", "one")
    assert town.fit == "a"


# -- a trainer that starts over ----------------------------------------------------------------


@pytest.mark.parametrize("first", ["1", "0", "default", "from-scratch"])
def test_a_trainer_that_starts_over_is_followed_after_the_grace(first: str) -> None:
    town = _town("ab", "57")
    epoch = town.state.versions.epoch
    town.polled("ab", first)
    assert (town.fit, town.falls_back(100.0)) == ("", None)
    assert fall_back_deadline(town.state, GRACE_S) == 160.0
    assert town.falls_back(159.9) is None
    assert town.falls_back(160.0) == first
    assert (town.newest, town.fit) == (first, "ab")
    assert town.state.versions.epoch == epoch + 1
    assert fall_back_deadline(town.state, GRACE_S) is None


def test_after_a_fall_the_trainer_counts_on() -> None:
    town = _town("ab", "57")
    town.polled("ab", "1")
    town.falls_back(0.0)
    town.falls_back(GRACE_S)
    for version in "23":
        town.polled("a", version)
        assert town.newest == version
        town.polled("b", str(int(version) - 1))
        assert town.fit == "a"
        town.polled("b", version)
        assert town.fit == "ab"


def test_what_was_newest_before_a_fall_is_no_news_in_late_answers() -> None:
    town = _town("ab", "57")
    town.polled("ab", "1")
    town.falls_back(0.0)
    town.falls_back(GRACE_S)
    town.answered("a", "57")
    assert (town.newest, town.fit, town.unsettled()) == ("1", "ab", "ab")


def test_a_worker_that_slept_through_the_fall_is_stale_when_it_returns() -> None:
    town = _town("abc", "57")
    town.lost("c")
    town.polled("ab", "1")
    town.falls_back(0.0)
    town.falls_back(GRACE_S)
    town.polled("c", "57")
    town.back("c")
    assert (town.newest, town.fit, town.stale) == ("1", "ab", "c")
    town.polled("c", "1")
    assert town.fit == "abc"


def test_a_worker_that_turns_to_what_was_newest_makes_it_newest_again() -> None:
    town = _town("ab", "57")
    town.polled("ab", "1")
    town.falls_back(0.0)
    town.falls_back(GRACE_S)
    town.polled("a", "57")
    assert town.newest == "57"


def test_all_else_that_is_higher_is_news_at_once() -> None:
    town = _town("ab", "57")
    town.polled("ab", "1")
    town.falls_back(0.0)
    town.falls_back(GRACE_S)
    town.answered("a", "58")
    assert town.newest == "58"


def test_the_fall_goes_to_the_newest_that_waits() -> None:
    town = _town("abc", "57")
    town.polled("ab", "1")
    town.polled("c", "2")
    town.falls_back(0.0)
    assert town.falls_back(GRACE_S) == "2"
    assert town.fit == "c"


def test_nothing_falls_back_while_someone_holds_the_newest() -> None:
    town = _town("ab", "57")
    town.polled("b", "1")
    assert town.falls_back(0.0) is None
    assert town.falls_back(1e6) is None
    assert town.fit == "a"


def test_a_paused_worker_holds_what_it_holds() -> None:
    town = _town("ab", "57")
    town.polled("b", "1")
    town.pause("a")
    assert town.falls_back(0.0) is None
    assert town.falls_back(1e6) is None


def test_nothing_falls_back_while_nobody_waits() -> None:
    town = _town("ab", "57")
    town.polled("ab", "1")
    town.pause("ab")
    assert town.falls_back(0.0) is None
    assert town.falls_back(1e6) is None
    town.pause("ab", paused=False)
    assert town.falls_back(2e6) is None
    assert town.falls_back(2e6 + GRACE_S) == "1"


def test_the_grace_begins_anew_when_a_holder_came_back_meanwhile() -> None:
    town = _town("ab", "57")
    town.polled("b", "1")
    town.lost("a")
    assert fall_back(town.state, 0.0, GRACE_S) == NewestUnheld(since=0.0)
    town.falls_back(0.0)
    town.back("a")
    assert town.falls_back(30.0) is None
    assert town.state.versions.unheld_since is None
    town.lost("a")
    assert town.falls_back(GRACE_S) is None
    assert town.falls_back(2 * GRACE_S) == "1"


@pytest.mark.parametrize("gone", ["removed", "another tokenizer"])
def test_who_will_never_work_again_holds_nothing(gone: str) -> None:
    town = _town("ab", "57")
    town.polled("b", "1")
    url = WorkerUrl("a")
    removed = gone == "removed"
    town.apply(WorkerRemoved(worker=url) if removed else WorkerMismatch(worker=url, reason=gone))
    town.falls_back(0.0)
    assert town.falls_back(GRACE_S) == "1"


def test_where_a_lag_is_tolerated_nobody_waits_and_nothing_falls_back() -> None:
    town = _town("ab", "57", max_staleness=1)
    town.polled("ab", "56")
    assert town.falls_back(0.0) is None
    assert town.falls_back(1e6) is None


_SIDES = {"p": WorkerKind.PREFILL, "d": WorkerKind.DECODE}


def _pairs(**held: str) -> Town:
    """Prefill and decode workers by the first letters of their names, with their versions."""
    town = Town("")
    for name in held:
        town.apply(WorkerAdded(worker=WorkerUrl(name), kind=_SIDES[name[0]]), ready(name))
    for name, version in held.items():
        town.apply(VersionSeen(worker=WorkerUrl(name), version=version, sighting=99))
    return town


def test_one_side_of_pairs_holds_nothing_alone() -> None:
    town = _pairs(p1="5", p2="4", d1="4")
    town.falls_back(0.0)
    assert town.falls_back(GRACE_S) == "4"
    town.apply(VersionSeen(worker=WorkerUrl("p1"), version="5", sighting=99))
    assert town.fit == "p2d1"


def test_pairs_fall_back_to_nothing_that_one_side_lacks() -> None:
    town = _pairs(p1="5", d1="4")
    assert town.falls_back(0.0) is None
    assert town.falls_back(1e6) is None


def test_pairs_hold_what_both_sides_hold() -> None:
    town = _pairs(p1="5", d1="5", d2="4")
    assert town.falls_back(0.0) is None
    assert town.falls_back(1e6) is None


def test_a_fleet_without_versions_never_falls_back() -> None:
    assert fall_back(Town("ab").state, 0.0, GRACE_S) is None


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["poll", "late poll", "answer", "lose", "back", "time"]),
        st.sampled_from("abc"),
        st.sampled_from(["1", "2", "3", "default", "x", "y"]),
    ),
    max_size=40,
)


@given(_STEPS, st.integers(0, 2))
def test_whatever_versions_do_the_epoch_never_goes_back_and_the_grace_unblocks(
    steps: list[tuple[str, str, str]], max_staleness: int
) -> None:
    town, now = Town("abc", max_staleness=max_staleness), 0.0
    for act, letter, version in steps:
        epoch, sighting = town.state.versions.epoch, town.state.versions.sighting
        match act:
            case "poll":
                town.polled(letter, version)
            case "late poll":
                town.polled(letter, version, sighting=max(0, sighting - 1))
            case "answer":
                town.answered(letter, version)
            case "lose":
                town.lost(letter)
            case "back":
                town.back(letter)
            case _:
                now += 45.0
                town.falls_back(now)
        assert town.state.versions.epoch >= epoch
        for worker in town.state.fleet.listed():
            assert worker.version != town.newest or not worker.stale
    for letter in "abc":
        town.polled(letter, town.state.fleet.get(WorkerUrl(letter)).version or "1")
        town.back(letter)
    for _ in range(2):
        town.falls_back(now)
        now += GRACE_S
    town.falls_back(now)
    assert town.fit


# -- what requests ask for ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        (None, ANY_VERSION),
        ("any", ANY_VERSION),
        (" latest-only ", VersionWish(demand=Demand.LATEST_ONLY)),
        ("min-version:7", VersionWish(demand=Demand.MIN_VERSION, version="7")),
        ("min-version: step:3", VersionWish(demand=Demand.MIN_VERSION, version="step:3")),
        ("max-staleness:2", VersionWish(demand=Demand.MAX_STALENESS, epochs=2)),
    ],
)
def test_a_wish_is_read(text: str | None, wish: VersionWish) -> None:
    assert parse_version_wish(text) == wish
    assert parse_version_wish(str(wish)) == wish


_SENSELESS = [
    *["", "latest", "any:1", "min-version", "min-version:", "max-staleness:", "max-staleness:-1"],
    *[
        "max-staleness:1.5",
        "max-staleness:٣",
        "max-staleness:9999999999",
        "min-version:" + 300 * "7",
    ],
]


@pytest.mark.parametrize("text", _SENSELESS)
def test_a_wish_that_makes_no_sense_names_its_header(text: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse_version_wish(text)
    assert (caught.value.status, caught.value.param) == (400, "x-smg-version-policy")


@pytest.mark.parametrize(
    ("wish", "admitted"),
    [
        ("any", ["9", "8", "6", "default", None]),
        ("latest-only", ["9"]),
        ("min-version:8", ["9", "8"]),
        ("min-version:10", []),
        ("min-version:default", ["9", "8", "6", "default"]),
        ("max-staleness:1", ["9", "8"]),
        ("max-staleness:3", ["9", "8", "6"]),
    ],
)
def test_a_wish_admits(wish: str, admitted: list[str | None]) -> None:
    versions = VersionOrder()
    for version in ("default", "6", "8", "9"):
        versions.note(version)
    wished = parse_version_wish(wish)
    held: list[str | None] = ["9", "8", "6", "default", None]
    assert [one for one in held if wished.admits(versions, one)] == admitted


@pytest.mark.parametrize(("wish", "admits"), [("latest-only", True), ("min-version:1", False)])
def test_where_no_version_is_known_all_are_as_new_as_any(wish: str, admits: bool) -> None:
    assert parse_version_wish(wish).admits(VersionOrder(), None) is admits
