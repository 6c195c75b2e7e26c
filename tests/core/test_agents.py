"""What an agent with a session's key may ask for, and what it is shown."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slime_core import openai
from slime_core.agents import check_generate, check_openai, shown_answer, shown_item
from slime_core.errors import ClientError, WorkerError
from slime_core.sglang import parse_generate


def generate(**fields: Any) -> None:
    check_generate(parse_generate(json.dumps({"text": "a"} | fields).encode()))


def chat(**fields: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]} | fields
    check_openai(openai.parse_chat(json.dumps(body).encode()))


def refused(check: Any, **fields: Any) -> str | None:
    """The field that is refused, if one is."""
    try:
        check(**fields)
    except ClientError as error:
        return error.param if error.code == "session_key_forbids" else f"{error.status}"
    return None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("return_logprob", True),
        ("return_hidden_states", True),
        ("return_hidden_states", "last"),
        ("return_something_new", 1),
        ("session_params", {"rid": "another's"}),
        ("bootstrap_host", "10.0.0.1"),
        ("bootstrap_room", 0),
        ("custom_logit_processor", "code"),
    ],
)
def test_what_only_a_trainer_needs_is_refused_by_name(name: str, value: Any) -> None:
    assert refused(generate, **{name: value}) == name


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"return_logprob": False, "top_logprobs_num": 0},
        {"return_hidden_states": None},
        {"return_text_in_logprobs": True},
        {"return_routed_experts": True, "routed_experts_start_len": 2},
        {"sampling_params": {"n": 2}, "rid": "mine", "priority": 3},
        {"text": ["a", "b"], "return_logprob": [False, False]},
    ],
)
def test_what_shows_nothing_is_not_refused(fields: dict[str, Any]) -> None:
    assert refused(generate, **fields) is None


def test_one_logprob_of_a_batch_is_refused_as_all_are() -> None:
    assert refused(generate, text=["a", "b"], return_logprob=[False, True]) == "return_logprob"


def test_what_cannot_be_captured_is_refused() -> None:
    with pytest.raises(ClientError, match="captured"):
        generate(image_data="x")


@pytest.mark.parametrize(
    "name", ["return_token_ids", "return_prompt_token_ids", "return_meta_info"]
)
def test_extensions_of_chats_are_refused_by_name(name: str) -> None:
    assert refused(chat, **{name: True}) == name
    assert refused(chat, **{name: False}) is None


def test_openais_own_logprobs_are_not_refused() -> None:
    assert refused(chat, logprobs=True, top_logprobs=5) is None


def test_experts_may_be_captured_of_an_agents_chat() -> None:
    assert refused(chat, return_routed_experts=True) is None


# -- what is shown -----------------------------------------------------------------------------

_TOLD = {
    "text": "said",
    "output_ids": [5, 6],
    "index": 1,
    "hidden": [1],
    "meta_info": {
        "id": "r",
        "finish_reason": {"type": "stop", "matched": 7},
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "cached_tokens": 1,
        "weight_version": "4",
        "output_token_logprobs": [[-0.5, 5, None]],
        "routed_experts": "AAAA",
        "something_new": [5],
    },
}
_SHOWN = {
    "text": "said",
    "index": 1,
    "meta_info": {
        "id": "r",
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "cached_tokens": 1,
        "finish_reason": {"type": "stop"},
    },
}


def test_text_counts_and_the_end_are_shown_and_nothing_else() -> None:
    assert json.loads(shown_item(json.dumps(_TOLD).encode())) == _SHOWN


def test_every_answer_of_a_batch_is_shown_so() -> None:
    body = json.dumps([_TOLD, _TOLD]).encode()
    assert json.loads(shown_answer(body, array=True)) == [_SHOWN, _SHOWN]


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        (None, None),
        ({"type": "stop", "matched": "END"}, {"type": "stop", "matched": "END"}),
        ({"type": "stop", "matched": [5, 6]}, {"type": "stop"}),
        ({"type": "length", "length": 9}, {"type": "length", "length": 9}),
    ],
)
def test_the_end_is_shown_without_the_tokens_that_made_it(reason: Any, shown: Any) -> None:
    told = {"text": "a", "meta_info": {"id": "r", "finish_reason": reason}}
    found = json.loads(shown_item(json.dumps(told).encode()))
    assert found["meta_info"]["finish_reason"] == shown


def test_an_answer_that_cannot_be_read_is_the_workers_fault() -> None:
    with pytest.raises(WorkerError):
        shown_item(b'{"text":"a"}')
