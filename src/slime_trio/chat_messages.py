"""Chat messages in the one form that a given template renders right.

Clients spell the same conversation in many ways (OpenAI API reference, "Create chat completion";
what SDKs dump back as history), and templates accept fewer of them than the API does. This is the
only place where messages and tools change on their way to a template, so a conversation is
retrieved as it was generated. What is changed here, and nothing else:

* a list of text parts becomes one string, joined without a separator: a client that split a text
  gets the text it split. Parts that are not text are refused;
* ``developer`` becomes ``system``; system messages at the beginning become one, with an empty line
  between them; a later one is refused, by name, if the template would drop it or raise;
* absent or null content becomes ``""``; other null fields, and empty ``tool_calls``, go;
* a former tool call without a type gets the only one there is, ``function``; its arguments become
  an object, or text where the template wants text;
* reasoning goes under the name that the template reads, or goes. A ``<think>`` block at the
  beginning of an assistant's content is reasoning too, where the template reads such a name: it
  would have to be cut out of the text by the template otherwise, which the marks that keep content
  from forging control tokens are in the way of;
* where a template refuses content and reasoning beside a call (gpt-oss), the content is added to
  the reasoning, which is where that template writes it when it stands alone;
* where ids of calls must be nine letters and digits (Mistral), others become such.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from slime_core.chat.marking import split_reasoning
from slime_core.chat.traits import TemplateTraits
from slime_core.errors import ClientError

__all__ = ["TemplateTraits", "normalise_messages", "normalise_tools"]

_REASONING_NAMES: Final = ("reasoning_content", "reasoning", "thinking")
_SHORT_ID: Final = re.compile("[0-9A-Za-z]{9}")
_UNPARSED: Final = "raw_arguments"
"""Where arguments go that are no JSON object but must be one; a request never fails over them."""


def normalise_messages(messages: Any, traits: TemplateTraits) -> list[dict[str, Any]]:
    """The messages as the template wants them; the given ones are not changed.

    Raises :class:`ClientError` that names the message, or the part of it, that cannot be rendered.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ClientError("messages must be a list with at least one message", param="messages")
    normalised: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        plain = _message(message, traits, path)
        if plain["role"] != "system" or not normalised:
            normalised.append(plain)
        elif len(normalised) == 1 and normalised[0]["role"] == "system":
            contents = (normalised[0]["content"], plain["content"])
            normalised[0] = {**normalised[0], "content": "\n\n".join(filter(None, contents))}
        elif traits.system_anywhere:
            normalised.append(plain)
        else:
            raise ClientError(
                "this model's chat template takes system messages only at the beginning",
                param=path,
            )
    return normalised


def normalise_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Tool definitions in the client's key order, null fields dropped; ``None`` without any.

    Beside ``type`` and ``function`` nothing stays (hints to caches and the like are not for the
    model). Inside a JSON schema a null has a meaning and is left.
    Raises :class:`ClientError` for what is not a list of objects.
    """
    if tools is None:
        return None
    if not isinstance(tools, list | tuple):
        raise ClientError("tools must be a list", param="tools")
    return [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)] or None


def _tool(tool: Any, path: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise ClientError("a tool must be an object", param=path)
    kept = _without_nulls(tool)
    if isinstance(kept.get("function"), Mapping):
        own = {"type": kept.get("type", "function"), "function": _without_nulls(kept["function"])}
        return {name: own[name] for name in kept if name in own} | own
    return kept


def _message(message: Any, traits: TemplateTraits, path: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ClientError("a message must be an object", param=path)
    role = message.get("role")
    if not isinstance(role, str):
        raise ClientError("a message must have a role", param=f"{path}.role")
    plain = _without_nulls(message)
    plain["role"] = "system" if role == "developer" else role
    plain["content"] = _content(message.get("content"), f"{path}.content")
    calls = plain.pop("tool_calls", None)
    if role != "assistant":
        calls = None  # some templates would show them as calls that somebody made
    if traits.short_call_ids and isinstance(plain.get("tool_call_id"), str):
        plain["tool_call_id"] = _short_id(plain["tool_call_id"])
    if calls:
        plain["tool_calls"] = _tool_calls(calls, traits, f"{path}.tool_calls")
    reasoning = _reasoning(plain, traits)
    if reasoning and traits.reasoning_field is not None:
        plain[traits.reasoning_field] = reasoning
        if calls and plain["content"] and traits.one_text_beside_calls:
            plain[traits.reasoning_field] += "\n\n" + plain["content"]
            plain["content"] = ""
    return plain


def _reasoning(plain: dict[str, Any], traits: TemplateTraits) -> Any:
    """Take the reasoning out of a message, under whatever name, and out of its content."""
    told = [plain.pop(name, None) for name in _REASONING_NAMES]
    fields = [text for text in told if isinstance(text, str) and text.strip()]
    if fields or plain["role"] != "assistant" or traits.reasoning_field is None:
        return fields[0] if fields else None
    block = split_reasoning(plain["content"])
    if block is None:
        return None
    plain["content"] = block[1].lstrip("\n")
    return block[0].strip("\n")


def _content(content: Any, path: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ClientError("content must be text or a list of parts", param=path)
    return "".join(_text(part, f"{path}[{index}]") for index, part in enumerate(content))


def _text(part: Any, path: str) -> str:
    """The text of one part: of type ``text``, or an assistant's ``refusal``."""
    if isinstance(part, Mapping):
        kind = part.get("type", "text")
        text = part.get(kind) if kind in ("text", "refusal") else None
        if isinstance(text, str):
            return text
        raise ClientError(f"content parts of type {kind!r} cannot be rendered as text", param=path)
    raise ClientError("a content part must be an object", param=path)


def _tool_calls(calls: Any, traits: TemplateTraits, path: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list | tuple):
        raise ClientError("tool_calls must be a list", param=path)
    return [_tool_call(call, traits, f"{path}[{index}]") for index, call in enumerate(calls)]


def _tool_call(call: Any, traits: TemplateTraits, path: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise ClientError("a tool call must be an object", param=path)
    plain = _without_nulls(call)
    function = plain.get("function")
    if not isinstance(function, Mapping):
        raise ClientError("a tool call must have a function", param=f"{path}.function")
    plain.setdefault("type", "function")
    if traits.short_call_ids and isinstance(plain.get("id"), str):
        plain["id"] = _short_id(plain["id"])
    convert = _as_text if traits.arguments_as_text else _as_object
    try:
        arguments = convert(function.get("arguments"))
    except RecursionError:
        raise ClientError(
            "the arguments are nested too deeply", param=f"{path}.function.arguments"
        ) from None
    plain["function"] = {**_without_nulls(function), "arguments": arguments}
    return plain


def _short_id(given: str) -> str:
    """An id of nine letters and digits, always the same for the same one."""
    if _SHORT_ID.fullmatch(given):
        return given
    return hashlib.blake2b(given.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _as_object(arguments: Any) -> Any:
    """Arguments as an object; ``""``, which calls without arguments come with, as ``{}``."""
    if isinstance(arguments, str):
        if not arguments.strip():
            return {}
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            return {_UNPARSED: arguments}
        if not isinstance(parsed, dict) or _is_broken_text(parsed):
            return {_UNPARSED: arguments}
        return parsed
    return {} if arguments is None else arguments


def _is_broken_text(value: Any) -> bool:
    """Whether a text within is no Unicode: half of a character that was written as escapes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _as_text(arguments: Any) -> str:
    """Arguments as JSON text; text is left as it is, even if it does not parse."""
    if isinstance(arguments, str):
        return arguments
    return json.dumps({} if arguments is None else arguments, ensure_ascii=False)


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
