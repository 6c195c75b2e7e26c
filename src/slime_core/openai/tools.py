"""Tools and output formats of a chat request, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from slime_core.errors import ClientError
from slime_core.strict_json import decode_field

__all__ = ["Tool", "ToolChoice", "choose_tools", "parse_json_schema", "parse_tools"]

Tool = dict[str, Any]
"""``{"type": "function", "function": {…}}`` as the client sent it; not to be changed."""

_TOOLS: Final = msgspec.json.Decoder(list[dict[str, Any]])
_CHOICE: Final[msgspec.json.Decoder[str | dict[str, Any]]] = msgspec.json.Decoder(
    str | dict[str, Any]
)
_ANY_OBJECT: Final = '{"type":"object"}'


class _JsonSchema(msgspec.Struct):
    name: str | None = None
    # ``schema`` is decoded as raw JSON: key order and numbers are the client's.
    schema: Raw = Raw(b"null")


class _Format(msgspec.Struct):
    type: str
    json_schema: _JsonSchema | None = None


_FORMAT: Final = msgspec.json.Decoder(_Format)


def parse_tools(raw: Raw | None) -> tuple[Tool, ...]:
    """The function tools; an empty list is none. Raises :class:`ClientError`."""
    if raw is None:
        return ()
    tools = decode_field(_TOOLS, raw, "tools")
    for place, tool in enumerate(tools):
        _check_tool(tool, f"tools[{place}]")
    return tuple(tools)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """What a request says of its tools."""

    tools: tuple[Tool, ...] = ()
    """What the model gets to see."""
    calls: bool = False
    """Whether it may call any of them."""
    forced: tuple[Tool, ...] = ()
    """Those of which it must call one, if it must."""


def choose_tools(raw: Raw | None, tools: tuple[Tool, ...]) -> ToolChoice:
    """The tools as ``tool_choice`` has them. Raises :class:`ClientError`.

    All tools stay in the prompt whatever is chosen, so that a client that changes its choice
    between turns does not change the start of its prompt: a forced call is the constraint's
    business, and under ``none`` nothing is parsed as a call. Only a subset to choose freely from
    cannot be had otherwise than by showing no others.
    """
    if raw is None:
        return ToolChoice(tools=tools, calls=bool(tools))
    choice = decode_field(_CHOICE, raw, "tool_choice")
    if choice == "none":
        return ToolChoice(tools=tools)
    if not tools:
        raise _bad_choice("'tool_choice' is only allowed when 'tools' are specified.")
    if choice == "auto":
        return ToolChoice(tools=tools, calls=True)
    if choice == "required":
        return ToolChoice(tools=tools, calls=True, forced=tools)
    kind = choice.get("type") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and kind == "function":
        return ToolChoice(tools=tools, calls=True, forced=_named(tools, [choice]))
    if isinstance(choice, dict) and kind == "allowed_tools":
        return _allowed(choice.get("allowed_tools"), tools)
    raise _bad_choice(
        "Invalid value for 'tool_choice': supported are 'none', 'auto', 'required', a function and "
        "'allowed_tools'."
    )


def parse_json_schema(raw: Raw | None) -> str | None:
    """``response_format`` as SGLang's ``json_schema``: JSON in a string, or nothing for text."""
    if raw is None:
        return None
    wanted = decode_field(_FORMAT, raw, "response_format")
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return _ANY_OBJECT
    if wanted.type != "json_schema":
        raise ClientError(
            "Invalid value for 'response_format': supported types are 'text', 'json_object' and "
            "'json_schema'.",
            param="response_format",
        )
    schema = b"" if wanted.json_schema is None else bytes(wanted.json_schema.schema)
    if not schema.startswith(b"{"):
        raise ClientError(
            "Missing required parameter: 'response_format.json_schema' needs a schema object.",
            code="missing_required_parameter",
            param="response_format.json_schema",
        )
    return schema.decode()


def _check_tool(value: Tool, path: str) -> None:
    if value.get("type") != "function":
        raise ClientError(
            f"Invalid value: {value.get('type')!r}. Supported values are: 'function'.",
            param=f"{path}.type",
        )
    function = value.get("function")
    if not isinstance(function, dict):
        raise ClientError(
            f"Missing required parameter: '{path}.function'.",
            code="missing_required_parameter",
            param=f"{path}.function",
        )
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise ClientError(
            f"Missing required parameter: '{path}.function.name'.",
            code="missing_required_parameter",
            param=f"{path}.function.name",
        )
    if not isinstance(function.get("parameters", {}), dict | None):
        raise ClientError(
            f"Invalid type for '{path}.function.parameters': expected an object.",
            code="invalid_type",
            param=f"{path}.function.parameters",
        )


def _allowed(allowed: Any, tools: tuple[Tool, ...]) -> ToolChoice:
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
        raise _bad_choice("'tool_choice.allowed_tools' needs 'mode' and 'tools'.")
    chosen = _named(tools, allowed["tools"])
    if not chosen:
        raise _bad_choice("'tool_choice.allowed_tools.tools' must not be empty.", "empty_array")
    if allowed.get("mode") == "auto":
        return ToolChoice(tools=chosen, calls=True)
    if allowed.get("mode") == "required":
        return ToolChoice(tools=tools, calls=True, forced=chosen)
    raise _bad_choice("'tool_choice.allowed_tools.mode' must be 'auto' or 'required'.")


def _named(tools: tuple[Tool, ...], entries: Sequence[Any]) -> tuple[Tool, ...]:
    """The tools that the entries name, in the order of ``tools``."""
    names = [_name(entry) for entry in entries]
    known = {tool["function"]["name"] for tool in tools}
    for name in names:
        if name not in known:
            raise _bad_choice(f"Tool {name!r} is not among 'tools'.")
    return tuple(tool for tool in tools if tool["function"]["name"] in names)


def _name(entry: Any) -> Any:
    function = entry.get("function") if isinstance(entry, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _bad_choice(message: str, code: str = "invalid_value") -> ClientError:
    return ClientError(message, code=code, param="tool_choice")
