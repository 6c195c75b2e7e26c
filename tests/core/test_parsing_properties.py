"""What holds for every family and any text: valid answers, broken ones, and rubbish."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.parsing import (
    CallArguments,
    CallBegun,
    CallEnded,
    Content,
    Event,
    Mark,
    ParserChoice,
    Reasoning,
    assemble,
)
from slime_core.parsing.json_scan import is_json
from tests.core.parsing_support import CHOICES, Answer, merged, parse, said, thought, written

# The pieces of each family's answers: any text is a mixture of them, and most are nearly valid.
_JSON: Final = (
    *('{"name": "f", "arguments": {"a": [1, "x}"]}}', '{"parameters": {}, "name":"g"}'),
    *('{"name": "f", "arguments": ', '{"name": "f"', '{"a": "\\u00e', '"', "{", "}", "[", "]"),
    *(", ", ";", "{}", "null", ": "),
)
_DEEPSEEK: Final = (
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    *("<｜tool▁calls▁end｜>", "function", "f", "\n```json\n", "\n```", "{}", '{"a": 1', "}"),
    *("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<think>", "</think>"),
)
_PIECES: Final = {
    ("qwen3", "qwen25"): ("<tool_call>", "</tool_call>", "<think>", "</think>", *_JSON),
    ("qwen3", "qwen3_coder"): (
        *("<tool_call>\n", "<function=f>", "<function=", "<parameter=text>\n", "<parameter=flag>"),
        *("\n</parameter>", "</function>", "</tool_call>", "<think>", "</think>", "true", ">", "x"),
    ),
    ("minimax", "minimax-m2"): (
        *("<minimax:tool_call>", '<invoke name="f">', '<invoke name="', '">', "</invoke>", "x"),
        *('<parameter name="text">', '<parameter name="items">', "</parameter>", "[1]"),
        *("</minimax:tool_call>", "<think>", "</think>"),
    ),
    ("glm45", "glm45"): (
        *("<tool_call>", "<tool_call>f", "<arg_key>", "text", "items", "</arg_key>", "<arg_value>"),
        *("<arg_key>any</arg_key>", "</arg_value>", "</tool_call>", "<think>", "</think>", "[1]"),
    ),
    ("deepseek-r1", "deepseekv3"): _DEEPSEEK,
    ("deepseek-v3", "deepseekv31"): _DEEPSEEK,
    ("kimi_k2", "kimi_k2"): (
        *("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "functions.f:0", "g", "{}"),
        *("<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
        *('{"a": 1', "}", "<think>", "</think>"),
    ),
    (None, "llama3"): ("<|python_tag|>", *_JSON),
    ("mistral", "mistral"): (
        *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "f", "[THINK]", "[/THINK]", "[TOOL_CALLS]["),
        *_JSON,
    ),
    ("gpt-oss", "gpt-oss"): (
        *(
            "<|start|>",
            "assistant",
            "<|channel|>",
            "analysis",
            "final",
            "commentary",
            "<|message|>",
        ),
        *(" to=functions.f", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>", "{}", '{"a": 1'),
        *("<|channel|>commentary to=functions.g<|message|>", "}", "<|start|>assistant"),
    ),
}
# All that may stand between the spans of events: whitespace, tags, and the glue between calls.
_GAP: Final = re.compile(
    r"(?:\s|</?think>|\[/?THINK\]|</(?:minimax:)?tool_call>|<｜tool▁calls?▁end｜>"
    r"|<\|tool_calls_section_end\|>|<\|tool_call_end\|>|```|[\[\],;]|<\|(?:end|return|call)\|>"
    r"|(?:<\|start\|>|<\|channel\|>)(?:(?!<\|(?:start|message|end|return|call)\|>).)*<\|message\|>"
    r"|\s*to=(?:(?!<\|(?:start|message|end|return|call)\|>).)*<\|message\|>)*",
    re.DOTALL,
)


def _added(pieces: tuple[str, ...]) -> list[str]:
    """The pieces that vocabularies have as tokens of their own."""
    return [piece for piece in pieces if re.fullmatch(r"<[^<>= ]+>|\[[/A-Z_]+\]", piece)]


@st.composite
def _answers(draw: st.DrawFn, pieces: tuple[str, ...]) -> Answer:
    """Pieces in any order; those that are tokens are marked, or merely spelled."""
    known = _added(pieces) if draw(st.booleans()) else []
    filler = st.sampled_from([" ", "\n", "x", "<", "🙂", "text "])
    drawn = draw(st.lists(st.tuples(st.sampled_from(pieces) | filler, st.integers(0, 4))))
    text = ""
    marks = []
    for piece, spelled in drawn:
        if piece in known and spelled:
            marks.append(Mark(start=len(text), end=len(text) + len(piece)))
        text += piece
    return Answer(text=text, marks=tuple(marks), added=tuple(known))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """An answer and how it is parsed."""

    answer: Answer
    choice: ParserChoice
    in_reasoning: bool
    forced: bool
    parallel: bool

    def events(self, cuts: Iterable[int] = ()) -> list[Event]:
        return parse(
            self.answer,
            self.choice,
            cuts=cuts,
            in_reasoning=self.in_reasoning,
            forced=self.forced,
            parallel=self.parallel,
        )


_MIXED: Final = st.sampled_from(list(_PIECES)).flatmap(
    lambda names: st.tuples(
        _answers(_PIECES[names]),
        st.just(ParserChoice(reasoning=names[0], tool_calls=names[1])),
    )
)


@st.composite
def _mutated(draw: st.DrawFn) -> tuple[Answer, ParserChoice]:
    """A valid answer, of which a part was left out or written twice."""
    family = draw(st.sampled_from(list(CHOICES)))
    text = thought(family, "hm \n") + said(family, " So.\n")
    text += written(family, ("f", '{"text": "a\\n<x>", "items": [1, {}]}'), ("g", "{}"))
    text += draw(st.sampled_from(["", "\n", " Done.\n"]))
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    part = text[start:end] * draw(st.integers(0, 2))
    answer = Answer.written(text[:start] + part + text[end:])
    bare = Answer(text=answer.text, marks=(), added=())
    return draw(st.sampled_from([answer, bare])), CHOICES[family]


@st.composite
def _cases(draw: st.DrawFn, *, parallel: bool | None = None) -> _Case:
    answer, choice = draw(_MIXED | _mutated())
    return _Case(
        answer=answer,
        choice=choice,
        in_reasoning=draw(st.booleans()),
        forced=draw(st.integers(0, 3)) == 0,
        parallel=draw(st.booleans()) if parallel is None else parallel,
    )


@given(_cases(), st.data())
@settings(max_examples=300)
def test_events_do_not_depend_on_how_the_text_is_cut(case: _Case, data: st.DataObject) -> None:
    whole = merged(case.events())
    size = len(case.answer.text)
    places = data.draw(st.lists(st.integers(0, size), max_size=8))
    assert merged(case.events(range(size))) == whole
    assert merged(case.events(sorted(places))) == whole


@given(_cases(parallel=True))
@settings(max_examples=300)
def test_every_character_of_the_answer_is_accounted_for(case: _Case) -> None:
    text, end = _without_mere_spellings(case.answer), 0
    for start, stop in _spans(case.answer.text, case.events()):
        assert start >= end
        assert _GAP.fullmatch(text, end, start), text[end:start]
        end = stop
    assert _GAP.fullmatch(text, end), text[end:]


def _without_mere_spellings(answer: Answer) -> str:
    """The text with an x for each character that spells a token without being it."""
    if not answer.added:
        return answer.text
    marked = {mark.start for mark in answer.marks}
    return re.sub(
        "|".join(map(re.escape, answer.added)),
        lambda found: found[0] if found.start() in marked else "x" * len(found[0]),
        answer.text,
    )


def _spans(text: str, events: list[Event]) -> Iterator[tuple[int, int]]:
    """Where texts and calls stand, each text found there verbatim."""
    for event in events:
        if isinstance(event, Content | Reasoning):
            end = event.start + len(event.text)
            assert event.text
            assert text[event.start : end] == event.text
            yield event.start, end
        elif isinstance(event, CallEnded):
            yield event.start, event.end


@given(_cases())
@settings(max_examples=200)
def test_calls_are_told_in_order_and_hold_json(case: _Case) -> None:
    events = merged(case.events())
    told = [e for e in events if isinstance(e, CallBegun | CallArguments | CallEnded)]
    count = sum(isinstance(event, CallBegun) for event in told)
    assert count <= 1 or case.parallel
    assert [event.index for event in told] == sorted(event.index for event in told)
    for index in range(count):
        begun, *pieces, ended = (event for event in told if event.index == index)
        assert isinstance(begun, CallBegun)
        assert isinstance(ended, CallEnded)
        arguments = "".join(piece.text for piece in pieces if isinstance(piece, CallArguments))
        if ended.problem is None:
            assert isinstance(json.loads(arguments), dict)
        else:
            assert not is_json(arguments)


_OF_TAGS: Final = ("qwen3_coder", "minimax-m2", "glm45")
_END: Final = re.compile(
    r"\s*(?:</tool_call>|<｜tool▁call▁end｜>|<\|tool_call_end\|>|<\|(?:end|return|call)\|>)?"
)


@given(_cases(parallel=True))
@settings(max_examples=200)
def test_nothing_of_a_broken_call_of_json_is_withheld_but_its_tags(case: _Case) -> None:
    if case.choice.tool_calls in _OF_TAGS:
        return
    events = merged(case.events())
    for ended in events:
        if not isinstance(ended, CallEnded) or ended.problem is None:
            continue
        text = case.answer.text[ended.start : ended.end]
        told = [e.text for e in events if isinstance(e, CallArguments) and e.index == ended.index]
        head, arguments, end = text.rpartition("".join(told))
        if "null" not in head + arguments:
            assert head
            assert _END.fullmatch(end), (text, told)


@given(_cases())
@settings(max_examples=200)
def test_the_message_is_the_stream_added_up_but_for_broken_calls(case: _Case) -> None:
    events = case.events()
    message = assemble(case.answer.text, events)
    broken = {e.index for e in events if isinstance(e, CallEnded) and e.problem}
    begun = [e for e in events if isinstance(e, CallBegun) and e.index not in broken]
    assert [call.name for call in message.tool_calls] == [event.name for event in begun]
    content = "".join(event.text for event in events if isinstance(event, Content))
    if broken:
        assert message.content
        assert len(message.content) > len(content)
    else:
        assert message.content == (content or None)
    reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
    assert message.reasoning == (reasoning or None)


@given(_cases())
@settings(max_examples=100)
def test_without_parsers_the_answer_is_its_content(case: _Case) -> None:
    nothing = ParserChoice(reasoning=None, tool_calls=None)
    events = parse(case.answer, nothing, in_reasoning=case.in_reasoning)
    assert assemble(case.answer.text, events).content == (case.answer.text or None)


# Texts that tempt a parser to look at them again and again.
_TEMPTING: Final = (
    *("<tool_call>", '<tool_call>{"', "<", " ", '{"a": [', "<｜tool▁calls▁begin｜>", "<think>"),
    *("[TOOL_CALLS]", "[TOOL_CALLS][{", "<|start|>", "<|channel|>x ", "<tool_call><function=f>"),
    *('<tool_call>{"name": "f", "arguments": {"a": ', ' {"name": "f", "parameters": {}};'),
    *("<tool_call>\n<function=f><parameter=text>\n\n", "<|start|><|message|>\n"),
)


def _steps(text: str, choice: ParserChoice, *, step: int) -> int:
    """How many lines of Python are run for a text that comes in pieces of this size."""
    count = 0

    def trace(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    answer = Answer(text=text, marks=(), added=())
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parse(answer, choice, cuts=range(step, len(text), step))
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("family", CHOICES)
@pytest.mark.parametrize("step", [1, 10_000])
def test_twice_the_text_takes_no_more_than_about_twice_the_steps(family: str, step: int) -> None:
    for unit in _TEMPTING:
        short, long = unit * (200 // len(unit)), unit * (400 // len(unit))
        once = _steps(short, CHOICES[family], step=step)
        assert _steps(long, CHOICES[family], step=step) < 2.5 * once + 500
