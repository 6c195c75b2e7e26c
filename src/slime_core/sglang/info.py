"""What workers tell about themselves: weights and tokenizer."""

from __future__ import annotations

import dataclasses
from array import array
from typing import Final

import msgspec

from slime_core.errors import WorkerError
from slime_core.sglang.errors import read_json
from slime_core.types import PackedIds
from slime_core.versions import version_text

__all__ = [
    "ModelInfo",
    "Tokenized",
    "encode_tokenize",
    "parse_model_info",
    "parse_tokenize",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """``GET /model_info``, as far as a router needs it."""

    weight_version: str | None
    """``None`` from a worker that does not tell; an integer has become its decimal string."""
    reasoning_parser: str | None
    """Its ``--reasoning-parser``: with one, a grammar can wait for the end of reasoning."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """``POST /tokenize``: the ids of a prompt, and the context length if it is told."""

    ids: PackedIds
    max_model_len: int | None


class _ModelInfo(msgspec.Struct):
    # Not looked at, but it is what tells a model info from any other object.
    model_path: str
    weight_version: str | int | None = None
    reasoning_parser: str | None = None


class _Tokenized(msgspec.Struct):
    tokens: list[int]
    max_model_len: int | None = None


_MODEL_INFO: Final = msgspec.json.Decoder(_ModelInfo)
_TOKENIZED: Final = msgspec.json.Decoder(_Tokenized)


def parse_model_info(body: bytes) -> ModelInfo:
    """Raises :class:`WorkerError` for what is no model info."""
    found = read_json(_MODEL_INFO, body, "model info")
    return ModelInfo(
        weight_version=version_text(found.weight_version),
        reasoning_parser=found.reasoning_parser or None,
    )


def encode_tokenize(prompt: str, *, add_special_tokens: bool) -> bytes:
    """The body of ``POST /tokenize``."""
    return msgspec.json.encode({"prompt": prompt, "add_special_tokens": add_special_tokens})


def parse_tokenize(body: bytes) -> Tokenized:
    """Raises :class:`WorkerError` for what is no tokenized prompt."""
    found = read_json(_TOKENIZED, body, "tokenized prompt")
    try:
        ids = array("I", found.tokens)
    except OverflowError:
        raise WorkerError("The worker's tokenizer gave an id that cannot be one.") from None
    return Tokenized(ids=PackedIds(ids.tobytes()), max_model_len=found.max_model_len)
