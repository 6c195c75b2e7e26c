"""The chat templates of the simulation: each as jinja for the shell, and said in Python.

A template in Python gives its rendering in *parts* that tell who wrote what, so that an oracle
knows which characters of a text are control and which a client's content merely spells. The
variants differ in what is hard about templates: earlier reasoning is stripped, a turn has no token
that closes it, the generation prompt has begun to think, results of tools share a turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["NAMES", "TEMPLATES", "Part", "Template", "Turns"]

_THOUGHT: Final = re.compile(r"(\s*)<think>(.*?)</think>(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a rendering. ``author``: ``""`` for the template itself, ``system`` for system
    text and tool definitions, ``client`` for everything else."""

    text: str
    author: str = ""


Parts = list[Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """A rendering: what stands before the first message, then the parts of every message, then the
    generation prompt."""

    head: Parts
    messages: list[Parts]
    opening: Parts

    def all(self, *, generation: bool) -> Parts:
        """Everything, in order."""
        whole = [*self.head, *(part for parts in self.messages for part in parts)]
        return whole + (self.opening if generation else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One variant. ``write`` takes messages as the router evens them out."""

    name: str
    source: str
    write: Callable[[Sequence[dict[str, Any]], Sequence[dict[str, Any]]], Turns]
    special: tuple[str, ...] = ()
    """Special tokens that its vocabulary has beside those of ChatML."""
    added: tuple[str, ...] = ()
    """Added tokens that are none."""
    ends: tuple[str, ...] = ("<|im_end|>",)
    """What ends a sampled answer."""
    close: str = "<|im_end|>"
    """What closes a turn; empty where the next opener does."""
    separator: str = "\n"
    """What stands behind the close."""
    markers: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    """What makes turns."""
    thinks_in_field: bool = False
    """It takes reasoning from a field of the message."""
    calls: bool = False
    """It shows tools to the model, and calls."""
    opens_thought: bool = False
    """Its generation prompt has begun the model's reasoning."""

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] = (),
        *,
        generation: bool = True,
    ) -> str:
        """The rendering as text."""
        parts = self.write(messages, tools).all(generation=generation)
        return "".join(part.text for part in parts)


def _last_user(messages: Sequence[dict[str, Any]]) -> int:
    return max((at for at, one in enumerate(messages) if one["role"] == "user"), default=-1)


def _said(content: str) -> Parts:
    """An assistant's content; the tags of a block of reasoning at its beginning are structure."""
    found = _THOUGHT.fullmatch(content)
    if found is None:
        return [Part(content, "client")]
    blank, thought, rest = found.groups()
    return [
        Part(blank, "client"),
        Part("<think>"),
        Part(thought, "client"),
        Part("</think>"),
        Part(rest, "client"),
    ]


def _author(message: dict[str, Any]) -> str:
    return "system" if message["role"] == "system" else "client"


# -- content only ------------------------------------------------------------------------


def _content_only(*, strips: bool) -> Callable[..., Turns]:
    def write(messages: Sequence[dict[str, Any]], _tools: Sequence[dict[str, Any]]) -> Turns:
        last, turns = _last_user(messages), []
        for at, message in enumerate(messages):
            is_answer = message["role"] == "assistant"
            content = message["content"]
            found = _THOUGHT.fullmatch(content) if strips and is_answer and at < last else None
            if found is not None:
                said = [Part(found[3], "client")]
            else:
                said = _said(content) if is_answer else [Part(content, _author(message))]
            turns.append([Part(f"<|im_start|>{message['role']}\n"), *said, Part("<|im_end|>\n")])
        return Turns(head=[], messages=turns, opening=[Part("<|im_start|>assistant\n")])

    return write


