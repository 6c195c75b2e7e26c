"""The tokenizer over real vocabularies: reuse never changes ids (DESIGN rule: runs)."""

from __future__ import annotations

import json
import unicodedata
from functools import cache
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as RawTokenizer

from slime_core.boundaries import token_index
from slime_core.chat.rendering import Ranges
from slime_core.chat.spellings import Spellings
from slime_core.errors import ClientError
from slime_core.types import Encoding, pack_ids, unpack_ids
from slime_trio.line_cuts import lines_split, split_at_lines
from slime_trio.tokenizer import (
    INLINE_CHARS,
    PROBE_TEXT,
    CheckpointError,
    Tokenizer,
    load_checkpoint,
)
from tests import tokenizers
from tests.chat_families import family

_SHIPPED = Path(__file__).parents[2] / "src" / "slime_trio" / "data" / "checkpoint"
_BOS = {"llama3": "<|begin_of_text|>", "metaspace_bpe": "<s>"}
_NAMES = sorted(tokenizers.ALL)

_FRAGMENTS = (
    *("Hello", " world", "hello wor", "ld", "'s", "def f(x):\n    return", "12345", "1 000.5"),
    *(" ", "  ", "       ", "\n", "\n\n", "\r\n", " \n\t ", "\t", "\u00a0", "\u3000"),
    *(
        "你好，世界。",
        "今天天气很好",
        "東京は",
        "Привет",
        "été",
        "e\u0301te\u0301",
        "\u0301",
        "\u0338",
    ),
    *("🙂", "👩\u200d👩\u200d👧\u200d👦", "🇫🇷", "\u200d", "\ufe0f", "ﬁ", "Å", "한국"),
    *("<|im_", "<|im_end|", "<", "|", ">", "<｜User", "end_of_text|>", "<|eot_id|>>", "</s", "_"),
    *("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<s>", "</s>", "<｜User｜>", "｜DSML｜"),
    *("<|eot_id|>", "<|begin_of_text|>", "<｜end▁of▁sentence｜>", "<|im_end|>\n<|im_start|>user\n"),
)
_TEXTS = st.lists(st.sampled_from(_FRAGMENTS) | st.text(max_size=4), max_size=14).map("".join)
_ENCODINGS = st.sampled_from(Encoding)
_MODERATE = settings(max_examples=120, deadline=None)


@cache
def _tokenizer(name: str, *, bos: bool = False) -> Tokenizer:
    raw = tokenizers.ALL[name]()
    if not bos:
        return Tokenizer(raw.to_str().encode())
    raw = RawTokenizer.from_str(raw.to_str())
    content = _BOS[name]
    raw.post_processor = processors.TemplateProcessing(
        single=f"{content} $A", special_tokens=[(content, raw.token_to_id(content))]
    )
    return Tokenizer(raw.to_str().encode())


def _check_cuts(tokenizer: Tokenizer, text: str, end: int, encoding: Encoding, first: bool) -> bool:
    """Encode ``text`` whole and in two at its last cut; whether there was one."""
    cut = tokenizer.hard_tokens.last_cut(text, 0, end)
    if cut is None:
        return False
    whole = tokenizer.encode(text, encoding=encoding, first=first)
    added = first and encoding is Encoding.RAW
    index = token_index(whole, cut, skip=len(tokenizer.prefix_ids) if added else 0)
    assert index is not None
    before, after = text[: cut.position], text[cut.position :]
    assert whole[:index] == tokenizer.encode(before, encoding=encoding, first=first)
    assert whole[index:] == tokenizer.encode(after, encoding=encoding, first=False)
    return True


@pytest.mark.parametrize("name", _NAMES)
@_MODERATE
@given(shared=_TEXTS, ours=_TEXTS, theirs=_TEXTS, encoding=_ENCODINGS, first=st.booleans())
def test_texts_that_share_a_beginning_share_the_ids_up_to_the_cut(
    name: str, shared: str, ours: str, theirs: str, encoding: Encoding, first: bool
) -> None:
    tokenizer = _tokenizer(name)
    for text in (shared, shared + ours, shared + theirs):
        _check_cuts(tokenizer, text, len(shared), encoding, first)


