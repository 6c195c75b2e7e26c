"""Arguments that a model wrote as bare text, spelled as JSON by what the tool's schema says.

In families that write each argument between tags, ``5`` may be a number or a text; only the schema
knows. The rules: where a schema allows nothing but text, or does not know the argument, the value
is text as it stands. Else it is the JSON value that it spells, if the schema allows its kind, or if
it allows no text either. Anything else is text. ``True``, ``False`` and ``None``, which templates
of Qwen3-Coder print for older calls, stand for the JSON words where those are allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from slime_core.parsing.json_scan import is_json
from slime_core.parsing.source import SPACE
from slime_core.parsing.telling import Call

__all__ = ["TypedArguments", "json_kinds", "spelled"]

_TEXT: Final = frozenset({"string"})
_KINDS: Final = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean"}
_OF_PYTHON: Final = {
    "True": ("boolean", "true"),
    "False": ("boolean", "false"),
    "None": ("null", "null"),
}


def json_kinds(schema: object) -> frozenset[str] | None:
    """The kinds of JSON values that a schema allows; ``None`` where it does not say.

    Integers are numbers. Looks at ``type``, ``const``, ``enum``, ``anyOf`` and ``oneOf``.
    """
    kinds: list[str] = []
    schemas = [schema]
    while schemas:
        one = schemas.pop()
        if not isinstance(one, Mapping):
            return None
        stated = one.get("type")
        if isinstance(stated, str):
            kinds.append(stated)
        elif isinstance(stated, list):
            kinds += [kind for kind in stated if isinstance(kind, str)]
        elif "const" in one:
            kinds.append(_kind_of(one["const"]))
        elif isinstance(one.get("enum"), list):
            kinds += map(_kind_of, one["enum"])
        else:
            options = one.get("anyOf", one.get("oneOf"))
            if not isinstance(options, list) or not options:
                return None
            schemas += options
    return frozenset("number" if kind == "integer" else kind for kind in kinds)


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case int() | float():
            return "number"
        case list():
            return "array"
        case _:
            return "object"


def spelled(text: str, kinds: frozenset[str] | None) -> str:
    """The text of an argument as JSON, where a schema allows values of these kinds."""
    value = text.strip(SPACE)
    if kinds is not None:
        kind, word = _OF_PYTHON.get(value, ("", ""))
        if kind in kinds:
            return word
    if is_json(value):
        kind = _KINDS.get(value[0], "null" if value[0] == "n" else "number")
        if kinds is None or "string" not in kinds or (kind in kinds and kind != "string"):
            return value
    return json.dumps(text, ensure_ascii=False)


class TypedArguments:
    """Writes a call's arguments as one JSON object, as they come.

    Call :meth:`open` once the call is known to have arguments or an end; then, for each argument,
    :meth:`begin`, :meth:`add` with the pieces of its value and :meth:`end`; at last :meth:`close`.
    Text is given out piece by piece; a value of any other kind waits for its end. ``lined``: a line
    break behind the opening tag and one before the closing tag are no part of a value.
    """

    __slots__ = ("_call", "_count", "_kinds", "_lined", "_pieces", "_schemas", "_started", "_tail")

    def __init__(self, call: Call, parameters: Mapping[str, Any], *, lined: bool) -> None:
        properties = parameters.get("properties")
        self._schemas = properties if isinstance(properties, Mapping) else {}
        self._call = call
        self._lined = lined
        self._count = 0
        self._kinds: frozenset[str] | None = None
        self._pieces: list[str] = []
        self._started = False
        """Whether the value has any text yet, its first line break included."""
        self._tail = ""
        """A line break that may be the last of the value."""

    def open(self) -> None:
        """Begin the object."""
        self._call.argue("{")

    def begin(self, key: str) -> None:
        """Begin an argument."""
        self._kinds = json_kinds(self._schemas[key]) if key in self._schemas else _TEXT
        comma = ", " if self._count else ""
        quote = '"' if self._kinds == _TEXT else ""
        self._call.argue(f"{comma}{json.dumps(key, ensure_ascii=False)}: {quote}")
        self._count += 1
        self._started, self._tail = False, ""

    def add(self, text: str, _start: int = 0) -> None:
        """A piece of the argument's value."""
        if self._lined:
            if not self._started and text.startswith("\n"):
                text = text[1:]
            self._started = True
            text = self._tail + text
            self._tail = "\n" if text.endswith("\n") else ""
            text = text[: len(text) - len(self._tail)]
        if self._kinds != _TEXT:
            self._pieces.append(text)
        elif text:
            self._call.argue(json.dumps(text, ensure_ascii=False)[1:-1])

    def end(self) -> None:
        """The value is complete."""
        if self._kinds == _TEXT:
            self._call.argue('"')
        else:
            self._call.argue(spelled("".join(self._pieces), self._kinds))
            self._pieces.clear()

    def break_off(self) -> None:
        """The value has no end."""
        if self._kinds == _TEXT and self._tail:
            self._call.argue("\\n")

    def close(self) -> None:
        """End the object."""
        self._call.argue("}")
