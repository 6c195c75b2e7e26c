"""Ids to bytes and text, compared with the library that the checkpoints are made for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from slime_core.vocabulary import AddedToken, Vocabulary, byte_level_table, from_tokenizer_json
from tests.tokenizers import ALL

NAMES = sorted(ALL)
SMALL = ("byte_level_bpe", "metaspace_bpe")
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": True,
    "use_regex": True,
}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
FALLBACK: dict[str, Any] = {"type": "ByteFallback"}
FUSE: dict[str, Any] = {"type": "Fuse"}
ENTRIES = (
    *("a", "b", "▁", "▁▁", "▁a", "a▁b", "é", "Ġ", "Ã", "©", "ĠĠ", "", "日", " ", "\ufffd", " x"),
    *("<0x0A>", "<0x20>", "<0xC3>", "<0xA9>", "<0xE2>", "<0x82>", "<0xAC>", "<0xFF>", "<0x+A>"),
    *("<0xEF>", "<0xBF>", "<0xBD>", "<0xzz>", "<0x00A>", "<0xa9>"),
)
ADDED = (
    ("<s>", True),
    ("</s>", True),
    ("<think>", False),
    ("é", False),
    ("▁x", True),
    ("x y", False),
)
DECODERS: dict[str, Any] = {
    "byte level": BYTE_LEVEL,
    "metaspace": METASPACE,
    "metaspace, never": {**METASPACE, "prepend_scheme": "never"},
    "metaspace, first": {**METASPACE, "prepend_scheme": "first"},
    "llama 2": {"type": "Sequence", "decoders": [REPLACE, FALLBACK, FUSE, STRIP]},
    "gemma": {"type": "Sequence", "decoders": [REPLACE, FALLBACK, FUSE]},
    "fallback only": FALLBACK,
    "two strips": {
        "type": "Sequence",
        "decoders": [REPLACE, FUSE, {**STRIP, "start": 2}],
    },
    "nested": {"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": [BYTE_LEVEL]}]},
}
UNMODELLED: dict[str, Any] = {
    "none": None,
    "word pieces": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "suffixes": {"type": "BPEDecoder", "suffix": "</w>"},
    "strip of every token": {"type": "Sequence", "decoders": [REPLACE, STRIP]},
    "strip at the end": {"type": "Sequence", "decoders": [FUSE, {**STRIP, "stop": 1}]},
    "strip of a letter": {"type": "Sequence", "decoders": [FUSE, {**STRIP, "content": "a"}]},
    "pattern": {"type": "Sequence", "decoders": [{**REPLACE, "pattern": {"Regex": "▁+"}}]},
    "replace after fuse": {"type": "Sequence", "decoders": [FUSE, REPLACE]},
    "empty sequence": {"type": "Sequence", "decoders": []},
}


def made(decoder: object, *, first_added: int = len(ENTRIES)) -> dict[str, Any]:
    """A ``tokenizer.json`` with entries that are awkward to decode."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": first_added + place, "content": content, "special": special, **flags}
            for place, (content, special) in enumerate(ADDED)
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {entry: place for place, entry in enumerate(ENTRIES)},
            "merges": [],
        },
    }


@cache
def pair(name: str) -> tuple[Tokenizer, Vocabulary]:
    """The library's tokenizer and our vocabulary, real or made."""
    tokenizer = ALL[name]() if name in ALL else Tokenizer.from_str(json.dumps(made(DECODERS[name])))
    vocabulary = from_tokenizer_json(json.loads(tokenizer.to_str()))
    assert vocabulary is not None
    return tokenizer, vocabulary


@st.composite
def ids_of(draw: st.DrawFn, name: str, *, max_size: int = 30) -> list[int]:
    """Ids of any kind: likely ones, bytes, added ones, and some that are no tokens."""
    tokenizer, vocabulary = pair(name)
    any_id = st.integers(0, len(vocabulary) + 3)
    awkward = st.sampled_from(sorted({*vocabulary.byte_fallback, *vocabulary.added}))
    low = st.integers(0, 260)
    text = st.text(max_size=6).map(lambda text: tokenizer.encode(text).ids)
    chunks = st.one_of(st.lists(st.one_of(any_id, awkward, low), max_size=8), text)
    return [token for chunk in draw(st.lists(chunks, max_size=6)) for token in chunk][:max_size]


