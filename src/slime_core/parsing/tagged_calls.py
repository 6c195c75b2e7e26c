"""Calls whose arguments stand between tags, one by one: Qwen3-Coder, MiniMax M2 and GLM.

The forms, as the models' own templates teach them::

    <tool_call> <function=name> <parameter=key> value </parameter> </function> </tool_call>
    <minimax:tool_call> <invoke name="name"> <parameter name="key">value</parameter> </invoke> …
    <tool_call>name <arg_key>key</arg_key> <arg_value>value</arg_value> </tool_call>

with line breaks where blanks are shown; only Qwen3-Coder puts them around values.
The arguments are given out as a JSON object, see :mod:`slime_core.parsing.typed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final, final

from slime_core.parsing.grammar import Grammar, Reading, one_call
from slime_core.parsing.source import Steps
from slime_core.parsing.telling import Call
from slime_core.parsing.typed import TypedArguments

__all__ = ["GLM", "MINIMAX_M2", "QWEN3_CODER"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """One family's tags, in the order in which they come, and the text that ends names."""

    opens: str
    calls: str | None = None
    name_ends: str = ""
    key_opens: str
    key_ends: str = ""
    """Text right behind a key, for families whose keys stand inside the opening tag."""
    key_closes: str | None = None
    value_opens: str | None = None
    value_closes: str
    ends: str
    closes: str | None = None
    lined: bool = False

    def grammar(self) -> Grammar:
        return Grammar(
            opens=self.opens, calls=self.calls, closes=self.closes, read=partial(_read, self)
        )

    @property
    def tags(self) -> tuple[str, ...]:
        """Where a broken call is over at the latest."""
        tags = (self.opens, self.calls, self.ends, self.closes)
        return tuple(tag for tag in tags if tag is not None)


def _read(form: _Form, reading: Reading, tag: str) -> Steps[None]:
    source = reading.source
    call = reading.teller.call(source.at)
    source.take(len(tag))
    if form.calls is not None and tag == form.opens:
        yield from source.space()
        yield from source.tag(form.calls)
    yield from one_call(reading, call, _call(form, reading, call), form.tags, (form.ends,))


def _call(form: _Form, reading: Reading, call: Call) -> Steps[None]:
    source = reading.source
    if form.calls is None:
        yield from source.space()
    name = yield from source.word()
    yield from source.expect(form.name_ends)
    call.name = name
    written = TypedArguments(call, reading.parameters.get(name, {}), lined=form.lined)
    tag = yield from _next_tag(form, reading)
    written.open()
    while tag == form.key_opens:
        source.take(len(tag))
        yield from _argument(form, reading, written)
        tag = yield from _next_tag(form, reading)
    written.close()
    call.complete()


def _next_tag(form: _Form, reading: Reading) -> Steps[str]:
    """The tag of an argument, or of the call's end; not taken. Raises :class:`Broken` for none."""
    source = reading.source
    yield from source.space()
    tag = yield from source.here((form.key_opens, form.ends))
    if tag is None:
        raise source.broken()
    return tag


def _argument(form: _Form, reading: Reading, written: TypedArguments) -> Steps[None]:
    source = reading.source
    key = yield from source.key()
    yield from source.expect(form.key_ends)
    if form.key_closes is not None:
        yield from source.tag(form.key_closes)
    if form.value_opens is not None:
        yield from source.space()
        yield from source.tag(form.value_opens)
    written.begin(key)
    if (yield from source.until((form.value_closes,), written.add)) is None:
        written.break_off()
        raise source.broken()
    source.take(len(form.value_closes))
    written.end()


QWEN3_CODER: Final = _Form(
    opens="<tool_call>",
    calls="<function=",
    name_ends=">",
    key_opens="<parameter=",
    key_ends=">",
    value_closes="</parameter>",
    ends="</function>",
    closes="</tool_call>",
    lined=True,
).grammar()

MINIMAX_M2: Final = _Form(
    opens="<minimax:tool_call>",
    calls='<invoke name="',
    name_ends='">',
    key_opens='<parameter name="',
    key_ends='">',
    value_closes="</parameter>",
    ends="</invoke>",
    closes="</minimax:tool_call>",
).grammar()

GLM: Final = _Form(
    opens="<tool_call>",
    key_opens="<arg_key>",
    key_closes="</arg_key>",
    value_opens="<arg_value>",
    value_closes="</arg_value>",
    ends="</tool_call>",
).grammar()
