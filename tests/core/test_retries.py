"""Retries are told by evidence: what a request says of itself, and what became of others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.retries import (
    AGE_S,
    Book,
    Conflict,
    Evidence,
    Join,
    New,
    Replay,
    State,
    Unresolved,
    decide,
)

KEYED = Evidence(scope="", path="/p", digest=b"d", key="k")
PLAIN = Evidence(scope="", path="/p", digest=b"d")
OURS = Evidence(scope="s", path="/p", digest=b"d")
OTHERS = ({"scope": "t"}, {"scope": ""}, {"client": b"bob"})
ENDS = (State.DELIVERED, State.LOST, State.ABORTED, State.FAILED)


def _retry(evidence: Evidence, count: int = 1) -> Evidence:
    return replace(evidence, count=count)


class _Past:
    """A book in which things have happened, one second each."""

    def __init__(self, **limits: float) -> None:
        limits.setdefault("most_bytes", 100)
        self.book = Book(**limits)  # type: ignore[arg-type]
        self.now = 0.0

    def attempt(
        self,
        evidence: Evidence,
        state: State | None = None,
        *,
        size: int = 1,
        calls: tuple[str, ...] = ("c",),
    ) -> int:
        """One attempt; its number."""
        self.now += 1
        decision = decide(self.book, evidence, self.now)
        after = decision.after if isinstance(decision, New) else None
        number = self.book.begin(evidence, self.now, after=after)
        self.book.grow(number, size)
        if state is not None:
            self.book.settle(number, state, self.now, calls=calls)
        return number

    def decide(self, evidence: Evidence) -> object:
        self.now += 1
        return decide(self.book, evidence, self.now)

    def word(self, evidence: Evidence) -> str:
        """The decision's kind, and whom it follows."""
        decision = self.decide(evidence)
        kind = type(decision).__name__.lower()
        follows = getattr(decision, "attempt", None) or getattr(decision, "after", None)
        return kind if follows is None else f"{kind} {follows.number}"


# -- twins -------------------------------------------------------------------------------------


@pytest.mark.parametrize("evidence", [PLAIN, OURS])
def test_an_identical_body_alone_never_joins(evidence: Evidence) -> None:
    past = _Past()
    for _ in range(8):
        past.attempt(evidence)
        assert past.word(evidence) == "new"


@pytest.mark.parametrize("state", ENDS)
def test_nor_does_it_follow_anything_without_a_session(state: State) -> None:
    past = _Past()
    past.attempt(PLAIN, state)
    assert past.word(PLAIN) == "new"


def test_another_body_path_session_or_credential_is_no_candidate() -> None:
    past = _Past()
    past.attempt(OURS)
    for change in (*OTHERS, {"digest": b"e"}, {"path": "/q"}):
        assert past.word(replace(OURS, count=1, **change)) == "new"


# -- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (None, "join 0"),
        (State.DELIVERED, "replay 0"),
        (State.LOST, "replay 0"),
        (State.ABORTED, "new 0"),
        (State.FAILED, "new 0"),
    ],
)
def test_a_key_names_its_attempt(state: State | None, expected: str) -> None:
    past = _Past()
    past.attempt(KEYED, state)
    assert past.word(KEYED) == expected


def test_a_key_may_be_replayed_any_number_of_times() -> None:
    past = _Past()
    number = past.attempt(KEYED, State.DELIVERED)
    for _ in range(3):
        assert past.word(KEYED) == "replay 0"
        past.book.claim(number, 0)
        past.book.settle(number, State.LOST, past.now)


@pytest.mark.parametrize("change", [{"digest": b"e"}, {"path": "/q"}])
@pytest.mark.parametrize("state", [None, State.DELIVERED, State.LOST, State.ABORTED])
def test_a_key_with_another_request_is_a_conflict(
    state: State | None, change: dict[str, object]
) -> None:
    past = _Past()
    past.attempt(KEYED, state)
    assert past.decide(replace(KEYED, **change)) == Conflict()  # type: ignore[arg-type]


def test_nothing_is_saved_under_a_key_that_was_told_an_error() -> None:
    past = _Past()
    past.attempt(KEYED, State.FAILED)
    assert past.word(replace(KEYED, digest=b"e")) == "new"


