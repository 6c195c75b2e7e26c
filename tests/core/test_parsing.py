"""What each family's answers say, from whole answers and from single characters."""

from __future__ import annotations

import json
from typing import Final

import pytest

from slime_core.parsing import (
    REASONING_PARSERS,
    TOOL_CALL_PARSERS,
    AnswerParser,
    CallArguments,
    CallBegun,
    CallEnded,
    Content,
    Mark,
    ParserChoice,
    Reasoning,
    ShownCall,
    ShownMessage,
)
from tests.core.parsing_support import (
    CHOICES,
    Answer,
    merged,
    parse,
    said,
    shown,
    tagged,
    thought,
    tool,
    written,
)

_QWEN: Final = CHOICES["qwen"]


def _plain(message: ShownMessage) -> tuple[str | None, list[tuple[str, object]]]:
    """Its content, and its calls with their arguments read."""
    calls = [(call.name, json.loads(call.arguments)) for call in message.tool_calls]
    return message.content, calls


_FULL: Final = (
    '{"text": "a \\"b\\" \\\\ c\\n<d> Zürich 🙂", "number": 1.5e3, "count": -2, "flag": true,'
    ' "items": [{"x": [1, {"y": "}]"}]}, null, ""], "maybe": null}'
)
_JSON_FAMILIES: Final = ("qwen", "llama", "mistral", "v3", "v31", "kimi", "oss")

every_family = pytest.mark.parametrize("family", CHOICES)
every_json_family = pytest.mark.parametrize("family", _JSON_FAMILIES)


def _bare(text: str) -> Answer:
    """The same answer from a vocabulary without added tokens."""
    answer = Answer.written(text)
    return Answer(text=answer.text, marks=(), added=())


@every_family
def test_several_calls_with_nested_escaped_and_foreign_arguments(family: str) -> None:
    answer = Answer.written(written(family, ("f", _FULL), ("g", '{"text": "x"}')))
    message = shown(answer, CHOICES[family])
    assert _plain(message) == (None, [("f", json.loads(_FULL)), ("g", {"text": "x"})])


@every_family
def test_a_vocabulary_without_these_tokens_has_its_tags_found_in_the_text(family: str) -> None:
    text = said(family, "Hello.") + written(family, ("f", '{"count": 2}'))
    assert _plain(shown(_bare(text), CHOICES[family])) == ("Hello.", [("f", {"count": 2})])


@every_family
def test_empty_arguments_are_an_empty_object(family: str) -> None:
    message = shown(Answer.written(written(family, ("g", "{}"))), CHOICES[family])
    assert message.tool_calls[0].arguments == "{}"


@pytest.mark.parametrize("family", [name for name, it in CHOICES.items() if it.reasoning])
def test_reasoning_content_and_calls_are_told_apart(family: str) -> None:
    text = thought(family, "\n hm, \n x \n") + said(family, "\n\nSo. \n")
    answer = Answer.written(text + written(family, ("g", '{"text": "x"}')))
    message = shown(answer, CHOICES[family])
    assert message.reasoning == "hm, \n x"
    assert _plain(message) == ("So.", [("g", {"text": "x"})])


@every_family
def test_text_that_spells_the_tags_of_the_vocabulary_is_content(family: str) -> None:
    known = Answer.written(thought(family, "x") + written(family, ("g", '{"text": "x"}')))
    answer = Answer(text="Like: " + known.text, marks=(), added=known.added)
    message = shown(answer, CHOICES[family])
    assert message == ShownMessage(reasoning=None, content=answer.text, tool_calls=())


@every_family
def test_without_tools_what_looks_like_a_call_is_content(family: str) -> None:
    answer = Answer.written(written(family, ("g", '{"text": "x"}')))
    message = shown(answer, CHOICES[family], tools=())
    assert message == ShownMessage(reasoning=None, content=answer.text, tool_calls=())


