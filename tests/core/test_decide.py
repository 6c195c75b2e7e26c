"""Decisions: what goes first, who gets work, what became of a call, how to answer a retrieval."""

from __future__ import annotations

import pytest

from slime_core.decide import (
    Limits,
    Retrieval,
    find_call,
    next_gone,
    next_untold,
    place,
    plan_retrieval,
    tell,
)
from slime_core.errors import ClientError, SlimeError, WorkerError
from slime_core.forest import EXTRA_BYTES_PER_TOKEN
from slime_core.gone import GoneMemory
from slime_core.policies import Placement, least_in_flight
from slime_core.state import RouterState
from slime_core.transitions import (
    CallLost,
    Retrieved,
    SegmentsGone,
    VersionSeen,
    WorkerMismatch,
    WorkerPaused,
    WorkerRemoved,
)
from slime_core.types import CallId, Encoding, PackedIds, WorkerUrl, unpack_ids
from tests.core.capture import EOS, TOY, TOY_BOS, Driver
from tests.fleet_support import joined

_PLENTY = 10**9


def _driver(*answers: str, prompt: str = "x") -> Driver:
    """One call ``i`` for each answer, all to one prompt."""
    driver = Driver()
    for number, answer in enumerate(answers):
        driver.say(str(number), prompt, list(answer.encode()))
    return driver


def _collect(driver: Driver, limits: Limits) -> list[tuple[str | None, str]]:
    """Let go what must go: the calls in order (``None``: a prompt), and why."""
    gone: list[tuple[str | None, str]] = []
    while (fact := next_gone(driver.state, limits)) is not None:
        answer = driver.state.forest.segments[fact.segments[0]].answer
        gone.append((None if answer is None else answer.call, fact.reason))
        driver.apply(fact)
    return gone


def _retrieve(driver: Driver, *calls: str) -> None:
    for call in calls:
        driver.apply(Retrieved(call=CallId(call)))


def _refusal(driver: Driver, call: str) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        find_call(driver.state, call)
    return caught.value.status, caught.value.code


# -- what is kept ------------------------------------------------------------------------


def test_nothing_goes_while_there_is_room() -> None:
    assert next_gone(_driver("ab").state, Limits()) is None


def test_data_is_kept_beside_the_bound_on_reuse() -> None:
    driver = _driver("ab", "cd")
    assert _collect(driver, Limits(reuse_tokens=0, data_bytes=_PLENTY)) == []


def test_what_was_retrieved_counts_as_kept_for_reuse() -> None:
    driver = _driver("ab", "cd")
    _retrieve(driver, "0")
    assert _collect(driver, Limits(reuse_tokens=0, data_bytes=_PLENTY)) == [("0", "evicted")]


def test_the_least_recently_used_goes_first() -> None:
    driver = _driver("ab", "cd", "ef")
    _retrieve(driver, "1", "0", "2")
    assert [call for call, _ in _collect(driver, Limits(reuse_tokens=0))][:3] == ["1", "0", "2"]


def test_the_bound_on_data_takes_the_oldest() -> None:
    driver = _driver("ab", "cd", "ef")
    a_little_less = driver.state.forest.data_bytes - 1
    assert _collect(driver, Limits(data_bytes=a_little_less)) == [("0", "evicted")]
    assert driver.state.counters.answers_lost_unretrieved == 1


def test_what_went_unused_for_epochs_is_collected() -> None:
    driver = _driver("ab", "cd")
    worker = WorkerUrl("w")
    driver.apply(VersionSeen(worker=worker, version="1"), VersionSeen(worker=worker, version="6"))
    _retrieve(driver, "1")
    assert _collect(driver, Limits(epochs=5)) == []
    driver.apply(VersionSeen(worker=worker, version="7"))
    assert _collect(driver, Limits(epochs=5)) == [("0", "collected")]
    assert _refusal(driver, "0") == (410, "collected")


def test_extras_count_as_the_tokens_that_would_take_their_room() -> None:
    driver = Driver()
    size = EXTRA_BYTES_PER_TOKEN * 100
    driver.say("0", "x", [97], extras=(("experts", b"e" * (size - len("experts"))),))
    before = driver.state.forest.data_bytes
    _retrieve(driver, "0")
    # Two tokens and two segments beside the extras.
    assert driver.state.forest.reuse_tokens == 100 + 2 + 2
    assert before > size


def test_what_a_call_in_flight_extends_never_goes() -> None:
    driver = _driver("ab")
    opened = driver.open_text("next", "xabcd")
    _retrieve(driver, "0")
    assert _collect(driver, Limits(reuse_tokens=0, data_bytes=0)) == []
    driver.lose(opened)
    assert _collect(driver, Limits(reuse_tokens=0, data_bytes=0))[0] == ("0", "evicted")


