"""Texts encoded word by word have the ids that the library gives them."""

from __future__ import annotations

import json
from functools import cache
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from slime_core.types import unpack_ids
from slime_trio import ascii_words
from slime_trio.ascii_words import WordByWord, word_by_word
from slime_trio.hard_tokens import probe_hard_tokens
from tests import tokenizers

_LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_SMALL = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    "gpt-oss": rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}*{_SMALL}+{_SHORT}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}+{_SMALL}*{_SHORT}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}",
    "qwen3.5": rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}",
}
"""Of vocabularies that are not at hand; the words are those of a small one."""
_KNOWN = (*("byte_level_bpe", "deepseek", "llama3", "qwen"), *_PATTERNS)
_FEW = (
    "a",
    "S",
    "ll",
    "7",
    " ",
    "\n",
    "\r",
    "\t",
    "'",
    "_",
    "/",
    ".",
    "<|im_end|>",
    "\x00",
    "\x0b",
)
"""One of each kind that some pattern tells from the others; control characters are left alone."""
_SOME = st.text(st.sampled_from(" \n\r\t'/_.aZs07-"), max_size=12)
_OTHERS = st.sampled_from([*"é“\u0301\x0b\x1f\n", "中文", "It's", "<think>", "x\n"])
_TEXTS = st.lists(_SOME | _OTHERS | st.text(max_size=3), max_size=8).map("".join)


@cache
def _raw(name: str) -> RawTokenizer:
    if name not in _PATTERNS:
        return tokenizers.ALL[name]()
    raw = RawTokenizer.from_str(tokenizers.byte_level_bpe().to_str())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERNS[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return raw


def _words(raw: RawTokenizer) -> WordByWord | None:
    description = json.loads(raw.to_str())
    return word_by_word(raw, raw, probe_hard_tokens(raw, raw, description), description)


@cache
def _known(name: str) -> WordByWord:
    known = _words(_raw(name))
    assert known is not None
    return known


def _plain(raw: RawTokenizer, text: str) -> list[int]:
    ids: list[int] = raw.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids


def _ids(name: str, text: str) -> list[int]:
    """By words, and by the library where words are not known."""
    ids = list[int]()
    for part in _known(name).parts(text):
        ids += _plain(_raw(name), part) if isinstance(part, str) else unpack_ids(part)
    return ids


@pytest.mark.parametrize("name", _KNOWN)
@settings(max_examples=80, deadline=None)
@given(text=_TEXTS)
def test_words_give_the_ids_of_the_text(name: str, text: str) -> None:
    assert _ids(name, text) == _plain(_raw(name), text)


@pytest.mark.parametrize("name", _KNOWN)
def test_every_few_characters_are_cut_as_the_library_cuts_them(name: str) -> None:
    texts = ["".join(some) for some in product(_FEW, repeat=3)]
    found = _raw(name).encode_batch_fast(texts, add_special_tokens=False)
    assert [_ids(name, text) for text in texts] == [one.ids for one in found]


@pytest.mark.parametrize("name", _KNOWN)
def test_ascii_is_known_and_all_else_is_not(name: str) -> None:
    assert isinstance(_known(name).parts("plain words\n")[0], bytes)
    assert _known(name).parts("déjà") == ["déjà"]


def test_lines_beside_other_scripts_are_known() -> None:
    parts = _known("qwen").parts("one\ntwo\nthrée\nfour\nfive\n")
    assert [isinstance(part, bytes) for part in parts] == [True, False, True]


def test_a_text_too_long_for_one_go_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascii_words, "_LONGEST_TEXT", 10)
    assert _known("qwen").parts("a b c d e f") == ["a b c d e f"]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ascii_words, "_REMEMBERED", 100)
    known = _words(_raw("byte_level_bpe"))
    assert known is not None
    for number in range(200):
        text = f"word{'abcdefghij'[number % 10] * (number % 20)} and others"
        assert known.parts(text) == _known("byte_level_bpe").parts(text)
        assert known.remembered <= 100


def _changed(name: str, **changes: object) -> RawTokenizer:
    return RawTokenizer.from_str(json.dumps({**json.loads(_raw(name).to_str()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": r"\p{N}|\w+"},
                        "behavior": "Isolated",
                        "invert": False,
                    },
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
                    | {"trim_offsets": True},
                ],
            }
        },
        {
            "added_tokens": [
                {"id": 999, "content": "<x>", "single_word": False, "lstrip": True, "rstrip": False}
                | {"normalized": False, "special": True}
            ]
        },
    ],
)
def test_what_is_not_understood_is_left_to_the_library(changes: dict[str, object]) -> None:
    assert _words(_changed("byte_level_bpe", **changes)) is None


def test_a_model_whose_numbers_have_gaps_is_left_to_the_library() -> None:
    description = json.loads(_raw("byte_level_bpe").to_str())
    entries = description["model"]["vocab"]
    last = max(entries, key=entries.__getitem__)
    entries[last] += 1
    description["added_tokens"] = []
    assert _words(RawTokenizer.from_str(json.dumps(description))) is None


def test_a_vocabulary_that_is_no_byte_level_one_is_left_to_the_library() -> None:
    assert _words(_raw("metaspace_bpe")) is None
