"""When two spellings of a message are one message: the naive way, for agents and oracles.

Every message is evened out into a plain value, and values are compared. Nothing of the router's own
canonical form is used. What the rules leave open is left open here too: see :func:`same`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

__all__ = [
    "alike",
    "answers",
    "call_ids",
    "extends",
    "joined",
    "reasoning_of",
    "same",
    "text_of",
    "verbatim",
]

Message = dict[str, Any]


def text_of(content: Any) -> str:
    """Content as one text."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def call_ids(message: Message) -> tuple[str, ...]:
    """The ids of its tool calls; empty ones where they were lost."""
    return tuple(call.get("id") or "" for call in message.get("tool_calls") or ())


def reasoning_of(message: Message) -> tuple[str, str]:
    """Reasoning and the content without it."""
    content = text_of(message.get("content"))
    for name in ("reasoning_content", "reasoning", "thinking"):
        told = message.get(name)
        if told and told.strip():
            return told.strip(), content
    found = re.match(r"\s*<think>(.*?)</think>", content, re.DOTALL)
    if found is None:
        return "", content
    return found[1].strip(), content[found.end() :]


def _value(arguments: str) -> Any:
    """Arguments as a value that compares as JSON does: ``1`` is ``1.0``, ``true`` is neither;
    ``None`` where they have none."""
    if not (arguments or "").strip():
        return ("object",)
    try:
        return _typed(json.loads(arguments, parse_constant=_refused))
    except (ValueError, RecursionError, OverflowError):
        return None


def _refused(_word: str) -> Any:
    raise ValueError


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return ("object", *sorted((name, _typed(one)) for name, one in value.items()))
    if isinstance(value, list):
        return ("array", *map(_typed, value))
    if isinstance(value, bool) or value is None:
        return ("word", str(value))
    if isinstance(value, int | float):
        return ("number", _double(value))
    return ("string", value)


def _double(value: float) -> float:
    """As every client reads it."""
    if abs(float(value)) == float("inf"):
        raise ValueError
    return float(value)


def same(mine: Message, theirs: Message, *, sampled: bool, mended: bool = False) -> bool:
    """Whether ``theirs`` is ``mine`` sent back.

    What a client wrote itself must come back in every detail. Of what was ``sampled`` the blanks
    around its content do not count, arguments are compared as values, and reasoning may have been
    dropped, all of it or its beginning. ``mended``: arguments that were no JSON may be others now.
    """
    if _role(mine) != _role(theirs):
        return False
    left, right = text_of(mine.get("content")), text_of(theirs.get("content"))
    if _role(mine) != "assistant":
        return left == right and (mine.get("name") or "") == (theirs.get("name") or "")
    (thought, said), (other, told) = reasoning_of(mine), reasoning_of(theirs)
    if not sampled:
        return (left, thought, _spelled(mine)) == (right, other, _spelled(theirs))
    if said.strip() != told.strip() or not thought.endswith(other):
        return False
    names = [[name for name, _ in _spelled(one)] for one in (mine, theirs)]
    if names[0] != names[1]:
        return False
    pairs = zip(_spelled(mine), _spelled(theirs), strict=True)
    return all(_agree(one, two, mended=mended) for (_, one), (_, two) in pairs)


def _agree(one: str, two: str, *, mended: bool) -> bool:
    value = _value(one)
    if value is None:
        return mended or one == two
    return bool(value == _value(two))


def _spelled(message: Message) -> list[tuple[str, str]]:
    """Names and arguments of its calls."""
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    return [(one["name"], one["arguments"]) for one in functions]


def verbatim(message: Message) -> tuple[Any, ...]:
    """An assistant's message in its very words."""
    return text_of(message.get("content")), reasoning_of(message)[0], _spelled(message)


def _role(message: Message) -> str:
    return "system" if message["role"] == "developer" else str(message["role"])


def answers(messages: Sequence[Message]) -> list[int | None]:
    """Of every tool's message, which call of the last assistant's it answers: by id, else by its
    place; ``None`` of others."""
    told: list[int | None] = []
    ids: tuple[str, ...] = ()
    results = 0
    for message in messages:
        if message["role"] == "tool":
            name = message.get("tool_call_id")
            told.append(ids.index(name) if name in ids else results)
            results += 1
        else:
            told.append(None)
            ids, results = call_ids(message), 0
    return told


def alike(
    mine: Sequence[Message],
    sampled: Sequence[bool],
    theirs: Sequence[Message],
    *,
    mended: bool = False,
) -> bool:
    """Whether two conversations are one, message by message."""
    if len(mine) != len(theirs) or answers(mine) != answers(theirs):
        return False
    return all(
        same(left, right, sampled=is_sampled, mended=mended)
        for left, right, is_sampled in zip(mine, theirs, sampled, strict=True)
    )


def extends(before: Sequence[Message], answer: Message, messages: Sequence[Message]) -> bool:
    """Whether ``messages`` begin with ``before``, spelled as it was sent, and its answer."""
    size = len(before) + 1
    if len(messages) < size:
        return False
    whole = [*before, answer]
    sampled = [message["role"] == "assistant" for message in whole]
    return alike(whole, sampled, messages[:size])


def joined(begun: Message, rest: Message) -> Message:
    """A message that was begun, and what was said when it was gone on with."""
    whole = dict(rest)
    content = text_of(begun.get("content")) + (rest.get("content") or "")
    thought = (begun.get("reasoning_content") or "") + (rest.get("reasoning_content") or "")
    if content:
        whole["content"] = content
    if thought:
        whole["reasoning_content"] = thought
    return whole
