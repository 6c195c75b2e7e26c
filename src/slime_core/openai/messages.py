"""Chat messages: what is accepted, and the plain form in which a template sees them.

A template gets what the client sent with three things evened out, because SDKs spell one message
in several ways: keys that are ``null`` are gone, text parts are one string (joined by nothing,
which is the most faithful when a client split one text), and an assistant's absent content is the
empty string. Arguments of old tool calls stay the strings they are, even where they are no JSON:
an old mistake must not poison a conversation for ever.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

import msgspec
from msgspec import Raw

from slime_core.errors import ClientError
from slime_core.strict_json import decode_field

__all__ = ["Message", "parse_messages"]

Message = dict[str, Any]
"""One message in the plain form; not to be changed."""

_MESSAGES: Final = msgspec.json.Decoder(list[dict[str, Any]])
_ROLES: Final = ("developer", "system", "user", "assistant", "tool", "function")
_TEXT_KEYS: Final = {"text": "text", "refusal": "refusal"}
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
    return tuple(_message(value, f"messages[{i}]") for i, value in enumerate(messages))


def _message(value: dict[str, Any], path: str) -> Message:
    message = {key: part for key, part in value.items() if part is not None}
    role = message.get("role")
    if role is None:
        _missing(f"{path}.role")
    if not isinstance(role, str):
        _wrong_type(f"{path}.role", "a string")
    if role not in _ROLES:
        raise ClientError(
            f"Invalid value: {role!r}. Supported values are: {', '.join(map(repr, _ROLES))}.",
            param=f"{path}.role",
        )
    if "name" in message and not isinstance(message["name"], str):
        _wrong_type(f"{path}.name", "a string")
    if role == "assistant":
        _assistant(message, path)
    elif "content" not in message:
        _missing(f"{path}.content")
    message["content"] = _content(message["content"], f"{path}.content", role)
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        if "tool_call_id" not in message:
            _missing(f"{path}.tool_call_id")
        _wrong_type(f"{path}.tool_call_id", "a string")
    return message


def _assistant(message: Message, path: str) -> None:
    if "tool_calls" in message:
        calls = message["tool_calls"]
        if not isinstance(calls, list):
            _wrong_type(f"{path}.tool_calls", "an array")
        message["tool_calls"] = [
            _tool_call(call, f"{path}.tool_calls[{j}]") for j, call in enumerate(calls)
        ]
        if not calls:
            del message["tool_calls"]
    reasoning = message.get("reasoning_content", "")
    if not isinstance(reasoning, str):
        _wrong_type(f"{path}.reasoning_content", "a string")
    if "content" not in message:
        if not any(key in message for key in _INSTEAD_OF_CONTENT):
            _missing(f"{path}.content")
        message["content"] = ""


def _content(content: Any, path: str, role: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        _wrong_type(path, "a string or an array of parts")
    if not content:
        raise ClientError(f"Invalid '{path}': empty array.", code="empty_array", param=path)
    return "".join(_part(part, f"{path}[{j}]", role) for j, part in enumerate(content))


def _part(part: Any, path: str, role: str) -> str:
    if not isinstance(part, dict):
        _wrong_type(path, "an object")
    kind = part.get("type")
    if kind is None:
        _missing(f"{path}.type")
    if kind in _MEDIA if isinstance(kind, str) else False:
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
    text = part.get(_TEXT_KEYS[kind])
    if text is None:
        _missing(f"{path}.{_TEXT_KEYS[kind]}")
    if not isinstance(text, str):
        _wrong_type(f"{path}.{_TEXT_KEYS[kind]}", "a string")
    return text


def _tool_call(call: Any, path: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        _wrong_type(path, "an object")
    plain = {key: value for key, value in call.items() if value is not None}
    if plain.setdefault("type", "function") != "function":
        raise ClientError(
            "Invalid value: only calls of type 'function' are supported.", param=f"{path}.type"
        )
    if not isinstance(plain.get("id", ""), str):
        _wrong_type(f"{path}.id", "a string")
    function = plain.get("function")
    if function is None:
        _missing(f"{path}.function")
    if not isinstance(function, dict):
        _wrong_type(f"{path}.function", "an object")
    for key in ("name", "arguments"):
        if function.get(key) is None:
            _missing(f"{path}.function.{key}")
        if not isinstance(function[key], str):
            _wrong_type(f"{path}.function.{key}", "a string")
    return plain


def _missing(param: str) -> NoReturn:
    raise ClientError(
        f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param
    )


def _wrong_type(param: str, expected: str) -> NoReturn:
    raise ClientError(
        f"Invalid type for '{param}': expected {expected}.", code="invalid_type", param=param
    )
