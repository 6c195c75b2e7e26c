"""The vocabularies of the simulation: small, and nasty on purpose.

Any text has several spellings, tokens split characters, control tokens can also be spelled with
ordinary ones, ``<|endoftext|>`` is special and ends nothing, ``bos`` puts an id before raw text,
``metaspace`` a space. Each comes with one of the chat templates of :mod:`tests.simulate.templates`,
which may need tokens of its own.
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
from slime_core.parsing.detect import detect
from slime_core.types import Encoding
from slime_core.vocabulary import Vocabulary
from slime_trio.chat_template import ChatTemplate
from slime_trio.chatting import Chatting
from slime_trio.tokenizer import Checkpoint, Tokenizer, load_checkpoint
from tests.simulate.templates import TEMPLATES, Template
from tests.tokenizers import byte_level_bpe, metaspace_bpe

__all__ = ["NAMES", "QUIET_TEMPLATE", "Tokens", "of"]

NAMES: Final = ("bytes", "bos", "metaspace")
QUIET_TEMPLATE: Final = "strips"

_END: Final = "<|im_end|>"
_TEXTS: Final = (
    "The quick brown fox jumps over the lazy dog.",
    "<think>12 * 12 = 144</think>The answer is 144.",
    "def f(x):\n    return x**2\n\n",
    "你好，世界 🙂 déjà vu e\u0301",
    "ab abc  a\n\nb <|im_end <|endoftext|> #! 0.5",
    "no",
)


@dataclass(frozen=True)
class Tokens:
    """One vocabulary and what was learnt with it."""

    name: str
    template_name: str
    json: bytes
    tokenizer: Tokenizer
    language: LanguageModel

    @property
    def end_ids(self) -> frozenset[int]:
        """What ends a sampled answer: ``<|im_end|>``, or what opens a turn where none is closed."""
        return self.tokenizer.eos_ids

    @property
    def vocabulary(self) -> Vocabulary:
        return self.tokenizer.vocabulary

    def encode(self, text: str, *, encoding: Encoding, first: bool) -> list[int]:
        """The ids of one unsampled run, as ``Tokenizer.encode``."""
        return self.tokenizer.encode(text, encoding=encoding, first=first)

    @property
    def template(self) -> Template:
        """The chat template."""
        return TEMPLATES[self.template_name]

    @cached_property
    def chatting(self) -> Chatting:
        """Template and parsers, as the shell chooses them."""
        added = [token.content for token in self.vocabulary.added.values()]
        return Chatting(template=self.chat, parsers=detect(self.template.source, added))

    @cached_property
    def chat(self) -> ChatTemplate:
        """The router's own template object, over the template as it is said in Python."""
        added = {token.content: id for id, token in self.vocabulary.added.items()}
        return ChatTemplate(
            _Renderer(self.template), added=added, end_of_text=list(self.template.ends)
        )

    @cached_property
    def added_contents(self) -> frozenset[str]:
        """What the added tokens write."""
        return frozenset(token.content for token in self.vocabulary.added.values())

    def id_of(self, content: str) -> int:
        """The id of an added token."""
        return next(id for id, one in self.vocabulary.added.items() if one.content == content)

    @cached_property
    def plain(self) -> Tokenizer:
        """The same vocabulary without any added token: whatever it encodes is ordinary text."""
        bare = json.loads(self.json) | {"added_tokens": [], "post_processor": None}
        return Tokenizer(json.dumps(bare).encode(), eos_ids=frozenset())

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The same as a directory, for whoever loads one. It lives as long as the process."""
        # Forked processes share the parent's directory, and may make the same at once.
        name = f"{self.name}-{self.template_name}-"
        directory = Path(tempfile.mkdtemp(prefix=name, dir=_directory().name))
        (directory / "tokenizer.json").write_bytes(self.json)
        ends = sorted(self.end_ids)
        (directory / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": self.template.ends[0]})
        )
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        (directory / "chat_template.jinja").write_text(self.template.source)
        return load_checkpoint(directory)


class _Renderer:
    """Stands for the object of ``transformers`` that renders, without its cost."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self.chat_template = template.source

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        **_arguments: Any,
    ) -> str:
        """The rendering."""
        assert not tokenize
        return self._template.render(conversation, tools or (), generation=add_generation_prompt)


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="slime-simulate-")


def of(name: str, template: str = QUIET_TEMPLATE) -> Tokens:
    """The vocabulary of that name for that template, made once. Raises ``KeyError``."""
    return _made(name, template)


@cache
def _made(name: str, template: str) -> Tokens:
    raw = {"bytes": _bytes, "bos": _bos, "metaspace": _metaspace}[name]()
    chat = TEMPLATES[template]
    if chat.special or chat.added:
        raw = RawTokenizer.from_str(raw.to_str())
        raw.add_special_tokens([AddedToken(one, normalized=False) for one in chat.special])
        raw.add_tokens([AddedToken(one, normalized=False) for one in chat.added])
    ends = [_id_of(raw, end) for end in chat.ends]
    tokenizer = Tokenizer(raw.to_str().encode(), eos_ids=frozenset(ends))
    vocabulary = tokenizer.vocabulary
    documents = [_document(tokenizer, chat, text, ends[0]) for text in _TEXTS]
    support = [token for token in range(len(vocabulary)) if token in vocabulary]
    language = LanguageModel(documents, support=support, order=3)
    return Tokens(
        name=name,
        template_name=template,
        json=raw.to_str().encode(),
        tokenizer=tokenizer,
        language=language,
    )


def _id_of(raw: RawTokenizer, content: str) -> int:
    found = raw.token_to_id(content)
    assert found is not None
    return found


def _document(tokenizer: Tokenizer, chat: Template, text: str, end: int) -> list[int]:
    turn = chat.render([{"role": "user", "content": text}]) + text
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
