"""``apply``: every fact counted, none applied twice, the digest tells states apart."""

from __future__ import annotations

from typing import get_args

import pytest
from msgspec.structs import replace

from slime_core.errors import InvariantError
from slime_core.state import _APPLY, RouterState
from slime_core.transitions import (
    CallLost,
    CallOpened,
    Lookup,
    Retrieved,
    SegmentsGone,
    SlotsGiven,
    SlotsTaken,
    Transition,
    VersionSeen,
    WorkerAdded,
    WorkerPaused,
    WorkerRemoved,
)
from slime_core.types import CallId, WorkerUrl, unpack_ids
from tests.core.capture import Driver

_W = WorkerUrl("w")
_CALL = CallId("1")


def _driver() -> Driver:
    driver = Driver()
    driver.say("1", "x", [97, 98])
    return driver


def test_a_call_is_opened_once() -> None:
    state = RouterState()
    state.apply(CallOpened(call=_CALL, parent=None))
    with pytest.raises(InvariantError, match="opened once"):
        state.apply(CallOpened(call=_CALL, parent=None))


def test_a_captured_call_is_not_opened_again() -> None:
    with pytest.raises(InvariantError, match="opened once"):
        _driver().state.apply(CallOpened(call=_CALL, parent=None))


def test_a_call_ends_once() -> None:
    state = RouterState()
    state.apply(CallOpened(call=_CALL, parent=None))
    state.apply(CallLost(call=_CALL, reason="lost"))
    with pytest.raises(InvariantError, match="ends once"):
        state.apply(CallLost(call=_CALL, reason="lost"))


def test_a_call_is_captured_once() -> None:
    driver = Driver()
    fact = driver.captured(driver.open_text("1", "x"), [97])
    driver.apply(fact)
    with pytest.raises(InvariantError, match="ends once"):
        driver.apply(fact)


def test_what_is_not_kept_cannot_be_retrieved() -> None:
    with pytest.raises(InvariantError, match="retrieved"):
        RouterState().apply(Retrieved(call=_CALL))


def test_everything_is_counted() -> None:
    driver = _driver()
    state = driver.state
    state.apply(Lookup(tokens=10, reused=4, used=(1, 99)))
    state.apply(Lookup(tokens=10, reused=0))
    state.apply(Retrieved(call=_CALL))
    state.apply(CallOpened(call=CallId("2"), parent=None))
    state.apply(CallLost(call=CallId("2"), reason="lost", sampled=True))
    state.apply(SegmentsGone(segments=(2,), reason="collected"))
    state.apply(SegmentsGone(segments=(1,), reason="evicted", unretrieved=0))
    counters = state.counters
    assert (counters.lookups, counters.hits) == (3, 1)
    assert (counters.prompt_tokens, counters.reused_tokens) == (21, 4)
    assert (counters.calls_opened, counters.calls_captured, counters.calls_lost) == (2, 1, 1)
    assert (counters.answers_not_captured, counters.retrievals) == (1, 1)
    assert (counters.segments_collected, counters.segments_evicted) == (1, 1)


def test_a_look_up_keeps_what_it_used() -> None:
    driver = Driver()
    for call in "12":
        driver.say(call, "x", [97])
    forest = driver.state.forest
    assert forest.oldest_wanted() is forest.calls[_CALL]
    driver.apply(Lookup(tokens=1, reused=1, used=(forest.calls[_CALL].number,)))
    assert forest.oldest_wanted() is forest.calls[CallId("2")]


_FLEET: list[Transition] = [
    WorkerAdded(worker=_W),
    WorkerPaused(worker=_W, paused=True),
    SlotsTaken(worker=_W, calls=(_CALL,)),
    VersionSeen(worker=_W, version="7"),
    WorkerRemoved(worker=_W),
]


def test_every_fact_about_the_fleet_shows_in_the_digest() -> None:
    state, digests = RouterState(), set()
    for fact in _FLEET:
        state.apply(fact)
        digests.add(state.digest())
    state.apply(SlotsGiven(worker=_W, calls=(_CALL,)))
    assert len({*digests, state.digest()}) == len(_FLEET) + 1


def test_the_same_facts_give_the_same_digest_and_other_facts_another() -> None:
    driver = Driver()
    opened = driver.open_text("1", "x")
    fact = driver.captured(opened, [97, 98])
    other = replace(fact, answer=replace(fact.answer, finish_reason=b"{}x"))
    digests = []
    for one in (fact, fact, other):
        state = RouterState()
        for earlier in driver.journal:
            state.apply(earlier)
        state.apply(one)
        digests.append(state.digest())
    assert digests[0] == digests[1] != digests[2]


def test_every_prefix_of_a_journal_replays() -> None:
    driver = Driver()
    digests = []
    for call in "123":
        driver.say(call, f"x{call}", [97])
        digests.append((len(driver.journal), driver.state.digest()))
    for length, digest in digests:
        state = RouterState()
        for fact in driver.journal[:length]:
            state.apply(fact)
        assert state.digest() == digest


@pytest.mark.parametrize("damage", ["children", "pins", "wanted", "start", "columns"])
def test_the_check_finds_damage(damage: str) -> None:
    driver = _driver()
    segment = driver.state.forest.calls[_CALL]
    match damage:
        case "start":
            segment.token_start = 9
        case "columns":
            assert segment.answer is not None
            segment.answer = replace(segment.answer, logprobs=b"")
        case _:
            setattr(segment, damage, 5)
    with pytest.raises(InvariantError):
        driver.state.check()


def test_calls_that_begin_together_encode_their_prompt_once() -> None:
    driver = Driver()
    driver.keep(driver.open_text("1", "the prompt"))
    assert unpack_ids(driver.look("the prompt").run_ids) == list(b"the prompt")


def test_a_prompt_is_forgotten_with_the_last_call_that_needs_it() -> None:
    driver = Driver()
    first, second = driver.open_text("1", "x"), driver.open_text("2", "x")
    driver.keep(first)
    driver.keep(second)
    driver.lose(first)
    assert len(driver.state.forest.segments) == 1
    driver.lose(second)
    assert driver.state.forest.segments == {}


def test_a_prompt_stays_when_it_was_answered() -> None:
    driver = Driver()
    first, second = driver.open_text("1", "x"), driver.open_text("2", "x")
    driver.keep(first)
    driver.keep(second)
    driver.apply(driver.captured(first, [97]))
    driver.lose(second)
    assert len(driver.state.forest.segments) == 2


def test_a_prompt_in_flight_is_not_kept_for_reuse_alone() -> None:
    driver = Driver()
    driver.keep(driver.open_text("1", "x"))
    assert driver.state.forest.reuse_tokens == 0
    assert driver.state.forest.data_bytes > 0


def test_a_prompt_is_kept_once() -> None:
    driver = Driver()
    opened = driver.open_text("1", "x")
    driver.keep(opened)
    with pytest.raises(InvariantError, match="kept once"):
        driver.keep(opened)


def test_a_prompt_known_before_outlives_a_call_that_is_lost() -> None:
    driver = Driver()
    driver.say("1", "x", [97])
    driver.apply(Retrieved(call=CallId("1")))
    answer = driver.state.forest.calls[CallId("1")].number
    driver.apply(SegmentsGone(segments=(answer,), reason="evicted"))
    opened = driver.open_text("2", "x")
    driver.keep(opened)
    driver.lose(opened)
    assert len(driver.state.forest.segments) == 1


def test_there_is_a_way_to_apply_every_kind_of_fact() -> None:
    assert set(_APPLY) == set(get_args(Transition))
