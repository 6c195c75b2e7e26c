"""What a model that was trained for it would say: thoughts, calls, and both gone wrong.

The small language model hardly ever closes what it opens, so some answers are said on purpose. They
are sampled like others: their logprobs are the model's own, and what stops a sampled answer stops
them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from slime_core.engine import Reply
from slime_core.types import Encoding
from tests.simulate.chance import derive
from tests.simulate.tokens import Tokens

__all__ = ["Says"]

_THOUGHTS: Final = ("12 * 12 = 144", "\nhm\n", "", "so <|im_end", "the user wants é 好 ")
_WORDS: Final = ("The answer is 144.", "ab abc", " \n", "", "好的", "no", "\n\nWell. ")
_CALLS: Final = (
    '{"name": "add", "arguments": {"a": 1, "b": 2.0}}',
    '{"name": "add", "arguments": {"a": 1, "b": 2.0}}',
    '{"name": "look", "arguments": {"city":"Zürich",  "n":1.0}}',
    '{"name": "look", "arguments": {"city": "\\u00e9\\n", "in": {"z": [1, true, null], "a": ""}}}',
    '{"name":"add","arguments":{}}',
    '{"arguments": {"a": 1e2}, "name": "add"}',
    '{"name": "add", "parameters": {"a": -0}}',
)
_BROKEN: Final = (
    '{"name": "add", "arguments": {"a": 1',
    '{"name": "nobody", "arguments": {}}',
    '{"name": "add", "arguments": {"a": 1, "a": 2}}',
    '{"name": "add", "arguments": "a"}',
    "add(1, 2)",
    '{"name": add}',
    "",
)


class Says:
    """A script for an engine: called in the order in which requests start to run."""

    def __init__(self, tokens: Tokens, share: float, seed: int) -> None:
        self._tokens = tokens
        self._share = share
        self._seed = seed
        self._count = 0

    def __call__(self, prompt_ids: Sequence[int]) -> Reply | None:
        self._count += 1
        # Now and then twins say the same.
        alike = derive(self._seed, "alike", len(prompt_ids)).random() < self._share
        key = ("prompt", tuple(prompt_ids)) if alike else ("place", self._count)
        chance = derive(self._seed, "says", *key)
        if chance.random() >= self._share:
            return None
        ids = self._ids(chance)
        return Reply(ids=tuple(ids)) if ids else None

    def _ids(self, chance: random.Random) -> list[int]:
        ids = [token for part in self._parts(chance) for token in self._spelled(part, chance)]
        if chance.random() < 0.85:
            ids.append(chance.choice(sorted(self._tokens.end_ids)))
        return ids

    def _parts(self, chance: random.Random) -> list[str]:
        parts: list[str] = []
        thinks, closes = chance.random() < 0.6, chance.random() < 0.9
        if thinks:
            opened = self._tokens.template.opens_thought and chance.random() < 0.9
            parts += [] if opened else ["<think>"]
            parts += [chance.choice(_THOUGHTS), *(["</think>"] if closes else [])]
        if chance.random() < 0.6:
            parts.append(chance.choice(_WORDS))
        for _ in range(chance.choice((0, 1, 1, 2))):
            body = chance.choice(_BROKEN if chance.random() < 0.15 else _CALLS)
            is_open = chance.random() < 0.05
            parts += ["\n", "<tool_call>", f"\n{body}\n", *([] if is_open else ["</tool_call>"])]
        return parts

    def _spelled(self, part: str, chance: random.Random) -> list[int]:
        """As the tokenizer spells it; now and then otherwise, or a tag with ordinary tokens."""
        way = chance.random()
        if way < 0.08:
            return self._tokens.plain.encode(part, encoding=Encoding.RENDERED, first=False)
        pieces = list(part) if way < 0.16 and not part.startswith("<") else [part]
        return [
            token
            for piece in pieces
            for token in self._tokens.encode(piece, encoding=Encoding.RENDERED, first=False)
        ]
