"""The queue: bounded, fair, and the same as a naive one, whatever comes in whatever order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slime_core.admission import PRIORITY_HEADER, Priority, Queue, Ticket, parse_priority
from slime_core.errors import ClientError, InvariantError


def _join(
    queue: Queue,
    tenant: str = "",
    session: str = "",
    *,
    priority: Priority = Priority.NORMAL,
    needs: str = "any",
    deadline: float = math.inf,
) -> Ticket:
    return queue.join(
        tenant=tenant, session=session, priority=priority, needs=needs, deadline=deadline
    )


def _let_in(queue: Queue, blocked: Iterable[str] = ()) -> list[Ticket]:
    """Everybody who may begin now."""
    got = []
    while (ticket := queue.next(frozenset(blocked))) is not None:
        queue.admit(ticket)
        got.append(ticket)
    return got


def _order(queue: Queue) -> list[Ticket]:
    """In which order all that wait are let in, each once the one before has left."""
    got = []
    while found := _let_in(queue):
        got += found
        for ticket in found:
            queue.leave(ticket)
    return got


def test_so_many_run_and_no_more() -> None:
    queue = Queue(limit=2, places=10)
    tickets = [_join(queue) for _ in range(3)]
    assert _let_in(queue) == tickets[:2]
    queue.leave(tickets[0])
    assert _let_in(queue) == tickets[2:]


def test_places_kept_free_are_given_to_nobody() -> None:
    queue = Queue(limit=2, places=10)
    first = _join(queue)
    _join(queue)
    queue.admit(first)
    assert queue.next((), kept_free=1) is None
    assert queue.next(()) is not None


def test_one_more_than_may_wait_is_too_many() -> None:
    queue = Queue(limit=1, places=1)
    queue.admit(_join(queue))
    assert queue.surplus(_join(queue)) is None
    late = _join(queue)
    assert queue.surplus(late) == late
    queue.leave(late)
    assert queue.surplus(late) is None


def test_without_places_nobody_waits_but_those_let_in_at_once_come_in() -> None:
    queue = Queue(limit=1, places=0)
    first = _join(queue)
    queue.admit(first)
    assert queue.surplus(first) is None


def test_a_tenant_that_fills_the_queue_loses_its_latest_to_others() -> None:
    queue = Queue(limit=1, places=4)
    greedy = [_join(queue, "greedy", f"session {number}") for number in range(4)]
    assert queue.surplus(_join(queue, "modest")) == greedy[-1]
    queue.leave(greedy[-1])
    assert queue.surplus(_join(queue, "modest", "another")) == greedy[-2]


def test_of_a_tenant_the_session_that_has_most_loses_its_latest() -> None:
    queue = Queue(limit=1, places=4)
    tickets = [_join(queue, "t", session) for session in ("few", "many", "many", "many")]
    assert queue.surplus(_join(queue, "t", "new")) == tickets[-1]


def test_whoever_has_as_many_as_any_refuses_itself_and_nobody_else() -> None:
    queue = Queue(limit=1, places=2)
    for session in ("a", "b"):
        _join(queue, "t", session)
    late = _join(queue, "t", "c")
    assert queue.surplus(late) == late


def test_only_so_many_different_needs_may_wait() -> None:
    queue = Queue(limit=1, places=1000)
    queue.admit(_join(queue))
    for number in range(64):
        assert queue.surplus(_join(queue, needs=f"version {number}")) is None
    late = _join(queue, needs="one more")
    assert queue.surplus(late) == late
    queue.leave(late)
    assert queue.surplus(_join(queue, needs="version 3")) is None


def test_what_is_blocked_costs_nothing_however_much_of_it_there_is() -> None:
    looked_at: list[object] = []

    class Blocked:
        def __contains__(self, needs: object) -> bool:
            looked_at.append(needs)
            return needs == "odd"

    queue = Queue(limit=1, places=10_000)
    for number in range(5000):
        _join(queue, session=f"session {number}", needs="odd")
    plain = _join(queue)
    assert queue.next(Blocked()) == plain
    assert len(looked_at) < 10


def test_a_session_of_a_thousand_requests_delays_no_other_session() -> None:
    queue = Queue(limit=1, places=2000)
    for _ in range(1000):
        _join(queue, session="greedy")
    _join(queue, session="modest")
    assert "modest" in [one.session for one in _order(queue)[:2]]


def test_a_tenant_of_a_thousand_sessions_delays_no_other_tenant() -> None:
    queue = Queue(limit=1, places=2000)
    for number in range(1000):
        _join(queue, "greedy", f"session {number}")
    for _ in range(3):
        _join(queue, "modest", "only one")
    tenants = [one.tenant for one in _order(queue)[:6]]
    assert Counter(tenants) == {"greedy": 3, "modest": 3}


def test_within_a_session_requests_keep_their_order() -> None:
    queue = Queue(limit=1, places=100)
    tickets = [_join(queue, "t", "s") for _ in range(5)]
    assert _order(queue) == tickets


def test_priorities_have_their_shares() -> None:
    queue = Queue(limit=1, places=1000)
    for priority in Priority:
        for _ in range(100):
            _join(queue, priority=priority)
    shares = Counter(one.priority for one in _order(queue)[:42])
    assert shares == {Priority.HIGH: 32, Priority.NORMAL: 8, Priority.LOW: 2}


def test_the_urgent_go_first_and_the_patient_last() -> None:
    queue = Queue(limit=1, places=10)
    queue.admit(running := _join(queue))
    words = [Priority.LOW, Priority.NORMAL, Priority.HIGH]
    tickets = [_join(queue, priority=word) for word in words]
    queue.leave(running)
    assert _order(queue) == tickets[::-1]


def test_who_was_alone_for_long_has_saved_up_no_turns() -> None:
    queue = Queue(limit=1, places=1000)
    for _ in range(50):
        _join(queue, priority=Priority.LOW)
    assert len(_order(queue)) == 50
    for _ in range(8):
        _join(queue, priority=Priority.LOW)
        _join(queue, priority=Priority.HIGH)
    first = [one.priority for one in _order(queue)[:8]]
    assert first.count(Priority.HIGH) >= 7


def test_what_cannot_be_had_is_passed_over_and_keeps_its_turn() -> None:
    queue = Queue(limit=5, places=10)
    odd = _join(queue, needs="odd")
    plain = _join(queue)
    assert _let_in(queue, ["odd"]) == [plain]
    assert _let_in(queue) == [odd]


def test_what_ran_comes_before_all_that_waits_and_counts_once() -> None:
    queue = Queue(limit=1, places=10)
    first = _join(queue)
    queue.admit(first)
    _join(queue, priority=Priority.HIGH)
    again = queue.rejoin(first, needs="another")
    assert (queue.running, queue.waiting) == (1, 1)
    assert _let_in(queue) == [again]


def test_what_ran_and_cannot_be_had_again_holds_its_place() -> None:
    queue = Queue(limit=1, places=10)
    first = _join(queue)
    queue.admit(first)
    _join(queue)
    queue.rejoin(first, needs="odd")
    assert queue.next({"odd"}) is None


def test_who_waits_too_long_leaves_and_who_runs_stays() -> None:
    queue = Queue(limit=1, places=10)
    queue.admit(_join(queue, deadline=1))
    late = _join(queue, deadline=3)
    early = _join(queue, deadline=2)
    assert queue.next_deadline() == 2
    assert queue.expire(1.9) == []
    assert queue.expire(3) == [late, early]
    assert (queue.running, queue.waiting, queue.next_deadline()) == (1, 0, math.inf)


def test_who_waits_again_has_new_time() -> None:
    queue = Queue(limit=1, places=10)
    ticket = _join(queue, deadline=1)
    queue.admit(ticket)
    again = queue.rejoin(ticket, needs="any", deadline=9)
    assert queue.expire(8) == []
    assert queue.expire(9) == [again]


def test_deadlines_of_those_that_are_gone_are_not_kept() -> None:
    queue = Queue(limit=10_000, places=10)
    for number in range(5000):
        queue.admit(_join(queue, deadline=1000.0 + number))
    assert len(queue._deadlines) < 200


def test_leaving_twice_is_a_bug() -> None:
    queue = Queue(limit=1, places=1)
    ticket = _join(queue)
    queue.leave(ticket)
    with pytest.raises(InvariantError):
        queue.leave(ticket)


def test_only_what_ran_waits_again() -> None:
    queue = Queue(limit=1, places=1)
    with pytest.raises(InvariantError):
        queue.rejoin(_join(queue), needs="any")


@pytest.mark.parametrize("word", ["HIGH", " normal ", "low", None])
def test_a_priority_is_read_as_it_is_meant(word: str | None) -> None:
    expected = Priority.NORMAL if word is None else Priority(word.strip().lower())
    assert parse_priority(word) is expected


@given(
    st.text(max_size=10).filter(lambda word: word.strip().lower() not in {"high", "normal", "low"})
)
def test_any_other_priority_is_refused_by_the_name_of_its_header(word: str) -> None:
    with pytest.raises(ClientError) as refused:
        parse_priority(word)
    assert (refused.value.status, refused.value.param) == (400, PRIORITY_HEADER)


# -- against a naive queue ---------------------------------------------------------------------

_COST = {Priority.HIGH: 1, Priority.NORMAL: 4, Priority.LOW: 16}


class _Naive:
    """The same by lists: whose turn it is follows from when each had its last turn."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.waiting: list[Ticket] = []
        self.again: list[Ticket] = []
        self.running: list[Ticket] = []
        self.paid = dict.fromkeys(Priority, 0)
        self.standing = 0
        self.turn = 0
        self.stood: dict[tuple[object, ...], int] = {}

    def join(self, ticket: Ticket) -> None:
        alike = [one for one in self.waiting if one.priority is ticket.priority]
        if not alike:
            self.paid[ticket.priority] = max(self.paid[ticket.priority], self.standing)
        for group in self._groups(ticket):
            if not any(self._groups(one)[len(group) - 2] == group for one in alike):
                self._stand_last(group)
        self.waiting.append(ticket)

    @staticmethod
    def _groups(ticket: Ticket) -> list[tuple[object, ...]]:
        path = (ticket.priority, ticket.tenant, ticket.needs, ticket.session)
        return [path[:2], path[:3], path]

    def _stand_last(self, group: tuple[object, ...]) -> None:
        self.turn += 1
        self.stood[group] = self.turn

    def next(self, blocked: set[str]) -> Ticket | None:
        for one in self.again:
            if one.needs not in blocked:
                return one
        if len(self.running) + len(self.again) >= self.limit:
            return None
        able = [one for one in self.waiting if one.needs not in blocked]
        return min(able, key=self._rank, default=None)

    def _rank(self, one: Ticket) -> tuple[object, ...]:
        priority = list(Priority).index(one.priority)
        turns = [self.stood[group] for group in self._groups(one)]
        return (self.paid[one.priority] + _COST[one.priority], priority, *turns, one.number)

    def admit(self, ticket: Ticket) -> None:
        if ticket in self.again:
            self.again.remove(ticket)
        else:
            self.waiting.remove(ticket)
            self.standing = max(self.standing, self.paid[ticket.priority])
            self.paid[ticket.priority] += _COST[ticket.priority]
            for group in self._groups(ticket):
                self._stand_last(group)
        self.running.append(ticket)

    def leave(self, ticket: Ticket) -> None:
        for group in (self.again, self.waiting, self.running):
            if ticket in group:
                group.remove(ticket)