@pytest.mark.parametrize("name", sorted(_BOS))
@_MODERATE
@given(shared=_TEXTS, ours=_TEXTS, encoding=_ENCODINGS, first=st.booleans())
def test_special_tokens_in_front_of_raw_text_do_not_move_a_cut(
    name: str, shared: str, ours: str, encoding: Encoding, first: bool
) -> None:
    tokenizer = _tokenizer(name, bos=True)
    assert len(tokenizer.prefix_ids) == 1
    _check_cuts(tokenizer, shared + ours, len(shared), encoding, first)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("byte_level_bpe", "a<|im_end|>\n<|im_start|>user\nb"),
        ("metaspace_bpe", "a</s> b"),
        ("deepseek", "a<｜User｜> b<｜Assistant｜>c"),
        ("llama3", "a<|eot_id|>\n\nb"),
        ("qwen", "a<|im_end|>\n<|im_start|>user\nb"),
    ],
)
def test_every_vocabulary_has_cuts(name: str, text: str) -> None:
    assert _check_cuts(_tokenizer(name), text, len(text), Encoding.RENDERED, first=True)


@pytest.mark.parametrize("name", _NAMES)
@_MODERATE
@given(text=_TEXTS)
def test_a_tail_stands_for_its_text_and_nothing_more(name: str, text: str) -> None:
    tokenizer = _tokenizer(name, bos=name in _BOS)
    ids = tokenizer.encode(text, encoding=Encoding.RAW, first=False)
    back = tokenizer.vocabulary.decode(ids, skip_special=False, at_start=False)
    if name == "qwen":  # which normalises
        back, text = unicodedata.normalize("NFC", back), unicodedata.normalize("NFC", text)
    elif name == "metaspace_bpe":  # whose spaces and U+2581 are one and the same
        text = text.replace("▁", " ")
    assert back == text


def test_a_tail_gets_no_prefix_space() -> None:
    tokenizer = _tokenizer("metaspace_bpe")
    head = tokenizer.encode("the", encoding=Encoding.RENDERED, first=True)
    tail = tokenizer.encode("the", encoding=Encoding.RENDERED, first=False)
    spaced = tokenizer.encode(" the", encoding=Encoding.RENDERED, first=False)
    assert head == spaced != tail


def test_raw_text_begins_with_the_special_tokens_of_the_worker() -> None:
    tokenizer = _tokenizer("llama3", bos=True)
    plain = tokenizer.encode("Hello", encoding=Encoding.RENDERED, first=True)
    assert tokenizer.encode("Hello", encoding=Encoding.RAW, first=True) == [128000, *plain]


def test_later_raw_text_gets_no_special_tokens() -> None:
    tokenizer = _tokenizer("llama3", bos=True)
    assert 128000 not in tokenizer.encode("Hello", encoding=Encoding.RAW, first=False)


def test_special_tokens_are_reported() -> None:
    assert _tokenizer("llama3", bos=True).adds_special_tokens
    assert not _tokenizer("llama3").adds_special_tokens


def test_special_tokens_behind_a_text_forbid_every_cut() -> None:
    raw = RawTokenizer.from_str(tokenizers.byte_level_bpe().to_str())
    end = ("<|endoftext|>", raw.token_to_id("<|endoftext|>"))
    raw.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[end]
    )
    tokenizer = Tokenizer(raw.to_str().encode())
    assert tokenizer.hard_tokens.hard == frozenset()
    assert tokenizer.adds_special_tokens


def test_truncation_and_padding_of_the_file_are_switched_off() -> None:
    raw = RawTokenizer.from_str(tokenizers.byte_level_bpe().to_str())
    raw.enable_truncation(max_length=3)
    raw.enable_padding(length=3)
    configured = Tokenizer(raw.to_str().encode())
    for text in ("a", "a long text of many words"):
        expected = _tokenizer("byte_level_bpe").encode(text, encoding=Encoding.RAW, first=True)
        assert configured.encode(text, encoding=Encoding.RAW, first=True) == expected


@pytest.mark.parametrize("name", _NAMES)
def test_packed_ids_are_the_ids(name: str) -> None:
    tokenizer = _tokenizer(name)
    ids = tokenizer.encode(PROBE_TEXT, encoding=Encoding.RAW, first=True)
    assert tokenizer.encode_packed(PROBE_TEXT, encoding=Encoding.RAW, first=True) == pack_ids(ids)


