"""The vocabularies of the simulation: small, and nasty on purpose.

Any text has several spellings, tokens split characters, control tokens can also be spelled with
ordinary ones, ``<|endoftext|>`` is special and ends nothing, ``bos`` puts an id before raw text,
``metaspace`` a space. The chat template drops earlier reasoning, so that histories change under
the router.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as RawTokenizer

from slime_core.engine import LanguageModel
from slime_core.types import Encoding
from slime_core.vocabulary import Vocabulary
from slime_trio.tokenizer import Checkpoint, Tokenizer, load_checkpoint
from tests.tokenizers import byte_level_bpe, metaspace_bpe

__all__ = ["NAMES", "TEMPLATE", "Tokens", "of"]

NAMES: Final = ("bytes", "bos", "metaspace")

_END: Final = "<|im_end|>"
_TEXTS: Final = (
    "The quick brown fox jumps over the lazy dog.",
    "<think>12 * 12 = 144</think>The answer is 144.",
    "def f(x):\n    return x**2\n\n",
    "你好，世界 🙂 déjà vu e\u0301",
    "ab abc  a\n\nb <|im_end <|endoftext|> #! 0.5",
    "no",
)

TEMPLATE: Final = """\
{%- set last = namespace(user=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- set content = message.content -%}
  {%- if message.role == 'assistant' and loop.index0 < last.user and '</think>' in content -%}
    {%- set content = content.split('</think>')[-1] -%}
  {%- endif -%}
  {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Tokens:
    """One vocabulary and what was learnt with it."""

    name: str
    json: bytes
    tokenizer: Tokenizer
    language: LanguageModel

    @property
    def end_ids(self) -> frozenset[int]:
        """What ends a sampled answer: ``<|im_end|>``."""
        return self.tokenizer.eos_ids

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary

    def encode(self, text: str, *, encoding: Encoding, first: bool) -> list[int]:
        """The ids of one unsampled run, as ``Tokenizer.encode``."""
        return self.tokenizer.encode(text, encoding=encoding, first=first)

    @staticmethod
    def render(messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """What :data:`TEMPLATE` renders, said in Python."""
        users = [at for at, message in enumerate(messages) if message["role"] == "user"]
        last_user = users[-1] if users else -1
        parts = []
        for at, message in enumerate(messages):
            content = message["content"]
            if message["role"] == "assistant" and at < last_user:
                content = content.split("</think>")[-1]
            parts.append(f"<|im_start|>{message['role']}\n{content}<|im_end|>\n")
        return "".join(parts) + ("<|im_start|>assistant\n" if add_generation_prompt else "")

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The same as a directory, for whoever loads one. It lives as long as the process."""
        directory = Path(_directory().name) / self.name
        directory.mkdir()
        (directory / "tokenizer.json").write_bytes(self.json)
        (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": _END}))
        (directory / "chat_template.jinja").write_text(TEMPLATE)
        return load_checkpoint(directory)


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="slime-simulate-")


@cache
def of(name: str) -> Tokens:
    """The vocabulary of that name, made once. Raises ``KeyError``."""
    raw = {"bytes": _bytes, "bos": _bos, "metaspace": _metaspace}[name]()
    end = _id_of(raw, _END)
    tokenizer = Tokenizer(raw.to_str().encode(), eos_ids=frozenset({end}))
    vocabulary = tokenizer.vocabulary
    documents = [_document(tokenizer, text, end) for text in _TEXTS]
    support = [token for token in range(len(vocabulary)) if token in vocabulary]
    language = LanguageModel(documents, support=support, order=3)
    return Tokens(name=name, json=raw.to_str().encode(), tokenizer=tokenizer, language=language)


def _id_of(raw: RawTokenizer, content: str) -> int:
    found = raw.token_to_id(content)
    assert found is not None
    return found


def _document(tokenizer: Tokenizer, text: str, end: int) -> list[int]:
    turn = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n{text}"
    return [*tokenizer.encode(turn, encoding=Encoding.RENDERED, first=True), end]


def _bytes() -> RawTokenizer:
    return byte_level_bpe()


def _bos() -> RawTokenizer:
    raw = RawTokenizer.from_str(byte_level_bpe().to_str())
    raw.add_special_tokens([AddedToken("<s>", normalized=False, special=True)])
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", _id_of(raw, "<s>"))]
    )
    return raw


def _metaspace() -> RawTokenizer:
    raw = RawTokenizer.from_str(metaspace_bpe().to_str())
    names = ("<|endoftext|>", "<|im_start|>", _END)
    raw.add_special_tokens([AddedToken(one, normalized=False, special=True) for one in names])
    raw.add_tokens([AddedToken(one, normalized=False) for one in ("<think>", "</think>")])
    return raw
