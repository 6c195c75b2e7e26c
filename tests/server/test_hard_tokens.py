"""The probe: what it takes for hard, what it must not, and what would happen if it did."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from slime_core.boundaries import HardTokens
from slime_trio.hard_tokens import probe_hard_tokens
from slime_trio.tokenizer import Tokenizer
from tests import tokenizers


def _byte_level(*tokens: AddedToken, normalizer: Any = None) -> RawTokenizer:
    """The trained vocabulary with more added tokens."""
    raw = RawTokenizer.from_str(tokenizers.byte_level_bpe().to_str())
    if normalizer is not None:
        raw.normalizer = normalizer
    raw.add_tokens(list(tokens))
    return raw


def _probe(raw: RawTokenizer) -> HardTokens:
    return Tokenizer(raw.to_str().encode()).hard_tokens


def _is_hard(raw: RawTokenizer, content: str) -> bool:
    return raw.token_to_id(content) in _probe(raw).hard


def _parts_agree(raw: RawTokenizer, text: str, position: int) -> bool:
    whole: list[int] = raw.encode(text).ids
    parts: list[int] = raw.encode(text[:position]).ids + raw.encode(text[position:]).ids
    return whole == parts


@pytest.mark.parametrize("name", ["byte_level_bpe", "deepseek", "llama3", "qwen"])
def test_every_added_token_of_a_published_byte_level_vocabulary_is_hard(name: str) -> None:
    raw = tokenizers.ALL[name]()
    hard = probe_hard_tokens(raw, raw, json.loads(raw.to_str())).hard
    assert hard == frozenset(raw.get_added_tokens_decoder())


def test_the_unknown_token_is_not_hard_since_the_model_gives_it_out() -> None:
    raw = tokenizers.metaspace_bpe()
    hard = _probe(raw).hard
    assert hard == {raw.token_to_id("<s>"), raw.token_to_id("</s>")}


def test_a_new_plain_token_is_hard() -> None:
    assert _is_hard(_byte_level(AddedToken("<new>", normalized=False)), "<new>")


def test_a_normalized_token_is_hard_where_nothing_is_normalised() -> None:
    raw = _byte_level(AddedToken("<new>", normalized=True))
    assert _is_hard(raw, "<new>")
    assert _probe(raw).late == {"<new>": raw.token_to_id("<new>")}


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("<new>", normalized=False, lstrip=True),
        AddedToken("<new>", normalized=False, rstrip=True),
        AddedToken("<new>", normalized=False, single_word=True),
        AddedToken(" <new>", normalized=False),
        AddedToken("<new>\n", normalized=False),
    ],
    ids=["lstrip", "rstrip", "single_word", "blank in front", "blank behind"],
)
def test_a_token_that_meddles_with_blanks_or_words_is_soft(token: AddedToken) -> None:
    raw = _byte_level(token)
    assert not _is_hard(raw, token.content)
    assert _is_hard(raw, "<|im_end|>")


def test_taking_a_stripping_token_for_hard_would_change_ids() -> None:
    raw = _byte_level(AddedToken("<new>", normalized=False, rstrip=True))
    token_id = raw.get_vocab()["<new>"]
    wrong = HardTokens({"<new>": token_id}, frozenset({token_id}))
    cut = wrong.last_cut("a<new>  b", 0, 9)
    assert cut is not None
    assert not _parts_agree(raw, "a<new>  b", cut.position)


def test_a_token_before_a_single_word_decides_about_it() -> None:
    word = AddedToken("<w>", normalized=False, single_word=True)
    raw = _byte_level(word, AddedToken("<x", normalized=False))
    assert not _is_hard(raw, "<x")
    assert not _parts_agree(raw, "<x<w>", 2)


def test_a_normalized_token_is_soft_where_a_normaliser_works() -> None:
    raw = _byte_level(AddedToken("<new>", normalized=True), normalizer=normalizers.NFKC())
    assert not _is_hard(raw, "<new>")
    assert _is_hard(raw, "<|im_end|>")
    assert not _parts_agree(raw, "<ｎew>b", 1)


def test_a_normalized_token_is_soft_beside_one_that_strips() -> None:
    strip = AddedToken("<strip>", normalized=False, rstrip=True)
    assert not _is_hard(_byte_level(strip, AddedToken("<new>", normalized=True)), "<new>")


def test_a_word_that_the_model_makes_too_is_soft() -> None:
    vocab = tokenizers.byte_level_bpe().get_vocab(with_added_tokens=False)
    word = min(entry for entry in vocab if entry.isascii() and len(entry) > 1)
    assert not _is_hard(_byte_level(AddedToken(word, normalized=False)), word)


def test_a_single_letter_that_the_model_has_too_is_soft() -> None:
    assert not _is_hard(_byte_level(AddedToken("%", normalized=False)), "%")


def test_an_entry_that_only_its_own_text_can_spell_is_hard_with_ignored_merges() -> None:
    raw = _with_entry("<new>")
    assert _is_hard(raw, "<new>")


def test_an_entry_that_a_normaliser_can_spell_is_soft_with_ignored_merges() -> None:
    raw = _with_entry("<new>")
    raw.normalizer = normalizers.NFKC()
    assert raw.encode("＜new＞").ids == [raw.token_to_id("<new>")]
    assert not _is_hard(raw, "<new>")


def _with_entry(content: str) -> RawTokenizer:
    """A byte-level vocabulary that has an added token among its own entries, too."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate([*letters, content])}
    raw = RawTokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens([AddedToken(content, normalized=False)])
    return raw


def test_entries_of_other_models_are_soft() -> None:
    raw = RawTokenizer(models.WordLevel({"<new>": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    raw.add_tokens([AddedToken("<new>", normalized=False)])
    assert probe_hard_tokens(raw, raw, json.loads(raw.to_str())).hard == frozenset()


@pytest.mark.parametrize(
    "prefix",
    [
        ("pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
        ("normalizer", normalizers.Prepend("▁")),
    ],
    ids=["metaspace", "prepend"],
)
def test_a_space_in_front_of_every_piece_forbids_every_cut(prefix: tuple[str, Any]) -> None:
    raw = RawTokenizer.from_str(tokenizers.metaspace_bpe().to_str())
    setattr(raw, *prefix)
    assert _probe(raw).hard == frozenset()


def test_a_byte_level_space_in_front_of_every_piece_forbids_every_cut() -> None:
    raw = _byte_level()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert _probe(raw).hard == frozenset()


@pytest.mark.parametrize("nested", [False, True])
def test_the_tail_of_a_tokenizer_with_a_prefix_has_none(nested: bool) -> None:
    raw = RawTokenizer.from_str(tokenizers.metaspace_bpe().to_str())
    prepend, replace = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = None
    raw.normalizer = normalizers.Sequence([prepend, replace]) if nested else prepend
    tokenizer = Tokenizer(raw.to_str().encode())
    head, tail = tokenizer._head.encode("the"), tokenizer._tail.encode("the")
    assert (head.tokens[0][0], tail.tokens[0][0]) == ("▁", "t")


def test_combining_marks_behind_a_hard_token_do_not_compose_with_it() -> None:
    raw = tokenizers.qwen()
    assert _parts_agree(raw, "a<|im_end|>\u0338b", len("a<|im_end|>"))