@pytest.mark.parametrize("name", _NAMES)
def test_ids_are_those_of_the_library(name: str) -> None:
    expected = tokenizers.ALL[name]().encode(PROBE_TEXT).ids
    assert _tokenizer(name).ids_of_probe() == expected


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize(
    "glue", ["\n", " ", "<|im_end|>", "<｜User｜>", "</s>", "<|eot_id|>", "你"]
)
async def test_a_long_text_gets_the_same_ids_in_a_thread(name: str, glue: str) -> None:
    tokenizer = _tokenizer(name, bos=name in _BOS)
    text = glue.join([*_FRAGMENTS, PROBE_TEXT, "x"] * 60)
    for first in (True, False):
        expected = tokenizer.encode(text, encoding=Encoding.RAW, first=first)
        packed = await tokenizer.encode_async(text, encoding=Encoding.RAW, first=first)
        assert unpack_ids(packed) == expected


async def test_special_tokens_behind_a_long_text_come_once() -> None:
    raw = RawTokenizer.from_file(str(_SHIPPED / "tokenizer.json"))
    end = raw.token_to_id("<|endoftext|>")
    raw.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", end)]
    )
    text = "one line\n" * 5000
    packed = await Tokenizer(raw.to_str().encode()).encode_async(
        text, encoding=Encoding.RAW, first=True
    )
    assert unpack_ids(packed) == raw.encode(text).ids


async def test_a_short_text_is_encoded_in_place() -> None:
    tokenizer = _tokenizer("byte_level_bpe")
    with trio.testing.assert_no_checkpoints():
        await tokenizer.encode_async("a" * INLINE_CHARS, encoding=Encoding.RAW, first=True)


async def test_ascii_of_some_length_is_encoded_in_place() -> None:
    tokenizer = _tokenizer("byte_level_bpe")
    with trio.testing.assert_no_checkpoints():
        await tokenizer.encode_async("word " * 1000, encoding=Encoding.RAW, first=True)


async def test_texts_in_several_threads_do_not_disturb_each_other() -> None:
    tokenizer = _tokenizer("byte_level_bpe")
    texts = [f"{number} {PROBE_TEXT}" * 20 for number in range(12)]
    found: dict[str, bytes] = {}

    async def encode(text: str) -> None:
        found[text] = await tokenizer.encode_async(text, encoding=Encoding.RAW, first=True)

    async with trio.open_nursery() as nursery:
        for text in texts:
            nursery.start_soon(encode, text)
    for text in texts:
        assert found[text] == tokenizer.encode_packed(text, encoding=Encoding.RAW, first=True)


@pytest.mark.parametrize("text", ["\ud800", "long " * 1000 + "\udfff"])
async def test_a_lone_surrogate_is_the_clients_error(text: str) -> None:
    with pytest.raises(ClientError, match="surrogate"):
        await _tokenizer("byte_level_bpe").encode_async(text, encoding=Encoding.RAW, first=True)


@pytest.mark.parametrize("name", ["deepseek", "llama3", "qwen"])
@_MODERATE
@given(text=st.text("\n\n\r \tAb1./é中\u0301", max_size=24) | _TEXTS, size=st.integers(1, 8))
def test_lines_encoded_apart_give_the_ids_of_the_whole(name: str, text: str, size: int) -> None:
    tokenizer = _tokenizer(name)
    pieces = split_at_lines(text, size)
    assert "".join(pieces) == text
    apart = [
        token
        for number, piece in enumerate(pieces)
        for token in tokenizer.encode(piece, encoding=Encoding.RENDERED, first=number == 0)
    ]
    assert apart == tokenizer.encode(text, encoding=Encoding.RENDERED, first=True)


def test_lines_of_at_least_the_size_asked_for_are_cut_off() -> None:
    assert split_at_lines("a\nb\ncd\ne", 3) == ["a\nb\n", "cd\n", "e"]


@pytest.mark.parametrize("name", _NAMES)
def test_only_known_patterns_are_cut_at_lines(name: str) -> None:
    known = lines_split(json.loads(tokenizers.ALL[name]().to_str()))
    assert known is (name in {"deepseek", "llama3", "qwen"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("normalizer", {"type": "NFKC"}),
        ("pre_tokenizer", None),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Digits"}]}),
        ("added_tokens", [{"content": "a\nb"}]),
        ("model", {"type": "Unigram"}),
    ],
)
def test_whatever_is_not_understood_is_not_cut_at_lines(key: str, value: object) -> None:
    description = json.loads((_SHIPPED / "tokenizer.json").read_bytes())
    assert lines_split(description)
    assert not lines_split({**description, key: value})


# --- special tokens that are text --------------------------------------------------------------


@cache
def _spellings(name: str) -> Spellings:
    return Spellings([token.content for token in _tokenizer(name).vocabulary.added.values()])


