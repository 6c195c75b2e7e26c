"""Sessions: opened, used, sealed, ended, expired; what they free, and what they refuse."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.errors import ClientError, InvariantError
from slime_core.session_book import SessionBook
from slime_core.sessions import (
    expire,
    is_delivered,
    may_write,
    next_deadline,
    next_leaving,
    require_known,
    require_open,
    require_writable,
)
from slime_core.state import RouterState
from slime_core.transitions import (
    CallLost,
    Retrieved,
    SegmentsGone,
    SessionCollected,
    SessionEnded,
    SessionFreed,
    SessionOpened,
    SessionSealed,
    SessionUsed,
)
from slime_core.types import CallId
from tests.core.capture import Driver
from tests.core.sessions_support import SESSION, Agents, say

_IDLE_S = 10.0


def _opened(now: float = 0.0, name: str = SESSION) -> SessionOpened:
    return SessionOpened(session=name, now=now, key_digest=name.encode())


def _ended(reason: str = "deleted") -> SessionEnded:
    return SessionEnded(session=SESSION, reason=reason)


def _free(driver: Driver) -> list[SegmentsGone]:
    """Free all that can be; what left."""
    found = []
    while (step := next_leaving(driver.state)) is not None:
        driver.apply(step)
        if isinstance(step, SegmentsGone):
            found.append(step)
    return found


# -- refusals ----------------------------------------------------------------------------------


def test_a_session_that_only_a_header_names_takes_calls() -> None:
    assert may_write(RouterState(), "anything") is None
    require_writable(RouterState(), "anything")


def test_no_session_takes_calls() -> None:
    assert may_write(RouterState(), None) is None


def test_a_sealed_session_takes_no_calls() -> None:
    state = RouterState()
    state.apply(_opened())
    state.apply(SessionSealed(session=SESSION))
    assert may_write(state, SESSION) == "session_sealed"
    with pytest.raises(ClientError) as caught:
        require_writable(state, SESSION)
    assert (caught.value.status, caught.value.code) == (409, "session_sealed")
    require_open(state, SESSION)


@pytest.mark.parametrize("reason", ["deleted", "expired"])
def test_a_session_that_ended_leaves_word_of_why(reason: str) -> None:
    state = RouterState()
    state.apply(_opened())
    state.apply(_ended(reason))
    assert may_write(state, SESSION) == f"session_{reason}"
    with pytest.raises(ClientError) as caught:
        require_known(state, SESSION)
    assert (caught.value.status, caught.value.code) == (410, f"session_{reason}")


def test_a_session_nobody_heard_of_is_not_found() -> None:
    with pytest.raises(ClientError) as caught:
        require_known(RouterState(), "x")
    assert (caught.value.status, caught.value.code) == (404, "session_not_found")


def test_a_session_with_captured_answers_is_known_without_being_opened() -> None:
    driver = Driver()
    say(driver, "1", "x", "ab")
    assert require_known(driver.state, SESSION) is None


def test_only_so_many_ends_are_remembered() -> None:
    book = SessionBook(remembered=2)
    for name in "abc":
        book.open(_opened(name=name), 0, 0)
        book.end(SessionEnded(session=name, reason="deleted"))
    assert list(book.ended) == ["b", "c"]
    assert [book.name_of_key(name.encode()) for name in "abc"] == [None, "b", "c"]


def test_the_key_of_a_session_leads_to_it_even_when_it_is_over() -> None:
    state = RouterState()
    state.apply(_opened())
    assert state.sessions.name_of_key(SESSION.encode()) == SESSION
    state.apply(_ended())
    assert state.sessions.name_of_key(SESSION.encode()) == SESSION


@pytest.mark.parametrize(
    "facts",
    [
        [_opened(), _opened()],
        [_opened(), _ended(), _opened()],
        [_ended(), _ended()],
        [SessionUsed(session=SESSION, now=0.0)],
        [SessionSealed(session=SESSION)],
        [SessionFreed(session=SESSION)],
        [_opened(), SessionUsed(session=SESSION, now=0.0, requests=-1)],
        [_opened(), SessionOpened(session="other", now=0.0, key_digest=SESSION.encode())],
    ],
)
def test_what_cannot_be_is_a_bug_of_the_caller(facts: list[SessionOpened]) -> None:
    state = RouterState()
    for fact in facts[:-1]:
        state.apply(fact)
    with pytest.raises(InvariantError):
        state.apply(facts[-1])


# -- idling ------------------------------------------------------------------------------------


def test_no_session_no_deadline() -> None:
    assert next_deadline(RouterState(), _IDLE_S) is None
    assert expire(RouterState(), 1e9, _IDLE_S) is None


def test_a_session_expires_when_it_has_idled_for_long_enough() -> None:
    state = RouterState()
    state.apply(_opened(5.0))
    assert next_deadline(state, _IDLE_S) == 15.0
    assert expire(state, 14.9, _IDLE_S) is None
    assert expire(state, 15.0, _IDLE_S) == _ended("expired")


def test_use_puts_the_deadline_off_and_the_order_follows() -> None:
    state = RouterState()
    state.apply(_opened(0.0, "a"))
    state.apply(_opened(1.0, "b"))
    state.apply(SessionUsed(session="a", now=2.0))
    assert next_deadline(state, _IDLE_S) == 11.0
    found = expire(state, 11.0, _IDLE_S)
    assert found is not None
    assert found.session == "b"


def test_a_session_is_not_idle_while_a_request_of_it_is_served() -> None:
    state = RouterState()
    state.apply(_opened())
    for _ in range(2):
        state.apply(SessionUsed(session=SESSION, now=0.0, requests=1))
    state.apply(SessionUsed(session=SESSION, now=20.0, requests=-1))
    assert expire(state, 1e9, _IDLE_S) is None
    state.apply(SessionUsed(session=SESSION, now=50.0, requests=-1))
    assert next_deadline(state, _IDLE_S) == 60.0


# -- freeing -----------------------------------------------------------------------------------


def test_a_deleted_session_frees_all_that_only_it_needs() -> None:
    driver = Driver()
    driver.apply(_opened())
    held = say(driver, "1", "x", "ab")
    say(driver, "2", held + "y", "cd")
    say(driver, "3", "other", "d", session="T")
    driver.apply(_ended())
    _free(driver)
    driver.state.check()
    assert [one.answer.call for one in driver.state.forest.segments.values() if one.answer] == ["3"]
    assert SESSION not in driver.state.forest.sessions
    assert driver.state.counters.answers_lost_unretrieved == 0


def test_what_other_sessions_build_on_stays() -> None:
    driver = Driver()
    driver.apply(_opened())
    held = say(driver, "1", "x", "ab")
    say(driver, "2", held + "y", "cd", session="T")
    say(driver, "3", held + "z", "d")
    driver.apply(_ended())
    _free(driver)
    driver.state.check()
    assert set(driver.state.forest.calls) == {"1", "2"}


def test_a_call_that_is_gone_with_its_session_says_so() -> None:
    driver = Driver()
    driver.apply(_opened())
    say(driver, "1", "x", "ab")
    driver.apply(_ended())
    _free(driver)
    assert driver.state.forest.gone.call(CallId("1")) == "deleted"


def test_what_a_call_in_flight_holds_is_freed_when_that_ends() -> None:
    driver = Driver()
    driver.apply(_opened())
    held = say(driver, "1", "x", "ab")
    opened = driver.open_text("2", held + "y", session=SESSION)
    driver.keep(opened)
    driver.apply(_ended())
    _free(driver)
    assert set(driver.state.forest.calls) == {"1"}
    driver.apply(CallLost(call=CallId("2"), reason="session_deleted", sampled=True))
    _free(driver)
    assert driver.state.forest.segments == {}


def test_much_is_freed_in_several_steps() -> None:
    driver = Driver()
    driver.apply(_opened())
    for number in range(30):
        say(driver, str(number), f"x{number}", "ab")
    driver.apply(_ended())
    step = next_leaving(driver.state, segments=8)
    assert isinstance(step, SegmentsGone)
    assert 8 <= len(step.segments) < 12
    assert len(_free(driver)) == 1


def test_long_texts_are_freed_a_few_at_a_time() -> None:
    driver = Driver()
    driver.apply(_opened())
    for number in range(4):
        say(driver, str(number), f"{number}" * 50, "ab")
    driver.apply(_ended())
    step = next_leaving(driver.state, characters=60)
    assert isinstance(step, SegmentsGone)
    assert len(step.segments) == 2


def test_answers_that_expire_unseen_are_counted_as_lost() -> None:
    driver = Driver()
    driver.apply(_opened())
    for call in "123":
        say(driver, call, f"x{call}", "ab")
    collected = driver.state.forest.calls[CallId("1")].number
    driver.apply(SessionCollected(session=SESSION, segment=collected))
    driver.apply(Retrieved(call=CallId("2")))
    driver.apply(_ended("expired"))
    _free(driver)
    assert driver.state.counters.answers_lost_unretrieved == 1
    assert driver.state.counters.sessions_expired == 1


def test_what_was_collected_is_delivered_and_still_held_as_data() -> None:
    driver = Driver()
    driver.apply(_opened())
    say(driver, "1", "x", "ab")
    segment = driver.state.forest.calls[CallId("1")]
    assert not is_delivered(driver.state, segment)
    driver.apply(SessionCollected(session=SESSION, segment=segment.number))
    assert is_delivered(driver.state, segment)
    assert segment.wanted
    driver.state.check()


@given(st.integers(0, 10**6), st.integers(1, 14))
@settings(max_examples=60, deadline=None)
def test_deleting_leaves_the_books_in_order_and_nothing_that_could_go(
    seed: int, steps: int
) -> None:
    agents = Agents(random.Random(seed))
    agents.driver.apply(_opened())
    for _ in range(steps):
        agents.step()
    driver = agents.driver
    driver.apply(_ended())
    _free(driver)
    driver.state.check()
    assert driver.replayed().digest() == driver.state.digest()
    for segment in driver.state.forest.segments.values():
        own = segment.answer is not None and segment.answer.session == SESSION
        assert segment.children or not own


def test_every_fact_about_a_session_shows_in_the_digest() -> None:
    state, digests = RouterState(), set()
    for fact in (
        _opened(),
        SessionUsed(session=SESSION, now=1.0, requests=1),
        SessionSealed(session=SESSION),
        SessionCollected(session=SESSION, segment=3),
        _ended(),
        SessionFreed(session=SESSION),
    ):
        state.apply(fact)
        digests.add(state.digest())
    assert len(digests) == 6
