r"""Where long plain text may be cut for encoding it in pieces: after some line ends.

Text without added tokens offers no hard cut, and two hundred thousand tokens in one piece keep one
core busy and then hold the interpreter's lock for longer than an event loop may stall. Most
vocabularies of today split words by one of a few published patterns, and for those it can be shown
that ``"\n"`` followed by an ASCII letter is always a boundary:

* in each of them, an alternative that takes a line end takes nothing after it but line ends (and,
  in one, slashes), and takes all of them: the word that holds this line end ends right there,
  before a letter as well as before the end of the text;
* ``\s*[\r\n]+`` stands before ``\s+(?!\S)``, so no word that ends in a line end depends on what
  follows it;
* no alternative looks back, so what follows begins as it would at the beginning of a text;
* a line end never composes with a neighbour under NFC;
* what ``ByteLevel`` and the merges do, they do word by word.

A pattern that is not known here is not cut. These cuts never become part of what is kept; they only
speed up an encoding, which the property tests compare with that of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["lines_of", "lines_split", "split_at_lines"]

_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS: Final = frozenset(
    {
        # Qwen 2 and 3
        rf"{_WORDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}",
        # Llama 3, GLM 4
        rf"{_WORDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}",
        # DeepSeek V3: three patterns, one after the other
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
        r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
        rf"|{_BLANKS}",
    }
)
_CUT: Final = re.compile(r"\n(?=[A-Za-z])")


def lines_split(description: Mapping[str, Any]) -> bool:
    """Whether text may be cut between a line end and an ASCII letter.

    ``description`` is the parsed ``tokenizer.json``. ``False`` for whatever is not understood.
    """
    normalizer = description.get("normalizer")
    added = description.get("added_tokens") or ()
    return (
        description["model"].get("type", "BPE") == "BPE"
        and (normalizer in (None, {"type": "Sequence", "normalizers": []}, {"type": "NFC"}))
        and not any("\n" in token["content"] for token in added)
        and _splits_words(description.get("pre_tokenizer"))
    )


def split_at_lines(text: str, size: int) -> list[str]:
    """``text`` in pieces of at least ``size`` characters, cut where :func:`lines_split` allows."""
    pieces, begin = [], 0
    while len(text) - begin > size:
        found = _CUT.search(text, begin + size - 1)
        if found is None:
            break
        pieces.append(text[begin : found.end()])
        begin = found.end()
    pieces.append(text[begin:])
    return pieces


def lines_of(text: str) -> list[str]:
    """``text`` in as many pieces as :func:`lines_split` allows."""
    *lines, last = _CUT.split(text)
    return [*(line + "\n" for line in lines), last]


def _splits_words(pre_tokenizer: Any) -> bool:
    """Known patterns, then bytes: nothing else, and at least one pattern."""
    if not isinstance(pre_tokenizer, dict) or pre_tokenizer.get("type") != "Sequence":
        return False
    if not pre_tokenizer["pretokenizers"]:
        return False
    *splits, last = pre_tokenizer["pretokenizers"]
    return (
        last.get("type") == "ByteLevel"
        and not last.get("add_prefix_space")
        and not last.get("use_regex", True)
        and any(_BLANKS in _pattern(split) for split in splits)
        and all(
            split.get("type") == "Split"
            and split.get("behavior") == "Isolated"
            and not split.get("invert")
            and _pattern(split) in _PATTERNS
            for split in splits
        )
    )


def _pattern(split: Mapping[str, Any]) -> str:
    """The regular expression of a ``Split``; DeepSeek's holds its line ends unescaped."""
    pattern = str(split.get("pattern", {}).get("Regex", ""))
    return pattern.replace("\r", r"\r").replace("\n", r"\n")