def _normal(name: str, text: str) -> str:
    """What the ids of a text stand for."""
    if name == "qwen":
        return unicodedata.normalize("NFC", text)
    return text.replace("▁", " ") if name == "metaspace_bpe" else text


@pytest.mark.parametrize("name", _NAMES)
@_MODERATE
@given(text=_TEXTS, data=st.data())
def test_plain_ranges_hold_no_control_token_and_all_else_does(
    name: str, text: str, data: st.DataObject
) -> None:
    tokenizer = _tokenizer(name)
    spans = _spellings(name).found(text)
    plain = tuple(span for span in spans if data.draw(st.booleans()))
    control = [text[start:end] for start, end in spans if (start, end) not in plain]
    ids = tokenizer.encode(text, encoding=Encoding.RENDERED, first=False, plain=plain)
    added = tokenizer.vocabulary.added
    if name != "qwen":  # whose normaliser may join what stands around a token
        assert [added[token].content for token in ids if token in added] == control
    back = tokenizer.vocabulary.decode(ids, skip_special=False, at_start=False)
    assert _normal(name, back) == _normal(name, text)


@pytest.mark.parametrize("name", ["byte_level_bpe", "deepseek", "qwen"])
@_MODERATE
@given(before=_TEXTS, text=_TEXTS, after=_TEXTS)
def test_what_stands_beyond_control_tokens_keeps_its_ids(
    name: str, before: str, text: str, after: str
) -> None:
    tokenizer = _tokenizer(name)
    token = "<｜User｜>" if name == "deepseek" else "<|im_end|>"
    parts = [before + token, text, token + after]
    spans = _spellings(name).found(text)
    start = len(parts[0])
    plain: Ranges = tuple((start + begin, start + end) for begin, end in spans)
    ids = tokenizer.encode("".join(parts), encoding=Encoding.RENDERED, first=False, plain=plain)
    head, tail = (
        tokenizer.encode(part, encoding=Encoding.RENDERED, first=False) for part in parts[::2]
    )
    assert ids[: len(head)] == head
    assert ids[len(ids) - len(tail) :] == tail


@pytest.mark.parametrize("name", _NAMES)
async def test_a_long_text_with_plain_ranges_gets_the_same_ids_in_a_thread(name: str) -> None:
    tokenizer = _tokenizer(name, bos=name in _BOS)
    text = "\n".join([*_FRAGMENTS, PROBE_TEXT, "x"] * 20)
    plain = _spellings(name).found(text)[::3]
    for first in (True, False):
        settings_ = {"encoding": Encoding.RAW, "first": first, "plain": plain}
        expected = tokenizer.encode(text, **settings_)  # type: ignore[arg-type]
        packed = await tokenizer.encode_async(text, **settings_)  # type: ignore[arg-type]
        assert unpack_ids(packed) == expected


def test_raw_text_with_plain_ranges_gets_its_special_tokens_once() -> None:
    tokenizer = _tokenizer("llama3", bos=True)
    text = "<|eot_id|>a<|eot_id|>"
    ids = tokenizer.encode(text, encoding=Encoding.RAW, first=True, plain=((0, 10),))
    assert ids[0] == 128000
    assert ids.count(128000) == 1
    assert ids.count(128009) == 1
    assert ids[-1] == 128009


def test_a_run_that_begins_plain_begins_like_any_other() -> None:
    tokenizer = _tokenizer("metaspace_bpe")
    for first in (True, False):
        ordinary = tokenizer.encode("the dog", encoding=Encoding.RENDERED, first=first)
        ids = tokenizer.encode(
            "the dog</s>", encoding=Encoding.RENDERED, first=first, plain=((7, 11),)
        )
        assert ids[: len(ordinary)] == ordinary


def test_control_tokens_still_strip_the_plain_text_beside_them() -> None:
    raw = RawTokenizer.from_str(tokenizers.byte_level_bpe().to_str())
    raw.add_tokens([AddedToken("<r>", rstrip=True), AddedToken("<l>", lstrip=True)])
    tokenizer = Tokenizer(raw.to_str().encode())
    text = "<r>  a<think>b  <l>"
    ids = tokenizer.encode(text, encoding=Encoding.RENDERED, first=True, plain=((6, 13),))
    back = tokenizer.vocabulary.decode(ids, skip_special=False)
    assert back == "<r>a<think>b<l>"


