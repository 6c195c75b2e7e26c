"""The fleet against rows of plain values, through the transitions that change it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slime_core.errors import InvariantError
from slime_core.fleet import Fleet, Loads, WorkerKind
from slime_core.health import Condition, Event, HealthLimits
from slime_core.placing import NoWorker, health_change, place
from slime_core.policies import OVERLOAD_CALLS, POLICIES, Placement
from slime_core.prefixes import page_digests
from slime_core.state import RouterState
from slime_core.transitions import (
    SlotsGiven,
    SlotsTaken,
    Transition,
    VersionSeen,
    WorkerAdded,
    WorkerFlushed,
    WorkerLoads,
    WorkerMismatch,
    WorkerPaused,
    WorkerRemoved,
)
from slime_core.types import CallId, PackedIds, WorkerUrl, pack_ids

_URLS = st.sampled_from([WorkerUrl("a"), WorkerUrl("b"), WorkerUrl("c")])
_LIMITS = HealthLimits(failure_threshold=2, quarantine_s=4.0, enough=4)
_PROMPTS = st.sampled_from([(1,), (1, 2), (1, 2, 3), (4, 5)])


def _packed(words: tuple[int, ...]) -> PackedIds:
    """A word stands for a page."""
    return pack_ids(number for word in words for number in [word] * 16)


@dataclass
class Row:
    """What should be known of one worker, as plain as can be."""

    condition: str = "joining"
    failures: int = 0
    quarantines: int = 0
    until: float = 0.0
    allowance: int = 0
    paused: bool = False
    mismatch: str | None = None
    leaving: bool = False
    version: int | None = None
    stale: bool = False
    calls: list[str] = field(default_factory=list)
    prompts: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def fit(self) -> bool:
        """Whether it may get work."""
        works = self.condition in ("ready", "trial") and not self.leaving
        return works and not self.paused and self.mismatch is None and not self.stale

    @property
    def room(self) -> bool:
        """Whether its trial allows one more."""
        return self.condition != "trial" or len(self.calls) < self.allowance

    def confine(self, now: float) -> None:
        """Into quarantine, twice as long each time."""
        self.until = now + min(4.0, 2.0**self.quarantines)
        self.condition, self.failures = "quarantined", 0
        self.quarantines += 1
        self.prompts.clear()

    def grow(self) -> None:
        """A trial goes well."""
        self.allowance *= 2
        if self.allowance >= 4:
            self.condition, self.quarantines = "ready", 0

    def hear(self, event: Event, now: float) -> None:
        """The rules of health, told as a story instead of a table."""
        if self.paused and event in (Event.CALL_FAILED, Event.PROBE_FAILED):
            return
        if event is Event.REGISTERED:
            if self.condition != "ready":
                self.condition, self.quarantines = "joining", 0
            return
        good = event in (Event.ANSWERED, Event.PROBE_PASSED)
        of_calls = event in (Event.ANSWERED, Event.CALL_FAILED)
        match self.condition:
            case "joining" if not of_calls:
                if good:
                    self.condition = "ready"
                else:
                    self.confine(now)
            case "ready" if good:
                self.failures = 0
            case "ready":
                self.failures += 1
                if self.failures == 2 or event is Event.UNREACHABLE:
                    self.confine(now)
            case "trial" if good:
                self.grow()
            case "trial":
                self.confine(now)
            case "quarantined" if not of_calls and now >= self.until:
                self.look(now, good=good)
            case _:
                pass

    def look(self, now: float, *, good: bool) -> None:
        """Its quarantine is over."""
        if good:
            self.condition, self.allowance = "trial", 1
        else:
            self.confine(now)


class Workers(RuleBasedStateMachine):
    """Everything that can happen to workers; versions only ever count up here."""

    def __init__(self) -> None:
        super().__init__()
        self.state = RouterState()
        self.journal: list[Transition] = []
        self.rows: dict[WorkerUrl, Row] = {}
        self.homes: dict[str, WorkerUrl] = {}
        self.newest = 0
        self.calls = 0
        self.now = 0.0

    def commit(self, fact: Transition) -> None:
        self.state.apply(fact)
        self.journal.append(fact)

    def _clear(self) -> None:
        gone = [url for url, row in self.rows.items() if row.leaving and not row.calls]
        for url in gone:
            del self.rows[url]

    @rule(url=_URLS)
    def add(self, url: WorkerUrl) -> None:
        self.commit(WorkerAdded(worker=url))
        self.rows.setdefault(url, Row()).leaving = False
        self.hear(url, Event.REGISTERED)

    @rule(url=_URLS)
    def remove(self, url: WorkerUrl) -> None:
        self.commit(WorkerRemoved(worker=url))
        if url in self.rows:
            self.rows[url].leaving = True
            self.rows[url].prompts.clear()
        self._clear()

    @rule(url=_URLS, event=st.sampled_from(Event))
    def hear(self, url: WorkerUrl, event: Event) -> None:
        change = health_change(self.state, url, event, self.now, _LIMITS)
        if change is not None:
            self.commit(change)
        if url in self.rows:
            self.rows[url].hear(event, self.now)

    @rule(url=_URLS)
    def recover(self, url: WorkerUrl) -> None:
        """So that most workers work most of the time."""
        for _ in range(3):
            self.wait(4.0)
            self.hear(url, Event.PROBE_PASSED)

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(url=_URLS, paused=st.booleans())
    def pause(self, url: WorkerUrl, paused: bool) -> None:
        self.commit(WorkerPaused(worker=url, paused=paused))
        if url in self.rows:
            self.rows[url].paused = paused

    @rule(url=_URLS, reason=st.sampled_from([None, None, "another tokenizer"]))
    def compare(self, url: WorkerUrl, reason: str | None) -> None:
        self.commit(WorkerMismatch(worker=url, reason=reason))
        if url in self.rows:
            self.rows[url].mismatch = reason

    @rule(url=_URLS, step=st.sampled_from([0, 0, 0, 1, -1]))
    def poll(self, url: WorkerUrl, step: int) -> None:
        if url not in self.rows:
            return
        version = max(0, self.newest + step)
        seen = VersionSeen(worker=url, version=str(version), sighting=self.state.versions.sighting)
        self.commit(seen)
        row, self.newest = self.rows[url], max(self.newest, version)
        if row.version != version:
            row.version = version
            row.prompts.clear()
        row.stale = version < self.newest

    @rule(url=_URLS)
    def flush(self, url: WorkerUrl) -> None:
        self.commit(WorkerFlushed(worker=url))
        if url in self.rows:
            self.rows[url].prompts.clear()

    @rule(
        name=st.sampled_from(list(POLICIES)),
        key=st.sampled_from([None, "s", "t"]),
        chance=st.floats(0, 0.99),
        words=_PROMPTS,
    )
    def call(self, name: str, key: str | None, chance: float, words: tuple[int, ...]) -> None:
        """A call is placed with a fit worker, at its home where that is one of them."""
        prompt = _packed(words)
        fit = [url for url, row in self.rows.items() if row.fit and row.room]
        placement = Placement(key=key, chance=chance, prompt=prompt)
        try:
            chosen = place(self.state, POLICIES[name], placement).url
        except NoWorker:
            assert not fit
            return
        assert chosen in fit
        home = self.homes.get(key or "")
        least = min(len(self.rows[url].calls) for url in fit)
        if home in fit and len(self.rows[home].calls) <= least + OVERLOAD_CALLS:
            assert chosen == home
        self.calls += 1
        call = CallId(str(self.calls))
        pages = page_digests(prompt)
        self.commit(SlotsTaken(worker=chosen, calls=(call,), key=key, pages=pages))
        self.rows[chosen].calls.append(call)
        self.rows[chosen].prompts.append(words)
        if key is not None:
            self.homes[key] = chosen

    @precondition(lambda self: any(row.calls for row in self.rows.values()))
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        url = data.draw(st.sampled_from([url for url, row in self.rows.items() if row.calls]))
        calls = self.rows[url].calls
        call = calls.pop(data.draw(st.integers(0, len(calls) - 1)))
        self.commit(SlotsGiven(worker=url, calls=(CallId(call),)))
        self._clear()

    @invariant()
    def is_what_the_rows_say(self) -> None:
        fleet = self.state.fleet
        assert {url: list(one.in_flight) for url, one in fleet.workers.items()} == {
            url: row.calls for url, row in self.rows.items()
        }
        for url, row in self.rows.items():
            worker = fleet.workers[url]
            assert worker.health.condition.value == row.condition, url
            assert worker.is_fit == row.fit, (url, worker.unfit)
            assert (worker.stale, worker.has_room) == (row.stale, row.room)
        assert [one.url for one in fleet.listed()] == [
            url for url, row in self.rows.items() if not row.leaving
        ]

    @invariant()
    def is_remembered_as_it_is(self) -> None:
        fleet = self.state.fleet
        assert fleet.kinds == {one.kind for one in fleet.listed()}
        for kind in WorkerKind:
            fit = [one for one in fleet.fit() if one.kind is kind]
            tried = any(one.health.allowance is not None for one in fit)
            assert list(fleet.ready(kind)) == ([] if tried else fit)
        for one in fleet.workers.values():
            assert one.rank == (one.load, one.last_chosen, one.number)

    @rule(words=_PROMPTS)
    def look(self, words: tuple[int, ...]) -> None:
        expected = {}
        for url, row in self.rows.items():
            longest = max((_common(words, one) for one in row.prompts), default=0)
            if longest:
                expected[url] = 16 * longest
        assert self.state.fleet.prefixes.matched(page_digests(_packed(words))) == expected

    def teardown(self) -> None:
        replayed = RouterState()
        for fact in self.journal:
            replayed.apply(fact)
        assert replayed.digest() == self.state.digest()


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def _one(*calls: str) -> Fleet:
    fleet = Fleet()
    fleet.add(WorkerUrl("a"))
    fleet.take(WorkerUrl("a"), tuple(map(CallId, calls)))
    return fleet


def test_a_slot_is_taken_once() -> None:
    with pytest.raises(InvariantError, match="once"):
        _one("1").take(WorkerUrl("a"), (CallId("1"),))


def test_a_slot_that_was_not_taken_is_not_given_back() -> None:
    with pytest.raises(InvariantError, match="not taken"):
        _one("1").give(WorkerUrl("a"), (CallId("2"),))


def test_an_unknown_worker_takes_nothing() -> None:
    with pytest.raises(InvariantError, match="no such worker"):
        Fleet().take(WorkerUrl("a"), (CallId("1"),))


def test_a_worker_that_comes_back_is_another() -> None:
    fleet = _one()
    fleet.set_mismatch(WorkerUrl("a"), "unhealthy")
    fleet.remove(WorkerUrl("a"))
    fleet.add(WorkerUrl("a"))
    assert (fleet.get(WorkerUrl("a")).mismatch, fleet.get(WorkerUrl("a")).number) == (None, 2)


def test_a_worker_that_was_leaving_stays_with_its_calls() -> None:
    fleet = _one("1")
    fleet.remove(WorkerUrl("a"))
    assert fleet.get(WorkerUrl("a")).unfit == "being removed"
    fleet.add(WorkerUrl("a"))
    fleet.give(WorkerUrl("a"), (CallId("1"),))
    assert [one.url for one in fleet.listed()] == ["a"]


def test_a_worker_is_registered_with_all_that_is_told_of_it() -> None:
    fleet, url = Fleet(), WorkerUrl("http://a")
    fleet.add(url, id="w-1", kind=WorkerKind.PREFILL, bootstrap_port=8998, extras=b'{"cost":2}')
    worker = fleet.get(url)
    assert (worker.id, worker.kind, worker.bootstrap_port) == ("w-1", WorkerKind.PREFILL, 8998)
    assert worker.extras == b'{"cost":2}'
    assert fleet.named("w-1") is fleet.named("http://a") is worker


def test_registering_again_replaces_all_but_the_id() -> None:
    fleet, url = Fleet(), WorkerUrl("a")
    fleet.add(url, id="w-1", kind=WorkerKind.PREFILL, bootstrap_port=8998)
    fleet.add(url, id="w-2", kind=WorkerKind.DECODE)
    worker = fleet.get(url)
    assert (worker.id, worker.kind, worker.bootstrap_port) == ("w-1", WorkerKind.DECODE, None)


def test_without_an_id_the_url_is_one() -> None:
    fleet = _one()
    assert fleet.get(WorkerUrl("a")).id == "a"


def test_an_id_names_one_worker() -> None:
    fleet = Fleet()
    fleet.add(WorkerUrl("a"), id="w")
    with pytest.raises(InvariantError, match="one id"):
        fleet.add(WorkerUrl("b"), id="w")


def test_keys_longest_unused_are_forgotten() -> None:
    fleet = Fleet(keys_most=2)
    fleet.add(WorkerUrl("a"))
    for number, key in enumerate("xyxz"):
        fleet.take(WorkerUrl("a"), (CallId(str(number)),), key)
    assert [fleet.home(key) for key in "xyz"] == ["a", None, "a"]


def test_a_key_may_be_of_any_length_and_form() -> None:
    fleet = Fleet()
    fleet.add(WorkerUrl("a"))
    for number, key in enumerate(["", "\ud800", "x" * 10**6]):
        fleet.take(WorkerUrl("a"), (CallId(str(number)),), key)
        assert fleet.home(key) == "a"


def test_loads_are_told_with_what_was_in_flight_then_and_forgotten_in_quarantine() -> None:
    state = RouterState()
    state.apply(WorkerAdded(worker=WorkerUrl("a")))
    state.apply(SlotsTaken(worker=WorkerUrl("a"), calls=(CallId("1"), CallId("2"))))
    loads = Loads(running=3, waiting=1, token_usage=0.5)
    state.apply(WorkerLoads(worker=WorkerUrl("a"), loads=loads))
    worker = state.fleet.get(WorkerUrl("a"))
    assert (worker.reported, worker.load_at_report) == (loads, 2)
    change = health_change(state, WorkerUrl("a"), Event.UNREACHABLE, 0.0, _LIMITS)
    assert change is not None
    state.apply(change)
    assert worker.health.condition is Condition.QUARANTINED
    assert worker.reported is None


def test_facts_about_workers_that_are_gone_change_nothing() -> None:
    state = RouterState()
    before = state.digest()
    url = WorkerUrl("gone")
    for fact in (
        WorkerRemoved(worker=url),
        WorkerPaused(worker=url, paused=True),
        WorkerMismatch(worker=url, reason="x"),
        WorkerLoads(worker=url, loads=Loads(running=1, waiting=0)),
        WorkerFlushed(worker=url),
    ):
        state.apply(fact)
    assert state.digest() == before
