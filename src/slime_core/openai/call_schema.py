"""Forced tool calls as the JSON schema by which a worker constrains its answer.

The answer is then an array of ``{"name", "parameters"}`` objects instead of the model's own syntax
(SGLang 0.5.23, ``function_call.utils``), whatever family the model is of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from slime_core.errors import ClientError
from slime_core.openai.tools import Tool

__all__ = ["call_schema"]

_DEFINITIONS: Final = ("$defs", "definitions")
_NO_PARAMETERS: Final = {"type": "object", "properties": {}}


def call_schema(tools: Sequence[Tool], *, parallel: bool) -> str:
    """The schema of calls of ``tools``: one at least, and one at most unless ``parallel``.

    Definitions that a tool's parameters refer to stand at the root, where a reference looks for
    them. Raises :class:`ClientError` where two tools define one name differently.
    """
    definitions: dict[str, dict[str, Any]] = {}
    calls = [_call(tool, definitions) for tool in tools]
    schema: dict[str, Any] = {
        "type": "array",
        "minItems": 1,
        "items": calls[0] if len(calls) == 1 else {"type": "object", "anyOf": calls},
    }
    if not parallel:
        schema["maxItems"] = 1
    return msgspec.json.encode(schema | definitions).decode()


def _call(tool: Tool, definitions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The schema of a call of one tool; its definitions are moved out."""
    name = tool["function"]["name"]
    parameters = dict(tool["function"].get("parameters") or _NO_PARAMETERS)
    for key in _DEFINITIONS:
        own = parameters.get(key)
        if isinstance(own, dict):
            del parameters[key]
            _hoist(name, own, definitions.setdefault(key, {}))
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": [name]}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _hoist(tool: str, own: dict[str, Any], shared: dict[str, Any]) -> None:
    for name, definition in own.items():
        if shared.setdefault(name, definition) != definition:
            raise ClientError(
                f"The parameters of tool {tool!r} define {name!r} differently from another tool's; "
                "forced calls need one meaning for each name.",
                param="tools",
            )