@pytest.mark.parametrize("change", OTHERS)
@pytest.mark.parametrize("state", [None, State.DELIVERED])
def test_keys_of_different_sessions_and_credentials_have_nothing_to_do_with_each_other(
    state: State | None, change: dict[str, object]
) -> None:
    past = _Past()
    ours = replace(KEYED, scope="s")
    past.attempt(ours, state)
    assert past.word(replace(ours, **change)) == "new"  # type: ignore[arg-type]
    assert past.word(replace(ours, digest=b"e", **change)) == "new"  # type: ignore[arg-type]


def test_a_key_and_none_are_different_requests() -> None:
    past = _Past()
    past.attempt(KEYED)
    assert past.word(_retry(PLAIN)) == "new"
    past.attempt(PLAIN)
    assert past.word(_retry(replace(KEYED, key="l"))) == "new"


def test_a_key_whose_answer_is_gone_is_unresolved_and_then_means_the_new_attempt() -> None:
    past = _Past(most_bytes=0)
    past.attempt(KEYED, State.DELIVERED)
    assert past.decide(KEYED) == Unresolved(("unresolved_retry",))
    past.book.begin(KEYED, past.now)
    assert past.word(KEYED) == "join 1"


# -- counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (None, "join 0"),
        (State.DELIVERED, "unresolved"),
        (State.LOST, "replay 0"),
        (State.ABORTED, "new 0"),
        (State.FAILED, "new 0"),
    ],
)
@pytest.mark.parametrize("evidence", [PLAIN, OURS])
def test_a_count_means_the_only_attempt_it_can(
    state: State | None, expected: str, evidence: Evidence
) -> None:
    past = _Past()
    past.attempt(evidence, state)
    assert past.word(_retry(evidence)) == expected


@pytest.mark.parametrize("one", [None, State.LOST, State.ABORTED])
@pytest.mark.parametrize("other", [None, State.LOST, State.ABORTED])
def test_of_several_none_is_guessed(one: State | None, other: State | None) -> None:
    past = _Past()
    past.attempt(PLAIN, one)
    past.attempt(PLAIN, other)
    assert past.word(_retry(PLAIN)) == "unresolved"


def test_a_retry_is_claimed_once_by_each_count() -> None:
    past = _Past()
    number = past.attempt(PLAIN)
    past.book.claim(number, 1)
    assert past.word(_retry(PLAIN, 1)) == "new"
    assert past.word(_retry(PLAIN, 2)) == "join 0"


def test_a_retry_is_no_candidate_for_one_of_its_own_count() -> None:
    past = _Past()
    past.attempt(_retry(PLAIN))
    assert past.word(_retry(PLAIN)) == "new"
    assert past.word(_retry(PLAIN, 2)) == "join 0"


def test_a_retry_of_nothing_but_answers_that_were_delivered_says_so() -> None:
    past = _Past()
    for _ in range(3):
        past.attempt(OURS, State.DELIVERED)
    for change in (*OTHERS, {"digest": b"e"}, {"path": "/q"}):
        assert past.word(replace(OURS, count=1, **change)) == "new"
    assert past.decide(_retry(OURS)) == Unresolved(("unresolved_retry",))
    assert past.word(OURS) == "new"


def test_beside_a_delivered_answer_the_one_that_came_to_nothing_is_meant() -> None:
    past = _Past()
    past.attempt(PLAIN, State.DELIVERED)
    past.attempt(PLAIN, State.ABORTED)
    assert past.word(_retry(PLAIN)) == "new 1"


def test_twins_that_were_all_told_an_error_are_retried_without_doubt() -> None:
    past = _Past()
    for _ in range(3):
        past.attempt(PLAIN, State.FAILED, calls=())
    past.attempt(PLAIN)
    for failed in range(3):
        assert past.word(_retry(PLAIN)) == f"new {failed}"
        past.attempt(_retry(PLAIN))


def test_an_error_beside_a_lost_reply_leaves_it_open_which_is_retried() -> None:
    past = _Past()
    past.attempt(PLAIN, State.FAILED)
    past.attempt(PLAIN, State.LOST)
    assert past.word(_retry(PLAIN)) == "unresolved"


