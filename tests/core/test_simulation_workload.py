"""The work that is simulated: drawn by chance, and rebuilt from a trace."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import ClientError
from slime_core.simulation import (
    Exponential,
    Fixed,
    Lognormal,
    Trace,
    TraceEntry,
    Uniform,
    Workload,
)
from slime_core.simulation.prefix_cache import Passage
from slime_core.simulation.workload import Call, arrivals, generated, traced
from tests.core.simulation_support import Numbers, chances


def _drawn(workload: Workload, seed: int = 1, *, exact: bool = True) -> list[list[Call]]:
    """Each session's calls."""
    return [_chain(call) for call in generated(workload, chances(seed), exact=exact)]


def _chain(call: Call) -> list[Call]:
    calls = [call]
    while calls[-1].then:
        (follower,) = calls[-1].then
        calls.append(follower)
    return calls


def _tokens(passage: Passage | None) -> list[tuple[int, int]]:
    """A text as tokens that are different in every passage."""
    tokens: list[tuple[int, int]] = []
    while passage is not None:
        tokens[:0] = [(passage.number, place) for place in range(passage.tokens)]
        passage = passage.parent
    return tokens


def _shared(one: Iterable[object], other: Iterable[object]) -> int:
    count = 0
    for mine, his in zip(one, other, strict=False):
        if mine != his:
            break
        count += 1
    return count


def test_every_turn_repeats_all_before_it_and_adds_its_own_length() -> None:
    inputs = (Fixed(100), Fixed(150), Fixed(200))
    workload = Workload(sessions=1, turns=Fixed(4), input_tokens=inputs, answer_tokens=Fixed(10))
    (calls,) = _drawn(workload)
    assert [call.turn for call in calls] == [1, 2, 3, 4]
    assert [call.prompt_tokens for call in calls] == [100, 260, 470, 680]
    for before, call in pairwise(calls):
        assert _tokens(call.prompt)[: before.answer.end] == _tokens(before.answer)
    assert {call.session.left for call in calls} == {4}


