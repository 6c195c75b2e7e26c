"""Completion requests: four kinds of prompt."""

import json
from typing import Any

import pytest

from slime_core.errors import ClientError, InvariantError
from slime_core.openai import CompletionRequest, completions_body, parse_completion
from slime_core.sglang import IdsPrompt, TextPrompt
from slime_core.types import pack_ids


def parse(**fields: Any) -> CompletionRequest:
    body = json.dumps({"model": "m", "prompt": "p", **fields}).encode()
    return parse_completion(body, vocabulary_size=1000)


def sent(request: CompletionRequest, *ids: list[int], context: int | None = None) -> Any:
    packed = [pack_ids(each) for each in ids]
    return json.loads(completions_body(request, input_ids=packed, rids="r", context_length=context))


@pytest.mark.parametrize(
    ("prompt", "prompts", "batch"),
    [
        ("p", (TextPrompt(text="p"),), False),
        (["p", "q"], (TextPrompt(text="p"), TextPrompt(text="q")), True),
        ([5, 6], (IdsPrompt(ids=pack_ids([5, 6])),), False),
        ([[5], [6]], (IdsPrompt(ids=pack_ids([5])), IdsPrompt(ids=pack_ids([6]))), True),
    ],
)
def test_the_first_element_tells_the_kind_of_prompt(
    prompt: Any, prompts: tuple[Any, ...], batch: bool
) -> None:
    request = parse(prompt=prompt)
    assert (request.prompts, request.batch) == (prompts, batch)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": [5, "a"]}, "prompt[1]"),
        ({"prompt": [[5], 6]}, "prompt[1]"),
        ({"prompt": [[5], []]}, "prompt[1]"),
        ({"prompt": [5, 1000]}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"slime": {"history": "exact"}}, "slime.history"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": None}, "model"),
    ],
)
def test_a_fault_is_refused_and_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ClientError) as caught:
        parse(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("fields", [{"best_of": 1}, {"best_of": 2, "n": 2}])
def test_best_of_is_accepted_where_it_selects_nothing(fields: dict[str, Any]) -> None:
    assert parse(**fields).samples == fields.get("n", 1)


def test_sixteen_tokens_are_the_default() -> None:
    assert sent(parse(), [1])["sampling_params"]["max_new_tokens"] == 16


def test_every_prompt_of_a_batch_has_its_own_room() -> None:
    request = parse(prompt=["p", "q"], n=2, max_tokens=9, logprobs=3)
    body = sent(request, [1], [1, 2], context=10)
    assert body["input_ids"] == [[1], [1, 2]]
    assert [params["max_new_tokens"] for params in body["sampling_params"]] == [9, 8]
    assert [params["n"] for params in body["sampling_params"]] == [2, 2]
    assert body["top_logprobs_num"] == 3
    assert (request.samples, request.array) == (4, True)
    assert request.shows_logprobs(3)
    assert request.model == "m"


def test_a_full_context_names_the_prompt() -> None:
    with pytest.raises(ClientError) as caught:
        sent(parse(), [1, 2], context=2)
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")


def test_ids_that_do_not_fit_the_prompts_are_our_bug() -> None:
    with pytest.raises(InvariantError):
        sent(parse(), [1], [2])


IGNORED: Any = object()
# All 18 parameters of the specification: a value, and what the worker is told.
SPECIFICATION: dict[str, tuple[Any, dict[str, Any]]] = {
    "model": ("any/name", {}),
    "prompt": ([5], {}),
    "best_of": (1, IGNORED),
    "echo": (True, {}),
    "frequency_penalty": (0.5, {"frequency_penalty": 0.5}),
    "logit_bias": ({"5": 1}, {"logit_bias": {"5": 1}}),
    "logprobs": (3, {}),
    "max_tokens": (5, {"max_new_tokens": 5}),
    "n": (2, {"n": 2}),
    "presence_penalty": (0.5, {"presence_penalty": 0.5}),
    "seed": (7, {"sampling_seed": 7}),
    "stop": ("x", {"stop": ["x"]}),
    "stream": (True, {}),
    "stream_options": (None, IGNORED),
    "suffix": (None, IGNORED),
    "temperature": (0.5, {"temperature": 0.5}),
    "top_p": (0.5, {"top_p": 0.5}),
    "user": ("u", IGNORED),
}


@pytest.mark.parametrize("name", SPECIFICATION)
def test_every_parameter_has_its_effect(name: str) -> None:
    value, told = SPECIFICATION[name]
    request = parse(**{name: value})
    if told is IGNORED:
        assert request == parse()
        return
    assert request != parse()
    assert told.items() <= sent(request, [1])["sampling_params"].items()


def test_all_parameters_of_the_specification_are_here() -> None:
    assert len(SPECIFICATION) == 18


def test_the_client_says_which_call_it_extends() -> None:
    assert parse(slime={"parent_id": "p"}).common.parent_id == "p"
    assert parse().common.parent_id is None
