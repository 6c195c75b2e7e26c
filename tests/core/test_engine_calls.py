"""``sampling_params`` and ``/generate`` bodies: what is accepted, what is refused, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from slime_core.engine import (
    GenerateCall,
    Generation,
    Refusal,
    SamplingParams,
    Wording,
    parse_generate,
    parse_sampling_params,
    plan,
)


def refusal(call: Callable[[], object]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value


def params(**raw: Any) -> SamplingParams:
    return parse_sampling_params(raw, vocabulary_size=100)


def parsed(**body: Any) -> GenerateCall:
    return parse_generate(body, vocabulary_size=100)


def planned(call: GenerateCall, context_length: int = 500) -> tuple[Generation, ...]:
    numbers = iter(range(1000))
    ids = [p.content if isinstance(p.content, tuple) else (1, 2) for p in call.prompts]
    return plan(
        call,
        ids,
        context_length=context_length,
        vocabulary_size=100,
        fresh=lambda: f"fresh{next(numbers)}",
        seed=9,
    )


def test_an_unknown_sampling_key_is_refused_in_the_plain_wording() -> None:
    error = refusal(lambda: params(max_tokens=5))
    assert error.status == 400
    assert error.body == {"error": "Unexpected keyword argument 'max_tokens'"}


def test_defaults_and_nulls_are_sglangs() -> None:
    assert params() == SamplingParams()
    assert params(temperature=None, top_k=None, stop=None, n=None) == SamplingParams()
    assert params().max_new_tokens == 128
    assert params(max_new_tokens=None).max_new_tokens is None


def test_temperature_zero_becomes_greedy_at_temperature_one() -> None:
    greedy = params(temperature=0, top_k=40)
    assert (greedy.temperature, greedy.top_k, greedy.greedy) == (1.0, 1, True)


def test_one_stop_string_is_a_list_of_one() -> None:
    assert params(stop="x").stop == params(stop=["x", ""]).stop == ("x",)


def test_neutral_keys_are_accepted() -> None:
    raw = {"stream_interval": 2, "custom_params": {"a": 1}, "json_schema": None, "choice": []}
    assert params(**raw) == SamplingParams()


@pytest.mark.parametrize(
    "raw",
    [
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"top_p": 1.01},
        {"min_p": 2},
        {"top_k": 0},
        {"frequency_penalty": 2.5},
        {"presence_penalty": -2.5},
        {"repetition_penalty": 0},
        {"max_new_tokens": -1},
        {"min_new_tokens": 5, "max_new_tokens": 4},
        {"n": 0},
        {"logit_bias": {"100": 1}},
        {"logit_bias": {"x": 1}},
        {"stop": ["a"] * 33},
        {"stop_regex": "("},
        {"stop_regex": "a" * 257},
        {"json_schema": "{}"},
        {"regex": "a"},
    ],
)
def test_values_out_of_range_are_refused_by_the_manager(raw: dict[str, Any]) -> None:
    error = refusal(lambda: params(**raw))
    assert error.wording is Wording.MANAGER
    assert error.body == {"error": {"message": error.message}}


@pytest.mark.parametrize(
    "raw",
    [
        {"temperature": "hot"},
        {"top_k": 1.5},
        {"n": True},
        {"ignore_eos": 1},
        {"stop": 3},
        {"stop_token_ids": 3},
        {"stop_token_ids": ["a"]},
        {"logit_bias": []},
        {"logit_bias": {"1": "a"}},
    ],
)
def test_values_of_a_wrong_type_are_refused(raw: dict[str, Any]) -> None:
    assert refusal(lambda: params(**raw)).wording is Wording.PLAIN


def test_unknown_top_level_keys_are_ignored() -> None:
    assert parsed(text="a", whatever={"x": 1}) == parsed(text="a")


def test_scalars_are_broadcast_over_a_batch_and_lists_are_matched() -> None:
    call = parsed(
        input_ids=[[1], [2, 3]],
        rid="r",
        sampling_params=[{"temperature": 0.5}, {}],
        return_logprob=[True, False],
        top_logprobs_num=2,
        token_ids_logprob=[4],
    )
    assert call.many
    first, second = call.prompts
    assert (first.rid, second.rid) == ("r_0", "r_1")
    assert (first.params.temperature, second.params.temperature) == (0.5, 1.0)
    assert (first.return_logprob, second.return_logprob) == (True, False)
    assert first.top_logprobs_num == second.top_logprobs_num == 2
    assert first.token_ids_logprob == second.token_ids_logprob == (4,)


def test_samples_are_planned_prompt_major_with_fresh_ids() -> None:
    call = parsed(input_ids=[[1], [2]], rid="r", sampling_params={"n": 2})
    generations = planned(call)
    assert [g.prompt_ids for g in generations] == [(1,), (1,), (2,), (2,)]
    assert [g.rid for g in generations] == ["fresh0", "fresh1", "fresh2", "fresh3"]
    assert len({g.seed for g in generations}) == 4


def test_a_sampling_seed_fixes_the_first_sample_and_the_others_differ() -> None:
    call = parsed(input_ids=[1], sampling_params={"n": 2, "sampling_seed": 42})
    assert planned(call)[0].seed == 42
    assert planned(call)[1].seed != 42
    assert planned(call)[1].seed == planned(call)[1].seed


def test_an_array_answers_a_single_prompt_with_several_samples() -> None:
    assert not parsed(input_ids=[1]).many
    assert parsed(input_ids=[1], sampling_params={"n": 2}).many
    assert parsed(input_ids=[[1]]).many


@pytest.mark.parametrize(
    ("body", "wording"),
    [
        ({}, Wording.MANAGER),
        ({"input_ids": []}, Wording.MANAGER),
        ({"input_ids": [[1], [2]], "rid": ["a"]}, Wording.MANAGER),
        ({"input_ids": [[1], [2]], "rid": ["a", "a"]}, Wording.MANAGER),
        ({"input_ids": [[1], [2]], "sampling_params": [{}]}, Wording.MANAGER),
        ({"input_ids": [[1], [2]], "sampling_params": [{"n": 1}, {"n": 2}]}, Wording.MANAGER),
        ({"input_ids": [[1], [2]], "text": ["a"]}, Wording.MANAGER),
        ({"input_ids": [1], "return_logprob": [True]}, Wording.MANAGER),
        ({"text": 3}, Wording.FRAMEWORK),
        ({"text": []}, Wording.MANAGER),
        ({"input_ids": ["a"]}, Wording.FRAMEWORK),
        ({"input_ids": [[1], 2]}, Wording.FRAMEWORK),
        ({"text": "a", "stream": None}, Wording.FRAMEWORK),
        ({"text": "a", "rid": 3}, Wording.FRAMEWORK),
        ({"text": "a", "sampling_params": 3}, Wording.FRAMEWORK),
        ({"text": "a", "top_logprobs_num": "x"}, Wording.FRAMEWORK),
        ({"text": "a", "token_ids_logprob": "x"}, Wording.FRAMEWORK),
        ({"text": "a", "routed_experts_start_len": None}, Wording.FRAMEWORK),
    ],
)
def test_bodies_that_make_no_sense_are_refused_in_the_right_wording(
    body: dict[str, Any], wording: Wording
) -> None:
    assert refusal(lambda: parse_generate(body, vocabulary_size=100)).wording is wording


def test_a_body_that_is_no_object_is_refused_by_the_framework() -> None:
    error = refusal(lambda: parse_generate([1], vocabulary_size=100))
    assert error.body["object"] == "error"
    assert error.body["type"] == "Bad Request"
    assert error.body["code"] == 400


@pytest.mark.parametrize(
    "body",
    [
        {"input_ids": [1] * 50},
        {"input_ids": [1] * 40, "sampling_params": {"max_new_tokens": 11}},
        {"input_ids": [1], "return_logprob": True, "logprob_start_len": 2},
        {"input_ids": [100]},
        {"input_ids": [-1]},
        {"input_ids": [1], "return_routed_experts": True, "routed_experts_start_len": 2},
    ],
)
def test_a_call_that_does_not_fit_is_refused_by_the_manager(body: dict[str, Any]) -> None:
    call = parse_generate({"sampling_params": {"max_new_tokens": 1}} | body, vocabulary_size=100)
    assert refusal(lambda: planned(call, 50)).wording is Wording.MANAGER
