"""Calls that are JSON objects with a name and arguments: Hermes and Qwen, Llama 3, Mistral.

The forms, as the models' own templates teach them::

    <tool_call>{"name": …, "arguments": {…}}</tool_call>            Hermes, Qwen 2.5 and 3
    <|python_tag|>{"name": …, "parameters": {…}}; {…}               Llama 3, the tag optional
    [TOOL_CALLS][{"name": …, "arguments": {…}}, …]                  Mistral
    [TOOL_CALLS]name[CALL_ID]id[ARGS]{…}                            Mistral since 2025, id optional
    [{"name": …, "parameters": {…}}, …]                             forced by a worker's constraint

The keys come in any order. Arguments are given out as the model spelled them.
"""

from __future__ import annotations

import json
import re
from typing import Final

from slime_core.parsing.grammar import Grammar, Reading, one_call
from slime_core.parsing.source import Steps
from slime_core.parsing.telling import Call

__all__ = ["HERMES", "LLAMA3", "MISTRAL", "arguments", "call_object", "read_array"]

_NAME: Final = re.compile(r"[^\s\x00-\x1f\ud800-\udfff]+")
_ARGUMENTS: Final = ("arguments", "parameters")
_KNOWN: Final = ("name", "id", "type", *_ARGUMENTS)


def call_object(reading: Reading, call: Call, *, bare: bool = False) -> Steps[None]:
    """Read one object into a call.

    Where no tag announced it (``bare``) it is a call only if it has no other keys than calls have
    and names one of the request's tools: an answer may well be a JSON object.
    """
    source = reading.source
    yield from source.expect("{")
    yield from source.space()
    closing = (yield from source.peek()) == "}"
    while not closing:
        key = yield from _string(reading)
        if bare and key not in _KNOWN:
            raise source.broken()
        yield from source.space()
        yield from source.expect(":")
        yield from source.space()
        yield from _member(reading, call, key, bare=bare)
        yield from source.space()
        closing = (yield from source.peek()) == "}"
        if not closing:
            yield from source.expect(",")
            yield from source.space()
    source.take(1)
    call.complete()


def _member(reading: Reading, call: Call, key: str, *, bare: bool) -> Steps[None]:
    source = reading.source
    if key == "name":
        name = yield from _string(reading)
        known = not bare or name in reading.parameters
        if call.name is not None or not known or not _NAME.fullmatch(name):
            raise source.broken()
        call.name = name
    elif key in _ARGUMENTS:
        yield from arguments(reading, call)
    else:
        yield from source.value(_drop)


def arguments(reading: Reading, call: Call) -> Steps[None]:
    """Read an object into the call's arguments; ``null`` is an empty one."""
    source = reading.source
    if call.argued:
        raise source.broken()
    first = yield from source.peek()
    if first == "n":
        yield from source.expect("null")
        call.argue("{}")
    elif first == "{":
        yield from source.value(call.argue)
    else:
        raise source.broken()


def _string(reading: Reading) -> Steps[str]:
    if (yield from reading.source.peek()) != '"':
        raise reading.source.broken()
    pieces: list[str] = []
    yield from reading.source.value(lambda piece, _start: pieces.append(piece))
    return str(json.loads("".join(pieces)))


def _drop(_text: str, _start: int) -> None:
    """Where a member goes that calls do not have."""


# Hermes and Qwen.


def _read_hermes(reading: Reading, tag: str) -> Steps[None]:
    call = reading.teller.call(reading.source.at)
    reading.source.take(len(tag))
    steps = _hermes_call(reading, call)
    yield from one_call(reading, call, steps, ("<tool_call>", "</tool_call>"), ("</tool_call>",))


def _hermes_call(reading: Reading, call: Call) -> Steps[None]:
    yield from reading.source.space()
    yield from call_object(reading, call)


HERMES: Final = Grammar(opens="<tool_call>", read=_read_hermes)


# Llama 3.


def _read_llama(reading: Reading, tag: str) -> Steps[None]:
    start = reading.source.at
    reading.source.take(len(tag))
    yield from reading.source.space()
    yield from _llama_calls(reading, start, bare=False)


def _read_bare_llama(reading: Reading) -> Steps[None]:
    yield from reading.source.space()
    yield from _llama_calls(reading, reading.source.at, bare=True)


def _llama_calls(reading: Reading, start: int, *, bare: bool) -> Steps[None]:
    source = reading.source
    following = True
    while following:
        call = reading.teller.call(start)
        steps = call_object(reading, call, bare=bare)
        yield from one_call(reading, call, steps, ("<|python_tag|>",))
        source.hold()
        yield from source.space()
        following = (yield from source.peek()) == ";"
        if following:
            source.take(1)
            yield from source.space()
            start = source.at
    reading.teller.content(*source.release())


LLAMA3: Final = Grammar(opens="<|python_tag|>", read=_read_llama, bare=_read_bare_llama)


# Mistral, and calls forced by a constraint.


def _read_mistral(reading: Reading, tag: str) -> Steps[None]:
    source = reading.source
    start = source.at
    source.take(len(tag))
    yield from source.space()
    if (yield from source.peek()) == "[":
        yield from read_array(reading, start)
        return
    call = reading.teller.call(start)
    yield from one_call(reading, call, _named_call(reading, call), ("[TOOL_CALLS]",))


def _named_call(reading: Reading, call: Call) -> Steps[None]:
    source = reading.source
    call.name = yield from source.word()
    if (yield from source.here(("[CALL_ID]",))):
        source.take(len("[CALL_ID]"))
        call.model_id = yield from source.word()
    yield from source.tag("[ARGS]")
    yield from source.space()
    yield from arguments(reading, call)
    call.complete()


def read_array(reading: Reading, start: int) -> Steps[None]:
    """Read an array of objects; the first call begins at ``start``."""
    source = reading.source
    yield from source.expect("[")
    following = True
    while following:
        yield from source.space()
        call = reading.teller.call(start)
        yield from one_call(reading, call, call_object(reading, call), ("[TOOL_CALLS]",))
        source.hold()
        yield from source.space()
        following = (yield from source.peek()) == ","
        if following:
            source.take(1)
            start = source.at
    if (yield from source.peek()) == "]":
        source.take(1)
        source.forget()
    else:
        reading.teller.content(*source.release())


MISTRAL: Final = Grammar(opens="[TOOL_CALLS]", read=_read_mistral)