# -- lost replies in a session -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "expected"),
    [(State.LOST, "replay 1"), (State.ABORTED, "new 1"), (State.FAILED, "new")],
)
def test_in_a_session_the_same_body_follows_a_reply_that_was_lost(
    state: State, expected: str
) -> None:
    past = _Past()
    past.attempt(OURS)
    past.attempt(OURS, state)
    assert past.word(OURS) == expected


def test_several_lost_replies_are_not_told_apart() -> None:
    past = _Past()
    first, second = past.attempt(OURS), past.attempt(OURS)
    past.book.settle(first, State.LOST, past.now)
    past.book.settle(second, State.LOST, past.now)
    assert past.word(OURS) == "unresolved"


def test_a_lost_reply_is_replayed_once_at_a_time() -> None:
    past = _Past()
    number = past.attempt(OURS, State.LOST)
    past.book.claim(number, 0)
    assert past.word(OURS) == "new"
    past.book.settle(number, State.LOST, past.now)
    assert past.word(OURS) == "replay 0"
    past.book.claim(number, 0)
    past.book.settle(number, State.DELIVERED, past.now)
    assert past.word(OURS) == "new"


# -- what is superseded ------------------------------------------------------------------------


def test_what_was_cut_off_is_named_by_its_retry() -> None:
    past = _Past()
    past.attempt(OURS, State.ABORTED, calls=("a", "b"))
    decision = past.decide(OURS)
    assert isinstance(decision, New)
    assert decision.flags == ("retry", "retry_of:a", "retry_of:b")


def test_a_retry_of_what_never_sampled_is_simply_new() -> None:
    past = _Past()
    past.attempt(PLAIN, State.FAILED, calls=())
    decision = past.decide(_retry(PLAIN))
    assert isinstance(decision, New)
    assert decision.flags == ()


def test_a_retry_that_never_sampled_hands_on_what_it_was_to_supersede() -> None:
    past = _Past()
    past.attempt(OURS, State.ABORTED, calls=("a",))
    past.attempt(OURS, State.FAILED, calls=())
    decision = past.decide(OURS)
    assert isinstance(decision, New)
    assert decision.flags == ("retry", "retry_of:a")


def test_an_attempt_has_one_retry_in_its_place() -> None:
    past = _Past()
    past.attempt(OURS, State.ABORTED)
    past.attempt(OURS)
    assert past.word(OURS) == "new"


# -- bounds ------------------------------------------------------------------------------------


def test_an_attempt_is_forgotten_after_its_time() -> None:
    past = _Past()
    past.attempt(KEYED, State.DELIVERED)
    at = past.now
    assert decide(past.book, KEYED, at + AGE_S) != New()
    assert decide(past.book, KEYED, at + AGE_S + 1) == New()
    assert past.book.expire(at + AGE_S) == []
    assert past.book.expire(at + AGE_S + 1) == [0]
    assert (len(past.book), past.book.bytes_kept) == (0, 0)


def test_a_delivered_answer_is_forgotten_after_its_time() -> None:
    past = _Past()
    past.attempt(PLAIN, State.DELIVERED)
    at, retry = past.now, _retry(PLAIN)
    assert decide(past.book, retry, at + AGE_S) == Unresolved()
    assert decide(past.book, retry, at + AGE_S + 1) == New()
    past.book.expire(at + AGE_S + 1)
    assert decide(past.book, retry, at) == New()


def test_only_so_many_delivered_answers_are_remembered_and_the_latest_count() -> None:
    past = _Past(most_attempts=2)
    bodies = [replace(PLAIN, digest=bytes([number])) for number in (0, 1, 2, 0)]
    for body in bodies:
        past.attempt(body, State.DELIVERED)
    past.book.expire(past.now)
    assert [past.word(_retry(body)) for body in bodies[:3]] == ["unresolved", "new", "unresolved"]


def test_an_attempt_in_flight_is_not_forgotten() -> None:
    past = _Past()
    past.attempt(KEYED)
    assert past.book.expire(past.now + 10 * AGE_S) == []
    assert isinstance(decide(past.book, KEYED, past.now + 10 * AGE_S), Join)


