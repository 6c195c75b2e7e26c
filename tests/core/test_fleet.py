"""The fleet against a plain list of workers."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slime_core.errors import InvariantError
from slime_core.fleet import Fleet
from slime_core.health import READY
from slime_core.types import CallId, WorkerUrl

_URLS = st.sampled_from([WorkerUrl("a"), WorkerUrl("b"), WorkerUrl("c")])


class Workers(RuleBasedStateMachine):
    """Rows of (url, unfit, leaving, calls), and everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.rows: list[list[object]] = []
        self.calls = 0

    def row(self, url: str) -> list[object] | None:
        return next((row for row in self.rows if row[0] == url), None)

    def _clear(self) -> None:
        self.rows = [row for row in self.rows if not row[2] or row[3]]

    @rule(url=_URLS)
    def add(self, url: WorkerUrl) -> None:
        self.fleet.add(url)
        row = self.row(url)
        if row is None:
            self.rows.append([url, None, False, []])
            self.fleet.set_health(url, READY)
        else:
            row[2] = False

    @rule(url=_URLS)
    def remove(self, url: WorkerUrl) -> None:
        self.fleet.remove(url)
        row = self.row(url)
        if row is not None:
            row[2] = True
        self._clear()

    @rule(url=_URLS, unfit=st.sampled_from([None, "paused", "unhealthy"]))
    def judge(self, url: WorkerUrl, unfit: str | None) -> None:
        self.fleet.set_mismatch(url, unfit)
        row = self.row(url)
        if row is not None:
            row[1] = unfit

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), count=st.integers(1, 3))
    def take(self, data: st.DataObject, count: int) -> None:
        row = data.draw(st.sampled_from(self.rows))
        calls = tuple(CallId(f"{self.calls + number}") for number in range(count))
        self.calls += count
        self.fleet.take(WorkerUrl(str(row[0])), calls)
        assert isinstance(row[3], list)
        row[3] += calls

    @precondition(lambda self: any(row[3] for row in self.rows))
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from([row for row in self.rows if row[3]]))
        assert isinstance(row[3], list)
        call = row[3].pop(data.draw(st.integers(0, len(row[3]) - 1)))
        self.fleet.give(WorkerUrl(str(row[0])), (call,))
        self._clear()

    @invariant()
    def is_what_the_rows_say(self) -> None:
        got = [
            [w.url, w.mismatch, w.leaving, list(w.in_flight)] for w in self.fleet.workers.values()
        ]
        assert got == self.rows
        assert [w.url for w in self.fleet.fit()] == [r[0] for r in self.rows if not (r[1] or r[2])]
        assert [w.url for w in self.fleet.listed()] == [r[0] for r in self.rows if not r[2]]
        total = sum(len(row[3]) for row in self.rows if isinstance(row[3], list))
        assert self.fleet.total_in_flight == total


TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


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