def test_a_parent_outlives_its_children() -> None:
    driver = _driver("ab")
    driver.say("next", "xabcd", [97])
    assert _collect(driver, Limits(reuse_tokens=0, data_bytes=0)) == [
        ("next", "evicted"),
        (None, "evicted"),
        ("0", "evicted"),
        (None, "evicted"),
    ]


def test_answers_without_tokens_do_not_pile_up() -> None:
    driver = _driver(*[""] * 20)
    _retrieve(driver, *map(str, range(20)))
    _collect(driver, Limits(reuse_tokens=10))
    assert len(driver.state.forest.segments) <= 10


# -- what became of a call ---------------------------------------------------------------


def test_a_call_is_found_by_its_id() -> None:
    assert find_call(_driver("ab").state, "0") == "0"


def test_a_call_in_flight_is_said_to_be_so() -> None:
    driver = Driver()
    driver.open_text("0", "x")
    assert _refusal(driver, "0") == (409, "in_flight")


def test_a_lost_call_says_why() -> None:
    driver = Driver()
    driver.open_text("0", "x")
    driver.apply(CallLost(call=CallId("0"), reason="corrupt", sampled=True))
    assert _refusal(driver, "0") == (410, "corrupt")


def test_an_evicted_call_says_so() -> None:
    driver = _driver("ab")
    _collect(driver, Limits(reuse_tokens=0, data_bytes=0))
    assert _refusal(driver, "0") == (410, "evicted")


def test_beyond_the_bounded_memory_nothing_is_claimed() -> None:
    driver = Driver()
    driver.state.forest.gone = GoneMemory(limit=2)  # type: ignore[misc]
    for number in range(3):
        driver.say(str(number), "x", [97])
    _collect(driver, Limits(reuse_tokens=0, data_bytes=0))
    assert _refusal(driver, "0") == (404, "unknown_or_evicted")
    assert _refusal(driver, "1") == (410, "evicted")


def test_an_alias_names_its_only_call_and_is_refused_for_several() -> None:
    driver = Driver()
    for number in range(2):
        opened = driver.open_text(str(number), "x")
        driver.apply(driver.captured(opened, [97], aliases=("both", f"own{number}")))
    assert find_call(driver.state, "own1") == "1"
    assert _refusal(driver, "both") == (409, "ambiguous_id")


# -- retrieval by text -------------------------------------------------------------------


def _plan_refusal(driver: Driver, text: str, call: str | None = None) -> tuple[int, str]:
    named = None if call is None else CallId(call)
    with pytest.raises(SlimeError) as caught:
        plan_retrieval(driver.state, driver.facts, text, named)
    return caught.value.status, caught.value.code


def test_a_text_that_ends_in_an_answer_is_that_call() -> None:
    driver = _driver("ab")
    plan = plan_retrieval(driver.state, driver.facts, "xab", None)
    found = plan.result(driver.state.forest, PackedIds(b""))
    assert (plan.call, plan.ambiguous, list(found.mask)) == ("0", 0, [0, 1, 1])


def test_the_latest_of_twins_is_given_and_the_others_are_counted() -> None:
    driver = _driver("ab")
    opened = driver.open_text("1", "x")
    driver.apply(driver.captured(opened, [97, 98], logprobs=[-7.0, -8.0]))
    plan = plan_retrieval(driver.state, driver.facts, "xab", None)
    assert (plan.call, plan.ambiguous) == ("1", 1)


def test_a_named_twin_is_given() -> None:
    driver = _driver("ab", "ab")
    assert plan_retrieval(driver.state, driver.facts, "xab", CallId("0")).call == "0"


def test_a_named_answer_may_be_left_midway() -> None:
    driver = _driver("abY", "abZ")
    plan = plan_retrieval(driver.state, driver.facts, "xab", CallId("0"))
    assert (plan.call, plan.result(driver.state.forest, PackedIds(b"")).cut) == ("0", True)


def test_an_unknown_text_is_not_found() -> None:
    assert _plan_refusal(_driver("ab"), "zz") == (404, "unknown_or_evicted")


def test_a_mere_prompt_is_nothing_captured() -> None:
    assert _plan_refusal(_driver("ab"), "x") == (404, "unknown_or_evicted")


def test_a_text_whose_answer_is_gone_is_said_to_be_gone() -> None:
    driver = _driver("ab")
    _collect(driver, Limits(reuse_tokens=0, data_bytes=0))
    assert _plan_refusal(driver, "xab") == (410, "evicted")


