"""Model families to test chat with: a vocabulary, the family's added tokens, and a template.

The templates in ``chat_templates`` are written for the tests. They have the structure, the special
tokens and the quirks of the published ones (what is trimmed, dropped, injected and refused), and
words of their own. ``real`` vocabularies are those of :mod:`tests.tokenizers`; where a family's own
is in no small package, its added tokens stand on another one. ``small`` vocabularies, trained on
the spot, have the same added tokens and load in no time.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Final, Literal

from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from slime_trio.chat_template import ChatTemplate
from slime_trio.tokenizer import Tokenizer
from tests import tokenizers

__all__ = ["FAMILIES", "Family", "family"]

_TEMPLATES: Final = Path(__file__).parent / "chat_templates"
_NOW: Final = datetime.datetime(2026, 1, 2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family. ``raw`` must not be changed."""

    name: str
    source: str
    """The template."""
    raw: RawTokenizer
    named: Mapping[str, str]
    """``bos_token`` and ``eos_token``."""
    ends: tuple[str, ...]
    """What the checkpoint's files call an end of text; stop tokens of a generation."""

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of every added token."""
        added = self.raw.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items()}

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset(self.ids[text] for text in self.ends)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The router's tokenizer. Slow for real vocabularies."""
        return Tokenizer(self.raw.to_str().encode(), eos_ids=self.eos_ids)

    @cached_property
    def template(self) -> ChatTemplate:
        """The router's template."""
        return ChatTemplate.of_source(
            self.source, named=self.named, added=self.ids, end_of_text=self.ends, now=_NOW
        )

    def write(self, directory: Path) -> Path:
        """A checkpoint's directory with this family in it."""
        directory.mkdir(parents=True, exist_ok=True)
        config = {**self.named, "tokenizer_class": "PreTrainedTokenizerFast"}
        files = {
            "tokenizer.json": self.raw.to_str(),
            "tokenizer_config.json": json.dumps(config),
            "generation_config.json": json.dumps({"eos_token_id": sorted(self.eos_ids)}),
            "chat_template.jinja": self.source,
        }
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
        return directory


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """Contents of tokens stand in one text, with blanks between them."""

    real: Callable[[], RawTokenizer]
    special: str
    added: str = ""
    """Tokens that are in the vocabulary without being special."""
    ends: str
    begin: str | None = None


_QWEN: Final = _Recipe(
    real=tokenizers.qwen,
    special="<|endoftext|> <|im_start|> <|im_end|>",
    added="<tool_call> </tool_call> <tool_response> </tool_response> <think> </think>",
    ends="<|im_end|> <|endoftext|>",
)
_DEEPSEEK: Final = _Recipe(
    real=tokenizers.deepseek,
    special="<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜>",
    added="<think> </think> <｜User｜> <｜Assistant｜> <｜tool▁sep｜> "
    "<｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> "
    "<｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜>",
    ends="<｜end▁of▁sentence｜>",
    begin="<｜begin▁of▁sentence｜>",
)
_RECIPES: Final[dict[str, _Recipe]] = {
    "qwen2_5": _QWEN,
    "qwen3": _QWEN,
    "qwen3_coder": _QWEN,
    "llama3_1": _Recipe(
        real=tokenizers.llama3,
        special="<|begin_of_text|> <|end_of_text|> <|start_header_id|> <|end_header_id|> "
        "<|eom_id|> <|eot_id|> <|python_tag|>",
        ends="<|eot_id|> <|eom_id|> <|end_of_text|>",
        begin="<|begin_of_text|>",
    ),
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v3_1": _DEEPSEEK,
    "glm4_5": _Recipe(
        real=tokenizers.llama3,
        special="<|endoftext|> [gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>",
        added="<think> </think> <tool_call> </tool_call> <tool_response> </tool_response> "
        "<arg_key> </arg_key> <arg_value> </arg_value>",
        ends="<|endoftext|> <|user|> <|observation|>",
    ),
    "gpt_oss": _Recipe(
        real=tokenizers.llama3,
        special="<|startoftext|> <|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> "
        "<|end|> <|message|> <|call|>",
        ends="<|return|> <|endoftext|> <|call|>",
    ),
    "kimi_k2": _Recipe(
        real=tokenizers.deepseek,
        special="[BOS] [EOS] <|im_end|> <|im_user|> <|im_assistant|> <|im_system|> <|im_middle|> "
        "<|tool_calls_section_begin|> <|tool_calls_section_end|> <|tool_call_begin|> "
        "<|tool_call_argument_begin|> <|tool_call_end|>",
        added="<think> </think>",
        ends="<|im_end|> [EOS]",
    ),
    "mistral": _Recipe(
        real=tokenizers.metaspace_bpe,
        special="<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] "
        "[/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]",
        ends="</s>",
        begin="<s>",
    ),
    "minimax": _Recipe(
        real=tokenizers.qwen,
        special="]~!b[ ]~b] [e~[",
        added="<think> </think> <minimax:tool_call> </minimax:tool_call>",
        ends="[e~[",
    ),
}

FAMILIES: Final = tuple(_RECIPES)
"""The names of all families."""


@cache
def family(name: str, vocabulary: Literal["real", "small"] = "small") -> Family:
    """The family of that name, made once."""
    recipe = _RECIPES[name]
    raw = recipe.real() if vocabulary == "real" else tokenizers.byte_level_bpe()
    ends = tuple(recipe.ends.split())
    named = {"eos_token": ends[0]}
    if recipe.begin is not None:
        named["bos_token"] = recipe.begin
    return Family(
        name=name,
        source=(_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"),
        raw=_with_added(raw, recipe),
        named=named,
        ends=ends,
    )


def _with_added(raw: RawTokenizer, recipe: _Recipe) -> RawTokenizer:
    """``raw`` with the family's tokens; itself if it has them all."""
    known = {token.content for token in raw.get_added_tokens_decoder().values()}
    tokens = [
        AddedToken(text, special=special, normalized=False)
        for contents, special in ((recipe.special, True), (recipe.added, False))
        for text in contents.split()
        if text not in known
    ]
    if not tokens:
        return raw
    copy = RawTokenizer.from_str(raw.to_str())
    copy.add_tokens(tokens)
    return copy
