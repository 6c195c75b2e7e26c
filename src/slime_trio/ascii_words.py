r"""ASCII text, encoded word by word out of memory.

A byte-pair vocabulary encodes every word by itself: text is cut at added tokens, what lies between
is cut into words by a published pattern, and the ids of a word depend on nothing but the word. So
the ids of words that were met before need not be made again, and for ASCII text the standard
library's regular expressions cut as the tokenizer's own do. That takes a quarter of the time.

What must hold for that is looked up in the description, and whatever is not known there leaves all
to the library:

* the pattern consists of alternatives that are known here, each with its equivalent for ASCII,
  where ``\p{L}`` is ``A-Za-z`` and so on; both engines take the first alternative that fits;
* the normaliser, if any, changes no ASCII text;
* nothing is put in front of a text, and no merge is left out by chance.

Control characters are left to the library too: some patterns have no alternative for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, Final

from tokenizers import Tokenizer as RawTokenizer
from tokenizers import pre_tokenizers

from slime_core.boundaries import HardTokens
from slime_core.types import pack_ids

from .line_cuts import lines_of, lines_split

__all__ = ["WordByWord", "word_by_word"]

_REMEMBERED: Final = 2**18
"""Characters of the words remembered, which makes some 40,000 words and 8 MB; a rollout's texts
have a few thousand. Once there are more, remembering begins anew."""
_LONGEST_TEXT: Final = 2**15
"""The interpreter's lock is held while a text is cut into words: 1.5 ms for one of this length."""

_TRIAL: Final = (
    "It's a 'test'll  pass: we'VE 12345 x = [1, 2];\n\n\tif (a_b != c.d) {\r\n  return -3.14e10;"
    "  \n}   \t 7 \n \n  ~/etc?q=%20&r#!  https://www.A1b2.org/__x__  \n"
)
"""What patterns differ about, as far as ASCII goes: known words must give the library's ids."""
_BETWEEN: Final = "\ufdd0"
"""Stands in no text: a noncharacter."""
_PLAIN: Final = re.compile(r"[\t\n\r -~]*")

_SHORT_FORMS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_CASED: Final = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_SMALL: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ALTERNATIVES: Final = {
    _SHORT_FORMS: _SHORT_FORMS,
    "'(?:[sdmt]|ll|ve|re)": "'(?:[sdmt]|ll|ve|re)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+": r"[^\r\nA-Za-z0-9]?[A-Za-z]+",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+": r"[^\r\nA-Za-z0-9]?[A-Za-z]+",
    rf"{_CASED}*{_SMALL}+{_SHORT_FORMS}?": rf"[^\r\nA-Za-z0-9]?[A-Z]*[a-z]+{_SHORT_FORMS}?",
    rf"{_CASED}+{_SMALL}*{_SHORT_FORMS}?": rf"[^\r\nA-Za-z0-9]?[A-Z]+[a-z]*{_SHORT_FORMS}?",
    r" ?\p{L}+": " ?[A-Za-z]+",
    r" ?\p{N}+": " ?[0-9]+",
    r"\p{N}": "[0-9]",
    r"\p{N}{1,3}": "[0-9]{1,3}",
    r" ?[^\s\p{L}\p{N}]+": r" ?[^\sA-Za-z0-9]+",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*": r" ?[^\sA-Za-z0-9]+[\r\n]*",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*": r" ?[^\sA-Za-z0-9]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*": r" ?[^\sA-Za-z0-9]+[\r\n/]*",
    r"\s*[\r\n]+": r"\s*[\r\n]+",
    r"\s+(?!\S)": r"\s+(?!\S)",
    r"\s+": r"\s+",
}
"""What published patterns consist of, and what it is where all is ASCII."""
_GPT2: Final = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ``ByteLevel`` itself cuts by, unless it is told not to."""
_DEEPSEEK: Final = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
"""Three patterns, one after the other, of which the second finds nothing in ASCII."""
_DEEPSEEK_ASCII: Final = (
    r"[0-9]{1,3}|[^\r\nA-Za-z0-9]?[A-Za-z]+| ?[^\sA-Za-z0-9]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?![^\s0-9])|\s+"
)
"""In one: what is left between digits ends before the next one, as if nothing followed."""


class WordByWord:
    """What is known of texts by their words. May be shared by threads.

    ``pattern`` cuts ASCII into words, ``memory`` knows their ids, and ``tokens`` are the added
    tokens of the tokenizer. ``by_lines``: text may also be cut as :mod:`slime_trio.line_cuts` says.
    """

    def __init__(
        self, memory: _Memory, pattern: str, tokens: HardTokens, *, by_lines: bool
    ) -> None:
        self._memory: Final = memory
        self._pattern: Final = re.compile(pattern, re.ASCII)
        self._tokens: Final = tokens
        self._by_lines: Final = by_lines

    @property
    def remembered(self) -> int:
        """Characters of the words that are remembered."""
        return self._memory.characters

    def parts(self, text: str) -> list[bytes | str]:
        """The packed ids of ``text``, a run, part by part; texts for what has to be encoded, each
        by itself."""
        parts, at = list[bytes | str](), 0
        for start, end, token in self._tokens.found(text):
            parts += self._between(text[at:start])
            parts.append(pack_ids((token,)))
            at = end
        parts += self._between(text[at:] if at else text)
        return parts

    def _between(self, text: str) -> Iterator[bytes | str]:
        """What stands between two added tokens."""
        if _is_plain(text) or not self._by_lines:
            yield self._part(text)
            return
        for _, lines in groupby(lines_of(text), _is_plain):
            yield self._part("".join(lines))

    def _part(self, text: str) -> bytes | str:
        if len(text) > _LONGEST_TEXT or not _is_plain(text):
            return text
        return self._memory.ids_of(self._pattern.findall(text))


def _is_plain(text: str) -> bool:
    return _PLAIN.fullmatch(text) is not None


class _Memory:
    """The packed ids of words, made where they are missing."""

    def __init__(self, model: Any) -> None:
        self._ids: dict[str, bytes] = {}
        self.characters = 0
        """Of all words together."""
        self._tokenizer: Final = RawTokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=False
        )
        self._tokenizer.add_special_tokens([_BETWEEN])
        self._end: Final[int] = self._tokenizer.token_to_id(_BETWEEN) or 0
        self.is_ambiguous: Final = model.id_to_token(self._end) is not None
        """Whether a word may have the id that stands between words: numbering has gaps."""

    def ids_of(self, words: list[str]) -> bytes:
        """The ids of all words, one after the other."""
        ids = self._ids
        try:
            return b"".join(map(ids.__getitem__, words))
        except KeyError:
            pass
        missing = [word for word in dict.fromkeys(words) if word not in ids]
        ids.update(zip(missing, self._encoded(missing), strict=True))
        whole = b"".join(map(ids.__getitem__, words))
        self.characters += sum(map(len, missing))
        if self.characters > _REMEMBERED:
            self._ids, self.characters = {}, 0  # others may still be reading the old ones
        return whole

    def _encoded(self, words: list[str]) -> Iterator[bytes]:
        """Each word's ids. All in one call: a call costs more than a word."""
        text = _BETWEEN.join(words) + _BETWEEN
        ids = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        at = 0
        for _ in words:
            end = ids.index(self._end, at)
            yield pack_ids(ids[at:end])
            at = end + 1


