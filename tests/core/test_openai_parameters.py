"""Every request parameter has its verdict: supported, ignored, or refused by name.

The names are those of OpenAI's specification 2.3.0 and of SGLang's extensions; what stands beside
each is what becomes of it.
"""

import json
from typing import Any, Final

import pytest

from slime_core.errors import ClientError
from slime_core.openai import ChatRequest, generate_body, parse_chat
from slime_core.types import pack_ids

USER: Final = {"role": "user", "content": "hi"}
TOOL: Final = {"type": "function", "function": {"name": "f", "parameters": {}}}

IGNORED: Final = object()
REFUSED: Final = object()


def sampling(**expected: Any) -> Any:
    """The worker is told so."""
    return lambda request, sent: expected.items() <= sent["sampling_params"].items()


def top(**expected: Any) -> Any:
    """The worker is told so beside its sampling parameters."""
    return lambda request, sent: expected.items() <= sent.items()


def known(**expected: Any) -> Any:
    """The request remembers it."""
    return lambda request, sent: all(
        getattr(request, name) == value for name, value in expected.items()
    )


def shared(**expected: Any) -> Any:
    """So it does, where both dialects have it."""
    return lambda request, sent: all(
        getattr(request.common, name) == value for name, value in expected.items()
    )


SPECIFICATION: Final[dict[str, tuple[Any, Any]]] = {
    "messages": ([USER], known(messages=(USER,))),
    "model": ("any/name", known(model="any/name")),
    "max_completion_tokens": (5, sampling(max_new_tokens=5)),
    "max_tokens": (5, sampling(max_new_tokens=5)),
    "temperature": (0.5, sampling(temperature=0.5)),
    "top_p": (0.5, sampling(top_p=0.5)),
    "n": (2, sampling(n=2)),
    "stop": (["a", "b"], sampling(stop=["a", "b"])),
    "presence_penalty": (0.5, sampling(presence_penalty=0.5)),
    "frequency_penalty": (0.5, sampling(frequency_penalty=0.5)),
    "logit_bias": ({"5": 1}, sampling(logit_bias={"5": 1})),
    "logprobs": (True, known(logprobs=True)),
    "top_logprobs": (REFUSED, REFUSED),
    "seed": (7, sampling(sampling_seed=7)),
    "stream": (True, top(stream=True)),
    "stream_options": ({"include_usage": True}, REFUSED),
    "tools": ([TOOL], known(tools=(TOOL,), calls_tools=True)),
    "tool_choice": ("none", known(calls_tools=False)),
    "parallel_tool_calls": (False, known(parallel_tool_calls=False)),
    "response_format": ({"type": "json_object"}, sampling(json_schema='{"type":"object"}')),
    "reasoning_effort": (
        "none",
        known(
            template_kwargs={
                "enable_thinking": False,
                "thinking": False,
                "reasoning_effort": "none",
            }
        ),
    ),
    "user": ("u", IGNORED),
    "safety_identifier": ("s", IGNORED),
    "prompt_cache_key": ("k", IGNORED),
    "prompt_cache_retention": ("24h", IGNORED),
    "prompt_cache_options": ({"mode": "x"}, IGNORED),
    "verbosity": ("low", IGNORED),
    "prediction": ({"type": "content", "content": "x"}, IGNORED),
    "service_tier": ("flex", IGNORED),
    "store": (True, IGNORED),
    "metadata": ({"a": "b"}, lambda request, sent: bytes(request.metadata) == b'{"a": "b"}'),
    "modalities": (["text"], IGNORED),
    "audio": ({"voice": "x"}, REFUSED),
    "web_search_options": ({}, REFUSED),
    "moderation": ({"model": "x"}, REFUSED),
    "functions": ([{"name": "f"}], REFUSED),
    "function_call": ("auto", REFUSED),
}
EXTENSIONS: Final[dict[str, tuple[Any, Any]]] = {
    "top_k": (40, sampling(top_k=40)),
    "min_p": (0.1, sampling(min_p=0.1)),
    "repetition_penalty": (1.1, sampling(repetition_penalty=1.1)),
    "stop_token_ids": ([5], sampling(stop_token_ids=[5])),
    "stop_regex": ("a+", sampling(stop_regex="a+")),
    "ignore_eos": (True, sampling(ignore_eos=True)),
    "no_stop_trim": (True, sampling(no_stop_trim=True)),
    "regex": ("a+", sampling(regex="a+")),
    "ebnf": ("root ::= x", sampling(ebnf="root ::= x")),
    "custom_params": ({"a": 1}, sampling(custom_params={"a": 1})),
    "min_tokens": (3, sampling(min_new_tokens=3)),
    "skip_special_tokens": (True, sampling(skip_special_tokens=False)),
    "rid": ("mine", shared(rid="mine")),
    "lora_path": ("adapter", top(lora_path="adapter")),
    "session_id": ("s", top(session_id="s")),
    "session_params": ({"id": "s"}, top(session_params={"id": "s"})),
    "priority": (3, top(priority=3)),
    "extra_key": ("k", top(extra_key="k")),
    "cache_salt": ("salt", top(cache_salt="salt")),
    "custom_logit_processor": ("code", top(custom_logit_processor="code")),
    "return_routed_experts": (True, top(return_routed_experts=True)),
    "routed_experts_start_len": (3, top(routed_experts_start_len=3)),
    "chat_template_kwargs": ({"x": 1}, known(template_kwargs={"x": 1})),
    "continue_final_message": (True, REFUSED),
    "input_ids": ([5], known(input_ids=pack_ids([5]))),
    "return_token_ids": (True, shared(return_token_ids=True)),
    "return_prompt_token_ids": (True, shared(return_prompt_token_ids=True)),
    "return_meta_info": (True, known(return_meta_info=True)),
    "separate_reasoning": (False, known(separate_reasoning=False)),
    "stream_reasoning": (False, known(stream_reasoning=False)),
    "thinking": (True, known(template_kwargs={"enable_thinking": True, "thinking": True})),
    "reasoning": (
        {"enabled": False},
        known(template_kwargs={"enable_thinking": False, "thinking": False}),
    ),
    "slime": ({"parent_id": "p"}, shared(parent_id="p")),
}
BESIDE: Final[dict[str, dict[str, Any]]] = {"tool_choice": {"tools": [TOOL]}}
REQUIRED: Final = {"messages": [USER], "model": "m"}