@every_family
def test_a_call_cut_off_is_told_as_unfinished_and_shown_as_content(family: str) -> None:
    whole = Answer.written(written(family, ("f", '{"text": "abcdef"}')))
    cut = whole.text.index("def")
    marks = tuple(mark for mark in whole.marks if mark.end <= cut)
    answer = Answer(text=whole.text[:cut], marks=marks, added=whole.added)
    assert parse(answer, CHOICES[family])[-1] == CallEnded(
        index=0, start=0, end=cut, problem="unfinished"
    )
    assert shown(answer, CHOICES[family]) == ShownMessage(
        reasoning=None, content=answer.text, tool_calls=()
    )


@every_family
def test_a_head_cut_off_is_content(family: str) -> None:
    whole = Answer.written(written(family, ("some_function", "{}")))
    cut = whole.text.index("some_function") + 4
    marks = tuple(mark for mark in whole.marks if mark.end <= cut)
    answer = Answer(text=whole.text[:cut], marks=marks, added=whole.added)
    assert merged(parse(answer, CHOICES[family])) == [Content(text=answer.text, start=0)]


@every_family
def test_content_alone_is_verbatim(family: str) -> None:
    text = " \n Hello {[<|< world> ```json\n ; [ \n "
    message = shown(Answer(text=text, marks=(), added=()), CHOICES[family])
    assert message == ShownMessage(reasoning=None, content=text, tool_calls=())


@every_family
def test_only_the_first_call_is_told_when_calls_may_not_be_parallel(family: str) -> None:
    text = written(family, ("f", '{"count": 1}'), ("g", '{"text": "x"}'))
    message = shown(Answer.written(text), CHOICES[family], parallel=False)
    assert _plain(message) == (None, [("f", {"count": 1})])


@every_family
def test_a_call_to_a_function_that_is_no_tool_is_a_call(family: str) -> None:
    message = shown(Answer.written(written(family, ("nope", '{"a": "1"}'))), CHOICES[family])
    assert _plain(message) == (None, [("nope", {"a": "1"})])


@every_json_family
def test_arguments_keep_the_models_own_spelling(family: str) -> None:
    spelling = '{"a":1.0 ,\n  "b" : "\\u00fc\\/",  "a": [ ]}'
    message = shown(Answer.written(written(family, ("f", spelling))), CHOICES[family])
    assert [call.arguments for call in message.tool_calls] == [spelling]


@every_json_family
def test_arguments_that_are_no_object_make_no_call(family: str) -> None:
    answer = Answer.written(written(family, ("f", "[1]")))
    message = shown(answer, CHOICES[family])
    assert message == ShownMessage(reasoning=None, content=answer.text, tool_calls=())


@every_json_family
def test_arguments_that_break_are_told_to_their_tag_and_shown_as_content(family: str) -> None:
    answer = Answer.written(written(family, ("f", '{"a": 1, b}')))
    events = merged(parse(answer, CHOICES[family]))
    told = events[1]
    assert isinstance(told, CallArguments)
    start = answer.text.index("{", answer.text.index("f") + 1)
    assert answer.text.startswith(told.text, start)
    tags = [mark.start for mark in answer.marks]
    assert start + len(told.text) in (*tags, len(answer.text))
    assert [event.problem for event in events if isinstance(event, CallEnded)] == ["malformed"]
    assert shown(answer, CHOICES[family]).tool_calls == ()
    content = shown(answer, CHOICES[family]).content
    assert content is not None
    assert answer.text.startswith(content)


@pytest.mark.parametrize("family", ["qwen", "v31", "kimi", "oss", "mistral"])
def test_a_call_behind_a_broken_one_is_a_call(family: str) -> None:
    answer = Answer.written(written(family, ("f", '{"a" 1}'), ("g", "{}")))
    message = shown(answer, CHOICES[family])
    assert [call.name for call in message.tool_calls] == ["g"]
    assert message.content is not None


# Hermes and Qwen.


def _hermes(text: str) -> ShownMessage:
    return shown(Answer.written(f"«<tool_call>»{text}«</tool_call>»"), _QWEN)


