"""Stub conversations: what a history looks like to a template once its words are taken out.

A delta must not depend on what was said before, so it is rendered behind conversations that have
the shape of the real history (who spoke, with or without reasoning, how many calls) and words of
their own. The last turn keeps the names and ids of its calls: templates repeat them in front of a
tool's result. It ends in a word that stands nowhere else, behind which the turn's close begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from .marking import split_reasoning
from .rendering import Message

__all__ = [
    "Words",
    "absent_word",
    "blanked",
    "compressed",
    "kind_of",
    "minimal",
    "rounds",
]

_LAST: Final = 8
"""This many messages at a history's end keep their neighbours whatever was there before."""
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")
_CALL_ID: Final = "c00000001"
"""Nine letters and digits: the form that the strictest template demands."""

_Kind = tuple[str, bool, bool, int]


class Words:
    """Words for one stub: all different, none of them in ``taken``.

    Two ``series`` differ in every word and in the words' lengths.
    """

    __slots__ = ("_number", "_series", "_stem")

    def __init__(self, series: int, taken: Sequence[str]) -> None:
        self._stem: Final = absent_word(taken)
        self._series: Final = series
        self._number = 0

    def next(self) -> str:
        """The next word; it neither begins nor ends with anything that templates trim."""
        self._number += 1
        if self._series == 0:
            return f"{self._stem}{self._number}z"
        return f"Word {self._stem}{self._number}, of the series{self._series}z"


def absent_word(taken: Sequence[str]) -> str:
    """A short word that stands in none of the texts ``taken``."""
    salt = 0
    while any(f"qz{salt}x" in text for text in taken):
        salt += 1
    return f"qz{salt}x"


def kind_of(message: Message) -> _Kind:
    """What a template's control flow may depend on: role, content, reasoning, number of calls."""
    role = str(message.get("role"))
    has_content = any(_texts(message.get("content")))
    reasoning = any(message.get(name) for name in _REASONING)
    if role == "assistant" and has_content:
        block = split_reasoning("".join(_texts(message.get("content"))))
        if block is not None:
            reasoning, has_content = True, bool(block[1].strip())
    return role, has_content, reasoning, len(_calls(message))


def blanked(history: Sequence[Message], words: Words, *, told: str) -> tuple[list[Message], str]:
    """``history`` with other words, and the word with which its last turn ends.

    ``told`` says where that is: in the arguments of the last ``calls``, or in the ``content``, for
    templates that drop calls. Raises ``ValueError`` where the last turn has none.
    """
    stubs: list[Message] = [_blank(message, words) for message in history[:-1]]
    last, word = _last_turn(history[-1], words, told)
    return [*stubs, last], word


def minimal(last: Message) -> list[Message]:
    """The shortest history that ends with a turn: it, and a question."""
    return [{"role": "user", "content": "-"}, last]


def rounds(counts: Iterable[int]) -> Iterator[list[Message]]:
    """Histories of so many questions and answers, each also with a system message before it."""
    system = {"role": "system", "content": "-"}
    for count in counts:
        asked: list[Message] = []
        for _ in range(count):
            asked += [{"role": role, "content": "-"} for role in ("user", "assistant")]
        yield asked
        yield [system, *asked]


def compressed(history: Sequence[Message]) -> list[Message]:
    """A shorter history with everything a template may have to tell apart.

    A round is a message and what follows it up to the next user message; a step in it is an
    assistant's turn with its tool results. Of the rounds before the last messages, one of each
    kind stays, and of the steps in a round likewise.
    """
    rounds: list[list[list[Message]]] = []
    for message in history:
        role = message.get("role")
        if role == "user" or not rounds:
            rounds.append([[message]])
        elif role == "tool":
            rounds[-1][-1].append(message)
        else:
            rounds[-1].append([message])
    tail = sum(len(step) for steps in rounds for step in steps) - _LAST
    kept: list[Message] = []
    seen: set[tuple[Any, ...]] = set()
    at = 0
    for steps in rounds:
        fresh, begun = _distinct(steps, tail - at), at
        at += sum(map(len, steps))
        sign = tuple(tuple(map(kind_of, step)) for step in fresh)
        if begun >= tail or at > tail or sign not in seen:
            kept += [message for step in fresh for message in step]
        seen.add(sign)
    return kept


def _distinct(steps: Sequence[list[Message]], before: int) -> list[list[Message]]:
    """The steps of a round, those among its first ``before`` messages once of each kind."""
    kept: list[list[Message]] = []
    seen: set[tuple[_Kind, ...]] = set()
    at = 0
    for step in steps:
        at += len(step)
        sign = tuple(map(kind_of, step))
        if at > before or sign not in seen:
            kept.append(step)
        seen.add(sign)
    return kept


def _blank(message: Message, words: Words) -> dict[str, Any]:
    role, content, reasoning, _ = kind_of(message)
    if role != "assistant":
        stub = {name: message[name] for name in ("role", "tool_call_id") if name in message}
        return {**stub, "content": words.next() if content else ""}
    stub = {"role": role, "content": words.next() if content else ""}
    if reasoning:
        stub["reasoning_content"] = words.next()
    calls = [_blank_call(call, words) for call in _calls(message)]
    return {**stub, "tool_calls": calls} if calls else stub


def _last_turn(message: Message, words: Words, told: str) -> tuple[dict[str, Any], str]:
    stub = _blank(message, words)
    word = words.next()
    if told == "content":
        return {**stub, "content": word}, word
    if not stub.get("tool_calls"):
        raise ValueError("a turn without calls")
    function = stub["tool_calls"][-1]["function"]
    function["arguments"] = {"key": word}
    return stub, word


def _blank_call(call: Mapping[str, Any], words: Words) -> dict[str, Any]:
    function = call.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    return {
        "id": call.get("id") or _CALL_ID,
        "type": "function",
        "function": {"name": name or "call", "arguments": {"key": words.next()}},
    }


def _calls(message: Message) -> list[Mapping[str, Any]]:
    calls = message.get("tool_calls")
    if not isinstance(calls, list | tuple):
        return []
    return [call for call in calls if isinstance(call, Mapping)]


def _texts(content: Any) -> Iterator[str]:
    """The texts of a content, which is one or a list of parts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list | tuple):
        for part in content:
            text = part.get("text") if isinstance(part, Mapping) else None
            yield text if isinstance(text, str) else ""
