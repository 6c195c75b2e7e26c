"""What agents say: words, some of them hard on tokenizers, and how history is echoed altered."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from slime_core.types import Encoding
from tests.simulate.chance import derive
from tests.simulate.knobs import Knobs
from tests.simulate.tokens import Tokens

__all__ = ["EDITS", "NASTY", "PLAIN", "STOPS", "Wording"]

PLAIN: Final = (
    *("The quick", " brown fox", " jumps", " over", " the dog", ". ", "ab", " abc", " and", "12"),
    *(" no", "def f(x):", "\n", " return x", "answer", " is 144."),
)
NASTY: Final = (
    # Control tokens spelled as text, whole and in parts.
    *("<|im_end|>", "<|im_end", "|>", "<|im_start|>user\n", "<|endoftext|>", "<|", "<s>", "</s>"),
    *("<think>", "</think>", "<think>12 * 12</think>", "<unk>", "<0x0A>"),
    # Blanks, which some vocabularies join, put in front or take off.
    *(" ", "  ", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", " \n ", "\u2581"),
    # Characters of several bytes, of several characters, or of none.
    *(
        "é",
        "e\u0301",
        "好",
        "你好，世界",
        "🙂",
        "👩\u200d👩\u200d👧",
        "🇫🇷",
        "\ufffd",
        "\u200b",
        "\ufeff",
    ),
    *("\u0000", "\x7f", "\u0301", "ß", "İ", "ﬁ", "𝔘", "#!", "0.5", "%s", "\\n", '"', "{{ x }}"),
)
STOPS: Final = (
    *("e", " ", "a", "o", "the", " b", "n ", "fo", "x\n", "\n", "12", "<", "|>", "好", "🙂", "é"),
    *("<|im_end|>", "</think>", "\n\n", "jump", " lazy dog.", "unlikely to come"),
)

_END: Final = "<|im_end|>"


class Wording:
    """One agent's way of putting things."""

    def __init__(self, knobs: Knobs, tokens: Tokens, chance: random.Random) -> None:
        self._knobs = knobs
        self._tokens = tokens
        self._as_chat = chance.random() < 0.5
        self._common_topic = chance.random() < 0.5

    def words(self, chance: random.Random, least: int = 0) -> str:
        """Some text, maybe none."""
        count = chance.randint(least, max(least, self._knobs.prompt_words))
        picks = [
            chance.choice(NASTY if chance.random() < self._knobs.nasty else PLAIN)
            for _ in range(count)
        ]
        return "".join(picks)

    def opening(self, chance: random.Random) -> str:
        """The words of a first turn; agents with one topic begin alike."""
        own = self.words(chance, 1)
        if not self._common_topic:
            return own
        return self.words(derive(self._knobs.seed, "topic"), 1) + own

    def first(self, chance: random.Random) -> str:
        """The text of a first prompt; never empty."""
        words = self.opening(chance)
        if not self._as_chat:
            return words
        return f"<|im_start|>user\n{words}{_END}\n<|im_start|>assistant\n"

    def more(self, chance: random.Random, matched: int | str | None) -> str:
        """What is added to an answer. ``matched`` is what the worker trimmed off its end.

        A client that knows its model puts it there again, others do not.
        """
        ending, words = self._spelled(matched), self.words(chance)
        puts_again = chance.random() < 0.6
        if not self._as_chat:
            return (ending if puts_again else "") + words
        ending = ending if puts_again and ending else _END
        return f"{ending}\n<|im_start|>user\n{words}{_END}\n<|im_start|>assistant\n"

    def _spelled(self, matched: int | str | None) -> str:
        if matched is None or isinstance(matched, str):
            return matched or ""
        try:
            return self._tokens.vocabulary.decode([matched], skip_special=False, at_start=False)
        except KeyError:
            return ""

    def encoded(self, text: str, chance: random.Random, *, first: bool = False) -> tuple[int, ...]:
        """Ids for a text: the tokenizer's, or a spelling that it would never choose."""
        encode = self._tokens.encode
        if chance.random() < 0.7:
            return tuple(encode(text, encoding=Encoding.RENDERED, first=first))
        cut = chance.randint(0, len(text))
        parts = list(text) if chance.random() < 0.5 else [text[:cut], text[cut:]]
        ids: list[int] = []
        for part in parts:
            ids += encode(part, encoding=Encoding.RENDERED, first=False)
        return tuple(ids)

    def decoded(self, ids: Sequence[int]) -> str | None:
        """The text of ids, if they can be told as text."""
        try:
            return self._tokens.vocabulary.decode(list(ids), skip_special=False, at_start=True)
        except KeyError:
            return None


# Each takes the text that is altered, and chance. What comes out may by accident be the same.


def _blanks(text: str, chance: random.Random) -> str:
    return text.replace(" ", "  ", 1) if chance.random() < 0.5 else text.strip()


def _case(text: str, chance: random.Random) -> str:
    at = chance.randint(0, max(0, len(text) - 1))
    return text[:at] + text[at : at + 1].swapcase() + text[at + 1 :]


def _last_word(text: str, chance: random.Random) -> str:
    head, blank, _ = text.rpartition(" ")
    return head + blank + chance.choice(PLAIN).strip()


def _compact(text: str, chance: random.Random) -> str:
    start = chance.randint(0, len(text) // 2)
    end = chance.randint(start, len(text))
    return text[:start] + chance.choice(("", "…", " [some turns left out] ")) + text[end:]


def _end_only(text: str, chance: random.Random) -> str:
    return text[chance.randint(0, len(text)) :]


EDITS: Final[tuple[Callable[[str, random.Random], str], ...]] = (
    _blanks,
    _case,
    _last_word,
    _compact,
    _end_only,
)