@pytest.mark.parametrize(
    "text",
    [
        '{"arguments": {"a": 1}, "name": "f"}',
        '\n\n {  "name" :\t"f" ,"arguments" : {"a": 1}\n } \n',
        '{"id": "x", "name": "f", "type": {"of": ["call"]}, "arguments": {"a": 1}}',
        '{"name": "f", "parameters": {"a": 1}}',
        '{"n\\u0061me": "f", "arguments": {"a": 1}}',
    ],
)
def test_keys_come_in_any_order_and_spelling(text: str) -> None:
    assert _hermes(text).tool_calls == (ShownCall(name="f", arguments='{"a": 1}'),)


@pytest.mark.parametrize("text", ['{"name": "f"}', '{"arguments": null, "name": "f"}'])
def test_a_call_without_arguments_has_empty_ones(text: str) -> None:
    assert _hermes(text).tool_calls == (ShownCall(name="f", arguments="{}"),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "{}",
        '{"name": ""}',
        '{"name": "two words", "arguments": {}}',
        '{"name": "\\ud800", "arguments": {}}',
        '{"name": 1, "arguments": {}}',
        '{"arguments": {"a": 1}}',
        '{"name": "f", "arguments": "{}"}',
        '{"name": "f" "arguments": {}}',
        '{"name": "f", "name": "g"}',
        '["f"]',
        "{'name': 'f'}",
    ],
)
def test_a_head_that_is_none_is_content(text: str) -> None:
    assert _hermes(text) == ShownMessage(
        reasoning=None, content=f"<tool_call>{text}</tool_call>", tool_calls=()
    )


def test_the_head_leaves_as_soon_as_it_is_known_and_arguments_as_they_come() -> None:
    parser = AnswerParser(_QWEN, tools=(tool("f"),), marks=(), in_reasoning=False)
    assert parser.push('Hi \n<tool_call>{"name": "f", "arguments": ', ()) == [
        Content(text="Hi", start=0)
    ]
    assert parser.push('{"a', ()) == [
        CallBegun(index=0, name="f", model_id=None),
        CallArguments(index=0, text='{"a'),
    ]
    assert parser.push('": 1}', ()) == [CallArguments(index=0, text='": 1}')]
    assert parser.push("}</tool_call", ()) == []
    assert parser.push(">", ()) == [CallEnded(index=0, start=4, end=63, problem=None)]
    assert parser.finish() == []


def test_an_answer_that_stops_at_the_end_tag_has_a_whole_call() -> None:
    answer = Answer.written('«<tool_call>»{"name": "f", "arguments": {}}\n')
    assert shown(answer, _QWEN).tool_calls == (ShownCall(name="f", arguments="{}"),)


@pytest.mark.parametrize("family", ["v3", "v31", "kimi", "oss"])
def test_an_answer_that_stops_behind_the_arguments_has_a_whole_call(family: str) -> None:
    text = written(family, ("f", '{"count": 1}'))
    end = {"v3": "```", "v31": "}", "kimi": "}", "oss": "}"}[family]
    answer = Answer.written(text[: text.rindex(end) + len(end)] + "\n")
    assert _plain(shown(answer, CHOICES[family])) == (None, [("f", {"count": 1})])


def test_arguments_that_come_twice_break_the_call() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}, "parameters": {}}</tool_call>'
    answer = Answer(text=text, marks=(), added=())
    assert shown(answer, _QWEN) == ShownMessage(reasoning=None, content=text, tool_calls=())


def test_whitespace_behind_a_call_is_kept_though_reasoning_came_before() -> None:
    answer = Answer.written("«<think>»x«</think>»\n" + written("qwen", ("g", "{}")) + "\n b")
    assert shown(answer, _QWEN).content == "\n b"


def test_tags_inside_a_string_are_text_even_by_id() -> None:
    value = '{"a": "«<tool_call>» «</tool_call>» «<think>»"}'
    message = _hermes(f'{{"name": "f", "arguments": {value}}}')
    assert message.tool_calls[0].arguments == value.replace("«", "").replace("»", "")


