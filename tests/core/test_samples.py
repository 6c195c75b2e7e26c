"""Samples of a session: every sampled token trained once, context or dropped, and no other way."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from slime_core.samples import POLICIES, Collected, Sample, Wanted, collect, take
from slime_core.samples.policies import keep_all, latest_sibling
from slime_core.segments import Outcome
from slime_core.state import RouterState
from slime_core.trajectory import trajectory
from slime_core.transitions import SegmentsGone, SessionOpened
from slime_core.types import CallId
from slime_core.versions import VersionRun
from tests.core.capture import Driver
from tests.core.sessions_support import SESSION, Agents, say

_WANTED = st.builds(
    Wanted,
    per=st.sampled_from(["branch", "call"]),
    max_seq_len=st.none() | st.integers(1, 30),
    include=st.sampled_from([(), ("partial",), ("partial", "aborted")]),
    policy=st.sampled_from(list(POLICIES.values())),
)


def _collected(driver: Driver, **wanted: Any) -> Collected:
    return collect(take(driver.state, SESSION), Wanted(**wanted))


def _trained(state: RouterState, sample: Sample) -> list[tuple[str, int]]:
    """Every trained token of a sample as its call and place there, by the forest's own account."""
    segment = state.forest.calls[sample.last.call]
    found = trajectory(state.forest, segment)
    trained = []
    for run in found.origins:
        for at in range(run.start, min(run.end, len(sample.ids) // 4)):
            response = at - sample.prompt_length
            if response >= 0 and sample.mask[response]:
                assert run.call is not None
                trained.append((run.call, at - run.start))
    return trained


def _check_columns(state: RouterState, sample: Sample) -> None:
    """A sample is its trajectory up to its length, and where it trains, that in all columns."""
    found = trajectory(state.forest, state.forest.calls[sample.last.call])
    count = len(sample.ids) // 4
    assert found.ids[: len(sample.ids)] == sample.ids
    assert (
        count
        == sample.prompt_length + sample.response_length
        == sample.prompt_length + len(sample.logprobs)
    )
    versions = found.versions.tolist()
    told = [-1] * count
    for run in sample.runs:
        told[run.start : run.end] = [int(run.version or "-2")] * (run.end - run.start)
    for place, is_trained in enumerate(sample.mask):
        at = sample.prompt_length + place
        assert found.mask[at] >= is_trained
        assert sample.logprobs[place] == (found.logprobs[at] if is_trained else 0.0)
        assert told[at] == (versions[at] if is_trained else -1)
    assert told[: sample.prompt_length] == [-1] * sample.prompt_length


def _random_session(seed: int, steps: int) -> Driver:
    agents = Agents(random.Random(seed))
    for _ in range(steps):
        agents.step()
    return agents.driver


@given(st.integers(0, 10**6), st.integers(1, 14), _WANTED)
@settings(max_examples=150, deadline=None)
def test_every_captured_token_is_accounted_for_and_trained_at_most_once(
    seed: int, steps: int, wanted: Wanted
) -> None:
    driver = _random_session(seed, steps)
    state = driver.state
    found = collect(take(state, SESSION), wanted)
    account = found.accounting
    captured = sum(one.tokens for one in state.forest.sessions.get(SESSION, {}).values())
    unused = sum(one.tokens for one in (*account.context, *account.dropped))
    assert account.captured == captured == account.used + unused
    trained = [entry for sample in found.samples for entry in _trained(state, sample)]
    assert len(set(trained)) == len(trained) == account.used
    for sample in found.samples:
        _check_columns(state, sample)
        assert all(one.session == SESSION for one in sample.calls)


@given(st.integers(0, 10**6), st.integers(1, 14))
@settings(max_examples=60, deadline=None)
def test_everything_is_trained_where_nothing_is_excluded_and_nothing_cut(
    seed: int, steps: int
) -> None:
    driver = _random_session(seed, steps)
    everything = ("partial", "aborted")
    found = _collected(driver, include=everything, policy=keep_all)
    assert {one.reason for one in found.accounting.dropped} <= {"cut"}
    assert found.accounting.context == ()
    per_call = _collected(driver, include=everything, policy=keep_all, per="call")
    assert per_call.accounting.used == per_call.accounting.captured


@given(st.integers(0, 10**6), st.integers(1, 14), _WANTED)
@settings(max_examples=30, deadline=None)
def test_asking_twice_gives_the_same(seed: int, steps: int, wanted: Wanted) -> None:
    driver = _random_session(seed, steps)
    first, second = (collect(take(driver.state, SESSION), wanted) for _ in range(2))
    assert (first.samples, first.accounting) == (second.samples, second.accounting)


def _calls(found: Collected) -> list[list[str]]:
    return [[str(one.call) for one in sample.calls] for sample in found.samples]


def _dropped(found: Collected) -> dict[str | None, str]:
    return {one.call: one.reason for one in found.accounting.dropped}


def test_a_chain_is_one_sample() -> None:
    driver = Driver()
    held = say(driver, "1", "x", "ab")
    held = say(driver, "2", held + "y", "cd")
    say(driver, "3", held + "z", "a")
    found = _collected(driver)
    assert _calls(found) == [["1", "2", "3"]]
    (sample,) = found.samples
    state = driver.state
    assert sample.ids == trajectory(state.forest, state.forest.calls[CallId("3")]).ids
    assert list(sample.mask) == [1, 0, 1, 0, 1]
    assert (sample.prompt_length, sample.status) == (1, "completed")


def test_a_shared_answer_is_trained_in_the_first_branch_alone() -> None:
    driver = Driver()
    held = say(driver, "1", "x", "ab")
    say(driver, "2", held + "y", "c")
    say(driver, "3", held + "z", "d")
    first, second = _collected(driver).samples
    shared = driver.state.forest.calls[CallId("1")].tokens
    assert first.mask[:shared] == b"\x01" * shared
    assert second.mask[:shared] == b"\x00" * shared
    assert second.logprobs[:shared].tolist() == [0.0] * shared
    assert second.mask[-1] == 1


def test_one_sample_per_call_trains_its_own_tokens_only() -> None:
    driver = Driver()
    held = say(driver, "1", "x", "ab")
    say(driver, "2", held + "y", "cd")
    first, second = _collected(driver, per="call").samples
    assert (first.mask, second.mask) == (b"\x01" * first.response_length, b"\x01" * 1)
    assert second.prompt_length == len(first.ids) // 4 + 1


def test_the_tail_of_an_answer_that_was_left_midway_is_dropped_as_cut() -> None:
    driver = Driver()
    say(driver, "1", "x", "a#b")
    say(driver, "2", "xa" + "好", "d")
    found = _collected(driver)
    assert _calls(found) == [["1", "2"]]
    assert _dropped(found) == {"1": "cut"}
    assert found.samples[0].cut


def test_an_answer_of_another_session_is_context() -> None:
    driver = Driver()
    held = say(driver, "1", "x", "ab", session="T")
    say(driver, "2", held + "y", "cd")
    (sample,) = _collected(driver).samples
    assert _calls(_collected(driver)) == [["2"]]
    assert sample.mask == b"\x01" * sample.response_length


def test_a_partial_answer_is_dropped_by_name() -> None:
    driver = Driver()
    say(driver, "1", "x", "ab", outcome=Outcome.PARTIAL)
    found = _collected(driver)
    assert (found.samples, _dropped(found), found.empty_reason) == (
        (),
        {"1": "partial"},
        "all_dropped",
    )


def test_a_partial_answer_is_trained_where_it_is_asked_for() -> None:
    driver = Driver()
    say(driver, "1", "x", "ab", outcome=Outcome.PARTIAL)
    (sample,) = _collected(driver, include=("partial",)).samples
    assert sample.status == "aborted"
    assert set(sample.mask) == {1}


def test_an_aborted_answer_that_was_continued_is_context() -> None:
    driver = Driver()
    held = say(driver, "1", "x", "ab", outcome=Outcome.ABORTED)
    say(driver, "2", held, "cd")
    found = _collected(driver)
    (sample,) = found.samples
    assert [(one.call, one.reason) for one in found.accounting.context] == [("1", "aborted")]
    assert sample.mask[0] == 0
    assert sample.mask[-1] == 1


def test_an_auxiliary_call_is_dropped_by_name() -> None:
    driver = Driver()
    held = say(driver, "1", "x", "ab")
    say(driver, "2", held + "title?", "cd")
    found = _collected(driver, calls={CallId("2"): {"train": False}})
    assert _calls(found) == [["1"]]
    assert _dropped(found) == {"2": "auxiliary"}


def test_a_retry_supersedes_what_broke_off_before() -> None:
    driver = Driver()
    held = say(driver, "1", "x", "ab")
    say(driver, "2", held + "y", "c", outcome=Outcome.PARTIAL)
    say(driver, "3", held + "y", "cd")
    found = _collected(driver, include=("partial",))
    assert _calls(found) == [["1", "3"]]
    assert _dropped(found) == {"2": "superseded_retry"}


def test_two_whole_answers_to_one_prompt_are_two_samples() -> None:
    driver = Driver()
    for call in "12":
        say(driver, call, "x", "ab")
    assert _calls(_collected(driver)) == [["1"], ["2"]]


def test_what_broke_off_under_another_prompt_is_no_retry() -> None:
    driver = Driver()
    say(driver, "1", "x", "c", outcome=Outcome.PARTIAL)
    say(driver, "2", "y", "cd")
    assert _calls(_collected(driver, include=("partial",))) == [["1"], ["2"]]


def test_a_whole_answer_that_its_client_never_got_is_superseded() -> None:
    driver = Driver()
    say(driver, "1", "x", "c")
    say(driver, "2", "x", "ab")
    say(driver, "3", "x", "cd", flags=("retry", "retry_of:1"))
    found = _collected(driver)
    assert _calls(found) == [["2"], ["3"]]
    assert _dropped(found) == {"1": "superseded_retry"}


def test_a_retry_that_broke_off_supersedes_nothing() -> None:
    driver = Driver()
    say(driver, "1", "x", "c")
    say(driver, "2", "x", "cd", flags=("retry_of:1",), outcome=Outcome.PARTIAL)
    assert _calls(_collected(driver)) == [["1"]]


def test_a_call_that_leads_to_dropped_branches_alone_is_dropped_with_them() -> None:
    driver = Driver()
    held = say(driver, "1", "x", "ab")
    say(driver, "2", held + "y", "cd")
    found = _collected(driver, policy=lambda tree: dict.fromkeys(tree.leaves, "unwanted"))
    assert (found.samples, found.empty_reason) == ((), "all_dropped")
    assert _dropped(found) == {"1": "unwanted", "2": "unwanted"}


def test_the_latest_sibling_is_kept_and_roots_stay() -> None:
    driver = Driver()
    held = say(driver, "1", "x", "ab")
    for call, tail in zip("23", "yz", strict=True):
        say(driver, call, held + tail, "c")
    say(driver, "4", "other", "d")
    found = _collected(driver, policy=latest_sibling)
    assert _calls(found) == [["1", "3"], ["4"]]
    assert _dropped(found) == {"2": "later_sibling"}


def test_a_limit_cuts_the_turn_that_overflows_and_drops_later_ones() -> None:
    driver = Driver()
    held = say(driver, "1", "x", "好")
    say(driver, "2", held + "y", "好")
    found = _collected(driver, max_seq_len=3)
    (sample,) = found.samples
    assert (len(sample.ids) // 4, sample.status, sample.shortened) == (3, "truncated", True)
    assert _calls(found) == [["1"]]
    assert {(one.call, one.tokens) for one in found.accounting.dropped} == {("1", 1), ("2", 3)}
    assert set(_dropped(found).values()) == {"max_seq_len"}


def test_a_limit_within_a_later_prompt_ends_with_the_answer_before() -> None:
    driver = Driver()
    held = say(driver, "1", "x", "好")
    say(driver, "2", held + "yyyy", "好")
    (sample,) = _collected(driver, max_seq_len=6).samples
    assert (len(sample.ids) // 4, sample.mask, sample.shortened) == (4, b"\x01" * 3, True)


def test_a_limit_below_the_prompt_leaves_nothing() -> None:
    driver = Driver()
    say(driver, "1", "x#x#", "ab")
    found = _collected(driver, max_seq_len=2)
    assert (found.samples, found.empty_reason) == ((), "all_truncated")


def test_nothing_captured_is_said_to_be_so() -> None:
    assert _collected(Driver()).empty_reason == "no_records"


def test_what_left_memory_is_accounted_for() -> None:
    driver = Driver()
    driver.apply(SessionOpened(session=SESSION, now=0.0))
    say(driver, "1", "x", "ab")
    say(driver, "2", "y", "好")
    number = driver.state.forest.calls[CallId("2")].number
    driver.apply(SegmentsGone(segments=(number,), reason="evicted", unretrieved=1))
    account = _collected(driver).accounting
    gone = account.dropped[-1]
    assert (gone.call, gone.tokens, gone.reason, gone.calls) == (None, 3, "evicted", 1)
    assert account.captured == account.used + 3


@pytest.mark.parametrize(
    ("finish", "status"),
    [
        (b'{"type":"stop","matched":2}', "completed"),
        (b'{"type":"tool_calls"}', "completed"),
        (b'"stop"', "completed"),
        (b'{"type":"length"}', "truncated"),
        (b'{"type":"never heard of"}', "failed"),
        (b"{}", "failed"),
        (b"null", "failed"),
    ],
)
def test_the_status_follows_the_finish_reason(finish: bytes, status: str) -> None:
    driver = Driver()
    say(driver, "1", "x", "ab", finish=finish)
    assert _collected(driver).samples[0].status == status


def test_versions_are_runs_over_what_is_trained() -> None:
    driver = Driver()
    opened = driver.open_text("1", "xy", session=SESSION)
    runs = (VersionRun("3", 0, 1), VersionRun("4", 1, 3))
    fact = driver.captured(opened, [97, 98, 99], runs=runs)
    driver.apply(replace(fact, answer=replace(fact.answer, session=SESSION)))
    (sample,) = _collected(driver).samples
    assert sample.runs == (VersionRun("3", 2, 3), VersionRun("4", 3, 5))