def chat(**fields: Any) -> ChatRequest:
    return parse_chat(json.dumps(REQUIRED | fields).encode(), vocabulary_size=1000)


def sent(request: ChatRequest) -> Any:
    return json.loads(generate_body(request, input_ids=pack_ids([1]), rid="r", context_length=None))


def test_all_parameters_of_the_specification_are_here() -> None:
    assert len(SPECIFICATION) == 37


@pytest.mark.parametrize("name", [*SPECIFICATION, *EXTENSIONS])
def test_every_parameter_has_its_effect(name: str) -> None:
    value, effect = (SPECIFICATION | EXTENSIONS)[name]
    beside = BESIDE.get(name, {})
    if effect is REFUSED:
        with pytest.raises(ClientError) as caught:
            chat(**{name: 3 if value is REFUSED else value})
        assert (caught.value.status, caught.value.param) == (400, name)
        return
    request = chat(**beside, **{name: value})
    if effect is IGNORED:
        assert request == chat(**beside)
    else:
        assert effect(request, sent(request))
        assert name == "skip_special_tokens" or name in REQUIRED or request != chat(**beside)


@pytest.mark.parametrize("name", [*SPECIFICATION, *EXTENSIONS])
def test_null_is_as_good_as_absent(name: str) -> None:
    if name not in REQUIRED:
        assert chat(**{name: None}) == chat()


STRICT: Final = [
    *("n", "temperature", "top_p", "max_tokens", "max_completion_tokens", "presence_penalty"),
    *("frequency_penalty", "stop", "seed", "stream", "logprobs", "parallel_tool_calls", "store"),
    *("logit_bias", "tools", "tool_choice", "response_format", "reasoning_effort", "metadata"),
    *("modalities", "messages", "model", "top_k", "min_p", "repetition_penalty", "regex", "ebnf"),
    *("stop_token_ids", "stop_regex", "ignore_eos", "no_stop_trim", "skip_special_tokens", "rid"),
    *("min_tokens", "chat_template_kwargs", "continue_final_message", "input_ids", "thinking"),
    *("return_token_ids", "return_prompt_token_ids", "return_meta_info", "separate_reasoning"),
    *("stream_reasoning", "reasoning", "slime"),
]