def test_whitespace_behind_a_call_belongs_to_the_content_that_follows() -> None:
    call = written("qwen", ("g", "{}"))
    assert shown(Answer.written(f"a {call}\n b \n"), _QWEN).content == "a\n b \n"


def test_whitespace_behind_the_last_call_is_dropped() -> None:
    assert shown(Answer.written(written("qwen", ("g", "{}")) + " \n"), _QWEN).content is None


def test_a_broken_call_is_content_with_the_whitespace_before_it() -> None:
    text = 'a\n<tool_call>{"name": "f", "arguments": {]</tool_call>\nb'
    assert shown(Answer(text=text, marks=(), added=()), _QWEN).content == text


def test_the_rest_of_a_broken_call_is_told_as_its_arguments() -> None:
    text = 'a\n<tool_call>{"name": "f", "arguments": {]}}\n</tool_call>\nb'
    assert merged(parse(Answer(text=text, marks=(), added=()), _QWEN)) == [
        Content(text="a", start=0),
        CallBegun(index=0, name="f", model_id=None),
        CallArguments(index=0, text="{]}}\n"),
        CallEnded(index=0, start=2, end=len(text) - 2, problem="malformed"),
        Content(text="\nb", start=len(text) - 2),
    ]


# Reasoning.


def test_a_block_that_the_prompt_opened_needs_no_tag() -> None:
    message = shown(Answer.written("hm\n«</think>»\n\nHi"), _QWEN, in_reasoning=True)
    assert (message.reasoning, message.content) == ("hm", "Hi")


def test_a_block_that_prompt_and_model_open_is_opened_once() -> None:
    message = shown(Answer.written("\n«<think>»\nhm«</think>»Hi"), _QWEN, in_reasoning=True)
    assert (message.reasoning, message.content) == ("hm", "Hi")


def test_a_block_that_is_never_closed_is_all_reasoning() -> None:
    message = shown(Answer.written("«<think>»hm <tool_call> \n"), _QWEN)
    assert message == ShownMessage(reasoning="hm <tool_call>", content=None, tool_calls=())


def test_an_empty_block_is_no_reasoning() -> None:
    message = shown(Answer.written("«<think>»\n\n«</think>»\n\nHi\n"), _QWEN)
    assert (message.reasoning, message.content) == (None, "Hi\n")


def test_a_spelled_block_counts_only_before_everything_else() -> None:
    text = "I write <think>x</think>"
    assert shown(Answer(text=text, marks=(), added=()), _QWEN).content == text
    message = shown(Answer(text="\n<think>x</think>y", marks=(), added=()), _QWEN)
    assert (message.reasoning, message.content) == ("x", "y")


def test_a_block_known_by_id_may_stand_anywhere() -> None:
    message = shown(Answer.written("a \n«<think>»x«</think>» \nb"), _QWEN)
    assert (message.reasoning, message.content) == ("x", "ab")


def test_without_a_reasoning_parser_the_block_is_content() -> None:
    choice = ParserChoice(reasoning=None, tool_calls="qwen25")
    answer = Answer.written("«<think>»hm«</think>» Hi")
    assert shown(answer, choice, in_reasoning=True).content == "<think>hm</think> Hi"


def test_half_an_end_tag_is_reasoning_when_the_answer_ends() -> None:
    message = shown(Answer(text="hm</thi", marks=(), added=()), _QWEN, in_reasoning=True)
    assert message.reasoning == "hm</thi"


@pytest.mark.parametrize("family", ["glm", "kimi"])
def test_a_call_known_by_id_ends_a_block_that_was_left_open(family: str) -> None:
    answer = Answer.written("«<think>»hm \n" + written(family, ("g", "{}")))
    message = shown(answer, CHOICES[family])
    assert message.reasoning == "hm"
    assert _plain(message) == (None, [("g", {})])


# Forced calls.

_FORCED: Final = '[{"name": "f", "parameters": {"a": 1}}, {"parameters": {}, "name": "g"}]'
_FORCED_CALLS: Final = [("f", {"a": 1}), ("g", {})]


