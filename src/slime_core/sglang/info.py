"""What workers tell about themselves: model, tokenizer, load."""

from __future__ import annotations

import dataclasses
from array import array
from typing import Final

import msgspec

from slime_core.errors import WorkerError
from slime_core.sglang.errors import read_json
from slime_core.types import PackedIds

__all__ = [
    "Load",
    "ModelInfo",
    "Tokenized",
    "encode_tokenize",
    "parse_loads",
    "parse_max_model_len",
    "parse_model_info",
    "parse_tokenize",
    "parse_weight_update",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """``GET /model_info``, as far as a router needs it."""

    model_path: str
    served_model_name: str
    tokenizer_path: str
    is_generation: bool
    weight_version: str | None
    """``None`` from a worker that does not tell; an integer has become its decimal string."""
    disaggregation_mode: str
    """``null`` (the word), ``prefill`` or ``decode``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """``POST /tokenize``: the ids of a prompt, and the context length if it is told."""

    ids: PackedIds
    max_model_len: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One data-parallel rank of ``GET /v1/loads``; counts of requests and tokens."""

    dp_rank: int
    running: int
    waiting: int
    tokens_used: int
    tokens_max: int


class _ModelInfo(msgspec.Struct):
    model_path: str
    served_model_name: str | None = None
    tokenizer_path: str | None = None
    is_generation: bool = True
    weight_version: str | int | None = None
    disaggregation_mode: str | None = None


class _Tokenized(msgspec.Struct):
    tokens: list[int]
    max_model_len: int | None = None


class _Load(msgspec.Struct):
    dp_rank: int = 0
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_used_tokens: int = 0
    max_total_num_tokens: int = 0


class _Loads(msgspec.Struct):
    loads: tuple[_Load, ...]


class _Card(msgspec.Struct):
    id: str = ""
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: tuple[_Card, ...]


class _WeightUpdate(msgspec.Struct):
    success: bool
    message: str | None = None


_MODEL_INFO: Final = msgspec.json.Decoder(_ModelInfo)
_TOKENIZED: Final = msgspec.json.Decoder(_Tokenized)
_LOADS: Final = msgspec.json.Decoder(_Loads)
_CARDS: Final = msgspec.json.Decoder(_Cards)
_WEIGHT_UPDATE: Final = msgspec.json.Decoder(_WeightUpdate)


def parse_model_info(body: bytes) -> ModelInfo:
    """Raises :class:`WorkerError` for what is no model info."""
    found = read_json(_MODEL_INFO, body, "model info")
    version = found.weight_version
    return ModelInfo(
        model_path=found.model_path,
        served_model_name=found.served_model_name or found.model_path,
        tokenizer_path=found.tokenizer_path or found.model_path,
        is_generation=found.is_generation,
        weight_version=None if version is None else str(version),
        disaggregation_mode=found.disaggregation_mode or "null",
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


def parse_loads(body: bytes) -> tuple[Load, ...]:
    """One load per data-parallel rank. Raises :class:`WorkerError` for what is no load."""
    return tuple(
        Load(
            dp_rank=load.dp_rank,
            running=load.num_running_reqs,
            waiting=load.num_waiting_reqs,
            tokens_used=load.num_used_tokens,
            tokens_max=load.max_total_num_tokens,
        )
        for load in read_json(_LOADS, body, "load report").loads
    )


def parse_max_model_len(body: bytes) -> int | None:
    """The context length in tokens out of ``GET /v1/models``: the first that is told."""
    cards = read_json(_CARDS, body, "list of models").data
    return next((card.max_model_len for card in cards if card.max_model_len), None)


def parse_weight_update(body: bytes) -> tuple[bool, str]:
    """Success and message of the answer to a weight update or a control call."""
    found = read_json(_WEIGHT_UPDATE, body, "answer to a weight update")
    return found.success, found.message or ""