@pytest.mark.parametrize("name", STRICT)
def test_a_wrong_type_is_refused_by_name(name: str) -> None:
    value: Any = [[]] if name in {"chat_template_kwargs", "reasoning"} else {"x": [[]]}
    with pytest.raises(ClientError) as caught:
        chat(**{name: value})
    assert caught.value.status == 400
    assert (caught.value.param or "").startswith(name)


class TestForcedCalls:
    """What the worker is told where a call is forced."""

    def schema(self, *tools: Any, **fields: Any) -> Any:
        request = chat(**{"tools": tools, "tool_choice": "required", **fields})
        assert request.forced
        return json.loads(sent(request)["sampling_params"]["json_schema"])

    def tool(self, name: str, **parameters: Any) -> Any:
        function = {"name": name, "parameters": {"type": "object", **parameters}}
        return {"type": "function", "function": function}

    def call(self, name: str, parameters: Any) -> Any:
        return {
            "type": "object",
            "properties": {"name": {"type": "string", "enum": [name]}, "parameters": parameters},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }

    def test_any_of_the_tools_may_be_called(self) -> None:
        schema = self.schema(self.tool("f"), self.tool("g"))
        assert (schema["type"], schema["minItems"]) == ("array", 1)
        assert schema["items"]["anyOf"] == [
            self.call("f", {"type": "object"}),
            self.call("g", {"type": "object"}),
        ]
        assert "maxItems" not in schema

    def test_one_at_most_where_they_may_not_be_parallel(self) -> None:
        assert self.schema(self.tool("f"), parallel_tool_calls=False)["maxItems"] == 1

    @pytest.mark.parametrize(
        "choice",
        [
            {"type": "function", "function": {"name": "g"}},
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "g"}}],
                },
            },
        ],
    )
    def test_the_named_tool_must_be_called_and_all_stay_in_the_prompt(self, choice: Any) -> None:
        tools = [self.tool("f"), self.tool("g")]
        schema = self.schema(*tools, tool_choice=choice)
        assert schema["items"] == self.call("g", {"type": "object"})
        assert chat(tools=tools, tool_choice=choice).tools == tuple(tools)

    def test_a_tool_without_parameters_takes_an_empty_object(self) -> None:
        bare = {"type": "function", "function": {"name": "f"}}
        assert self.schema(bare)["items"]["properties"]["parameters"] == {
            "type": "object",
            "properties": {},
        }

    @pytest.mark.parametrize("key", ["$defs", "definitions"])
    def test_definitions_stand_at_the_root(self, key: str) -> None:
        schema = self.schema(
            self.tool("f", **{key: {"A": {"type": "string"}}}),
            self.tool("g", **{key: {"A": {"type": "string"}, "B": {}}}),
        )
        assert schema[key] == {"A": {"type": "string"}, "B": {}}
        for one in schema["items"]["anyOf"]:
            assert key not in one["properties"]["parameters"]

    def test_two_meanings_of_one_definition_are_refused(self) -> None:
        with pytest.raises(ClientError) as caught:
            self.schema(*(self.tool(name, **{"$defs": {"A": name}}) for name in "fg"))
        assert caught.value.param == "tools"

    @pytest.mark.parametrize(
        "other",
        [{"response_format": {"type": "json_object"}}, {"regex": "a"}, {"ebnf": "root ::= x"}],
    )
    def test_another_constraint_is_refused(self, other: dict[str, Any]) -> None:
        with pytest.raises(ClientError) as caught:
            self.schema(self.tool("f"), **other)
        assert caught.value.param == "tool_choice"

    def test_a_free_choice_leaves_the_constraint_of_the_output(self) -> None:
        request = chat(tools=[self.tool("f")], response_format={"type": "json_object"})
        assert not request.forced
        assert sent(request)["sampling_params"]["json_schema"] == '{"type":"object"}'

    @pytest.mark.parametrize(
        ("fields", "told"),
        [
            ({}, None),
            ({"response_format": {"type": "json_object"}}, True),
            ({"regex": "a"}, True),
            ({"ebnf": "a"}, True),
            ({"tools": [TOOL], "tool_choice": "required"}, True),
        ],
    )
    def test_a_constraint_waits_for_the_end_of_reasoning(
        self, fields: dict[str, Any], told: bool | None
    ) -> None:
        request = chat(**fields)
        body = generate_body(
            request, input_ids=pack_ids([1]), rid="r", context_length=None, require_reasoning=True
        )
        assert json.loads(body).get("require_reasoning") is told
        assert request.constrained == bool(told)
        assert "require_reasoning" not in sent(request)
