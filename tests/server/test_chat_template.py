"""Chat templates: what reaches them, what comes out, and who is told when they refuse."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slime_core.errors import ClientError
from slime_core.types import Encoding
from slime_trio.chat_messages import TemplateTraits, normalise_messages, normalise_tools
from slime_trio.chat_template import ChatTemplate, load_chat_template
from slime_trio.tokenizer import CheckpointError, Tokenizer, load_checkpoint
from tests import tokenizers

_SHIPPED = Path(__file__).parents[2] / "src" / "slime_trio" / "data" / "checkpoint"

_PLAIN = """\
{%- for message in messages %}
{{- '<' ~ message.role ~ '>' ~ message.content }}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{{- '[' ~ call.function.name ~ ' ' }}{{ call.function.arguments | tojson }}{{ ']' }}
{%- endfor %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""

_WANTS_TEXT = _PLAIN.replace("call.function.arguments | tojson", "'' + call.function.arguments")

Load = Callable[..., ChatTemplate]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Makes a checkpoint around a template and loads it."""

    def make(template: str | None, *, now: datetime.datetime | None = None) -> ChatTemplate:
        raw = tokenizers.byte_level_bpe().to_str()
        (tmp_path / "tokenizer.json").write_text(raw, encoding="utf-8")
        if template is not None:
            (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
        return ChatTemplate.load(tmp_path, now=now)

    return make


def _user(content: Any = "Hello") -> dict[str, Any]:
    return {"role": "user", "content": content}


def _calling(arguments: Any, **fields: Any) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call], **fields}


def _one(message: dict[str, Any], **traits: Any) -> dict[str, Any]:
    return normalise_messages([message], TemplateTraits(**traits))[0]


# --- the shipped checkpoint ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> ChatTemplate:
    return load_chat_template(_SHIPPED, tokenizer=load_checkpoint(_SHIPPED).tokenizer)


def test_the_shipped_template_renders_a_turn(shipped: ChatTemplate) -> None:
    expected = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert shipped.render([_user()]) == expected


def test_without_a_generation_prompt_the_rendering_ends_with_the_last_turn(
    shipped: ChatTemplate,
) -> None:
    rendered = shipped.render([_user()], add_generation_prompt=False)
    assert rendered == "<|im_start|>user\nHello<|im_end|>\n"


def test_the_shipped_checkpoint_gives_no_warnings(shipped: ChatTemplate) -> None:
    assert shipped.warnings == ()


def test_tools_reach_the_shipped_template(shipped: ChatTemplate) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "description": None}}
    rendered = shipped.render([_user()], tools=[tool])
    assert '{"type": "function", "function": {"name": "look_up"}}' in rendered


def test_a_longer_conversation_begins_like_the_shorter_one(shipped: ChatTemplate) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        _user(),
        _calling('{"a": 1}', reasoning_content="Hm."),
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        {"role": "assistant", "content": "It is 2."},
        _user("Thanks"),
    ]
    for count in range(1, len(messages)):
        shorter = shipped.render(messages[:count], add_generation_prompt=False)
        assert shipped.render(messages).startswith(shorter)


def test_the_shipped_template_says_what_it_does(shipped: ChatTemplate) -> None:
    assert shipped.report is not None
    known = json.loads(json.dumps(shipped.report.as_json()))
    assert known["marks"]["ends"] == ["<|im_end|>"]
    assert known["traits"]["reasoning_field"] == "reasoning_content"
    assert set(known["changes"].values()) == {"stable", "stable, extended exactly"}
    assert ("tool definitions", "shown") in shipped.report.table()


def test_a_turn_of_the_shipped_template_ends_where_workers_stop(shipped: ChatTemplate) -> None:
    assert shipped.turn_ends == load_checkpoint(_SHIPPED).tokenizer.eos_ids


def test_a_held_turn_is_extended_by_what_was_appended(shipped: ChatTemplate) -> None:
    delta = shipped.delta([_user(), {"role": "assistant", "content": "Hi"}], [_user("<think>")])
    assert delta is not None
    assert delta.close == "<|im_end|>"
    assert delta.text == "\n<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n"
    assert delta.plain == ((18, 25),)


def test_special_tokens_in_content_are_text_unless_switched_off() -> None:
    control = load_chat_template(_SHIPPED, special_tokens="control")
    plain = load_chat_template(_SHIPPED)
    messages = [_user("<|im_end|>")]
    assert control.rendered(messages).plain == ()
    assert plain.rendered(messages).plain == ((17, 27),)
    assert control.render(messages) == plain.render(messages)


# --- what reaches a template --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ""),
        ("", ""),
        ("  kept as it is \n", "  kept as it is \n"),
        ([], ""),
        ([{"type": "text", "text": "hello wor"}, {"type": "text", "text": "ld"}], "hello world"),
        ([{"type": "refusal", "refusal": "No."}], "No."),
        ([{"text": "no type"}], "no type"),
    ],
)
def test_content_becomes_one_string(content: Any, expected: str) -> None:
    assert _one({"role": "assistant", "content": content})["content"] == expected


def test_absent_content_becomes_empty() -> None:
    assert _one({"role": "assistant"}) == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hello", "messages"),
        (["Hello"], "messages[0]"),
        ([{"content": "Hello"}], "messages[0].role"),
        ([{"role": 1, "content": "Hello"}], "messages[0].role"),
        ([_user(), _user(1)], "messages[1].content"),
        ([_user([{"type": "text", "text": "a"}, "b"])], "messages[0].content[1]"),
        ([_user([{"type": "text"}])], "messages[0].content[0]"),
        ([_user([{"type": "image_url", "image_url": {}}])], "messages[0].content[0]"),
        ([{"role": "assistant", "tool_calls": {"a": 1}}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": ["f"]}], "messages[0].tool_calls[0]"),
        (
            [{"role": "assistant", "tool_calls": [{"id": "1"}]}],
            "messages[0].tool_calls[0].function",
        ),
    ],
)
def test_what_cannot_be_rendered_is_named(messages: Any, param: str) -> None:
    with pytest.raises(ClientError) as caught:
        normalise_messages(messages, TemplateTraits())
    assert caught.value.param == param


def test_a_developer_is_a_system() -> None:
    assert _one({"role": "developer", "content": "Be brief."})["role"] == "system"


def test_leading_system_messages_become_one() -> None:
    messages = [
        {"role": "system", "content": "One."},
        {"role": "developer", "content": "Two."},
        {"role": "system", "content": ""},
        _user(),
    ]
    normalised = normalise_messages(messages, TemplateTraits(system_anywhere=False))
    assert normalised == [{"role": "system", "content": "One.\n\nTwo."}, _user()]


def test_a_later_system_message_stays_where_the_template_takes_it() -> None:
    messages = [_user(), {"role": "system", "content": "Now."}]
    assert normalise_messages(messages, TemplateTraits()) == messages


def test_a_later_system_message_is_refused_by_name_where_it_would_be_lost() -> None:
    messages = [_user(), {"role": "system", "content": "Now."}]
    with pytest.raises(ClientError, match="only at the beginning") as caught:
        normalise_messages(messages, TemplateTraits(system_anywhere=False))
    assert caught.value.param == "messages[1]"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"b": 1, "a": 2}', {"b": 1, "a": 2}),
        ({"b": 1}, {"b": 1}),
        ("", {}),
        (" ", {}),
        (None, {}),
        ('{"b": ', {"raw_arguments": '{"b": '}),
        ("[1]", {"raw_arguments": "[1]"}),
        ("[" * 100_000, {"raw_arguments": "[" * 100_000}),
    ],
)
def test_arguments_become_an_object(arguments: Any, expected: Any) -> None:
    message = _one(_calling(arguments))
    assert message["tool_calls"][0]["function"]["arguments"] == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"b":  1}', '{"b":  1}'), ("{", "{"), ({"b": "é"}, '{"b": "é"}'), (None, "{}")],
)
def test_arguments_become_text_where_the_template_wants_text(arguments: Any, expected: str) -> None:
    message = _one(_calling(arguments), arguments_as_text=True)
    assert message["tool_calls"][0]["function"]["arguments"] == expected


@pytest.mark.parametrize("calls", [None, []])
def test_no_tool_calls_are_no_field(calls: Any) -> None:
    assert "tool_calls" not in _one({"role": "assistant", "content": "a", "tool_calls": calls})


def test_a_tool_call_without_a_type_is_of_a_function() -> None:
    message = _one({"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]})
    assert message["tool_calls"][0]["type"] == "function"


def test_an_sdk_dump_of_an_assistant_turn_is_evened_out() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{broken"}}
    dump = {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [{**call, "index": None}],
    }
    assert _one(dump, arguments_as_text=True) == {
        "role": "assistant",
        "content": "",
        "annotations": [],
        "tool_calls": [call],
    }


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_goes_under_the_name_that_is_read(name: str) -> None:
    message = _one({"role": "assistant", "content": "a", name: "Hm."}, reasoning_field="thinking")
    assert message == {"role": "assistant", "content": "a", "thinking": "Hm."}


def test_reasoning_that_nobody_reads_goes() -> None:
    message = {"role": "assistant", "content": "a", "reasoning_content": "Hm."}
    assert _one(message) == {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("content", "reasoning", "rest"),
    [
        ("<think>\nHm.\n</think>\n\nHi", "Hm.", "Hi"),
        ("<think>Hm.</think>", "Hm.", ""),
        (" <think>Hm.</think> Hi", "Hm.", " Hi"),
    ],
)
def test_reasoning_inside_content_goes_under_the_name_that_is_read(
    content: str, reasoning: str, rest: str
) -> None:
    message = _one({"role": "assistant", "content": content}, reasoning_field="thinking")
    assert message == {"role": "assistant", "content": rest, "thinking": reasoning}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "<think>Hm."},
        {"role": "assistant", "content": "Hi <think>Hm.</think>"},
        {"role": "user", "content": "<think>Hm.</think>"},
        {"role": "assistant", "content": "<think></think>"},
    ],
)
def test_what_is_no_reasoning_stays_content(message: dict[str, Any]) -> None:
    expected = {**message, "content": message["content"].replace("<think></think>", "")}
    assert _one(message, reasoning_field="thinking") == expected


def test_reasoning_inside_content_stays_where_no_name_is_read() -> None:
    message = {"role": "assistant", "content": "<think>Hm.</think>Hi"}
    assert _one(message) == message


def test_text_beside_calls_joins_the_reasoning_where_one_is_taken() -> None:
    traits = {"reasoning_field": "thinking", "one_text_beside_calls": True}
    message = _one({**_calling("{}", thinking="Hm."), "content": "Hi"}, **traits)
    assert (message["content"], message["thinking"]) == ("", "Hm.\n\nHi")
    message = _one({**_calling("{}"), "content": "Hi"}, **traits)
    assert (message["content"], message.get("thinking")) == ("Hi", None)


def test_ids_of_calls_are_shortened_alike_where_nine_letters_are_demanded() -> None:
    call = _one(_calling("{}"), short_call_ids=True)["tool_calls"][0]["id"]
    result = _one({"role": "tool", "tool_call_id": "call_1", "content": "a"}, short_call_ids=True)
    assert call == result["tool_call_id"]
    assert len(call) == 9
    assert call.isalnum()
    fitting = {"role": "tool", "tool_call_id": "abcDEF123", "content": "a"}
    assert _one(fitting, short_call_ids=True) == fitting


def test_messages_are_not_changed_in_place() -> None:
    messages = [_calling('{"a": 1}', refusal=None)]
    before = json.dumps(messages)
    normalise_messages(messages, TemplateTraits())
    assert json.dumps(messages) == before


def test_tools_keep_their_order_and_lose_their_nulls() -> None:
    parameters = {"type": "object", "properties": {"z": {"default": None}, "a": {}}}
    function = {"strict": None, "parameters": parameters, "name": "f"}
    tools = normalise_tools([{"function": function, "type": "function"}])
    assert json.dumps(tools) == json.dumps(
        [{"function": {"parameters": parameters, "name": "f"}, "type": "function"}]
    )


def test_nothing_beside_a_tools_function_reaches_the_model() -> None:
    given = {"cache_control": {}, "function": {"name": "f"}, "type": "function"}
    assert normalise_tools([given]) == [{"function": {"name": "f"}, "type": "function"}]


def test_a_tool_without_a_wrapping_is_left() -> None:
    assert normalise_tools([{"name": "f", "strict": None}]) == [{"name": "f"}]


@pytest.mark.parametrize("tools", [None, []])
def test_no_tools_are_none(tools: Any) -> None:
    assert normalise_tools(tools) is None


@pytest.mark.parametrize(("tools", "param"), [({}, "tools"), ([{}, "f"], "tools[1]")])
def test_tools_that_are_none_are_named(tools: Any, param: str) -> None:
    with pytest.raises(ClientError) as caught:
        normalise_tools(tools)
    assert caught.value.param == param


# --- what a template is found to do -------------------------------------------------------------


def test_a_template_that_takes_objects_gets_objects(load: Load) -> None:
    template = load(_PLAIN)
    assert template.render([_user(), _calling('{"b":1}')]).endswith('[f {"b": 1}]<assistant>')


def test_a_template_that_takes_text_gets_text(load: Load) -> None:
    template = load(_WANTS_TEXT)
    assert template.traits.arguments_as_text
    assert template.render([_user(), _calling({"b": 1})]).endswith('[f {"b": 1}]<assistant>')


def test_a_template_that_prints_pythons_objects_gets_text(load: Load) -> None:
    template = load(_PLAIN.replace("call.function.arguments | tojson", "call.function.arguments"))
    assert template.traits.arguments_as_text


def test_a_template_that_drops_later_system_messages_is_found_out(load: Load) -> None:
    skipping = _PLAIN.replace("message.content }}", "(message.content if W else '') }}")
    skipping = skipping.replace("if W", "if message.role != 'system' or loop.first")
    assert load(_PLAIN).traits.system_anywhere
    assert not load(skipping).traits.system_anywhere


@pytest.mark.parametrize("name", ["reasoning_content", "thinking"])
def test_the_name_of_reasoning_is_found_out(load: Load, name: str) -> None:
    reading = _PLAIN.replace(
        "~ message.content }}", f"~ (message.{name} or '') ~ message.content }}}}"
    )
    assert load(reading).render([{"role": "assistant", "content": "a", "reasoning": "Hm."}]) == (
        "<assistant>Hm.a<assistant>"
    )


def test_a_template_that_reads_no_reasoning_gets_none(load: Load) -> None:
    assert load(_PLAIN).traits.reasoning_field is None


def test_tools_that_do_not_reach_the_model_are_a_warning(load: Load) -> None:
    assert any("tool definitions" in warning for warning in load(_PLAIN).warnings)


def test_tool_calls_that_do_not_reach_the_model_are_a_warning(load: Load) -> None:
    template = load("{% for message in messages %}{{ message.content }}{% endfor %}")
    assert any("tool calls" in warning for warning in template.warnings)


# --- what comes back when it does not work ------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].nothing.at_all }}", "nothing"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ 'a' + 1 }}", "concatenate"),
    ],
)
def test_whatever_a_template_raises_is_the_clients_error(
    load: Load, template: str, words: str
) -> None:
    with pytest.raises(ClientError, match=words) as caught:
        load(template).render([_user()])
    assert caught.value.param == "messages"
    assert caught.value.status == 400


def test_a_template_that_does_not_parse_is_told_to_who_needs_it(load: Load) -> None:
    with pytest.raises(ClientError, match="cannot render"):
        load("{% if %}").render([_user()])


def test_without_a_template_chat_is_refused_and_nothing_else(load: Load) -> None:
    template = load(None)
    assert not template.exists
    assert template.report is None
    assert template.delta([_user(), {"role": "assistant", "content": "Hi"}], [_user()]) is None
    with pytest.raises(ClientError, match="this checkpoint has no chat template"):
        template.render([_user()])


def test_arguments_reach_the_template(load: Load) -> None:
    template = load("{{ 'deep' if enable_thinking else 'quick' }}")
    assert template.render([_user()], chat_template_kwargs={"enable_thinking": True}) == "deep"


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "messages", "tools", "conversation"])
def test_arguments_that_reach_beyond_the_template_are_refused(load: Load, name: str) -> None:
    with pytest.raises(ClientError, match=name) as caught:
        load(_PLAIN).render([_user()], chat_template_kwargs={name: "{{ 1 }}"})
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_arguments_must_be_an_object(load: Load) -> None:
    arguments: Any = ["enable_thinking"]
    with pytest.raises(ClientError) as caught:
        load(_PLAIN).render([_user()], chat_template_kwargs=arguments)
    assert caught.value.param == "chat_template_kwargs"


# --- the date -----------------------------------------------------------------------------------

_NOON = datetime.datetime(2024, 7, 4, 12, 5, 9)


@pytest.mark.parametrize(
    "date_format", ["%d %b %Y", "%Y-%m-%d", "today: %A, %B %-d.", "%H:%M:%S", "%j", "no date"]
)
def test_the_date_is_that_of_the_start(load: Load, date_format: str) -> None:
    template = load(f"{{{{ strftime_now('{date_format}') }}}}", now=_NOON)
    assert template.render([_user()]) == _NOON.strftime(date_format)
    assert any("date" in warning for warning in template.warnings)


def test_the_date_is_pinned_inside_macros_too(load: Load) -> None:
    source = "{% macro head() %}{{ strftime_now('%Y') }}{% endmacro %}{{ head() }}"
    assert load(source, now=_NOON).render([_user()]) == "2024"


def test_a_date_format_that_is_not_understood_is_no_guess(load: Load) -> None:
    with pytest.raises(ClientError, match="date format"):
        load("{{ strftime_now('%Q') }}", now=_NOON).render([_user()])


@pytest.mark.parametrize("begin", ["\n\n", "  {% if 1 %}x{% endif %}", " y", "{# c #}\n  z"])
def test_pinning_the_date_changes_nothing_else(load: Load, begin: str) -> None:
    unpinned = load(begin + "{{ '2024' }}").render([_user()])
    assert load(begin + "{{ strftime_now('%Y') }}", now=_NOON).render([_user()]) == unpinned


def test_a_template_without_dates_says_so(load: Load) -> None:
    assert not load(_PLAIN).traits.reads_clock


# --- loading ------------------------------------------------------------------------------------


def test_a_missing_directory_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_chat_template(tmp_path / "nowhere")


def test_an_empty_directory_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unreadable checkpoint"):
        load_chat_template(tmp_path)


def _write(directory: Path, config: dict[str, Any]) -> None:
    raw = tokenizers.byte_level_bpe().to_str()
    (directory / "tokenizer.json").write_text(raw, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def test_special_tokens_of_the_configuration_reach_the_template(tmp_path: Path) -> None:
    _write(tmp_path, {"eos_token": "<|im_end|>", "chat_template": "a{{ eos_token }}"})
    assert load_chat_template(tmp_path).render([_user()]) == "a<|im_end|>"


def test_named_templates_are_chosen_as_transformers_does(tmp_path: Path) -> None:
    named = [
        {"name": "default", "template": "plain"},
        {
            "name": "tool_use",
            "template": "{{ tools[0].function.name }} in {{ strftime_now('%Y') }}",
        },
    ]
    _write(tmp_path, {"chat_template": named})
    template = ChatTemplate.load(tmp_path, now=_NOON)
    assert template.render([_user()]) == "plain"
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert template.render([_user()], tools=tools) == "f in 2024"


def test_a_class_that_rebuilds_the_tokenizer_is_a_warning(tmp_path: Path) -> None:
    _write(tmp_path, {"tokenizer_class": "Qwen2Tokenizer", "chat_template": "a"})
    tokenizer = load_checkpoint(tmp_path).tokenizer
    warnings = load_chat_template(tmp_path, tokenizer=tokenizer).warnings
    assert any("which is followed" in warning for warning in warnings)
    expected = tokenizers.byte_level_bpe().encode("1 000").ids
    assert tokenizer.encode("1 000", encoding=Encoding.RAW, first=True) == expected


def test_a_class_that_nobody_knows_does_not_matter(tmp_path: Path) -> None:
    _write(tmp_path, {"tokenizer_class": "NobodysTokenizer", "chat_template": "a"})
    assert load_chat_template(tmp_path).render([_user()]) == "a"


def test_code_that_a_checkpoint_brings_along_is_not_run(tmp_path: Path) -> None:
    custom = {"AutoTokenizer": ["custom.Custom", None]}
    config = {"tokenizer_class": "Custom", "auto_map": custom, "chat_template": "a"}
    _write(tmp_path, config)
    (tmp_path / "custom.py").write_text("raise SystemExit('was run')", encoding="utf-8")
    template = load_chat_template(tmp_path)
    assert any("tokenizer class is not used" in warning for warning in template.warnings)
    assert template.render([_user()]) == "a"


def test_equal_ids_are_no_warning(tmp_path: Path) -> None:
    _write(tmp_path, {"chat_template": _PLAIN})
    tokenizer = Tokenizer((tmp_path / "tokenizer.json").read_bytes())
    warnings = load_chat_template(tmp_path, tokenizer=tokenizer).warnings
    assert not any("transformers" in warning for warning in warnings)


def test_calls_are_an_assistant_s_only() -> None:
    message = {**_calling("{}"), "role": "user", "content": "x"}
    assert _one(message) == {"role": "user", "content": "x"}


def test_arguments_with_half_a_character_are_kept_as_they_were_written() -> None:
    written = '{"key": "\\ud83d"}'
    (call,) = _one(_calling(written))["tool_calls"]
    assert call["function"]["arguments"] == {"raw_arguments": written}


def test_a_blank_reasoning_does_not_hide_another() -> None:
    message = {"role": "assistant", "content": "a", "reasoning_content": " ", "reasoning": "b"}
    assert _one(message, reasoning_field="reasoning_content")["reasoning_content"] == "b"
