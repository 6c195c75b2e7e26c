"""Answers for the parsers' tests: how they are written down, and three ways of parsing them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from slime_core.parsing import (
    AnswerParser,
    CallArguments,
    Content,
    Event,
    Mark,
    ParserChoice,
    Reasoning,
    ShownMessage,
    assemble,
)

_ID: Final = re.compile("«(?P<content>.*?)»")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A text with marks; written as text in which «these» are added tokens, known by id."""

    text: str
    marks: tuple[Mark, ...]
    added: tuple[str, ...]

    @classmethod
    def written(cls, text: str) -> Answer:
        """The answer that was written down."""
        marks: list[Mark] = []
        added: dict[str, None] = {}
        for count, found in enumerate(_ID.finditer(text)):
            start = found.start() - 2 * count
            marks.append(Mark(start=start, end=start + len(found["content"])))
            added[found["content"]] = None
        bare = _ID.sub(lambda found: found["content"], text)
        return cls(text=bare, marks=tuple(marks), added=tuple(added))


def tool(name: str, **properties: object) -> dict[str, Any]:
    """An OpenAI function tool whose parameters have these schemas."""
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS: Final = (
    tool(
        "f",
        text={"type": "string"},
        number={"type": "number"},
        count={"type": "integer"},
        flag={"type": "boolean"},
        items={"type": "array"},
        maybe={"anyOf": [{"type": "string"}, {"type": "null"}]},
        any={},
    ),
    tool("g"),
)


def parse(
    answer: Answer,
    choice: ParserChoice,
    *,
    cuts: Iterable[int] = (),
    tools: Sequence[Mapping[str, Any]] = TOOLS,
    added: Iterable[str] | None = None,
    in_reasoning: bool = False,
    forced: bool = False,
    parallel: bool = True,
) -> list[Event]:
    """All events of an answer that comes in pieces, cut at these places."""
    parser = AnswerParser(
        choice,
        tools=tools,
        marks=list(answer.added if added is None else added),
        in_reasoning=in_reasoning,
        forced=forced,
        parallel=parallel,
    )
    events: list[Event] = []
    start = 0
    for end in (*cuts, len(answer.text)):
        marks = [mark for mark in answer.marks if start <= mark.start < end]
        events += parser.push(answer.text[start:end], marks)
        start = end
    return events + parser.finish()


def merged(events: Iterable[Event]) -> list[Event]:
    """The events with adjacent texts joined: what does not depend on how the text was cut."""
    joined: list[Event] = []
    for event in events:
        match joined[-1] if joined else None, event:
            case Content() as last, Content() if last.start + len(last.text) == event.start:
                joined[-1] = Content(text=last.text + event.text, start=last.start)
            case Reasoning() as last, Reasoning() if last.start + len(last.text) == event.start:
                joined[-1] = Reasoning(text=last.text + event.text, start=last.start)
            case CallArguments() as last, CallArguments() if last.index == event.index:
                joined[-1] = CallArguments(index=last.index, text=last.text + event.text)
            case _:
                joined.append(event)
    return joined


def shown(answer: Answer, choice: ParserChoice, **options: Any) -> ShownMessage:
    """The message of an answer, after checking that character by character it is the same."""
    whole = parse(answer, choice, **options)
    single = parse(answer, choice, cuts=range(1, len(answer.text)), **options)
    assert merged(single) == merged(whole)
    return assemble(answer.text, whole)


CHOICES: Final = {
    "qwen": ParserChoice(reasoning="qwen3", tool_calls="qwen25"),
    "coder": ParserChoice(reasoning="qwen3", tool_calls="qwen3_coder"),
    "llama": ParserChoice(reasoning=None, tool_calls="llama3"),
    "mistral": ParserChoice(reasoning="mistral", tool_calls="mistral"),
    "v3": ParserChoice(reasoning="deepseek-r1", tool_calls="deepseekv3"),
    "v31": ParserChoice(reasoning="deepseek-v3", tool_calls="deepseekv31"),
    "glm": ParserChoice(reasoning="glm45", tool_calls="glm45"),
    "kimi": ParserChoice(reasoning="kimi_k2", tool_calls="kimi_k2"),
    "minimax": ParserChoice(reasoning="minimax", tool_calls="minimax-m2"),
    "oss": ParserChoice(reasoning="gpt-oss", tool_calls="gpt-oss"),
}