@pytest.mark.parametrize("before", ["", " \n", "«<think>»hm«</think>»\n"])
def test_a_forced_answer_is_an_array_of_calls(before: str) -> None:
    message = shown(Answer.written(before + _FORCED + "\n"), _QWEN, forced=True)
    assert _plain(message) == (None, _FORCED_CALLS)


@pytest.mark.parametrize("header", ["", "«<|channel|>»final«<|message|>»"])
def test_a_forced_answer_of_messages_is_an_array_too(header: str) -> None:
    answer = Answer.written(header + _FORCED + "«<|return|>»" * bool(header))
    message = shown(answer, CHOICES["oss"], forced=True)
    assert _plain(message) == (None, _FORCED_CALLS)


def test_a_forced_answer_that_is_no_array_is_content() -> None:
    text = ' {"name": "f"}<tool_call>'
    assert shown(Answer(text=text, marks=(), added=()), _QWEN, forced=True).content == text


def test_the_second_forced_call_is_dropped_when_calls_may_not_be_parallel() -> None:
    answer = Answer(text=_FORCED, marks=(), added=())
    message = shown(answer, _QWEN, forced=True, parallel=False)
    assert _plain(message) == (None, _FORCED_CALLS[:1])


# Llama 3.


def test_without_its_tag_a_call_of_llama_begins_the_answer() -> None:
    text = ' {"type": "function", "name": "f", "parameters": {"a": 1}};{"name":"g"} '
    message = shown(Answer(text=text, marks=(), added=()), CHOICES["llama"])
    assert _plain(message) == (None, [("f", {"a": 1}), ("g", {})])


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "parameters": {}}',
        '{"answer": 42}',
        '{"name": "f", "age": 3}',
        'See {"name": "f", "parameters": {}}',
    ],
)
def test_an_object_that_no_tag_announces_is_content_unless_it_calls_a_tool(text: str) -> None:
    assert shown(Answer(text=text, marks=(), added=()), CHOICES["llama"]).content == text


def test_code_behind_the_tag_of_llama_is_content() -> None:
    answer = Answer.written('«<|python_tag|>»search.call(query="x")')
    assert shown(answer, CHOICES["llama"]).content == answer.text


def test_a_semicolon_that_no_call_follows_is_content() -> None:
    answer = Answer.written('«<|python_tag|>»{"name": "g"}; thanks')
    assert _plain(shown(answer, CHOICES["llama"])) == ("; thanks", [("g", {})])


# Mistral.


def test_an_array_of_mistral_has_several_calls() -> None:
    text = '«[TOOL_CALLS]» [{"name": "f", "arguments": {"a": 1}, "id": "x"} , {"name": "g"}]\nok'
    message = shown(Answer.written(text), CHOICES["mistral"])
    assert _plain(message) == ("\nok", [("f", {"a": 1}), ("g", {})])


def test_mistrals_own_ids_are_kept() -> None:
    answer = Answer.written("«[TOOL_CALLS]»g«[CALL_ID]»abc123«[ARGS]»{}")
    message = shown(answer, CHOICES["mistral"])
    assert message.tool_calls == (ShownCall(name="g", arguments="{}", model_id="abc123"),)


# DeepSeek and Kimi.


def test_kimis_own_ids_are_kept_and_hold_the_name() -> None:
    message = shown(Answer.written(written("kimi", ("f.x", "{}"), ("g", "{}"))), CHOICES["kimi"])
    assert [(call.name, call.model_id) for call in message.tool_calls] == [
        ("f.x", "functions.f.x:0"),
        ("g", "functions.g:1"),
    ]


def test_a_section_that_holds_no_call_is_content() -> None:
    answer = Answer.written("«<|tool_calls_section_begin|>»«<|tool_calls_section_end|>»")
    assert shown(answer, CHOICES["kimi"]).content == answer.text


