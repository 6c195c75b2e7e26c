"""What is kept of a request's answers, decided without a shell."""

from __future__ import annotations

from itertools import count

import pytest
from msgspec import structs

from slime_core.calls import Calls, wish_of
from slime_core.errors import ClientError
from slime_core.lookup import Wish
from slime_core.sglang import Answer, FinishReason
from slime_core.transitions import CallCaptured, CallLost, Lookup, Transition, VersionSeen
from slime_core.types import CallId, Encoding, PackedIds, WorkerUrl, pack_ids, pack_logprobs
from slime_core.versions import VersionRun
from tests.core.capture import TOY, TOY_BOS, Driver, Pieces

WORKER = WorkerUrl("w")


def _answer(ids: list[int], *, id: str = "", **changed: object) -> Answer:
    answer = Answer(
        id=id,
        text=TOY.vocabulary.decode(ids, skip_special=True),
        ids=pack_ids(ids),
        logprobs=pack_logprobs([-1.0] * len(ids)),
        finish_reason=FinishReason(type="length", raw=b"{}"),
        weight_version="1",
        versions=(VersionRun("1", 0, len(ids)),) if ids else (),
        prompt_tokens=None,
        completion_tokens=len(ids),
        cached_tokens=0,
        reasoning_tokens=0,
        top_logprobs=b"",
        extras={},
        problem=None,
    )
    return structs.replace(answer, **changed)


def _calls(driver: Driver, *, wish: Wish | None = None) -> Calls:
    numbers = count(len(driver.journal))
    return Calls(
        driver.state,
        driver.facts,
        commit=driver.apply,
        new_id=lambda: CallId(f"c{next(numbers)}"),
        wish=wish or Wish(),
    )


def _encode(calls: Calls, pieces: Pieces = TOY) -> list[PackedIds]:
    for place, prompt in calls.to_encode():
        rest = prompt.rest
        ids = pieces.encode(rest or "", encoding=prompt.encoding, first=prompt.is_first)
        calls.encoded(place, pack_ids(ids if rest is not None else []))
    return calls.prompts


def _asked(driver: Driver, text: str = "x", samples: int = 1) -> Calls:
    calls = _calls(driver)
    calls.open_text(text, Encoding.RAW, samples)
    _encode(calls)
    return calls


def _last(driver: Driver) -> Transition:
    return driver.journal[-1]


def test_an_answer_is_kept_after_its_weights_were_noticed() -> None:
    driver = Driver()
    calls = _asked(driver)
    assert calls.keep(0, _answer([97]), WORKER)
    seen, captured = driver.journal[-2:]
    assert seen == VersionSeen(worker=WORKER, version="1")
    assert isinstance(captured, CallCaptured)
    assert 0 not in calls.in_flight


def test_an_answer_with_a_problem_is_lost_as_corrupt() -> None:
    driver = Driver()
    calls = _asked(driver)
    assert not calls.keep(0, _answer([97], problem="no logprobs"), WORKER)
    assert _last(driver) == CallLost(call=calls.calls[0], reason="corrupt", sampled=True, text="xa")


def test_an_answer_that_bears_the_id_of_a_call_in_flight_is_lost_as_corrupt() -> None:
    driver = Driver()
    other, calls = _asked(driver), _asked(driver)
    assert not calls.keep(0, _answer([97], id=other.calls[0]), WORKER)


def test_an_answer_that_bears_the_id_of_a_call_that_ended_is_lost_as_corrupt() -> None:
    driver = Driver()
    other = _asked(driver)
    other.keep(0, _answer([98]), WORKER)
    assert not _asked(driver).keep(0, _answer([97], id=other.calls[0]), WORKER)


def test_answers_of_a_batch_that_changed_places_are_lost_as_corrupt() -> None:
    driver = Driver()
    calls = _calls(driver)
    calls.open_text("x", Encoding.RAW, 1)
    calls.open_text("y", Encoding.RAW, 1)
    _encode(calls)
    first, second = calls.calls
    assert not calls.keep(0, _answer([97], id=second), WORKER)
    assert not calls.keep(1, _answer([98], id=first), WORKER)


def test_samples_of_one_prompt_may_all_bear_the_id_of_one() -> None:
    driver = Driver()
    calls = _asked(driver, samples=2)
    assert calls.keep(1, _answer([97], id=calls.calls[0]), WORKER)


def test_the_id_of_a_sibling_is_no_alias() -> None:
    driver = Driver()
    calls = _asked(driver, samples=2)
    calls.keep(1, _answer([97], id=calls.calls[0]), WORKER)
    assert not driver.state.forest.aliases


def test_an_id_that_the_client_gave_is_its_own_though_a_call_has_it() -> None:
    driver = Driver()
    other, calls = _asked(driver), _asked(driver)
    given = other.calls[0]
    assert calls.keep(0, _answer([97], id=given), WORKER, aliases=(given,))


def test_an_alias_that_is_told_twice_names_one_call() -> None:
    driver = Driver()
    calls = _asked(driver)
    calls.keep(0, _answer([97], id="theirs"), WORKER, aliases=("theirs", "other"))
    assert driver.state.forest.aliases == dict.fromkeys(("theirs", "other"), (calls.calls[0],))


def test_an_id_that_the_router_never_gave_is_an_alias() -> None:
    driver = Driver()
    calls = _asked(driver)
    assert calls.keep(0, _answer([97], id="theirs"), WORKER)
    assert driver.state.forest.aliases["theirs"] == (calls.calls[0],)


def test_calls_that_are_open_when_a_request_ends_are_lost_once() -> None:
    driver = Driver()
    calls = _asked(driver, samples=3)
    calls.keep(1, _answer([97]), WORKER)
    calls.end("client_gone", sampled=True)
    calls.end("again", sampled=True)
    lost = [fact for fact in driver.journal if isinstance(fact, CallLost)]
    assert [fact.call for fact in lost] == [calls.calls[0], calls.calls[2]]
    assert {fact.reason for fact in lost} == {"client_gone"}


def test_an_empty_text_of_its_own_is_encoded_for_what_stands_before_it() -> None:
    driver = Driver(TOY_BOS)
    calls = _calls(driver)
    calls.open_text("", Encoding.RAW, 1)
    assert _encode(calls, TOY_BOS) == [pack_ids(TOY_BOS.prefix_ids)]


def test_what_is_known_is_not_encoded_again() -> None:
    driver = Driver()
    driver.say("c", "abc", list(b"def"))
    calls = _calls(driver)
    calls.open_text("abcdef", Encoding.RAW, 1)
    ((place, prompt),) = calls.to_encode()
    assert prompt.rest is None
    calls.encoded(place, PackedIds(b""))
    looked = _last(driver)
    assert isinstance(looked, Lookup)
    assert looked.tokens == looked.reused


def test_a_parent_that_is_not_known_is_the_clients_error_and_names_the_field() -> None:
    with pytest.raises(ClientError) as caught:
        wish_of(Driver().state, None, "nobody")
    assert (caught.value.status, caught.value.param) == (404, "parent_id")