@pytest.mark.parametrize("name", [*NAMES, *DECODERS])
@settings(deadline=None)
@given(data=st.data(), skip_special=st.booleans())
def test_decoding_is_the_librarys(name: str, data: st.DataObject, skip_special: bool) -> None:
    tokenizer, vocabulary = pair(name)
    ids = data.draw(ids_of(name))
    expected = tokenizer.decode(ids, skip_special_tokens=skip_special)
    assert vocabulary.decode(ids, skip_special=skip_special) == expected


@pytest.mark.parametrize("name", [*NAMES, *DECODERS])
def test_every_single_id_decodes_as_in_the_library(name: str) -> None:
    tokenizer, vocabulary = pair(name)
    every = [[token] for token in range(len(vocabulary))]
    for skip_special in (False, True):
        expected = tokenizer.decode_batch(every, skip_special_tokens=skip_special)
        ours = [vocabulary.decode(ids, skip_special=skip_special) for ids in every]
        assert ours == expected


@pytest.mark.parametrize("name", [*NAMES, *DECODERS])
def test_added_tokens_are_the_librarys(name: str) -> None:
    tokenizer, vocabulary = pair(name)
    theirs = {
        token: (added.content, added.special, added.lstrip, added.rstrip, added.normalized)
        for token, added in tokenizer.get_added_tokens_decoder().items()
    }
    ours = {
        token: (added.content, added.special, added.lstrip, added.rstrip, added.normalized)
        for token, added in vocabulary.added.items()
    }
    assert ours == theirs
    assert all(added.id == token for token, added in vocabulary.added.items())
    assert len(vocabulary) == tokenizer.get_vocab_size()


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text())
@settings(deadline=None)
def test_text_survives_encoding_and_decoding(name: str, text: str) -> None:
    tokenizer, vocabulary = pair(name)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert vocabulary.decode(ids, skip_special=False) == tokenizer.decode(
        ids, skip_special_tokens=False
    )


def test_ids_of_added_tokens_follow_the_library_and_not_the_file() -> None:
    file = made(BYTE_LEVEL, first_added=100)
    theirs = Tokenizer.from_str(json.dumps(file)).get_added_tokens_decoder()
    vocabulary = from_tokenizer_json(file)
    assert vocabulary is not None
    assert {token: added.content for token, added in vocabulary.added.items()} == {
        token: added.content for token, added in theirs.items()
    }


def test_a_nameless_added_token_is_none() -> None:
    file = made(BYTE_LEVEL)
    file["added_tokens"][0]["content"] = ""
    theirs = Tokenizer.from_str(json.dumps(file)).get_added_tokens_decoder()
    vocabulary = from_tokenizer_json(file)
    assert vocabulary is not None
    assert vocabulary.added.keys() == theirs.keys()


def test_a_unigram_vocabulary_is_its_list() -> None:
    file = made(METASPACE) | {"model": {"type": "Unigram", "vocab": [["▁a", -1.0], ["b", -2.0]]}}
    vocabulary = from_tokenizer_json(file)
    assert vocabulary is not None
    assert vocabulary.decode([0, 1, 0], skip_special=True) == "ab a"


@pytest.mark.parametrize("decoder", UNMODELLED.values(), ids=UNMODELLED)
def test_a_decoder_that_is_not_modelled_is_refused(decoder: object) -> None:
    assert from_tokenizer_json(made(decoder)) is None


@pytest.mark.parametrize("model", [None, {}, {"vocab": 3}])
def test_a_model_without_entries_is_refused(model: object) -> None:
    assert from_tokenizer_json(made(BYTE_LEVEL) | {"model": model}) is None