def test_no_arguments_between_the_tags_are_an_empty_object() -> None:
    message = shown(Answer.written(written("kimi", ("g", ""))), CHOICES["kimi"])
    assert message.tool_calls[0].arguments == "{}"


def test_content_behind_a_section_is_kept() -> None:
    answer = Answer.written(written("v31", ("g", "{}")) + "\nDone.")
    assert _plain(shown(answer, CHOICES["v31"])) == ("\nDone.", [("g", {})])


@pytest.mark.parametrize("family", ["v31", "kimi", "coder", "minimax"])
def test_the_tags_of_a_section_mean_nothing_behind_its_end(family: str) -> None:
    section = written(family, ("g", "{}")).rstrip()
    end = section[section.rindex("«") :]
    call = "«<｜tool▁call▁begin｜>»g«<｜tool▁sep｜>»{}«<｜tool▁call▁end｜>»"
    message = shown(Answer.written(f"{section}{end} {call}"), CHOICES[family])
    assert _plain(message) == (Answer.written(f"{end} {call}").text, [("g", {})])


def test_calls_of_a_section_may_stand_apart() -> None:
    two = written("kimi", ("f", "{}"), ("g", "{}"))
    apart = two.replace(
        "«<|tool_call_begin|>»functions.g", "\n and «<|tool_call_begin|>»functions.g"
    )
    message = shown(Answer.written(apart), CHOICES["kimi"])
    assert _plain(message) == ("\n and", [("f", {}), ("g", {})])


# Arguments between tags.


@pytest.mark.parametrize("family", ["coder", "glm", "minimax"])
@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("text", "12", "12"),
        ("text", '"quoted"', '"quoted"'),
        ("text", " a\n\n  b ", " a\n\n  b "),
        ("text", "", ""),
        ("unknown", "12", "12"),
        ("number", "1e3", 1000.0),
        ("number", "many", "many"),
        ("flag", "false", False),
        ("flag", "True", True),
        ("items", ' [1, {"a": "}"}] ', [1, {"a": "}"}]),
        ("items", "[1", "[1"),
        ("maybe", "null", None),
        ("maybe", "None", None),
        ("maybe", "12", "12"),
        ("maybe", '"x"', '"x"'),
        ("any", "12", 12),
        ("any", "x y", "x y"),
    ],
)
def test_the_schema_says_what_a_text_is(family: str, key: str, text: str, value: object) -> None:
    answer = Answer.written(tagged(family, "f", {key: text}))
    assert _plain(shown(answer, CHOICES[family])) == (None, [("f", {key: value})])


def test_text_between_tags_is_given_out_as_it_comes() -> None:
    parser = AnswerParser(CHOICES["coder"], tools=(tool("f"),), marks=(), in_reasoning=False)
    parser.push("<tool_call>\n<function=f>\n<parameter=a>\n", ())
    assert merged(parser.push('x "y"\nz\n', ())) == [CallArguments(index=0, text='x \\"y\\"\\nz')]


def test_a_name_with_blanks_is_no_call_of_glm() -> None:
    answer = Answer.written("«<tool_call>»I call nothing«</tool_call>»")
    assert shown(answer, CHOICES["glm"]).content == answer.text


def test_an_argument_that_is_left_open_ends_with_the_answer() -> None:
    text = "<tool_call>\n<function=f>\n<parameter=a>\nx</function>\n</tool_call>"
    answer = Answer(text=text, marks=(), added=())
    ended = parse(answer, CHOICES["coder"])[-1]
    assert ended == CallEnded(index=0, start=0, end=len(text), problem="unfinished")


def test_text_between_arguments_breaks_the_call_up_to_its_end() -> None:
    text = (
        "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter> and\n</function>\n</tool_call>!"
    )
    message = shown(Answer(text=text, marks=(), added=()), CHOICES["coder"])
    assert message == ShownMessage(
        reasoning=None, content=text.replace("\n</tool_call>", ""), tool_calls=()
    )


# Harmony.