_PLAIN: Final = """\
{%- for message in messages -%}
  {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

_STRIPS: Final = """\
{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- set content = message.content -%}
  {%- if message.role == 'assistant' and loop.index0 < last.user and '</think>' in content -%}
    {%- set content = content.split('</think>')[-1] -%}
  {%- endif -%}
  {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""

# -- reasoning in a field, and tools ----------------------------------------------------------

_LAST_USER: Final = """\
{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
"""
_TEACHES: Final = 'Write <tool_call>{"name": …, "arguments": …}</tool_call> to call one.'
_TOOLS: Final = (
    """\
{%- if tools -%}
  {{- 'SYSTEM_OPENTools:' -}}
  {%- for tool in tools -%}{{- '\\n' ~ (tool | tojson) -}}{%- endfor -%}
  {{- '\\n"""
    + _TEACHES
    + """TURN_CLOSE' -}}
{%- endif -%}
"""
)
_ASSISTANT: Final = """\
    {%- if message.reasoning_content and loop.index0 > last.user -%}
      {{- '<think>\\n' ~ message.reasoning_content ~ '\\n</think>\\n' -}}
    {%- endif -%}
    {{- message.content -}}
    {%- for call in message.tool_calls or [] -%}
      {{- '\\n<tool_call>\\n{"name": ' ~ (call.function.name | tojson) -}}
      {{- ', "arguments": ' ~ (call.function.arguments | tojson) ~ '}\\n</tool_call>' -}}
    {%- endfor -%}
"""
_RESULT: Final = "\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>"


def _chatml(opening: str) -> str:
    tools = _TOOLS.replace("SYSTEM_OPEN", "<|im_start|>system\\n")
    return (
        _LAST_USER
        + tools.replace("TURN_CLOSE", "<|im_end|>\\n")
        + """\
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{- '<|im_start|>assistant\\n' -}}
"""
        + _ASSISTANT
        + """\
    {{- '<|im_end|>\\n' -}}
  {%- elif message.role == 'tool' -%}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
      {{- '<|im_start|>user' -}}
    {%- endif -%}
    {{- '"""
        + _RESULT
        + """' -}}
    {%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}
      {{- '<|im_end|>\\n' -}}
    {%- endif -%}
  {%- else -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '"""
        + opening
        + """' -}}{%- endif -%}
"""
    )


_UNCLOSED: Final = (
    _LAST_USER
    + _TOOLS.replace("SYSTEM_OPEN", "<|system|>\\n").replace("TURN_CLOSE", "")
    + """\
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{- '<|assistant|>\\n' -}}
"""
    + _ASSISTANT
    + """\
  {%- elif message.role == 'tool' -%}
    {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
      {{- '<|observation|>' -}}
    {%- endif -%}
    {{- '"""
    + _RESULT
    + """' -}}
  {%- else -%}
    {{- '<|' ~ message.role ~ '|>\\n' ~ message.content -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""
)


@dataclass(frozen=True, slots=True)
class _Style:
    system: str
    assistant: str
    result: str
    close: str
    other: Callable[[str], str]
    opening: str


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _in_style(style: _Style) -> Callable[..., Turns]:
    def write(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> Turns:
        last, turns = _last_user(messages), []
        for at, message in enumerate(messages):
            if message["role"] == "assistant":
                turns.append(_answer(message, style, thinks=at > last))
            elif message["role"] == "tool":
                around = [
                    0 <= near < len(messages) and messages[near]["role"] == "tool"
                    for near in (at - 1, at + 1)
                ]
                turns.append(
                    [
                        Part(("" if around[0] else style.result) + "\n<tool_response>\n"),
                        Part(message["content"], "client"),
                        Part("\n</tool_response>" + ("" if around[1] else style.close)),
                    ]
                )
            else:
                opener = Part(style.other(message["role"]))
                said = Part(message["content"], _author(message))
                turns.append([opener, said, Part(style.close)])
        return Turns(head=_told(tools, style), messages=turns, opening=[Part(style.opening)])

    return write


def _told(tools: Sequence[dict[str, Any]], style: _Style) -> Parts:
    if not tools:
        return []
    listed = [part for tool in tools for part in (Part("\n"), Part(_dump(tool), "system"))]
    return [Part(style.system + "Tools:"), *listed, Part("\n" + _TEACHES + style.close)]


def _answer(message: dict[str, Any], style: _Style, *, thinks: bool) -> Parts:
    parts = [Part(style.assistant)]
    thought = message.get("reasoning_content")
    if thought and thinks:
        parts += [Part("<think>\n"), Part(thought, "client"), Part("\n</think>\n")]
    parts += _said(message["content"])
    for call in message.get("tool_calls") or ():
        parts += [
            Part('\n<tool_call>\n{"name": '),
            Part(_dump(call["function"]["name"]), "client"),
            Part(', "arguments": '),
            Part(_dump(call["function"]["arguments"]), "client"),
            Part("}\n</tool_call>"),
        ]
    return [*parts, Part(style.close)]


def _style_of_chatml(opening: str) -> _Style:
    return _Style(
        system="<|im_start|>system\n",
        assistant="<|im_start|>assistant\n",
        result="<|im_start|>user",
        close="<|im_end|>\n",
        other=lambda role: f"<|im_start|>{role}\n",
        opening=opening,
    )


_UNCLOSED_STYLE: Final = _Style(
    system="<|system|>\n",
    assistant="<|assistant|>\n",
    result="<|observation|>",
    close="",
    other=lambda role: f"<|{role}|>\n",
    opening="<|assistant|>\n",
)
_ROLES: Final = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")

TEMPLATES: Final[dict[str, Template]] = {
    one.name: one
    for one in (
        Template(name="strips", source=_STRIPS, write=_content_only(strips=True)),
        Template(name="plain", source=_PLAIN, write=_content_only(strips=False)),
        Template(
            name="thinks",
            source=_chatml("<|im_start|>assistant\\n"),
            write=_in_style(_style_of_chatml("<|im_start|>assistant\n")),
            added=("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
            thinks_in_field=True,
            calls=True,
        ),
        Template(
            name="opens",
            source=_chatml("<|im_start|>assistant\\n<think>\\n"),
            write=_in_style(_style_of_chatml("<|im_start|>assistant\n<think>\n")),
            thinks_in_field=True,
            calls=True,
            opens_thought=True,
        ),
        Template(
            name="unclosed",
            source=_UNCLOSED,
            write=_in_style(_UNCLOSED_STYLE),
            special=_ROLES,
            added=("<tool_call>", "</tool_call>"),
            ends=("<|user|>", "<|observation|>"),
            close="",
            separator="",
            markers=_ROLES,
            thinks_in_field=True,
            calls=True,
        ),
    )
}
NAMES: Final = tuple(TEMPLATES)
