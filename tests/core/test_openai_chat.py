"""Chat completion requests: every parameter, and the body for the worker."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import ClientError
from slime_core.openai import ChatRequest, generate_body, parse_chat
from slime_core.types import pack_ids

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}, "strict": None}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{broken"}}


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [USER], **fields}
    return parse_chat(json.dumps(body).encode(), vocabulary_size=1000)


def refused(**fields: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        chat(**fields)
    assert caught.value.status == 400
    return caught.value


def sent(request: ChatRequest, ids: int = 3, *, context: int | None = 10, **options: Any) -> Any:
    body = generate_body(
        request, input_ids=pack_ids(range(ids)), rid="r", context_length=context, **options
    )
    return json.loads(body)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "x"}, "messages", "invalid_type"),
        ({"messages": ["x"]}, "messages[0]", "invalid_type"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 5}, "model", "invalid_type"),
        ({"n": 1.5}, "n", "invalid_type"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 129}, "n", "integer_above_max_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"top_p": -0.1}, "top_p", "decimal_below_min_value"),
        ({"presence_penalty": 3}, "presence_penalty", "decimal_above_max_value"),
        ({"frequency_penalty": -3}, "frequency_penalty", "decimal_below_min_value"),
        ({"max_completion_tokens": "a"}, "max_completion_tokens", "invalid_type"),
        (
            {"max_completion_tokens": 0, "max_tokens": 5},
            "max_completion_tokens",
            "integer_below_min_value",
        ),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"stop": ["a"] * 5}, "stop", "array_above_max_length"),
        ({"stop": 7}, "stop", "invalid_type"),
        ({"seed": 2**63}, "seed", "integer_above_max_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1000": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "decimal_above_max_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "integer_above_max_value"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [TOOL, {"type": "function"}]}, "tools[1].function", None),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", None),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
            "invalid_type",
        ),
        ({"tool_choice": "auto"}, "tool_choice", "invalid_value"),
        (
            {
                "tool_choice": {"type": "function", "function": {"name": "g"}},
                "tools": [TOOL],
            },
            "tool_choice",
            "invalid_value",
        ),
        ({"tool_choice": {"type": "custom"}, "tools": [TOOL]}, "tool_choice", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", None),
        (
            {"response_format": {"type": "json_object"}, "regex": "a"},
            "response_format",
            "invalid_value",
        ),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
        ({"metadata": {"k": "v" * 513}}, "metadata", "string_above_max_length"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_value"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
        ({"moderation": {}}, "moderation", "unsupported_parameter"),
        ({"functions": []}, "functions", "unsupported_parameter"),
        ({"function_call": "auto"}, "function_call", "unsupported_parameter"),
        (
            {"chat_template_kwargs": {"chat_template": "x"}},
            "chat_template_kwargs.chat_template",
            "unsupported_value",
        ),
        ({"input_ids": []}, "input_ids", "empty_array"),
        ({"input_ids": [1, 1000]}, "input_ids", "invalid_value"),
        ({"input_ids": [1, -1]}, "input_ids[1]", "integer_below_min_value"),
    ],
)
def test_a_fault_is_refused_and_named(fields: dict[str, Any], param: str, code: str | None) -> None:
    error = refused(**fields)
    assert error.param == param
    if code is not None:
        assert error.code == code


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "x"}, ".role"),
        ({"role": 5, "content": "x"}, ".role"),
        ({"role": "robot", "content": "x"}, ".role"),
        ({"role": "user"}, ".content"),
        ({"role": "user", "content": None}, ".content"),
        ({"role": "user", "content": []}, ".content"),
        ({"role": "user", "content": 5}, ".content"),
        ({"role": "user", "content": ["x"]}, ".content[0]"),
        ({"role": "user", "content": [{"text": "x"}]}, ".content[0].type"),
        ({"role": "user", "content": [{"type": "poem"}]}, ".content[0].type"),
        ({"role": "user", "content": [{"type": ["text"]}]}, ".content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, ".content[0].text"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]},
            ".content[1]",
        ),
        ({"role": "user", "name": 5, "content": "x"}, ".name"),
        ({"role": "tool", "content": "x"}, ".tool_call_id"),
        ({"role": "tool", "content": "x", "tool_call_id": 5}, ".tool_call_id"),
        ({"role": "tool", "tool_call_id": "c"}, ".content"),
        ({"role": "assistant"}, ".content"),
        ({"role": "assistant", "content": None, "tool_calls": []}, ".content"),
        ({"role": "assistant", "tool_calls": {}}, ".tool_calls"),
        ({"role": "assistant", "tool_calls": ["x"]}, ".tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, ".tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [{"id": 5}]}, ".tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{}]}, ".tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{"function": 5}]}, ".tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, ".tool_calls[0].function.name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
            ".tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "content": "", "reasoning_content": 5}, ".reasoning_content"),
    ],
)
def test_a_fault_in_a_message_is_named_by_its_path(message: dict[str, Any], param: str) -> None:
    assert refused(messages=[USER, message]).param == f"messages[1]{param}"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "a ", "cache": 1}]},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]},
    ],
)
def test_messages_stay_as_the_client_sent_them(message: dict[str, Any]) -> None:
    assert chat(messages=[USER, message]).messages == (USER, message)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "developer", "content": ""},
        {"role": "system", "content": "x", "name": "n"},
        {"role": "function", "content": "x", "name": "f"},
        {"role": "tool", "content": [{"type": "text", "text": "x"}], "tool_call_id": "c"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": "x", "tool_calls": None},
        {"role": "assistant", "content": None, "reasoning_content": "x"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ],
)
def test_every_legal_message_is_accepted(message: dict[str, Any]) -> None:
    assert chat(messages=[USER, message]).messages[1]["role"] == message["role"]


def test_an_explicit_null_counts_as_absent() -> None:
    names = (
        "temperature max_tokens max_completion_tokens stop stream stream_options tools tool_choice "
        "response_format logprobs top_logprobs seed audio moderation functions metadata modalities "
        "reasoning_effort n input_ids"
    )
    assert chat(**dict.fromkeys(names.split())) == chat()


def test_ignored_parameters_change_nothing() -> None:
    ignored = {
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "verbosity": "low",
        "prediction": {"type": "content", "content": "x"},
        "service_tier": "auto",
        "store": False,
        "modalities": ["text"],
        "never_heard_of": {"a": 1},
    }
    assert chat(**ignored) == chat()


@pytest.mark.parametrize(
    ("flag", "default"),
    [
        ("parallel_tool_calls", True),
        ("separate_reasoning", True),
        ("stream_reasoning", True),
        ("return_meta_info", False),
    ],
)
def test_a_flag_is_what_the_client_says(flag: str, default: bool) -> None:
    assert getattr(chat(), flag) == default
    assert [getattr(chat(**{flag: said}), flag) for said in (True, False)] == [True, False]
    assert refused(**{flag: "yes"}).param == flag


def test_a_flag_without_effect_must_still_be_one() -> None:
    assert chat(store=True) == chat(store=False) == chat()
    assert refused(store="yes").param == "store"


def test_a_final_message_can_be_continued_only_where_it_is_the_assistants() -> None:
    turn = {"role": "assistant", "content": "So"}
    assert chat(messages=[USER, turn], continue_final_message=True).continue_final_message
    assert not chat(messages=[USER, turn]).continue_final_message
    assert refused(continue_final_message=True).param == "continue_final_message"
    assert refused(continue_final_message="yes").param == "continue_final_message"


def test_the_routers_own_options() -> None:
    own = {"history": "template", "parent_id": "p"}
    request = chat(slime=own)
    assert request.history == "template"
    assert request.common.parent_id == "p"
    assert chat(slime={}) == chat(slime=None) == chat(slime={"history": None}) == chat()


@pytest.mark.parametrize(
    ("own", "param", "code"),
    [
        ([], "slime", "invalid_type"),
        ({"history": 5}, "slime.history", "invalid_type"),
        ({"history": "exactly"}, "slime.history", "invalid_value"),
        ({"hystory": "exact"}, "slime.hystory", "unknown_parameter"),
    ],
)
def test_a_fault_in_the_routers_own_options_is_refused(own: Any, param: str, code: str) -> None:
    error = refused(slime=own)
    assert (error.param, error.code) == (param, code)


def test_obfuscation_is_accepted_without_effect_but_only_as_a_flag() -> None:
    assert chat(stream=True, stream_options={"include_obfuscation": True}) == chat(stream=True)
    fault = refused(stream=True, stream_options={"include_obfuscation": "yes"})
    assert fault.param == "stream_options.include_obfuscation"


def test_without_a_vocabulary_ids_are_not_bounded() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":""}],"input_ids":[2147483647]}'
    assert parse_chat(body).input_ids == pack_ids([2**31 - 1])


@pytest.mark.parametrize(("n", "array"), [(1, False), (2, True)])
def test_a_request_says_what_answer_to_expect(n: int, array: bool) -> None:
    request = chat(n=n)
    assert (request.samples, request.array) == (n, array)
    assert request.shows_logprobs(n - 1)


def test_tools_stay_as_the_client_sent_them() -> None:
    request = chat(tools=[TOOL], tool_choice="auto")
    assert request.tools == (TOOL,)


def test_no_choice_leaves_the_tools_in_the_prompt() -> None:
    request = chat(tools=[TOOL], tool_choice="none")
    assert len(request.tools) == 1


def test_an_empty_list_of_tools_is_none() -> None:
    assert chat(tools=[]) == chat()


def test_allowed_tools_filter_the_tools() -> None:
    other = {"type": "function", "function": {"name": "g"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [other]}}
    assert chat(tools=[TOOL, other], tool_choice=allowed).tools == (other,)


@pytest.mark.parametrize(
    "allowed",
    [
        None,
        {"mode": "auto"},
        {"mode": "auto", "tools": []},
        {"mode": "sometimes", "tools": [TOOL]},
        {"mode": "auto", "tools": [{"type": "function", "function": {"name": "zzz"}}]},
        {"mode": "auto", "tools": ["f"]},
    ],
)
def test_allowed_tools_that_make_no_sense_are_refused(allowed: Any) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    assert refused(tools=[TOOL], tool_choice=choice).param == "tool_choice"


@pytest.mark.parametrize(
    ("fields", "kwargs"),
    [
        ({}, {}),
        (
            {"reasoning_effort": "none"},
            {"enable_thinking": False, "thinking": False, "reasoning_effort": "none"},
        ),
        (
            {"reasoning": {"effort": "high"}},
            {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
        ),
        ({"thinking": False}, {"enable_thinking": False, "thinking": False}),
        (
            {"reasoning": {"enabled": True}, "chat_template_kwargs": {"thinking": False, "x": 1}},
            {"enable_thinking": True, "thinking": False, "x": 1},
        ),
    ],
)
def test_reasoning_parameters_become_template_arguments(
    fields: dict[str, Any], kwargs: dict[str, Any]
) -> None:
    assert chat(**fields).template_kwargs == kwargs


def test_the_worker_is_told_every_parameter_that_its_preferences_could_change() -> None:
    body = sent(chat())
    assert body == {
        "rid": "r",
        "input_ids": [0, 1, 2],
        "sampling_params": {
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "repetition_penalty": 1.0,
            "min_new_tokens": 0,
            "n": 1,
            "ignore_eos": False,
            "no_stop_trim": False,
            "skip_special_tokens": False,
            "max_new_tokens": None,
        },
        "stream": False,
        "return_logprob": True,
        "top_logprobs_num": 0,
    }


def test_what_the_client_asks_for_goes_where_the_worker_looks() -> None:
    request = chat(
        temperature=0,
        stop="x",
        seed=7,
        logit_bias={"5": -1.5},
        stream=True,
        logprobs=True,
        top_logprobs=4,
        n=2,
        min_tokens=3,
        top_k=40,
        stop_token_ids=[9],
        custom_params={"a": 1},
        priority=3,
        extra_key="e",
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"b": 1.0}}},
    )
    body = sent(request)
    assert (body["stream"], body["top_logprobs_num"]) == (True, 4)
    assert (body["priority"], body["extra_key"]) == (3, "e")
    expected = {
        "temperature": 0,
        "stop": ["x"],
        "sampling_seed": 7,
        "logit_bias": {"5": -1.5},
        "n": 2,
        "min_new_tokens": 3,
        "top_k": 40,
        "stop_token_ids": [9],
        "custom_params": {"a": 1},
        "json_schema": '{"b": 1.0}',
    }
    assert expected.items() <= body["sampling_params"].items()


@pytest.mark.parametrize(
    ("format", "schema"),
    [({"type": "text"}, None), ({"type": "json_object"}, '{"type":"object"}')],
)
def test_the_other_output_formats(format: dict[str, Any], schema: str | None) -> None:
    assert sent(chat(response_format=format))["sampling_params"].get("json_schema") == schema


def test_numbers_keep_their_digits() -> None:
    request = parse_chat(
        b'{"model":"m","messages":[{"role":"user","content":""}],"temperature":0.70}'
    )
    body = generate_body(request, input_ids=pack_ids([1]), rid="r", context_length=None)
    assert b'"temperature":0.70,' in body


def test_top_p_zero_means_the_most_probable_token() -> None:
    params = sent(chat(top_p=0, top_k=50))["sampling_params"]
    assert (params["top_p"], params["top_k"]) == (1.0, 1)
    assert sent(chat(top_p=0, top_k=0))["sampling_params"]["top_k"] == 1


def test_top_k_zero_means_that_it_is_off() -> None:
    assert sent(chat(top_k=0))["sampling_params"]["top_k"] == -1


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 500}, 7),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
    ],
)
def test_the_limit_is_cut_to_the_room_left(fields: dict[str, int], limit: int) -> None:
    assert sent(chat(**fields))["sampling_params"]["max_new_tokens"] == limit


@pytest.mark.parametrize(("fields", "param"), [({}, "messages"), ({"input_ids": [1]}, "input_ids")])
def test_a_full_context_is_said_as_clients_look_for_it(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ClientError) as caught:
        sent(chat(**fields), 10)
    assert "This model's maximum context length is 10 tokens" in caught.value.message
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)


def test_a_workers_session_is_seen() -> None:
    assert chat(session_id="s").common.session
    assert not chat(priority=1).common.session


def test_ids_of_the_client_are_the_prompt() -> None:
    assert chat(input_ids=[1, 999]).input_ids == pack_ids([1, 999])


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_the_clients_fault(body: bytes) -> None:
    with pytest.raises(ClientError):
        parse_chat(body)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats(0, 1) | st.sampled_from(
        ["", "x", "auto", "user", "assistant", "text", "function", "json_schema"]
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(
            ["role", "content", "type", "text", "function", "name", "tool_calls", "schema"]
        ),
        inner,
        max_size=3,
    ),
    max_leaves=10,
)  # fmt: skip
NAMES = [
    "messages",
    "model",
    "temperature",
    "top_p",
    "n",
    "stop",
    "max_tokens",
    "logprobs",
    "top_logprobs",
    "stream",
    "stream_options",
    "tools",
    "tool_choice",
    "response_format",
    "reasoning",
    "metadata",
    "modalities",
    "logit_bias",
    "chat_template_kwargs",
    "input_ids",
    "session_params",
]


@given(st.dictionaries(st.sampled_from(NAMES), ANY))
def test_any_values_are_a_request_or_the_clients_fault(fields: dict[str, Any]) -> None:
    try:
        request = chat(**fields)
    except ClientError:
        return
    assert sent(request)["input_ids"] == [0, 1, 2]