def written(family: str, *calls: tuple[str, str]) -> str:
    """Calls with arguments as JSON, as the family's models write them."""
    match family:
        case "qwen":
            each = '«<tool_call>»\n{{"name": "{}", "arguments": {}}}\n«</tool_call>»'
            return "\n".join(each.format(*call) for call in calls)
        case "llama":
            each = '{{"name": "{}", "parameters": {}}}'
            return "«<|python_tag|>»" + "; ".join(each.format(*call) for call in calls)
        case "mistral":
            return "".join(f"«[TOOL_CALLS]»{name}«[ARGS]»{value}" for name, value in calls)
        case "v3":
            each = "«<｜tool▁call▁begin｜>»function«<｜tool▁sep｜>»{}\n```json\n{}\n```"
            body = "\n".join(each.format(*call) + "«<｜tool▁call▁end｜>»" for call in calls)
            return f"«<｜tool▁calls▁begin｜>»{body}«<｜tool▁calls▁end｜>»"
        case "v31":
            each = "«<｜tool▁call▁begin｜>»{}«<｜tool▁sep｜>»{}«<｜tool▁call▁end｜>»"
            body = "".join(each.format(*call) for call in calls)
            return f"«<｜tool▁calls▁begin｜>»{body}«<｜tool▁calls▁end｜>»"
        case "kimi":
            each = "«<|tool_call_begin|>»functions.{}:{}«<|tool_call_argument_begin|>»{}"
            body = "".join(
                each.format(name, count, value) + "«<|tool_call_end|>»"
                for count, (name, value) in enumerate(calls)
            )
            return f"«<|tool_calls_section_begin|>»{body}«<|tool_calls_section_end|>»"
        case "oss":
            each = "«<|start|>»assistant«<|channel|>»commentary to=functions.{}"
            each += " «<|constrain|>»json«<|message|>»{}«<|call|>»"
            return "".join(each.format(*call) for call in calls)
        case _:
            return "".join(tagged(family, name, json.loads(value)) for name, value in calls)


def tagged(family: str, name: str, arguments: dict[str, object]) -> str:
    """A call whose arguments stand between tags."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in arguments.items()
    }
    match family:
        case "coder":
            each = "<parameter={}>\n{}\n</parameter>\n"
            body = "".join(each.format(*item) for item in texts.items())
            return f"«<tool_call>»\n<function={name}>\n{body}</function>\n«</tool_call>»\n"
        case "glm":
            each = "«<arg_key>»{}«</arg_key>»\n«<arg_value>»{}«</arg_value>»\n"
            body = "".join(each.format(*item) for item in texts.items())
            return f"«<tool_call>»{name}\n{body}«</tool_call>»\n"
        case _:
            each = '<parameter name="{}">{}</parameter>\n'
            body = "".join(each.format(*item) for item in texts.items())
            call = f'<invoke name="{name}">\n{body}</invoke>\n'
            return f"«<minimax:tool_call>»\n{call}«</minimax:tool_call>»\n"


def thought(family: str, text: str) -> str:
    """A block of reasoning."""
    match family:
        case "mistral":
            return f"«[THINK]»{text}«[/THINK]»"
        case "oss":
            return f"«<|channel|>»analysis«<|message|>»{text}«<|end|>»"
        case _:
            return f"«<think>»{text}«</think>»"


def said(family: str, text: str) -> str:
    """Content before calls."""
    if family != "oss":
        return text
    return f"«<|start|>»assistant«<|channel|>»commentary«<|message|>»{text}«<|end|>»"
