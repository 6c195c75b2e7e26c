"""Calls that stand in a section, their arguments as JSON behind a head: DeepSeek and Kimi.

The forms, as the models' own templates teach them, with the call's tags shortened::

    <calls><call>function<sep>name\\n```json\\n{…}\\n```<end>…</calls>      DeepSeek V3 and R1
    <calls><call>name<sep>{…}<end>…</calls>                               DeepSeek V3.1
    <calls><call>functions.name:0<sep>{…}<end>…</calls>                   Kimi K2

Kimi's model writes ids; the name is the part between ``functions.`` and the count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, final

from slime_core.parsing.grammar import Grammar, Reading, one_call
from slime_core.parsing.json_calls import arguments
from slime_core.parsing.source import Steps
from slime_core.parsing.telling import Call

__all__ = ["DEEPSEEK_V3", "DEEPSEEK_V31", "KIMI_K2"]

_FENCE: Final = "```"
_KIMI_ID: Final = re.compile(r"(?:functions\.)?(?P<name>.+?)(?::\d+)?")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """One family's tags: of the section, of a call, and between its head and its arguments."""

    opens: str
    calls: str
    separator: str
    ends: str
    closes: str
    fenced: bool = False
    """Whether the head is a kind, its name follows the separator, and the JSON is fenced."""
    has_ids: bool = False

    def grammar(self) -> Grammar:
        return Grammar(
            opens=self.opens, calls=self.calls, closes=self.closes, read=partial(_read, self)
        )


def _read(form: _Form, reading: Reading, tag: str) -> Steps[None]:
    source = reading.source
    call = reading.teller.call(source.at)
    source.take(len(tag))
    if tag == form.opens:
        yield from source.space()
        yield from source.tag(form.calls)
    until = (form.opens, form.calls, form.ends, form.closes)
    yield from one_call(reading, call, _call(form, reading, call), until, (form.ends,))


def _call(form: _Form, reading: Reading, call: Call) -> Steps[None]:
    source = reading.source
    yield from _head(form, reading, call)
    yield from source.space()
    if (yield from source.here((form.ends,))) is None:
        yield from arguments(reading, call)
    call.complete()
    if form.fenced:
        yield from source.space()
        if (yield from source.here((_FENCE,))):
            source.take(len(_FENCE))
            source.hold()


def _head(form: _Form, reading: Reading, call: Call) -> Steps[None]:
    source = reading.source
    yield from source.space()
    word = yield from source.word()
    yield from source.space()
    yield from source.tag(form.separator)
    if form.fenced:
        word = yield from source.word()
        yield from source.space()
        yield from source.expect(f"{_FENCE}json")
    call.name = word
    if form.has_ids:
        found = _KIMI_ID.fullmatch(word)
        call.name = found["name"] if found else word
        call.model_id = word


_DEEPSEEK: Final = _Form(
    opens="<｜tool▁calls▁begin｜>",
    calls="<｜tool▁call▁begin｜>",
    separator="<｜tool▁sep｜>",
    ends="<｜tool▁call▁end｜>",
    closes="<｜tool▁calls▁end｜>",
)

DEEPSEEK_V31: Final = _DEEPSEEK.grammar()
DEEPSEEK_V3: Final = replace(_DEEPSEEK, fenced=True).grammar()
KIMI_K2: Final = _Form(
    opens="<|tool_calls_section_begin|>",
    calls="<|tool_call_begin|>",
    separator="<|tool_call_argument_begin|>",
    ends="<|tool_call_end|>",
    closes="<|tool_calls_section_end|>",
    has_ids=True,
).grammar()