class QueueMachine(RuleBasedStateMachine):
    """The queue and the naive one, side by side."""

    @initialize(limit=st.integers(1, 4), places=st.integers(0, 6))
    def begin(self, limit: int, places: int) -> None:
        self.places = places
        self.queue = Queue(limit=limit, places=places)
        self.naive = _Naive(limit)
        self.now = 0.0

    @rule(
        tenant=st.sampled_from(["a", "b"]),
        session=st.sampled_from(["", "x", "y"]),
        priority=st.sampled_from(list(Priority)),
        needs=st.sampled_from(["any", "odd"]),
        patience=st.sampled_from([1.0, 5.0, math.inf]),
    )
    def join(
        self, tenant: str, session: str, priority: Priority, needs: str, patience: float
    ) -> None:
        ticket = _join(
            self.queue,
            tenant,
            session,
            priority=priority,
            needs=needs,
            deadline=self.now + patience,
        )
        self.naive.join(ticket)

    @precondition(lambda self: self.queue.has_room())
    @rule(
        tenant=st.sampled_from(["a", "b"]),
        session=st.sampled_from(["", "x", "y"]),
        priority=st.sampled_from(list(Priority)),
    )
    def run(self, tenant: str, session: str, priority: Priority) -> None:
        ticket = self.queue.run(tenant=tenant, session=session, priority=priority)
        self.naive.join(ticket)
        assert self.naive.next(set()) == ticket
        self.naive.admit(ticket)

    @rule(blocked=st.sets(st.sampled_from(["any", "odd"])))
    def let_one_in(self, blocked: set[str]) -> None:
        ticket = self.queue.next(blocked)
        assert ticket == self.naive.next(blocked)
        if ticket is not None:
            self.queue.admit(ticket)
            self.naive.admit(ticket)

    @precondition(lambda self: self.naive.running)
    @rule(data=st.data(), needs=st.sampled_from(["any", "odd"]))
    def try_again(self, data: st.DataObject, needs: str) -> None:
        ticket = data.draw(st.sampled_from(self.naive.running))
        self.naive.running.remove(ticket)
        again = self.queue.rejoin(ticket, needs=needs, deadline=self.now + 2.0)
        self.naive.again.append(again)

    @precondition(lambda self: self.naive.running or self.naive.waiting or self.naive.again)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        everybody = [*self.naive.running, *self.naive.waiting, *self.naive.again]
        ticket = data.draw(st.sampled_from(everybody))
        self.queue.leave(ticket)
        self.naive.leave(ticket)

    @rule(by=st.sampled_from([0.5, 1.0, 4.0]))
    def expire(self, by: float) -> None:
        self.now += by
        waiting = [*self.naive.waiting, *self.naive.again]
        due = sorted((one for one in waiting if one.deadline <= self.now), key=lambda t: t.number)
        assert self.queue.expire(self.now) == due
        for ticket in due:
            self.naive.leave(ticket)

    @invariant()
    def counts_agree(self) -> None:
        waiting, again = self.naive.waiting, self.naive.again
        assert self.queue.waiting == len(waiting)
        assert self.queue.waits == bool(waiting or again)
        running = len(self.naive.running)
        assert self.queue.has_room() == (not waiting and not again and running < self.naive.limit)
        assert self.queue.running == len(self.naive.running) + len(again)
        if waiting:
            surplus = self.queue.surplus(waiting[-1])
            assert (surplus is not None) == (len(waiting) > self.places)
            if surplus is not None:
                tenants = Counter(one.tenant for one in waiting)
                sessions = Counter((one.tenant, one.session) for one in waiting)
                assert tenants[surplus.tenant] == max(tenants.values())
                own = {key: many for key, many in sessions.items() if key[0] == surplus.tenant}
                assert sessions[surplus.tenant, surplus.session] == max(own.values())
        deadlines = [one.deadline for one in (*waiting, *again)]
        assert self.queue.next_deadline() == min(deadlines, default=math.inf)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