def word_by_word(
    head: RawTokenizer, tail: RawTokenizer, tokens: HardTokens, description: Mapping[str, Any]
) -> WordByWord | None:
    """What knows the words of a tokenizer, or ``None`` where it cannot be known by its words.

    ``head`` and ``tail`` are what encodes the beginning of a text and what comes later;
    ``description`` is the parsed ``tokenizer.json``.
    """
    added = head.get_added_tokens_decoder().values()
    pattern = _ascii_pattern(description)
    are_literal = len(added) == len(tokens.added) + len(tokens.late) and not any(
        token.lstrip or token.rstrip or token.single_word for token in added
    )
    if pattern is None or tail is not head or not are_literal:
        return None
    memory = _Memory(head.model)
    if memory.is_ambiguous:
        return None
    known = WordByWord(memory, pattern, tokens, by_lines=lines_split(description))
    expected = head.encode_batch_fast([_TRIAL], add_special_tokens=False)[0].ids
    return known if known.parts(_TRIAL) == [pack_ids(expected)] else None


def _ascii_pattern(description: Mapping[str, Any]) -> str | None:
    """What cuts ASCII text into the words of a tokenizer, or ``None`` where that is not known."""
    model, normalizer = description["model"], description.get("normalizer")
    is_known = (
        model.get("type", "BPE") == "BPE"
        and not model.get("dropout")
        and normalizer in (None, {"type": "Sequence", "normalizers": []}, {"type": "NFC"})
    )
    return _pattern_of(description.get("pre_tokenizer")) if is_known else None


def _pattern_of(pre_tokenizer: Any) -> str | None:
    if not isinstance(pre_tokenizer, dict):
        return None
    parts = [pre_tokenizer]
    if pre_tokenizer.get("type") == "Sequence":
        parts = pre_tokenizer["pretokenizers"]
    if not parts:
        return None
    *splits, last = parts
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    patterns = [_regular(split) for split in splits]
    if last.get("use_regex", True):
        patterns.append(_GPT2)
    if tuple(patterns) == _DEEPSEEK:
        return _DEEPSEEK_ASCII
    return _translated(patterns[0]) if len(patterns) == 1 else None


def _regular(split: Mapping[str, Any]) -> str:
    """The regular expression of a ``Split`` that leaves what it finds as words; line ends may
    stand in it unescaped."""
    is_plain = (
        split.get("type") == "Split"
        and split.get("behavior") == "Isolated"
        and not split.get("invert")
    )
    pattern = str(split.get("pattern", {}).get("Regex", "")) if is_plain else ""
    return pattern.replace("\r", r"\r").replace("\n", r"\n")


def _translated(pattern: str) -> str | None:
    """A pattern of known alternatives, in ASCII."""
    found, rest = list[str](), pattern
    while rest:
        fitting = [one for one in _ALTERNATIVES if rest == one or rest.startswith(one + "|")]
        if not fitting:
            return None
        (alternative,) = fitting
        found.append(_ALTERNATIVES[alternative])
        rest = rest[len(alternative) + 1 :]
    return "|".join(found) or None