def test_the_oldest_go_where_there_are_too_many() -> None:
    past = _Past(most_attempts=2)
    keys = [replace(KEYED, key=str(number)) for number in range(4)]
    for key in keys:
        past.attempt(key, State.DELIVERED)
    assert past.book.expire(past.now) == [0, 1]
    assert [past.word(key) for key in keys] == ["new", "new", "replay 2", "replay 3"]


def test_answers_make_room_for_newer_ones() -> None:
    past = _Past(most_bytes=10)
    first = past.attempt(KEYED, State.DELIVERED, size=6)
    second = past.attempt(OURS, size=0)
    assert past.book.grow(second, 5) == [first]
    assert past.book.bytes_kept == 5
    assert past.word(KEYED) == "unresolved"


def test_an_answer_that_outgrows_the_room_can_no_longer_be_joined() -> None:
    past = _Past(most_bytes=10)
    number = past.attempt(KEYED, size=8)
    assert past.book.grow(number, 3) == [number]
    assert past.word(KEYED) == "unresolved"
    assert past.book.settle(number, State.DELIVERED, past.now) == [number]
    assert past.book.bytes_kept == 0


def test_what_no_retry_can_ask_for_is_not_kept() -> None:
    past = _Past()
    for evidence, state in [(PLAIN, State.DELIVERED), (OURS, State.ABORTED), (KEYED, State.FAILED)]:
        number = past.attempt(evidence, size=9)
        assert past.book.settle(number, state, past.now) == [number]
    assert past.book.bytes_kept == 0


def test_an_end_is_noted_once() -> None:
    past = _Past()
    number = past.attempt(OURS, State.ABORTED)
    assert past.book.settle(number, State.LOST, past.now) == []
    assert past.word(OURS) == "new 0"


def test_an_answer_that_grows_behind_its_end_is_not_given_again() -> None:
    past = _Past()
    keyed = replace(OURS, key="k")
    number = past.attempt(keyed, State.DELIVERED)
    assert past.book.grow(number, 1) == [number]
    assert isinstance(decide(past.book, keyed, past.now), Unresolved)


# -- any history -------------------------------------------------------------------------------

EVIDENCE = st.builds(
    Evidence,
    scope=st.sampled_from(["", "s"]),
    path=st.just("/p"),
    digest=st.sampled_from([b"d", b"e"]),
    client=st.sampled_from([b"", b"alice"]),
    key=st.sampled_from([None, None, "k"]),
    count=st.integers(0, 2),
)
STEPS = st.lists(
    st.one_of(
        EVIDENCE,
        st.tuples(st.integers(0, 9), st.sampled_from(ENDS)),
        st.tuples(st.integers(0, 9), st.integers(1, 40)),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_happens_bytes_are_bounded_and_nobody_shares_without_evidence(
    steps: list[Evidence | tuple[int, State] | tuple[int, int]],
) -> None:
    past = _Past(most_bytes=60, most_attempts=4, age_s=20.0)
    book, begun, gone = past.book, list[int](), set[int]()
    for step in steps:
        past.now += 1
        if isinstance(step, Evidence):
            gone.update(book.expire(past.now))
            decision = decide(book, step, past.now)
            assert decide(book, step, past.now) == decision
            if isinstance(decision, Join | Replay):
                attempt = decision.attempt
                assert step.key or step.count > attempt.count or attempt.state is State.LOST
                assert attempt.evidence == replace(step, count=attempt.evidence.count)
                assert attempt.number not in gone
                book.claim(attempt.number, step.count)
            elif not isinstance(decision, Conflict):
                after = decision.after if isinstance(decision, New) else None
                begun.append(book.begin(step, past.now, after=after))
        elif step[0] in begun:
            number, what = step
            if isinstance(what, State):
                gone.update(book.settle(number, what, past.now, calls=("c",)))
            else:
                gone.update(book.grow(number, what))
        assert 0 <= book.bytes_kept <= 60
    for number in begun:
        book.settle(number, State.LOST, past.now)
    book.expire(past.now + 21)
    assert (len(book), book.bytes_kept) == (0, 0)
