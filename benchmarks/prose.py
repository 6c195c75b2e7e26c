"""Text to measure with: sentences of the corpus in the package, in an order a seed decides."""

from __future__ import annotations

import random
from functools import cache
from importlib.resources import files
from typing import Final

__all__ = ["prose"]

_CHINESE: Final = (
    "清晨的渡船载着面包师和教师穿过海湾。",
    "先写下你的预期，每次只改变一件事，然后重复实验。",
    "面粉、水、盐和时间，做面包只需要这四样东西。",
    "如果到来的速度超过完成的速度，再巧妙的次序也无济于事。",
    "图书馆出借书籍、工具和种子，星期六还出借人。",
)


def prose(seed: int, characters: int, *, chinese: bool = False) -> str:
    """``characters`` of sentences; two seeds give different texts from the first word on."""
    chance = random.Random(seed)
    sentences = _CHINESE if chinese else _sentences()
    pieces = [f"{seed}: "]
    size = len(pieces[0])
    while size < characters:
        pieces.append(chance.choice(sentences))
        size += len(pieces[-1])
    return "".join(pieces)[:characters]


@cache
def _sentences() -> tuple[str, ...]:
    corpus = files("slime_trio").joinpath("data", "corpus.txt").read_text(encoding="utf-8")
    return tuple(
        document
        for document in corpus.split("<|endoftext|>")
        if document.isascii() and "<|" not in document
    )
