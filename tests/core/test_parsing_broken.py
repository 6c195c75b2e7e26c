"""Calls with something wrong in them: the same in a stream as in a whole answer, and all told."""

from __future__ import annotations

from typing import Final

import pytest

from slime_core.parsing import (
    CallArguments,
    CallBegun,
    CallEnded,
    Content,
    Event,
    ShownCall,
    ShownMessage,
)
from tests.core.parsing_support import CHOICES, Answer, merged, parse, shown, written

_ENDS: Final = {
    "qwen": "«</tool_call>»",
    "v3": "«<｜tool▁call▁end｜>»",
    "v31": "«<｜tool▁call▁end｜>»",
    "kimi": "«<|tool_call_end|>»",
    "oss": "«<|call|>»",
}
every_ended_family = pytest.mark.parametrize("family", _ENDS)


def _told(events: list[Event]) -> tuple[str, list[str | None]]:
    """What a stream tells of calls' arguments, and how the calls end."""
    arguments = "".join(event.text for event in events if isinstance(event, CallArguments))
    return arguments, [event.problem for event in events if isinstance(event, CallEnded)]


def _bare(text: str) -> Answer:
    return Answer(text=text, marks=(), added=())


# --- behind a whole object ---------------------------------------------------------------------


@every_ended_family
@pytest.mark.parametrize("said", [" extra \n", "}", "{", "<b>"])
def test_text_between_a_whole_object_and_its_tag_is_content_behind_the_call(
    family: str, said: str
) -> None:
    text = written(family, ("f", '{"a": 1}'), ("g", "{}")).replace(
        _ENDS[family], said + _ENDS[family], 1
    )
    answer = Answer.written(text)
    message = shown(answer, CHOICES[family])
    assert [(call.name, call.arguments) for call in message.tool_calls] == [
        ("f", '{"a": 1}'),
        ("g", "{}"),
    ]
    assert message.content is not None
    assert message.content.strip() == said.strip()
    assert message.content in answer.text
    events = parse(answer, CHOICES[family])
    assert _told(events) == ('{"a": 1}{}', [None, None])
    ended = [type(event) for event in merged(events)].index(CallEnded)
    assert isinstance(merged(events)[ended + 1], Content)


def test_blanks_of_such_text_stay_where_content_goes_on() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}\n so </tool_call>\nb'
    assert merged(parse(_bare(text), CHOICES["qwen"])) == [
        CallBegun(index=0, name="f", model_id=None),
        CallArguments(index=0, text="{}"),
        CallEnded(index=0, start=0, end=41, problem=None),
        Content(text="\n so ", start=41),
        Content(text="\nb", start=58),
    ]
    assert shown(_bare(text), CHOICES["qwen"]).content == "\n so \nb"


@every_ended_family
def test_a_whole_object_without_its_tag_is_a_call_before_another(family: str) -> None:
    text = written(family, ("f", "{}"), ("g", "{}")).replace(_ENDS[family], "", 1)
    message = shown(Answer.written(text), CHOICES[family])
    assert [call.name for call in message.tool_calls] == ["f", "g"]
    assert message.content is None


def test_a_fence_may_be_missing() -> None:
    text = written("v3", ("f", "{}")).replace("\n```«", "«")
    assert shown(Answer.written(text), CHOICES["v3"]) == ShownMessage(
        reasoning=None, content=None, tool_calls=(ShownCall(name="f", arguments="{}"),)
    )


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1} ',
        '<tool_call>{"name": "f", "arguments": {"a": 1}\n<tool_call>',
    ],
)
def test_of_a_call_with_whole_arguments_only_the_last_bracket_may_be_missing(text: str) -> None:
    answer = _bare(text)
    assert _told(parse(answer, CHOICES["qwen"])) == ('{"a": 1}', [None])
    assert shown(answer, CHOICES["qwen"]).tool_calls == (ShownCall(name="f", arguments='{"a": 1}'),)


# --- broken ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("object_", "told"),
    [
        ('{"name": "f", "arguments": {"key": oops}}\n', '{"key": oops}}\n'),
        ('{"name": "f", "arguments": {"a": 1}, "id": oops} x', '{"a": 1}, "id": oops} x'),
        ('{"name": "f", "arguments": {"a": 1}\n oops', '{"a": 1}\n oops'),
        ('{"name": "f", "arguments": {"a": 1}, "name": "g"}', '{"a": 1}, "name": "g"}'),
        ('{"name": "f", "arguments": {"a": 1', '{"a": 1'),
    ],
)
def test_what_follows_a_break_is_told_verbatim_and_whole_answers_show_all(
    object_: str, told: str
) -> None:
    answer = _bare(f"<tool_call>{object_}</tool_call>\nb")
    assert _told(parse(answer, CHOICES["qwen"])) == (told, ["malformed"])
    message = shown(answer, CHOICES["qwen"])
    assert message == ShownMessage(reasoning=None, content=answer.text, tool_calls=())


@pytest.mark.parametrize(
    ("family", "call", "told", "problem"),
    [
        (
            "coder",
            "«<tool_call>»\n<function=f>\n<parameter=text>\nx\n</parameter>\noops\n</function>",
            '{"text": "x"\noops\n',
            "malformed",
        ),
        (
            "coder",
            "«<tool_call>»\n<function=f>\n<parameter=<text>\nx</function>",
            "{<parameter=<text>\nx",
            "malformed",
        ),
        (
            "coder",
            "«<tool_call>»\n<function=f>\n<parameter=text>\nx\n",
            '{"text": "x\\n',
            "unfinished",
        ),
        (
            "coder",
            "«<tool_call>»\n<function=f>\n<parameter=count>\n12",
            '{"count": \n12',
            "unfinished",
        ),
        (
            "glm",
            "«<tool_call>»f\n«<arg_key>»count«</arg_key>» x«</tool_call>»",
            "{<arg_key>count</arg_key> x",
            "malformed",
        ),
        (
            "minimax",
            '«<minimax:tool_call>»<invoke name="f"><parameter name="text">x</parameter>?</invoke>',
            '{"text": "x"?',
            "malformed",
        ),
    ],
)
def test_nothing_is_withheld_of_a_broken_call_whose_arguments_stand_between_tags(
    family: str, call: str, told: str, problem: str
) -> None:
    answer = Answer.written(call)
    assert _told(parse(answer, CHOICES[family])) == (told, [problem])
    assert shown(answer, CHOICES[family]).content == answer.text


def test_a_break_that_leaves_whole_arguments_is_none() -> None:
    call = "<tool_call>\n<function=f>\n<parameter=text>\nx\n</parameter>\n}</function>"
    answer = _bare(call)
    assert _told(parse(answer, CHOICES["coder"])) == ('{"text": "x"\n}', [None])
    assert [made.name for made in shown(answer, CHOICES["coder"]).tool_calls] == ["f"]