def test_groups_share_their_first_input_and_all_share_the_system_prompt() -> None:
    workload = Workload(sessions=5, group_size=2, system_tokens=20, turns=Fixed(2))
    first = [calls[0].prompt for calls in _drawn(workload)]
    shared = [[_shared(_tokens(one), _tokens(other)) for other in first] for one in first]
    for row, line in enumerate(shared):
        for column, count in enumerate(line):
            assert count == (120 if row // 2 == column // 2 else 20)
    seconds = [_tokens(calls[1].prompt) for calls in _drawn(workload)]
    assert _shared(seconds[0], seconds[1]) == 120


def test_answers_are_cut_at_their_limit_and_never_empty() -> None:
    workload = Workload(sessions=200, answer_tokens=Exponential(20), answer_tokens_max=30)
    lengths = [calls[0].answer_tokens for calls in _drawn(workload)]
    assert (min(lengths), max(lengths)) == (1, 30)
    assert len(set(lengths)) > 10


def test_thinking_comes_before_each_later_turn() -> None:
    workload = Workload(sessions=1, turns=Fixed(3), think_s=Uniform(1, 2))
    (calls,) = _drawn(workload)
    assert calls[0].think_s == 0
    assert all(1 <= call.think_s <= 2 for call in calls[1:])


def test_an_answer_that_drifts_is_repeated_up_to_the_place_where_it_does() -> None:
    workload = Workload(sessions=1, turns=Fixed(2), answer_tokens=Fixed(100), drift=1.0)
    # It drifts, at 30% of its length; the second answer at its very beginning.
    first = next(generated(workload, lambda _: Numbers([0.5, 0.3, 0.0, 0.0]), exact=False))
    (second,) = first.then
    assert _shared(_tokens(first.answer), _tokens(second.prompt)) == 100 + 30
    assert (first.answer.end, second.prompt.end) == (200, 300)
    assert second.answer.end == 400


@given(st.integers(), st.floats(0, 1))
def test_drift_changes_no_length_and_nothing_where_answers_are_exact(
    seed: int, drift: float
) -> None:
    workload = Workload(
        sessions=4, turns=Uniform(1, 4), answer_tokens=Exponential(9), group_size=2, drift=drift
    )
    told, exact = (_drawn(workload, seed, exact=exact) for exact in (False, True))
    assert [[(c.prompt_tokens, c.answer_tokens, c.think_s) for c in calls] for calls in told] == [
        [(c.prompt_tokens, c.answer_tokens, c.think_s) for c in calls] for calls in exact
    ]
    for calls in exact:
        for before, call in pairwise(calls):
            assert call.prompt.parent is before.answer


_PLAIN = Workload(
    sessions=12,
    turns=Fixed(3),
    input_tokens=(Uniform(10, 90),),
    answer_tokens=Exponential(40),
    think_s=Exponential(2),
    drift=0.2,
)


@pytest.mark.parametrize(
    ("field", "value", "drawn"),
    [
        ("input_tokens", (Fixed(50),), ("answer_tokens", "think_s")),
        ("answer_tokens", Lognormal(40, 1), ("prompt", "think_s")),
        ("think_s", Fixed(0), ("prompt", "answer_tokens")),
        ("drift", 0.9, ("prompt", "answer_tokens", "think_s")),
    ],
)
def test_what_is_drawn_of_one_kind_changes_nothing_of_another(
    field: str, value: object, drawn: tuple[str, ...]
) -> None:
    def numbers(workload: Workload) -> list[dict[str, float]]:
        calls = [call for chain in _drawn(workload, exact=False) for call in chain]
        return [
            {
                # What the turn adds: a prompt repeats all answers before it.
                "prompt": call.prompt.tokens,
                "answer_tokens": call.answer_tokens,
                "think_s": call.think_s,
            }
            for call in calls
        ]

    other = replace(_PLAIN, **{field: value})  # type: ignore[arg-type]
    for one, his in zip(numbers(_PLAIN), numbers(other), strict=True):
        assert [one[name] for name in drawn] == [his[name] for name in drawn]


def test_a_session_of_turns_without_end_is_refused() -> None:
    with pytest.raises(ClientError) as caught:
        _drawn(Workload(sessions=1, turns=Fixed(1e9)))
    assert caught.value.param == "turns"


def test_groups_arrive_together_by_chance_at_the_rate_of_sessions() -> None:
    workload = Workload(sessions=40_000, group_size=4, sessions_per_s=10.0)
    calls = generated(workload, chances(1), exact=True)
    times = [at_s for at_s, _ in arrivals(workload, calls, random.Random(2))]
    assert all(len(set(times[place : place + 4])) == 1 for place in range(0, len(times), 4))
    assert times == sorted(times)
    assert abs(times[-1] / 4000 - 1) < 0.03


# -- traces ----------------------------------------------------------------------------------------


def _entry(at_s: float, session: str, new: int, answer: int, **more: int | None) -> TraceEntry:
    return TraceEntry(at_s=at_s, session=session, new_tokens=new, answer_tokens=answer, **more)


def _all(first: Iterable[Call]) -> list[Call]:
    calls = list(first)
    for call in calls:
        calls += call.then
    return calls


@st.composite
def _traces(draw: st.DrawFn) -> Trace:
    entries: list[TraceEntry] = []
    lengths: list[int] = []
    for place in range(draw(st.integers(1, 12))):
        parent = draw(st.one_of(st.none(), st.integers(0, place - 1))) if place else None
        most = 0 if parent is None else lengths[parent]
        kept = draw(st.one_of(st.none(), st.integers(0, most)))
        held = most if kept is None else kept
        new, answer = draw(st.integers(0 if held else 1, 5)), draw(st.integers(1, 5))
        entries.append(
            TraceEntry(
                at_s=draw(st.floats(0, 10)),
                session=draw(st.sampled_from("ab")),
                parent=parent,
                kept_tokens=kept,
                new_tokens=new,
                answer_tokens=answer,
            )
        )
        lengths.append(held + new + answer)
    return Trace(entries=tuple(entries))


@given(_traces())
def test_calls_of_a_trace_share_exactly_what_they_repeat(trace: Trace) -> None:
    texts: list[list[tuple[int, int]]] = []
    prompts: list[int] = []
    for place, entry in enumerate(trace.entries):
        base = [] if entry.parent is None else texts[entry.parent]
        kept = base if entry.kept_tokens is None else base[: entry.kept_tokens]
        own = [(place, n) for n in range(entry.new_tokens + entry.answer_tokens)]
        texts.append(kept + own)
        prompts.append(len(kept) + entry.new_tokens)
    calls = _all(traced(trace))
    by_place = _in_order(calls, texts, prompts)
    for one, mine in zip(by_place, texts, strict=True):
        for other, his in zip(by_place, texts, strict=True):
            assert _shared(_tokens(one.answer), _tokens(other.answer)) == _shared(mine, his)


def _in_order(
    calls: list[Call], texts: list[list[tuple[int, int]]], prompts: list[int]
) -> list[Call]:
    """Calls in the order of their entries, which is that of their last passages."""
    ordered = sorted(calls, key=lambda call: call.answer.number)
    assert [call.answer.end for call in ordered] == [len(text) for text in texts]
    assert [call.prompt_tokens for call in ordered] == prompts
    return ordered


def test_who_repeats_an_answer_waits_for_it_and_who_does_not_comes_at_his_time() -> None:
    trace = Trace(
        entries=(
            _entry(5.0, "a", 10, 10),
            _entry(6.0, "a", 5, 5, parent=0),
            _entry(7.0, "a", 5, 5, parent=0, kept_tokens=11),
            _entry(1.0, "b", 5, 5, parent=0, kept_tokens=10),
            _entry(2.0, "b", 5, 5, parent=1, kept_tokens=8),
            _entry(3.0, "b", 5, 5, parent=1, kept_tokens=15),
        )
    )
    first = traced(trace)
    assert [call.at_s for call in first] == [1.0, 2.0, 5.0]
    assert [call.at_s for call in first[-1].then] == [6.0, 7.0, 3.0]
    assert first[0].session.left == 3


def test_samples_of_one_prompt_wait_alike_for_the_answer_that_it_repeats() -> None:
    trace = Trace(
        entries=(
            _entry(0.0, "a", 10, 10),
            _entry(1.0, "a", 5, 5, parent=0),
            _entry(2.0, "a", 0, 5, parent=1, kept_tokens=25),
            _entry(3.0, "a", 1, 5, parent=1, kept_tokens=22),
            _entry(4.0, "a", 0, 5, parent=0, kept_tokens=10),
        )
    )
    first = traced(trace)
    assert [call.at_s for call in first] == [0.0, 4.0]
    assert [call.at_s for call in first[0].then] == [1.0, 2.0, 3.0]


def test_prompts_that_begin_a_session_share_the_system_prompt_as_far_as_they_go() -> None:
    entries = (
        _entry(0.0, "a", 5, 3),
        _entry(1.0, "b", 20, 3),
        _entry(2.0, "b", 4, 3, parent=1),
        _entry(3.0, "c", 30, 3),
        _entry(4.0, "d", 10, 3),
    )
    calls = traced(Trace(entries=entries, system_tokens=12))
    assert [call.at_s for call in calls] == [0.0, 1.0, 3.0, 4.0]
    assert [call.prompt_tokens for call in calls] == [5, 20, 30, 10]
    assert {call.turn for call in calls} == {1}
    prompts = [_tokens(call.prompt) for call in calls]
    shared = [[_shared(one, other) for other in prompts] for one in prompts]
    assert shared == [[5, 5, 5, 5], [5, 20, 12, 10], [5, 12, 30, 10], [5, 10, 10, 10]]
    assert [_shared(_tokens(one.prompt), _tokens(calls[1].answer)) for one in calls[1].then] == [23]


def _turns(*entries: TraceEntry) -> dict[float, int]:
    return {call.at_s: call.turn for call in _all(traced(Trace(entries=entries)))}


def test_a_later_turn_of_a_session_repeats_an_answer_of_it() -> None:
    assert _turns(
        _entry(0.0, "a", 10, 10),
        _entry(1.0, "a", 5, 5, parent=0),
        _entry(2.0, "a", 5, 5, parent=1),
        # The first token of the answer suffices.
        _entry(3.0, "a", 5, 5, parent=0, kept_tokens=11),
        _entry(4.0, "b", 5, 5, parent=1),
        _entry(5.0, "a", 5, 5),
    ) == {0.0: 1, 1.0: 2, 2.0: 3, 3.0: 2, 4.0: 1, 5.0: 1}


def test_who_repeats_a_prompt_only_is_in_the_same_turn() -> None:
    assert _turns(
        _entry(0.0, "a", 10, 10),
        # A sample of the same prompt, one that leaves it midway, and the next turn's two samples.
        _entry(1.0, "a", 0, 5, parent=0, kept_tokens=10),
        _entry(2.0, "a", 5, 5, parent=0, kept_tokens=3),
        _entry(3.0, "a", 5, 5, parent=1),
        _entry(4.0, "a", 0, 5, parent=3, kept_tokens=20),
        _entry(5.0, "a", 5, 5, parent=4),
        # Back from the third turn to the prompt of the second, and to that of the first.
        _entry(6.0, "a", 5, 5, parent=5, kept_tokens=18),
        _entry(7.0, "a", 5, 5, parent=5, kept_tokens=8),
    ) == {0.0: 1, 1.0: 1, 2.0: 1, 3.0: 2, 4.0: 2, 5.0: 3, 6.0: 2, 7.0: 1}
