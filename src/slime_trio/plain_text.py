"""Text whose special tokens are text: encoded by a tokenizer that has none.

A run of a rendered template is cut at the added tokens that the template wrote, and the pieces in
which content spells others are encoded by an object with the same model and no added tokens. All
else goes the ordinary way, so that its ids are the ordinary ones. A piece is always all that stands
between two control tokens: what a message brings is never encoded apart from the words around it.

The library's own switch for this (``encode_special_tokens``) leaves tokens alone that are added
without being special, ``<think>`` and DeepSeek's ``<｜User｜>`` among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tokenizers import Tokenizer as RawTokenizer

from slime_core.chat.rendering import Ranges
from slime_core.chat.spellings import Spellings

__all__ = ["PlainText", "Section"]

_UNREACHABLE: Final = "\ufdd0"
"""Put in front of entries that no text may be given; noncharacters stand in no text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a run; ``is_plain``: without control tokens, whatever it spells."""

    text: str
    is_plain: bool


class PlainText:
    """The tokenizer objects without added tokens, beside ``head`` and ``tail`` which have them.

    ``description`` is the parsed ``tokenizer.json``. Byte-pair models are shared, not copied.
    """

    def __init__(
        self, head: RawTokenizer, tail: RawTokenizer, description: Mapping[str, Any]
    ) -> None:
        tokens = head.get_added_tokens_decoder().values()
        self._added: Final = Spellings([token.content for token in tokens])
        self._strips_right: Final = frozenset(token.content for token in tokens if token.rstrip)
        self._strips_left: Final = frozenset(token.content for token in tokens if token.lstrip)
        model = _model(head, description, frozenset(self._added.contents))
        self.head: Final = _with_model(model, head)
        self.tail: Final = self.head if tail is head else _with_model(model, tail)

    def sections(self, text: str, plain: Ranges) -> list[Section]:
        """``text`` in parts to be encoded one by one; ``plain`` as in :class:`Rendered`."""
        control = self._added.found_outside(text, plain)
        parts: list[Section] = []
        begin = at = number = 0
        for start, end in (*control, (len(text), len(text))):
            while number < len(plain) and plain[number][1] <= at:
                number += 1
            if number < len(plain) and plain[number][0] < start:
                parts.append(Section(text=text[begin:at], is_plain=False))
                piece = self._stripped(text[at:start], text[begin:at], text[start:end])
                parts.append(Section(text=piece, is_plain=True))
                begin = start
            at = end
        parts.append(Section(text=text[begin:], is_plain=False))
        return [part for part in parts if part.text]

    def _stripped(self, piece: str, before: str, behind: str) -> str:
        """Without the blanks that the control tokens around it take along."""
        if before.endswith(tuple(self._strips_right)):
            piece = piece.lstrip()
        return piece.rstrip() if behind in self._strips_left else piece


def _with_model(model: Any, like: RawTokenizer) -> RawTokenizer:
    """``like`` with another model and nothing added."""
    tokenizer = RawTokenizer(model)
    if like.normalizer is not None:
        tokenizer.normalizer = like.normalizer
    if like.pre_tokenizer is not None:
        tokenizer.pre_tokenizer = like.pre_tokenizer
    return tokenizer


def _model(head: RawTokenizer, description: Mapping[str, Any], added: frozenset[str]) -> Any:
    """A model that gives no id of an added token to any text.

    A byte-pair model makes of a text what its merges make. Others may take any entry, so those that
    are added tokens get a name that nothing is spelt like.
    """
    model = description["model"]
    vocabulary = model.get("vocab")
    if model.get("type", "BPE") == "BPE" or not vocabulary:
        return head.model
    if isinstance(vocabulary, Mapping):
        renamed: Any = {_renamed(name, added): token for name, token in vocabulary.items()}
    else:
        renamed = [[_renamed(name, added), score] for name, score in vocabulary]
    bare = {**description, "model": {**model, "vocab": renamed}, "added_tokens": []}
    bare["post_processor"] = None
    return RawTokenizer.from_str(json.dumps(bare)).model


def _renamed(name: str, added: frozenset[str]) -> str:
    return _UNREACHABLE + name if name in added else name