def test_messages_to_the_user_are_content_in_order() -> None:
    answer = Answer.written(
        "«<|channel|>»commentary«<|message|>»First. «<|end|>»"
        "«<|start|>»assistant«<|channel|>»analysis«<|message|>»hm«<|end|>»"
        "«<|start|>»assistant«<|channel|>»final«<|message|>» Then.\n«<|return|>»"
    )
    message = shown(answer, CHOICES["oss"])
    assert (message.reasoning, message.content) == ("hm", "First.Then.\n")


@pytest.mark.parametrize("end", ["", "«<|call|>»"])
def test_the_recipient_may_stand_before_the_channel(end: str) -> None:
    text = ' to=functions.f«<|channel|>»commentary json«<|message|>»{"a": 1}' + end
    assert _plain(shown(Answer.written(text), CHOICES["oss"])) == (None, [("f", {"a": 1})])


@pytest.mark.parametrize(
    "text",
    [
        "«<|channel|>»analysis to=python«<|message|>»1 + 1«<|call|>»",
        "«<|channel|>»unheard«<|message|>»x«<|end|>»",
        "«<|channel|>»final«<|end|>»x",
        "«<|channel|>»final",
        "to be or not",
        "«<|start|>»«<|start|>»x",
    ],
)
def test_what_is_no_known_message_is_content(text: str) -> None:
    answer = Answer.written(text)
    message = shown(answer, CHOICES["oss"])
    assert message == ShownMessage(reasoning=None, content=answer.text, tool_calls=())


def test_analysis_that_the_prompt_opened_needs_no_header() -> None:
    text = "hm«<|end|>»«<|start|>»assistant«<|channel|>»final«<|message|>»Hi«<|return|>»"
    message = shown(Answer.written(text), CHOICES["oss"], in_reasoning=True)
    assert (message.reasoning, message.content) == ("hm", "Hi")


# What holds for all.


def test_a_token_may_come_in_pieces() -> None:
    parser = AnswerParser(_QWEN, tools=(), marks=("<think>", "</think>"), in_reasoning=False)
    assert parser.push("<thi", [Mark(start=0, end=7)]) == []
    assert parser.push("nk>x", ()) == [Reasoning(text="x", start=7)]


def test_offsets_count_characters_of_the_whole_answer() -> None:
    text = '🙂a <tool_call>{"name": "g"}</tool_call> b'
    events = parse(Answer(text=text, marks=(), added=()), _QWEN, cuts=(3, 20, 30))
    ended = next(event for event in events if isinstance(event, CallEnded))
    assert text[ended.start : ended.end] == '<tool_call>{"name": "g"}</tool_call>'
    assert events[-1] == Content(text=" b", start=ended.end)


def test_a_mark_of_no_text_marks_nothing() -> None:
    parser = AnswerParser(_QWEN, tools=(tool("f"),), marks=("",), in_reasoning=False)
    events = [*parser.push("a", [Mark(start=0, end=0)]), *parser.finish()]
    assert merged(events) == [Content(text="a", start=0)]


def test_nothing_may_follow_the_end() -> None:
    parser = AnswerParser(_QWEN, tools=(), marks=(), in_reasoning=False)
    parser.finish()
    assert parser.finish() == []
    with pytest.raises(ValueError, match="has ended"):
        parser.push("x", ())


@pytest.mark.parametrize(
    "choice",
    [
        ParserChoice(reasoning="no such", tool_calls=None),
        ParserChoice(reasoning=None, tool_calls="no such"),
    ],
)
def test_an_unknown_parser_is_refused_by_name(choice: ParserChoice) -> None:
    with pytest.raises(ValueError, match="'no such'"):
        AnswerParser(choice, tools=(), marks=(), in_reasoning=False)


def test_every_known_name_makes_a_parser() -> None:
    for reasoning in (None, *REASONING_PARSERS):
        for calls in (None, *TOOL_CALL_PARSERS):
            choice = ParserChoice(reasoning=reasoning, tool_calls=calls)
            answer = Answer(text="Hello", marks=(), added=())
            assert shown(answer, choice).content == "Hello"