def test_a_text_whose_last_answer_is_gone_is_not_given_with_a_zero_mask() -> None:
    driver = _driver("ab")
    driver.say("next", "xabcd", [97])
    number = driver.state.forest.calls[CallId("next")].number
    driver.apply(SegmentsGone(segments=(number,), reason="evicted", unretrieved=1))
    assert _plan_refusal(driver, "xabcda") == (410, "evicted")


def test_a_text_whose_answer_had_no_text_and_is_gone_is_said_to_be_gone() -> None:
    driver = Driver()
    driver.say("0", "x", [EOS], text_shown="", matched=EOS)
    assert plan_retrieval(driver.state, driver.facts, "x", None).call == "0"
    _collect(driver, Limits(reuse_tokens=0, data_bytes=0))
    assert _plan_refusal(driver, "x") == (410, "evicted")


def test_what_goes_on_from_an_answer_without_text_lacks_nothing_when_that_is_gone() -> None:
    driver = Driver()
    driver.say("0", "x", [EOS], text_shown="", matched=EOS)
    _collect(driver, Limits(reuse_tokens=0, data_bytes=0))
    assert driver.look("xab").history_flags == ()


def test_a_call_that_is_not_on_the_texts_path_is_refused() -> None:
    driver = _driver("ab", "cd")
    assert _plan_refusal(driver, "xab", "1") == (400, "id_mismatch")


# -- workers -----------------------------------------------------------------------------


_ANY = Placement()


def _state(*urls: str) -> RouterState:
    state = RouterState()
    for url in urls:
        for fact in joined(url):
            state.apply(fact)
    return state


def test_no_workers_is_a_503() -> None:
    with pytest.raises(WorkerError) as caught:
        place(_state(), least_in_flight, _ANY)
    assert (caught.value.status, caught.value.code) == (503, "no_workers")


def test_no_fit_worker_says_why() -> None:
    state = _state("a", "b")
    state.apply(WorkerPaused(worker=WorkerUrl("a"), paused=True))
    state.apply(WorkerMismatch(worker=WorkerUrl("b"), reason="another tokenizer"))
    with pytest.raises(WorkerError, match="another tokenizer; paused") as caught:
        place(state, least_in_flight, _ANY)
    assert (caught.value.status, caught.value.code) == (503, "no_fit_workers")


def test_a_removed_worker_is_not_chosen() -> None:
    state = _state("a", "b")
    state.apply(WorkerRemoved(worker=WorkerUrl("a")))
    assert place(state, least_in_flight, _ANY).url == "b"


# -- telling texts -----------------------------------------------------------------------


def _told(driver: Driver) -> tuple[str | None, int, int]:
    untold = next_untold(driver.state)
    assert untold is not None
    fact = tell(untold, driver.facts.vocabulary)
    return fact.text, fact.text_start, fact.joint


def test_ids_are_told_with_their_special_tokens() -> None:
    driver = Driver()
    driver.apply(driver.captured(driver.open_ids("0", [97, EOS]), [98]))
    assert _told(driver) == ("a<E>", 0, 0)


def test_ids_behind_an_answer_are_told_with_its_ending() -> None:
    driver = Driver()
    driver.say("0", "x", [97, EOS], matched=EOS)
    driver.apply(driver.captured(driver.open_ids("1", [120, 97, EOS, 98]), [99]))
    assert _told(driver) == ("<E>b", 2, 3)


def test_ids_that_leave_an_answer_midway_are_told_where_they_leave_it() -> None:
    driver = _driver("abc")
    driver.apply(driver.captured(driver.open_ids("1", [120, 97, 100]), [99]))
    assert _told(driver) == ("d", 2, 0)


def test_a_cut_inside_a_character_cannot_be_told() -> None:
    driver = Driver()
    driver.say("0", "x", [0xC3, 0xA9])
    driver.apply(driver.captured(driver.open_ids("1", [120, 0xC3, 97]), [99]))
    assert _told(driver)[0] is None


def test_nothing_waits_to_be_told_where_all_came_as_text() -> None:
    assert next_untold(_driver("ab").state) is None


def test_what_is_told_is_found_by_text() -> None:
    driver = Driver()
    driver.apply(driver.captured(driver.open_ids("0", [97, EOS]), [98]))
    driver.tell_all()
    plan = plan_retrieval(driver.state, driver.facts, "a<E>b", None)
    assert unpack_ids(plan.result(driver.state.forest, PackedIds(b"")).ids) == [97, EOS, 98]
    assert TOY.prefix_ids == ()


def _evict_all(driver: Driver) -> None:
    _collect(driver, Limits(reuse_tokens=0, data_bytes=0))


def _retrieval(driver: Driver, text: str, call: str | None = None) -> Retrieval:
    return plan_retrieval(driver.state, driver.facts, text, None if call is None else CallId(call))