def test_the_start_rule_is_for_the_start_of_a_text() -> None:
    tokenizer, vocabulary = pair("metaspace_bpe")
    ids = tokenizer.encode("hello world").ids
    assert vocabulary.decode(ids, skip_special=True) == "hello world"
    assert vocabulary.decode(ids, skip_special=True, at_start=False) == " hello world"
    assert vocabulary.decode_bytes(ids, skip_special=True) == b"hello world"
    assert vocabulary.decode_bytes(ids, skip_special=True, at_start=False) == b" hello world"


def test_the_start_rule_of_metaspace_is_for_the_first_token_shown() -> None:
    _, vocabulary = pair("metaspace")
    start, space_a = ENTRIES.index("▁a"), len(ENTRIES)
    ids = [space_a, start, start]  # <s>, then "▁a" twice
    assert vocabulary.decode(ids, skip_special=True) == "a a"
    assert vocabulary.decode(ids, skip_special=False) == "<s> a a"
    assert vocabulary.decode(ids, skip_special=True, at_start=False) == " a a"


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(data=st.data(), skip_special=st.booleans(), cut=st.integers(0, 30))
def test_a_text_that_continues_another_joins_it_byte_by_byte(
    name: str, data: st.DataObject, skip_special: bool, cut: int
) -> None:
    _, vocabulary = pair(name)
    ids = data.draw(ids_of(name))
    head = vocabulary.decode_bytes(ids[:cut], skip_special=skip_special, at_start=False)
    tail = vocabulary.decode_bytes(ids[cut:], skip_special=skip_special, at_start=False)
    whole = vocabulary.decode_bytes(ids, skip_special=skip_special, at_start=False)
    assert head + tail == whole


def test_a_token_without_text_parts_a_run_of_bytes() -> None:
    tokenizer, vocabulary = pair("llama 2")
    first, second, last = (ENTRIES.index(f"<0x{byte}>") for byte in ("E2", "82", "AC"))
    ids = [first, second, ENTRIES.index(""), last]
    assert tokenizer.decode(ids) == "\ufffd\ufffd\ufffd"
    assert vocabulary.decode(ids, skip_special=True) == "\ufffd\ufffd\ufffd"


def test_byte_level_letters_are_the_librarys_alphabet() -> None:
    table = byte_level_table()
    assert sorted(table) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert all(table[ord(letter)] == letter for letter in "!azAZ09~é¡ÿ")
    assert table[0x20] == "Ġ"
    assert table[0x0A] == "Ċ"


def test_bytes_of_an_added_token_are_its_content() -> None:
    added = AddedToken(id=1, content="<｜end｜>", special=True)
    vocabulary = Vocabulary([b"a"], {1: added})
    assert vocabulary.bytes_of(1) == "<｜end｜>".encode()
    assert vocabulary.added == {1: added}
    assert vocabulary.is_special(1)
    assert not vocabulary.is_special(0)


@pytest.mark.parametrize("token", [-1, 1, 3, 2**40])
def test_an_id_outside_the_vocabulary_has_no_bytes_and_decodes_to_nothing(token: int) -> None:
    vocabulary = Vocabulary([b"a", None, b"c"], {})
    assert token not in vocabulary
    with pytest.raises(KeyError):
        vocabulary.bytes_of(token)
    assert vocabulary.decode([0, token, 2], skip_special=False) == "ac"
    assert len(vocabulary) == 3


def test_a_vocabulary_does_not_see_later_changes_of_what_it_was_made_from() -> None:
    added = {1: AddedToken(id=1, content="x", special=False)}
    vocabulary = Vocabulary([b"a"], added)
    added.clear()
    assert isinstance(vocabulary.added, Mapping)
    assert vocabulary.decode([0, 1], skip_special=False) == "ax"


def test_long_broken_text_costs_linear_time() -> None:
    # 400 000 bytes that are not UTF-8: anything that starts anew at each of them takes minutes.
    vocabulary = Vocabulary([b"\xff", "é".encode()], {}, byte_fallback=frozenset({0}))
    ids = [0, 1, 0] * 130_000
    assert vocabulary.decode(ids, skip_special=True) == "\ufffdé\ufffd" * 130_000
