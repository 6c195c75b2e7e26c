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
    "Kind",
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

Kind = tuple[str, bool, bool, int]
"""Of a message: its role, whether it has content and reasoning, and its number of calls."""


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


def kind_of(message: Message) -> Kind:
    """What a template's control flow may depend on: role, content, reasoning, number of calls."""
    role, content = str(message.get("role")), message.get("content")
    text = content if isinstance(content, str) else "".join(_texts(content))
    block = split_reasoning(text) if role == "assistant" and text else None
    has_content = bool(text) if block is None else bool(block[1].strip())
    reasoning = block is not None or any(message.get(name) for name in _REASONING)
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


def compressed(kinds: Sequence[Kind]) -> list[int]:
    """The places in a history of these kinds that make a shorter one, with everything a template
    may have to tell apart.

    A round is a message and what follows it up to the next user message; a step in it is an
    assistant's turn with its tool results. Of the rounds before the last messages, one of each
    kind stays, and of the steps in a round likewise.
    """
    rounds: list[list[list[int]]] = []
    for place, (role, *_) in enumerate(kinds):
        if role == "user" or not rounds:
            rounds.append([[place]])
        elif role == "tool":
            rounds[-1][-1].append(place)
        else:
            rounds[-1].append([place])
    tail = len(kinds) - _LAST
    kept: list[int] = []
    seen: set[tuple[Any, ...]] = set()
    for steps in rounds:
        fresh = _distinct(kinds, steps, tail)
        sign = tuple([tuple([kinds[place] for place in step]) for step in fresh])
        if steps[-1][-1] >= tail or sign not in seen:
            kept += [place for step in fresh for place in step]
        seen.add(sign)
    return kept


def _distinct(kinds: Sequence[Kind], steps: Sequence[list[int]], tail: int) -> list[list[int]]:
    """The steps of a round, those that end before the ``tail`` once of each kind."""
    kept: list[list[int]] = []
    seen: set[tuple[Kind, ...]] = set()
    for step in steps:
        sign = tuple([kinds[place] for place in step])
        if step[-1] >= tail or sign not in seen:
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