def test_history_that_was_evicted_is_told_to_the_call_that_goes_on_from_it() -> None:
    driver = _driver("yo", prompt="Hi?")
    _evict_all(driver)
    assert driver.look("Hi?yo and?").history_flags == ("history_evicted",)


def test_history_that_was_evicted_is_told_with_what_was_captured_since() -> None:
    driver = _driver("yo", prompt="Hi?")
    _evict_all(driver)
    driver.say("later", "Hi?yo and?", list(b"n"))
    assert _retrieval(driver, "Hi?yo and?n").flags == ("history_evicted",)


def test_an_answer_sampled_anew_is_not_taken_for_the_evicted_one() -> None:
    driver = _driver("yo", prompt="Hi?")
    _evict_all(driver)
    driver.say("longer", "Hi?", list(b"yo!"))
    assert _retrieval(driver, "Hi?yo!").flags == ()


def test_an_answer_that_could_not_be_kept_is_missing_from_the_text_that_holds_it() -> None:
    driver = Driver()
    opened = driver.open_text("1", "Hi?")
    driver.apply(CallLost(call=opened.call, reason="corrupt", sampled=True, text="Hi?yo"))
    with pytest.raises(ClientError) as caught:
        _retrieval(driver, "Hi?yo")
    assert (caught.value.status, caught.value.code) == (410, "corrupt")


def test_a_text_may_be_named_by_any_answer_that_it_goes_through() -> None:
    driver = _driver("y", prompt="Hi?")
    driver.say("second", "Hi?y ok", list(b"z"))
    assert _retrieval(driver, "Hi?y okz", "0").call == "second"


def test_an_answer_delivered_in_part_is_not_retrieved() -> None:
    driver = _driver("abcdef", prompt="Hi?")
    driver.apply(_retrieval(driver, "Hi?abc").delivered)
    assert not driver.state.forest.calls[CallId("0")].retrieved


def test_an_answer_without_text_belongs_to_the_text_that_it_ends() -> None:
    driver = Driver()
    driver.say("silent", "Hi?", [EOS], text_shown="")
    assert _retrieval(driver, "Hi?").call == "silent"


def test_the_latest_of_raw_and_rendered_answers_to_one_text_is_meant() -> None:
    driver = Driver(TOY_BOS)
    driver.say("raw", "Hi?", list(b"y"), encoding=Encoding.RAW)
    driver.say("rendered", "Hi?", list(b"y"), encoding=Encoding.RENDERED)
    found = plan_retrieval(driver.state, driver.facts, "Hi?y", None)
    assert (found.call, found.ambiguous) == ("rendered", 1)


def test_a_raw_answer_can_be_named_where_a_rendered_one_has_the_same_text() -> None:
    driver = Driver(TOY_BOS)
    driver.say("raw", "Hi?", list(b"y"), encoding=Encoding.RAW)
    driver.say("rendered", "Hi?", list(b"y"), encoding=Encoding.RENDERED)
    assert plan_retrieval(driver.state, driver.facts, "Hi?y", CallId("raw")).call == "raw"


def test_the_exact_text_of_an_evicted_answer_is_not_given_as_the_start_of_another() -> None:
    driver = _driver("yes", prompt="Hi?")
    _evict_all(driver)
    driver.say("longer", "Hi?", list(b"yes of course"))
    with pytest.raises(ClientError) as caught:
        _retrieval(driver, "Hi?yes")
    assert caught.value.code == "evicted"


def test_evicted_history_is_told_to_calls_by_ids_too() -> None:
    driver = _driver("yo", prompt="Hi?")
    _evict_all(driver)
    opened = driver.open_ids("later", list(b"Hi?yo and?"))
    assert opened.found.history_flags == ("history_evicted",)


def test_what_is_missing_from_a_history_stays_said_in_every_later_turn() -> None:
    driver = _driver("yo", prompt="Hi?")
    _evict_all(driver)
    driver.say("second", "Hi?yo and?", list(b"n"))
    driver.say("third", "Hi?yo and?n ok", list(b"z"))
    assert _retrieval(driver, "Hi?yo and?n okz").flags == ("history_evicted",)


def test_an_evicted_answer_without_text_is_missing_from_nothing() -> None:
    driver = Driver()
    driver.say("silent", "Hi?", [EOS], text_shown="")
    _evict_all(driver)
    assert driver.look("Hi?").history_flags == ()


def test_several_answers_left_at_one_place_are_ambiguous() -> None:
    driver = _driver("Bob and Al", "Bob and Joe", prompt="Hi?")
    assert _retrieval(driver, "Hi?Bob").ambiguous == 1