def test_a_model_that_may_take_any_entry_takes_none_that_is_an_added_token() -> None:
    vocabulary = [("<unk>", -9.0), ("<s>", 0.0), *((letter, -5.0) for letter in "<s>ab▁")]
    raw = RawTokenizer(models.Unigram(vocabulary, unk_id=0))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    raw.decoder = decoders.Metaspace(prepend_scheme="never")
    raw.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(raw.to_str().encode())
    assert tokenizer.encode("a<s>", encoding=Encoding.RENDERED, first=True) == [5, 1]
    plain = tokenizer.encode("a<s>", encoding=Encoding.RENDERED, first=True, plain=((1, 4),))
    assert plain == [5, 2, 3, 4]


@pytest.mark.parametrize(
    ("name", "model", "spelt"),
    [
        ("qwen", "qwen3", "<think>"),
        ("llama3", "llama3_1", "<|eot_id|>"),
        ("deepseek", "deepseek_v3", "<｜User｜>"),
    ],
)
def test_a_bridged_turn_has_the_ids_of_the_full_rendering(
    name: str, model: str, spelt: str
) -> None:
    tokenizer, template = _tokenizer(name), family(model).template
    history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    appended = [{"role": "user", "content": f"  déjà {spelt} vu\n\n"}]
    delta = template.delta(history, appended)
    assert delta is not None
    whole = template.rendered([*history, *appended])
    ids = tokenizer.encode(whole.text, encoding=Encoding.RENDERED, first=True, plain=whole.plain)
    rest = tokenizer.encode(delta.text, encoding=Encoding.RENDERED, first=False, plain=delta.plain)
    assert ids[-len(rest) :] == rest
    assert len(whole.plain) == len(delta.plain) == 1


def test_the_shipped_checkpoint_loads() -> None:
    tokenizer = load_checkpoint(_SHIPPED).tokenizer
    end = tokenizer.encode("<|im_end|>", encoding=Encoding.RENDERED, first=True)
    assert tokenizer.eos_ids == frozenset(end)
    assert tokenizer.hard_tokens.hard == frozenset(tokenizer.vocabulary.added)
    assert tokenizer.vocab_size == max(tokenizer.vocabulary.added) + 1


def _write(directory: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def test_a_missing_directory_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such checkpoint: .*nowhere"):
        load_checkpoint(tmp_path / "nowhere")


def test_the_name_of_something_to_download_is_no_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint("some-organisation/some-model")


def test_a_directory_without_a_tokenizer_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such checkpoint.*no tokenizer\.json"):
        load_checkpoint(tmp_path)


def test_a_tokenizer_that_is_a_directory_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match="unreadable checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": 1}'])
def test_a_broken_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    _write(tmp_path, {"tokenizer.json": text})
    with pytest.raises(CheckpointError, match="unreadable tokenizer"):
        load_checkpoint(tmp_path)


def test_a_decoder_that_is_not_byte_exact_is_refused() -> None:
    raw = RawTokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    raw.decoder = decoders.WordPiece()
    with pytest.raises(CheckpointError, match="decoder"):
        Tokenizer(raw.to_str().encode())


def test_end_ids_come_from_every_file_that_names_some(tmp_path: Path) -> None:
    raw = tokenizers.byte_level_bpe()
    _write(
        tmp_path,
        {
            "tokenizer.json": raw.to_str(),
            "generation_config.json": {"eos_token_id": [1, 2]},
            "config.json": {"eos_token_id": 3, "text_config": {"eos_token_id": 4}},
            "tokenizer_config.json": {"eos_token": {"content": "<|im_end|>"}},
        },
    )
    expected = {1, 2, 3, 4, raw.token_to_id("<|im_end|>")}
    assert load_checkpoint(tmp_path).tokenizer.eos_ids == expected


def test_the_context_length_may_be_nested(tmp_path: Path) -> None:
    raw = tokenizers.byte_level_bpe().to_str()
    config = {"text_config": {"max_position_embeddings": 4096}}
    checkpoint = load_checkpoint(_write(tmp_path, {"tokenizer.json": raw, "config.json": config}))
    assert checkpoint.context_length == 4096


def test_the_context_length_may_be_unknown(tmp_path: Path) -> None:
    raw = tokenizers.byte_level_bpe().to_str()
    assert load_checkpoint(_write(tmp_path, {"tokenizer.json": raw})).context_length is None


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_configuration_is_named(tmp_path: Path, text: str) -> None:
    raw = tokenizers.byte_level_bpe().to_str()
    _write(tmp_path, {"tokenizer.json": raw, "generation_config.json": text})
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        load_checkpoint(tmp_path)
