"""Logprobs that are read later: the same comes of it as of reading them at once."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from slime_core import sglang
from slime_core.calls import Calls
from slime_core.decide import Limits, find_call, next_gone, plan_retrieval
from slime_core.errors import ClientError, InvariantError, WorkerError
from slime_core.lookup import Wish
from slime_core.state import RouterState
from slime_core.trajectory import count_other_answers, trajectory
from slime_core.transitions import AnswerWithdrawn, LogprobsRead, SessionOpened
from slime_core.types import CallId, Encoding, WorkerUrl, pack_ids, pack_logprobs
from slime_core.unread import next_unread, read_unread
from tests.core.capture import TOY, Driver

ASKED = sglang.parse_generate(b'{"text":"a"}')
WORKER = WorkerUrl("w")
TOKENS = st.lists(
    st.tuples(st.floats(max_value=0, allow_nan=False, allow_infinity=False), st.integers(97, 122)),
    min_size=1,
    max_size=12,
)


def body(ids: list[int], triples: Any, **meta: Any) -> bytes:
    told = {"id": "", "finish_reason": {"type": "length", "length": 2}, "weight_version": "7"}
    written = triples if isinstance(triples, str) else json.dumps(triples)
    whole = {
        "text": TOY.vocabulary.decode(ids, skip_special=True),
        "output_ids": ids,
        "meta_info": told | {"output_token_logprobs": "TRIPLES"} | meta,
    }
    return json.dumps(whole).replace('"TRIPLES"', written).encode()


def triples_of(tokens: list[tuple[float, int]]) -> list[list[Any]]:
    return [[logprob, token, None] for logprob, token in tokens]


def asked(driver: Driver, text: str = "x", session: str | None = None) -> Calls:
    numbers = count(driver.state.counters.calls_opened)
    calls = Calls(
        driver.state,
        driver.facts,
        commit=driver.apply,
        new_id=lambda: CallId(f"c{next(numbers)}"),
        wish=Wish(session=session),
    )
    calls.open_text(text, Encoding.RAW, 1)
    for place, prompt in calls.to_encode():
        rest = prompt.rest or ""
        ids = TOY.encode(rest, encoding=prompt.encoding, first=prompt.is_first) if rest else []
        calls.encoded(place, pack_ids(ids))
    return calls


def kept(driver: Driver, data: bytes, *, at_once: bool = False, **how: Any) -> CallId:
    """The call that ``data`` answers."""
    calls = asked(driver, **how)
    (answer,) = sglang.parse_answer(data, ASKED, unread_from=None if at_once else 0)
    assert calls.keep(0, answer, WORKER) or at_once
    return calls.calls[0]


def read_next(driver: Driver) -> None:
    unread = next_unread(driver.state)
    assert unread is not None
    driver.apply(read_unread(unread))


def columns(state: RouterState, call: CallId) -> Any:
    return trajectory(state.forest, state.forest.calls[call])


# -- what fits ---------------------------------------------------------------------------------


@given(TOKENS, st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")]))
@settings(deadline=None, max_examples=60)
def test_what_is_read_later_is_what_would_have_been_read_at_once(
    tokens: list[tuple[float, int]], separators: tuple[str, str]
) -> None:
    data = body([token for _, token in tokens], triples_of(tokens))
    spaced = json.dumps(json.loads(data), separators=separators).encode()
    at_once, later = Driver(), Driver()
    kept(at_once, spaced, at_once=True)
    kept(later, spaced)
    assert later.state.forest.unread
    read_next(later)
    assert later.state.digest() == at_once.state.digest()
    later.state.check()


@given(TOKENS, TOKENS)
@settings(deadline=None, max_examples=40)
def test_when_it_is_read_makes_no_difference(
    first: list[tuple[float, int]], second: list[tuple[float, int]]
) -> None:
    digests = set()
    for early in (True, False):
        driver = Driver()
        kept(driver, body([token for _, token in first], triples_of(first)))
        if early:
            read_next(driver)
        kept(driver, body([token for _, token in second], triples_of(second)), text="y")
        while driver.state.forest.unread:
            read_next(driver)
        digests.add(driver.state.digest())
    assert len(digests) == 1


def test_an_answer_is_committed_with_the_worker_s_own_words() -> None:
    driver = Driver()
    call = kept(driver, body([97], [[-0.5, 97, None]]))
    answer = driver.state.forest.calls[call].answer
    assert answer is not None
    assert (answer.unread, answer.logprobs) == (b"[[-0.5, 97, null]]", b"")


def test_nothing_is_told_of_logprobs_that_are_unread() -> None:
    driver = Driver()
    call = kept(driver, body([97], [[-0.5, 97, None]]))
    with pytest.raises(InvariantError, match="are read before"):
        columns(driver.state, call)
    twin = kept(driver, body([97], [[-0.5, 97, None]]))
    with pytest.raises(InvariantError, match="are read before"):
        count_other_answers(driver.state.forest.calls[twin])


def test_a_look_up_comes_upon_nothing_unread() -> None:
    driver = Driver()
    call = kept(driver, body([97, 98], [[-0.5, 97, None], [-0.25, 98, None]]))
    asked(driver, "xabc")
    assert not driver.state.forest.unread
    assert list(columns(driver.state, call).logprobs[-2:]) == [-0.5, -0.25]


def test_a_prompt_of_ids_reads_what_is_unread_too() -> None:
    driver = Driver()
    kept(driver, body([97], [[-0.5, 97, None]]))
    calls = Calls(
        driver.state,
        driver.facts,
        commit=driver.apply,
        new_id=lambda: CallId("c"),
        wish=Wish(),
    )
    calls.open_ids(pack_ids([97]), 1)
    assert not driver.state.forest.unread


def test_what_leaves_memory_unread_is_read_no_more() -> None:
    driver = Driver()
    kept(driver, body([97], [[-0.5, 97, None]]))
    unread = next_unread(driver.state)
    gone = next_gone(driver.state, Limits(reuse_tokens=0, data_bytes=0, epochs=9))
    assert gone is not None
    driver.apply(gone)
    assert next_unread(driver.state) is None
    assert unread is not None
    with pytest.raises(InvariantError, match="only what is kept unread"):
        driver.apply(read_unread(unread))


def test_the_oldest_is_read_first() -> None:
    driver = Driver()
    before = [asked(driver), asked(driver, "y")]
    (answer,) = sglang.parse_answer(body([97], [[-0.5, 97, None]]), ASKED, unread_from=0)
    for calls in before:
        calls.keep(0, answer, WORKER)
    for calls in before:
        unread = next_unread(driver.state)
        assert unread is not None
        assert unread.call == calls.calls[0]
        read_next(driver)
    assert next_unread(driver.state) is None


# -- memory ------------------------------------------------------------------------------------


def test_the_worker_s_words_count_until_they_are_read() -> None:
    driver, at_once = Driver(), Driver()
    tokens = [(-0.5, 97)] * 30
    data = body([97] * 30, triples_of(tokens))
    kept(driver, data)
    kept(at_once, data, at_once=True)
    forest, other = driver.state.forest, at_once.state.forest
    words = len(json.dumps(triples_of(tokens)))
    assert forest.data_bytes == other.data_bytes - 4 * 30 + words
    assert forest.total_bytes == other.total_bytes - 4 * 30 + words
    read_next(driver)
    assert forest.data_bytes == other.data_bytes
    assert forest.total_bytes == other.total_bytes


def test_what_is_retrieved_already_is_no_data_when_it_is_read() -> None:
    driver = Driver()
    call = kept(driver, body([97], [[-0.5, 97, None]]))
    driver.state.forest.retrieve(driver.state.forest.calls[call], 0)
    held = driver.state.forest.answer_bytes_wanted
    read_next(driver)
    assert driver.state.forest.answer_bytes_wanted == held


# -- what does not fit -------------------------------------------------------------------------

# Their first and last entries agree with the ids: the check before the commit passes them.
WRONG = {
    "another token": [[-0.5, 97, None], [-0.5, 99, None], [-0.5, 97, None]],
    "one too few": [[-0.5, 97, None], [-0.5, 97, None]],
    "one too many": [[-0.5, 97, None], *[[-0.5, 98, None]] * 2, [-0.5, 97, None]],
    "no logprob": [[-0.5, 97, None], [None, 98, None], [-0.5, 97, None]],
    "a short entry": [[-0.5, 97, None], [-0.5], [-0.5, 97, None]],
    "no entry": [[-0.5, 97, None], 5, [-0.5, 97, None]],
    "nothing": [[-0.5, 97, None], None, [-0.5, 97, None]],
    "a token that is none": [[-0.5, 97, None], [-0.5, -1, None], [-0.5, 97, None]],
    "a token too large": [[-0.5, 97, None], [-0.5, 2**40, None], [-0.5, 97, None]],
    "a fraction of a token": [[-0.5, 97, None], [-0.5, 98.5, None], [-0.5, 97, None]],
    "truth": [[-0.5, 97, None], [True, 98, None], [-0.5, 97, None]],
    "an object": [[-0.5, 97, None], {}, [-0.5, 97, None]],
    "not a number": "[[-0.5,97,null],[NaN,98,null],[-0.5,97,null]]",
    "no JSON": "[[-0.5,97,null],[-0.5,98,null]x,[-0.5,97,null]]",
    "two lists": "[[-0.5,97,null],[-0.5,98,null]],[[-0.5,97,null]]",
    "an open list": "[[-0.5,97,null],[-0.5,98,null,[-0.5,97,null]]",
}


@pytest.fixture(params=WRONG.values(), ids=list(WRONG))
def withdrawn(request: pytest.FixtureRequest) -> tuple[Driver, CallId]:
    driver = Driver()
    driver.apply(SessionOpened(session="s", now=0.0))
    call = kept(driver, body([97, 98, 97], request.param), session="s")
    assert call in driver.state.forest.unread
    read_next(driver)
    assert isinstance(driver.journal[-1], AnswerWithdrawn)
    return driver, call


def test_a_wrong_answer_is_withdrawn_and_known_as_corrupt(
    withdrawn: tuple[Driver, CallId],
) -> None:
    driver, call = withdrawn
    driver.state.check()
    with pytest.raises(ClientError) as caught:
        find_call(driver.state, call)
    assert (caught.value.status, caught.value.code) == (410, "corrupt")
    with pytest.raises(ClientError) as caught:
        plan_retrieval(driver.state, driver.facts, "xaba", None)
    assert (caught.value.status, caught.value.code) == (410, "corrupt")


def test_what_goes_on_from_a_withdrawn_answer_says_so(withdrawn: tuple[Driver, CallId]) -> None:
    driver, _ = withdrawn
    assert "history_corrupt" in asked(driver, "xaba and on").flags


def test_a_withdrawn_answer_counts_as_lost(withdrawn: tuple[Driver, CallId]) -> None:
    driver, _ = withdrawn
    counters, session = driver.state.counters, driver.state.sessions.known["s"]
    assert (counters.calls_lost, counters.answers_not_captured) == (1, 1)
    assert (session.calls, session.tokens, session.lost) == (0, 0, {"corrupt": 1})
    assert driver.state.forest.answer_bytes == 0


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
def test_read_at_once_it_is_lost_or_the_worker_s_fault(wrong: Any) -> None:
    driver = Driver()
    try:
        call = kept(driver, body([97, 98, 97], wrong), at_once=True)
    except WorkerError:
        return
    assert driver.state.forest.gone.call(call) == "corrupt"


@pytest.mark.parametrize(
    "triples",
    [
        [[-0.5, 98, None], [-0.5, 98, None]],
        [[-0.5, 97, None], [-0.5, 99, None]],
        [[None, 97, None], [-0.5, 98, None]],
        [[-0.5, 97, None], [None, 98, None]],
        [],
        [5],
    ],
)
def test_answers_that_do_not_agree_at_their_ends_are_read_at_once(triples: Any) -> None:
    try:
        (answer,) = sglang.parse_answer(body([97, 98], triples), ASKED, unread_from=0)
    except WorkerError:
        return
    assert not answer.unread
    assert answer.problem is not None


def test_an_entry_with_text_is_read_at_once() -> None:
    triples = [[-0.5, 97, "a]],[["], [-0.25, 98, '"b"']]
    (answer,) = sglang.parse_answer(body([97, 98], triples), ASKED, unread_from=0)
    assert not answer.unread
    assert answer.logprobs == pack_logprobs([-0.5, -0.25])


def test_a_short_list_is_read_at_once() -> None:
    data = body([97], [[-0.5, 97, None]])
    (answer,) = sglang.parse_answer(data, ASKED, unread_from=19)
    assert not answer.unread
    (answer,) = sglang.parse_answer(data, ASKED, unread_from=18)
    assert answer.unread == b"[[-0.5, 97, null]]"


def test_a_withdrawal_of_what_something_extends_is_our_bug() -> None:
    driver = Driver()
    call = kept(driver, body([97], [[-0.5, 97, None]]))
    read_next(driver)
    asked(driver, "xab")
    segment = driver.state.forest.calls[call]
    with pytest.raises(InvariantError, match="leaf"):
        driver.state.forest.withdraw(segment, "corrupt")


def test_books_of_what_is_unread_are_checked() -> None:
    driver = Driver()
    call = kept(driver, body([97], [[-0.5, 97, None]]))
    driver.state.check()
    segment = driver.state.forest.calls[call]
    assert segment.answer is not None
    segment.answer = structs.replace(segment.answer, unread=b"")
    with pytest.raises(InvariantError, match="unread"):
        driver.state.check()


def test_the_journal_replays_to_the_same_state() -> None:
    driver = Driver()
    kept(driver, body([97], [[-0.5, 97, None]]))
    read_next(driver)
    kept(driver, body([97, 98, 97], WRONG["no logprob"]), text="y")
    read_next(driver)
    again = RouterState()
    for fact in driver.journal:
        again.apply(fact)
    assert again.digest() == driver.state.digest()
    assert isinstance(driver.journal[-1], AnswerWithdrawn)
    assert any(isinstance(fact, LogprobsRead) for fact in driver.journal)
