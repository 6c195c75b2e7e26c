"""How harnesses spell history when they send it back: the same conversation in other words.

What is altered here leaves a message what it was by every rule of the API: null content is no
content, parts are one text, arguments are JSON, ids of calls are names. Reasoning may be left out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["EXACT", "Style", "draw_style", "respelled"]

Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """One client's ways. The default echoes everything as it was given."""

    reasoning: str = "kept"
    arguments: str = "kept"
    content: str = "kept"
    ids: str = "kept"
    extras: bool = False


EXACT: Final = Style()

_REASONING: Final = ("kept", "dropped", "dropped", "renamed", "inline")
_ARGUMENTS: Final = ("kept", "compact", "sorted", "loose", "whole numbers")
_CONTENT: Final = ("kept", "null", "empty", "absent", "parts")
_IDS: Final = ("kept", "kept", "lost", "renamed")


def draw_style(chance: random.Random) -> Style:
    """Any mixture of ways."""
    return Style(
        reasoning=chance.choice(_REASONING),
        arguments=chance.choice(_ARGUMENTS),
        content=chance.choice(_CONTENT),
        ids=chance.choice(_IDS),
        extras=chance.random() < 0.3,
    )


def respelled(
    messages: Sequence[Message], style: Style, chance: random.Random
) -> tuple[Message, ...]:
    """The messages in that style; the given ones are not changed."""
    return tuple(_message(message, style, chance) for message in messages)


def _message(message: Message, style: Style, chance: random.Random) -> Message:
    told = dict(message)
    if told["role"] == "assistant":
        _spell_reasoning(told, style)
        calls = told.get("tool_calls")
        if calls:
            told["tool_calls"] = [_call(call, style) for call in calls]
    if style.ids == "renamed" and isinstance(told.get("tool_call_id"), str):
        told["tool_call_id"] = _renamed(told["tool_call_id"])
    _spell_content(told, style, chance)
    if style.extras and told["role"] == "assistant":
        told |= {"refusal": None, "annotations": [], "provider_specific_fields": {"a": [1]}}
        told.setdefault("tool_calls", [])
    return told


def _spell_reasoning(told: Message, style: Style) -> None:
    reasoning = told.get("reasoning_content")
    if not reasoning or style.reasoning == "kept":
        return
    content = told.get("content") or ""
    if style.reasoning == "inline":
        if "</think>" not in reasoning and isinstance(content, str):
            del told["reasoning_content"]
            told["content"] = f"<think>{reasoning}</think>{content}"
        return
    if style.reasoning == "renamed" and (content or told.get("tool_calls")):
        told["reasoning"] = reasoning
    del told["reasoning_content"]
    # Reasoning alone was a message; nothing at all is none.
    told["content"] = told.get("content") or (None if told.get("tool_calls") else "")


def _spell_content(told: Message, style: Style, chance: random.Random) -> None:
    content = told.get("content")
    if content:
        if style.content == "parts" and isinstance(content, str):
            cut = chance.randint(0, len(content))
            told["content"] = [
                {"type": "text", "text": part} for part in (content[:cut], content[cut:])
            ]
        return
    if told["role"] != "assistant" or not (told.get("tool_calls") or told.get("reasoning_content")):
        told["content"] = ""
    elif style.content == "null":
        told["content"] = None
    elif style.content == "empty":
        told["content"] = ""
    elif style.content == "absent":
        told.pop("content", None)


def _call(call: Message, style: Style) -> Message:
    told = dict(call)
    if style.ids == "lost":
        told.pop("id", None)
    elif style.ids == "renamed" and isinstance(told.get("id"), str):
        told["id"] = _renamed(told["id"])
    function = dict(told["function"])
    function["arguments"] = _arguments(function["arguments"], style.arguments)
    return told | {"function": function}


def _renamed(name: str) -> str:
    """Another name, the same one however often it is made."""
    return name if name.startswith("own-") else f"own-{name}"


def _arguments(text: str, way: str) -> str:
    if way == "kept":
        return text
    try:
        value = json.loads(text, object_pairs_hook=_pairs)
    except (ValueError, RecursionError):
        return text  # A client that cannot read it sends it back as it is.
    return _DUMPS[way](value)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a key comes twice")
    return dict(pairs)


def _whole(value: Any) -> Any:
    """As JavaScript writes numbers."""
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


_DUMPS: Final[dict[str, Callable[[Any], str]]] = {
    "compact": lambda value: json.dumps(value, separators=(",", ":")),
    "sorted": lambda value: json.dumps(value, sort_keys=True, ensure_ascii=False),
    "loose": lambda value: json.dumps(value, indent=1),
    "whole numbers": lambda value: json.dumps(_whole(value), separators=(",", ":")),
}
