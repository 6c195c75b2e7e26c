"""Chat messages: which ones are accepted, by OpenAI's specification.

They are checked here and nothing is changed: SDKs spell one message in several ways, and evening
that out for a template is one rule, which holds for whatever is rendered
(:mod:`slime_trio.chat_messages`). Arguments of old tool calls may be any string, even no JSON: an
old mistake must not poison a conversation for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

import msgspec
from msgspec import Raw

from slime_core.errors import ClientError
from slime_core.strict_json import decode_field

__all__ = ["Message", "parse_messages"]

Message = dict[str, Any]
"""One message as the client sent it; not to be changed."""

_MESSAGES: Final = msgspec.json.Decoder(list[dict[str, Any]])
_ROLES: Final = ("developer", "system", "user", "assistant", "tool", "function")
_MEDIA: Final = frozenset({"image_url", "input_audio", "file"})

# Any of these stands for the content of an assistant's message (SDK dumps contain them all).
_INSTEAD_OF_CONTENT: Final = (
    "tool_calls",
    "function_call",
    "refusal",
    "audio",
    "reasoning_content",
)


def parse_messages(raw: Raw) -> tuple[Message, ...]:
    """The messages. Raises :class:`ClientError` with the path of the first fault."""
    messages = decode_field(_MESSAGES, raw, "messages")
    if not messages:
        raise ClientError(
            "Invalid 'messages': empty array. Expected at least one message.",
            code="empty_array",
            param="messages",
        )
    for place, message in enumerate(messages):
        _check_message(message, f"messages[{place}]")
    return tuple(messages)


def _check_message(message: Message, path: str) -> None:
    role = _string(message, "role", path)
    if role not in _ROLES:
        raise ClientError(
            f"Invalid value: {role!r}. Supported values are: {', '.join(map(repr, _ROLES))}.",
            param=f"{path}.role",
        )
    if message.get("name") is not None:
        _string(message, "name", path)
    if role == "assistant":
        _check_assistant(message, path)
    elif message.get("content") is None:
        _missing(f"{path}.content")
    if message.get("content") is not None:
        _check_content(message["content"], f"{path}.content", role)
    if role == "tool":
        _string(message, "tool_call_id", path)


def _check_assistant(message: Message, path: str) -> None:
    calls = message.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            _wrong_type(f"{path}.tool_calls", "an array")
        for place, call in enumerate(calls):
            _check_tool_call(call, f"{path}.tool_calls[{place}]")
    if message.get("reasoning_content") is not None:
        _string(message, "reasoning_content", path)
    instead = (key for key in _INSTEAD_OF_CONTENT if message.get(key) is not None)
    if message.get("content") is None and not any(key != "tool_calls" or calls for key in instead):
        _missing(f"{path}.content")


def _check_content(content: Any, path: str, role: str) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        _wrong_type(path, "a string or an array of parts")
    if not content:
        raise ClientError(f"Invalid '{path}': empty array.", code="empty_array", param=path)
    for place, part in enumerate(content):
        _check_part(part, f"{path}[{place}]", role)


def _check_part(part: Any, path: str, role: str) -> None:
    if not isinstance(part, dict):
        _wrong_type(path, "an object")
    kind = part.get("type")
    if kind is None:
        _missing(f"{path}.type")
    if isinstance(kind, str) and kind in _MEDIA:
        raise ClientError(
            f"Invalid content part: this model reads text only, not {kind!r}.",
            code="unsupported_value",
            param=path,
        )
    if kind != "text" and not (kind == "refusal" and role == "assistant"):
        raise ClientError(
            f"Invalid value: {kind!r}. A content part of role {role!r} must be 'text'.",
            param=f"{path}.type",
        )
    _string(part, kind, path)


def _check_tool_call(call: Any, path: str) -> None:
    if not isinstance(call, dict):
        _wrong_type(path, "an object")
    if call.get("type") not in (None, "function"):
        raise ClientError(
            "Invalid value: only calls of type 'function' are supported.", param=f"{path}.type"
        )
    if call.get("id") is not None:
        _string(call, "id", path)
    function = call.get("function")
    if function is None:
        _missing(f"{path}.function")
    if not isinstance(function, dict):
        _wrong_type(f"{path}.function", "an object")
    for key in ("name", "arguments"):
        _string(function, key, f"{path}.function")


def _string(fields: Mapping[str, Any], key: str, path: str) -> str:
    """A field that must be there, and be a string."""
    value = fields.get(key)
    if value is None:
        _missing(f"{path}.{key}")
    if not isinstance(value, str):
        _wrong_type(f"{path}.{key}", "a string")
    return value


def _missing(param: str) -> NoReturn:
    raise ClientError(
        f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param
    )


def _wrong_type(param: str, expected: str) -> NoReturn:
    raise ClientError(
        f"Invalid type for '{param}': expected {expected}.", code="invalid_type", param=param
    )
