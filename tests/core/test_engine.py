"""The engine as a step machine: sampling, stopping, queues, aborts, pauses, versions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.engine import (
    Abort,
    Engine,
    EngineOptions,
    Generation,
    Length,
    PauseMode,
    Reply,
    Sampler,
    Span,
    Stop,
    float32,
    in_turn,
)
from tests.core.engine_support import (
    END,
    START,
    VOCABULARY,
    Collected,
    asked,
    drain,
    encode,
    make_engine,
    make_model,
    step_once,
)


@settings(max_examples=40)
@given(
    st.integers(0, 2**63),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0.9, 1.0]),
    st.sampled_from([0.0, 0.7]),
)
def test_every_reported_logprob_is_that_of_the_distribution_it_was_drawn_from(
    seed: int, temperature: float, top_p: float, penalty: float
) -> None:
    request = asked(
        seed=seed, temperature=temperature, top_p=top_p, presence_penalty=penalty, max_new_tokens=9
    )
    got = drain(make_engine(version="7"), request)["r"]
    sampler = Sampler(make_model(), end_ids=frozenset({END}))
    for place, token in enumerate(got.tokens):
        context = [*request.prompt_ids, *got.ids[:place]]
        expected = sampler.logprob(context, token.token, request.params, got.ids[:place], "7")
        assert token.logprob == float32(expected)


def test_what_is_sampled_does_not_depend_on_the_batch_around_it() -> None:
    alone = drain(make_engine(), asked("a", seed=5, max_new_tokens=12))["a"]
    crowd = [asked(f"b{i}", "the dog ", seed=i, max_new_tokens=12) for i in range(5)]
    crowded = drain(
        make_engine(options=EngineOptions(max_running_requests=2, s_per_token=0.01)),
        *crowd[:3],
        asked("a", seed=5, max_new_tokens=12),
        *crowd[3:],
    )["a"]
    assert (crowded.ids, crowded.text) == (alone.ids, alone.text)


def test_an_end_token_ends_the_answer_and_stays_in_the_ids_but_not_in_the_text() -> None:
    script = in_turn([Reply(ids=(*encode("cat "), END, *encode("dog ")))])
    got = drain(make_engine(script=script), asked())["r"]
    assert (got.ids, got.text, got.finish) == ([*encode("cat "), END], "cat ", Stop(END))


def test_ignore_eos_goes_past_end_tokens_and_stop_tokens() -> None:
    ids = (*encode("cat "), END, *encode("dog "))
    got = drain(
        make_engine(script=in_turn([Reply(ids=ids)])),
        asked(ignore_eos=True, stop_token_ids=encode("cat ")),
    )["r"]
    assert (got.ids, got.text, got.finish) == (list(ids), "cat dog ", Length(len(ids)))


def test_an_end_token_in_the_last_place_finishes_with_length() -> None:
    script = in_turn([Reply(ids=(*encode("cat "), END))])
    assert drain(make_engine(script=script), asked(max_new_tokens=2))["r"].finish == Length(2)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({}, "cat "),
        ({"no_stop_trim": True}, "cat mat. "),
        ({"skip_special_tokens": False}, "cat "),
    ],
)
def test_a_stop_token_is_trimmed_from_the_text_unless_asked(
    params: dict[str, Any], text: str
) -> None:
    stop = encode("mat. ")
    script = in_turn([Reply(ids=(*encode("cat mat. dog "),))])
    got = drain(make_engine(script=script), asked(stop_token_ids=stop, **params))["r"]
    assert (got.ids, got.text, got.finish) == ([*encode("cat "), *stop], text, Stop(stop[0]))


@pytest.mark.parametrize(
    ("stop", "params", "count", "text"),
    [
        ("sat", {}, 2, "cat "),  # ends inside a token
        ("t s", {}, 2, "ca"),  # begins and ends inside tokens
        ("t s", {"no_stop_trim": True}, 2, "cat sat "),
        ("cat sat ", {}, 2, ""),
        ("on", {}, 3, "cat sat "),
    ],
)
def test_a_stop_string_ends_the_answer_at_the_token_that_completes_it(
    stop: str, params: dict[str, Any], count: int, text: str
) -> None:
    ids = encode("cat sat on mat. ")
    script = in_turn([Reply(ids=ids)])
    got = drain(make_engine(script=script), asked(stop=(stop,), **params))["r"]
    assert (got.ids, got.text, got.finish) == (list(ids[:count]), text, Stop(stop))


def test_a_stop_string_is_found_across_the_bytes_of_one_character() -> None:
    ids = (*encode("cat "), *"é".encode(), *encode("dog "))
    got = drain(make_engine(script=in_turn([Reply(ids=ids)])), asked(stop=("é",)))["r"]
    assert (got.ids, got.text, got.finish) == (list(ids[:3]), "cat ", Stop("é"))


def test_a_stop_expression_ends_the_answer_and_leaves_the_text_alone() -> None:
    ids = encode("cat sat on ")
    got = drain(make_engine(script=in_turn([Reply(ids=ids)])), asked(stop_regex=(r"s.t",)))["r"]
    assert (got.ids, got.text, got.finish) == (list(ids[:2]), "cat sat ", Stop("s.t"))


def test_chunks_wait_while_their_end_may_become_a_stop_string() -> None:
    ids = (*encode("cat "), ord("#"), *encode("dog "))
    got = drain(make_engine(script=in_turn([Reply(ids=ids)])), asked(stop=("##",)))["r"]
    assert [e.text for e in got.emissions] == ["cat ", "#dog "]
    assert [len(e.tokens) for e in got.emissions] == [1, 2]


def test_a_chunk_never_ends_inside_a_character_and_the_last_one_shows_what_never_became_one() -> (
    None
):
    emoji = "🙂".encode()
    got = drain(make_engine(script=in_turn([Reply(ids=(*emoji, *emoji[:2]))])), asked())["r"]
    assert [e.text for e in got.emissions] == ["", "", "", "🙂", "", "\ufffd"]


@given(st.integers(0, 10**6), st.sampled_from([(), ("t ",), ("a", "##")]))
def test_the_emitted_pieces_are_the_recorded_text(seed: int, stop: tuple[str, ...]) -> None:
    engine = make_engine()
    got = drain(engine, asked(seed=seed, stop=stop, max_new_tokens=20, temperature=3.0))["r"]
    record = engine.records[-1]
    assert got.text == record.text
    assert tuple(got.ids) == record.output_ids
    assert tuple(score.logprob for score in got.tokens) == record.logprobs
    if not stop:
        ids = got.ids[:-1] if isinstance(got.finish, Stop) else got.ids
        assert got.text == VOCABULARY.decode(ids, skip_special=True)


def test_scripted_logprobs_are_reported_exactly_as_stated() -> None:
    reply = Reply(ids=encode("cat sat "), logprobs=(-0.1, -2.5), finish=Stop(None))
    got = drain(make_engine(script=in_turn([reply])), asked())["r"]
    assert [score.logprob for score in got.tokens] == [float32(-0.1), -2.5]
    assert got.finish == Stop(None)


def test_a_used_up_script_leaves_the_answer_to_the_model() -> None:
    engine = make_engine(script=in_turn([Reply(ids=(5,))]))
    drain(engine, asked("a", seed=2))
    scripted, sampled = asked("a"), asked("b", seed=2, max_new_tokens=6)
    assert engine.records[0].output_ids == (5,)
    assert drain(engine, sampled)["b"].ids == drain(make_engine(), sampled)["b"].ids
    assert scripted.seed == 1


def test_min_new_tokens_forbids_end_and_stop_tokens_until_then() -> None:
    for seed in range(30):
        got = drain(
            make_engine(),
            asked(seed=seed, min_new_tokens=8, max_new_tokens=9, stop_token_ids=(257,)),
        )["r"]
        assert not {END, 257} & set(got.ids[:8])
        assert len(got.ids) >= 8


def test_no_new_tokens_is_a_finished_answer() -> None:
    got = drain(make_engine(), asked(max_new_tokens=0))["r"]
    assert (got.ids, got.text, got.finish) == ([], "", Length(0))


def test_without_a_limit_the_context_is_the_limit() -> None:
    engine = make_engine(options=EngineOptions(context_length=10))
    got = drain(engine, asked(text="cat ", max_new_tokens=None, ignore_eos=True))["r"]
    assert got.finish == Length(8)
    assert len(got.ids) == 8


def test_a_version_update_in_mid_generation_splits_the_spans() -> None:
    engine, into = make_engine(version="1"), dict[str, Collected]()
    engine.submit(asked(max_new_tokens=5, ignore_eos=True))
    for _ in range(2):
        step_once(engine, into)
    engine.update_version("2")
    for _ in range(3):
        step_once(engine, into)
    got = into["r"]
    assert got.spans == (
        Span(version="1", start=0, end=2),
        Span(version="2", start=2, end=5),
    )
    assert [e.version for e in got.emissions] == ["1", "1", "2", "2", "2"]
    assert engine.records[-1].versions == ("1", "1", "2", "2", "2")
    sampler = Sampler(make_model(), end_ids=frozenset({END}))
    request = asked(max_new_tokens=5, ignore_eos=True)
    for place, (score, version) in enumerate(
        zip(got.tokens, engine.records[-1].versions, strict=True)
    ):
        context = [*request.prompt_ids, *got.ids[:place]]
        expected = sampler.logprob(context, score.token, request.params, got.ids[:place], version)
        assert score.logprob == float32(expected)


def test_a_running_request_is_aborted_after_one_more_token() -> None:
    engine, into = make_engine(options=EngineOptions(s_per_token=1.0)), dict[str, Collected]()
    engine.submit(asked("a", max_new_tokens=50, ignore_eos=True))
    step_once(engine, into, 0.0)
    step_once(engine, into, 1.0)
    assert len(into["a"].ids) == 1
    engine.abort("a")
    assert engine.next_deadline == float("-inf")
    step_once(engine, into, 1.1)
    assert len(into["a"].ids) == 2
    assert into["a"].finish == Abort()
    assert engine.idle


def test_a_queued_request_is_aborted_at_once_with_the_queues_message() -> None:
    engine = make_engine(options=EngineOptions(max_running_requests=1, s_per_token=1.0))
    into = dict[str, Collected]()
    for rid in ("a", "b"):
        engine.submit(asked(rid, max_new_tokens=50, ignore_eos=True))
    step_once(engine, into)
    engine.abort("b")
    step_once(engine, into)
    assert into["b"].finish == Abort(message="Abort in waiting queue", queued=True)
    assert into["b"].ids == []
    assert "a" not in into


def test_an_abort_matches_by_prefix_but_only_if_its_very_id_is_live() -> None:
    def after_abort(rid: str) -> set[str]:
        engine, into = make_engine(), dict[str, Collected]()
        for name in ("x_1", "x_10", "y"):
            engine.submit(asked(name, max_new_tokens=50, ignore_eos=True))
        step_once(engine, into)
        engine.abort(rid)
        step_once(engine, into)
        return {name for name, got in into.items() if isinstance(got.finish, Abort)}

    assert after_abort("x_1") == {"x_1", "x_10"}
    assert after_abort("x_10") == {"x_10"}
    assert after_abort("x") == set()
    assert after_abort("") == set()


def test_requests_are_held_at_the_gate_while_paused_and_cannot_be_aborted_there() -> None:
    engine = make_engine()
    engine.pause(PauseMode.IN_PLACE)
    engine.submit(asked("a", max_new_tokens=3))
    engine.abort("a")
    engine.abort(everything=True)
    assert engine.next_deadline is None
    assert engine.is_live("a")
    engine.resume()
    assert not isinstance(drain(engine)["a"].finish, Abort)


def test_a_held_request_whose_client_goes_away_is_forgotten() -> None:
    engine = make_engine()
    engine.pause(PauseMode.IN_PLACE)
    engine.submit(asked("a"))
    engine.discard("a")
    engine.resume()
    assert drain(engine) == {}


def test_pausing_in_place_keeps_requests_and_defers_their_abort() -> None:
    engine, into = make_engine(), dict[str, Collected]()
    engine.submit(asked("a", max_new_tokens=50, ignore_eos=True))
    step_once(engine, into)
    engine.pause(PauseMode.IN_PLACE)
    engine.abort("a")
    assert engine.next_deadline is None
    assert not engine.flush()
    engine.resume()
    step_once(engine, into)
    assert into["a"].finish == Abort()
    assert len(into["a"].ids) == 2


def test_retraction_returns_requests_to_the_queue_and_samples_the_same_tokens() -> None:
    request = asked("a", max_new_tokens=8, ignore_eos=True)
    undisturbed = drain(make_engine(), request)["a"]
    engine, into = make_engine(), dict[str, Collected]()
    engine.submit(request)
    step_once(engine, into)
    engine.pause(PauseMode.RETRACT)
    assert engine.load.waiting == 1
    assert engine.flush()
    assert engine.next_deadline is None
    engine.resume()
    rest = drain(engine)["a"]
    assert into["a"].ids + rest.ids == undisturbed.ids
    assert rest.emissions[-1].retractions == 1


def test_a_retracted_request_is_aborted_as_a_queued_one_and_keeps_its_tokens() -> None:
    engine, into = make_engine(), dict[str, Collected]()
    engine.submit(asked("a", max_new_tokens=8, ignore_eos=True))
    step_once(engine, into)
    engine.pause(PauseMode.RETRACT)
    engine.abort("a")
    step_once(engine, into)
    assert into["a"].finish == Abort(message="Abort in waiting queue", queued=True)
    assert len(into["a"].ids) == 1
    assert engine.records[-1].output_ids == tuple(into["a"].ids)


def test_pausing_with_abort_ends_everything_and_shuts_the_gate() -> None:
    engine, into = make_engine(), dict[str, Collected]()
    engine.submit(asked("a", max_new_tokens=50, ignore_eos=True))
    step_once(engine, into)
    engine.pause(PauseMode.ABORT)
    engine.submit(asked("b"))
    step_once(engine, into)
    assert into["a"].finish == Abort()
    assert engine.idle
    assert engine.load.held == 1


def test_an_update_that_waits_holds_new_requests_until_it_is_released() -> None:
    engine = make_engine()
    engine.hold()
    engine.submit(asked("a", max_new_tokens=2))
    assert engine.next_deadline is None
    engine.pause(PauseMode.IN_PLACE)
    engine.release()
    assert engine.next_deadline is None
    engine.resume()
    assert drain(engine)["a"].ids


def test_a_full_queue_refuses_with_503() -> None:
    engine = make_engine(options=EngineOptions(max_running_requests=1, queue_max=1))
    into = drain(engine, *(asked(rid, max_new_tokens=2) for rid in "abc"))
    refused = [rid for rid, got in into.items() if isinstance(got.finish, Abort)]
    assert refused == ["b", "c"]
    assert into["b"].finish == Abort(message="The request queue is full.", status=503, kind="503")


def test_prefill_and_tokens_take_the_time_that_was_asked_for() -> None:
    options = EngineOptions(prefill_tokens_per_s=4.0, s_per_token=0.5)
    engine = make_engine(options=options)
    engine.submit(asked(text="cat sat on ", max_new_tokens=3, ignore_eos=True))
    times = []
    now = 10.0
    for _ in range(10):
        if engine.advance(now):
            times.append(now)
        deadline = engine.next_deadline
        if deadline is None:
            break
        now = max(now, deadline)
    assert times == [11.5, 12.0, 12.5]  # 4 prompt tokens at 4/s, then half a second each


def _finish_times(engine: Engine, *generations: Generation) -> dict[str, float]:
    for generation in generations:
        engine.submit(generation)
    ends: dict[str, float] = {}
    now = 0.0
    while (deadline := engine.next_deadline) is not None:
        now = max(now, deadline)
        ends |= {one.rid: now for one in engine.advance(now) if one.finish is not None}
    return ends


def test_prompts_are_computed_one_after_the_other_and_tokens_side_by_side() -> None:
    options = EngineOptions(prefill_tokens_per_s=4.0, s_per_token=0.5)
    calls = [asked("a", "cat sat on "), asked("b", "dog ran on "), asked("c", "mat. ")]
    calls = [dataclasses.replace(one, params=asked(max_new_tokens=1).params) for one in calls]
    ends = _finish_times(make_engine(options=options), *calls)
    # 1 s of prefill for a, 3 further tokens for b (the first is cached), 1 for c.
    assert ends == {"a": 1.5, "b": 2.25, "c": 2.5}


def test_a_prompt_is_cached_for_those_that_wait_behind_it() -> None:
    options = EngineOptions(prefill_tokens_per_s=4.0, s_per_token=0.5)
    got = drain(
        make_engine(options=options),
        *(asked(rid, "cat sat on ", max_new_tokens=2, ignore_eos=True) for rid in "ab"),
    )
    assert [got[rid].emissions[0].cached_tokens for rid in "ab"] == [0, 3]


def test_retraction_leaves_no_prefill_behind() -> None:
    engine = make_engine(options=EngineOptions(prefill_tokens_per_s=0.5))
    engine.submit(asked("a", "cat sat on ", max_new_tokens=1))
    assert engine.advance(0.0) == []
    engine.pause(PauseMode.RETRACT)
    engine.cache.clear()
    engine.resume()
    assert engine.advance(1.0) == []
    assert engine.next_deadline == 9.0


def test_cached_tokens_is_the_longest_prefix_computed_before_but_never_the_whole_prompt() -> None:
    engine = make_engine()
    first = drain(engine, asked("a", "the cat sat ", max_new_tokens=4, ignore_eos=True))["a"]
    again = drain(engine, asked("b", "the cat sat ", max_new_tokens=1))["b"]
    turn = Generation(
        rid="c",
        prompt_ids=(START, *encode("the cat sat "), *first.ids, *encode("dog ")),
        params=asked().params,
        seed=3,
    )
    longer = drain(engine, turn)["c"]
    cached = [got.emissions[0].cached_tokens for got in (first, again, longer)]
    assert cached == [0, 3, 7]  # the last sampled token's state was never computed


def test_prompt_logprobs_begin_where_asked_and_stop_cache_reuse_there() -> None:
    engine = make_engine()
    drain(engine, asked("a", "the cat sat "))
    request = dataclasses.replace(asked("b", "the cat sat "), prompt_scores_from=1, top=2)
    got = drain(engine, request)["b"]
    scores = got.emissions[0].prompt_scores
    assert [score.token for score in scores] == list(request.prompt_ids[1:])
    assert scores[0].logprob is None
    model = make_model()
    sampler = Sampler(model)
    for place, score in enumerate(scores[1:], 2):
        plain = sampler.distribution(request.prompt_ids[:place], asked().params, (), "default")
        assert score.logprob == float32(plain.logprob(request.prompt_ids[place]))
        assert len(score.top) == 2
    assert got.emissions[0].cached_tokens == 1


def test_watched_ids_get_their_logprob_at_every_position() -> None:
    request = dataclasses.replace(
        asked(max_new_tokens=3, ignore_eos=True, top_k=3), watched=(257, 9999)
    )
    for score in drain(make_engine(), request)["r"].tokens:
        assert [token for token, _ in score.watched] == [257, 9999]
        assert score.watched[1][1] is None


def test_scripts_need_one_logprob_per_id_and_at_least_one_id() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Reply(ids=())
    with pytest.raises(ValueError, match="one logprob per id"):
        Reply(ids=(1, 2), logprobs=(-1.0,))
