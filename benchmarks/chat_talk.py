"""A client with tools: what it says, what its model answers, and its history as it sends it.

Two kinds of conversations. In a ``loop`` every answer thinks, says something and makes one call;
calls and results are of one size. In a ``varied`` one an answer makes one to three calls, may leave
out the rest, and now and then the user asks something else; the results of a turn add up to the
same size.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from benchmarks.prose import prose
from slime_core.types import Encoding
from slime_trio.tokenizer import Tokenizer

__all__ = ["KINDS", "Sizes", "Talk", "Words"]

KINDS: Final = ("loop", "varied")

_END: Final = "<|im_end|>"
_QUESTIONS: Final = 8
"""In a varied conversation the user speaks after so many turns again."""
_TOOL: Final = "tool_0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """In tokens, approximately: texts are cut by characters."""

    system: int
    answer: int
    result: int
    tools: int
    """How many tools there are."""


class Words:
    """Texts of so many tokens, and the ids of what a model says. ``tokenizer`` must know ChatML."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        sample = prose(1, 20_000)
        self._per_token = len(sample) / len(self._ids(sample))
        added = tokenizer.vocabulary.added.values()
        self._end = next(token.id for token in added if token.content == _END)

    def text(self, seed: int, tokens: int) -> str:
        """Prose of about ``tokens``; another one for every seed."""
        return prose(seed, max(8, int(tokens * self._per_token)))

    def sampled(self, text: str) -> list[int]:
        """The ids of an answer, with the one that ends it."""
        return [*self._ids(text), self._end]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, encoding=Encoding.RENDERED, first=False)


class Talk:
    """One conversation; the same for equal arguments."""

    def __init__(self, words: Words, sizes: Sizes, *, kind: str = "loop") -> None:
        self._words = words
        self._sizes = sizes
        self._kind = kind
        self._turn = 0
        self.tools: Final = [_tool(number) for number in range(sizes.tools)]
        self.messages: list[dict[str, Any]] = [
            {"role": "system", "content": words.text(1, sizes.system)},
            {"role": "user", "content": words.text(2, sizes.answer)},
        ]

    def body(self) -> bytes:
        """The next request."""
        return msgspec.json.encode(
            {"model": "any", "messages": self.messages, "tools": self.tools, "temperature": 1.0}
        )

    def answer(self) -> str:
        """What the model says in this turn, but for the token that ends it."""
        return self._answer(self._turn)

    def script(self, turns: int) -> list[str]:
        """The answers of the first ``turns``."""
        return [self._answer(turn) for turn in range(turns)]

    def _answer(self, turn: int) -> str:
        seed, tokens = _seed(turn), self._sizes.answer
        calls, thinks, speaks = self._shape(turn)
        parts = [_call(self._words.text(seed + at, tokens // 4)) for at in range(calls)]
        if speaks:
            parts.insert(0, self._words.text(seed + 5, tokens // 4))
        said = "\n".join(parts)
        if not thinks:
            return said
        return f"<think>\n{self._words.text(seed + 6, tokens // 2)}\n</think>\n\n{said}"

    def take(self, message: Mapping[str, Any]) -> None:
        """The answer as the client was given it: echoed whole, its calls answered."""
        self.messages.append(dict(message))
        seed = _seed(self._turn)
        calls: Sequence[Mapping[str, Any]] = message["tool_calls"]
        for at, call in enumerate(calls):
            text = self._words.text(seed + 10 + at, self._sizes.result // len(calls))
            result = {"role": "tool", "tool_call_id": call["id"], "content": text}
            self.messages.append(result)
        self._turn += 1
        if self._kind == "varied" and self._turn % _QUESTIONS == 0:
            text = self._words.text(seed + 20, self._sizes.answer // 4)
            self.messages.append({"role": "user", "content": text})

    def _shape(self, turn: int) -> tuple[int, bool, bool]:
        """How many calls the answer makes, whether it thinks, whether it says something."""
        if self._kind == "loop":
            return 1, True, True
        chance = random.Random(turn)
        return chance.choice((1, 1, 2, 3)), chance.random() < 0.6, chance.random() < 0.5


def _seed(turn: int) -> int:
    return 100 * (turn + 1)


def _tool(number: int) -> dict[str, Any]:
    """A definition of about 600 characters."""
    properties = {
        "query": {"type": "string", "description": prose(200 + number, 100)},
        "limit": {"type": "integer", "description": prose(300 + number, 60)},
        "order": {"type": "string", "enum": ["newest", "oldest"]},
    }
    function = {
        "name": f"tool_{number}",
        "description": prose(100 + number, 200),
        "parameters": {"type": "object", "properties": properties, "required": ["query"]},
    }
    return {"type": "function", "function": function}


def _call(query: str) -> str:
    """A call in the form of Hermes, which the shipped template and Qwen's have."""
    call = {"name": _TOOL, "arguments": {"query": query, "limit": 3}}
    return f"<tool_call>\n{msgspec.json.encode(call).decode()}\n</tool_call>"
