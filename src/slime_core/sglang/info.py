"""What workers tell about themselves: weights, tokenizer, loads."""

from __future__ import annotations

import dataclasses
from array import array
from typing import Annotated, Any, Final

import msgspec

from slime_core.errors import WorkerError
from slime_core.sglang.errors import read_json
from slime_core.types import PackedIds
from slime_core.versions import version_text

__all__ = [
    "ModelInfo",
    "Tokenized",
    "WorkerLoads",
    "encode_tokenize",
    "parse_loads",
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
    disaggregation_mode: str | None = None
    """``"prefill"``, ``"decode"``, or ``"null"`` for whole generations; ``None``: not told."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """``POST /tokenize``: the ids of a prompt, and the context length if it is told."""

    ids: PackedIds
    max_model_len: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLoads:
    """``GET /v1/loads``, over all data-parallel ranks: requests running and waiting, and the share
    of the KV cache in use, 0 to 1, of the rank that is fullest."""

    running: int
    waiting: int
    token_usage: float


class _ModelInfo(msgspec.Struct):
    # Not looked at, but it is what tells a model info from any other object.
    model_path: str
    weight_version: str | int | None = None
    reasoning_parser: str | None = None
    disaggregation_mode: Any = None


class _Tokenized(msgspec.Struct):
    tokens: list[int]
    max_model_len: int | None = None


class _RankLoad(msgspec.Struct):
    num_running_reqs: Annotated[int, msgspec.Meta(ge=0)]
    num_waiting_reqs: Annotated[int, msgspec.Meta(ge=0)]
    token_usage: float | None = None


class _Loads(msgspec.Struct):
    loads: Annotated[list[_RankLoad], msgspec.Meta(min_length=1)]


_LOADS: Final = msgspec.json.Decoder(_Loads)
_MODEL_INFO: Final = msgspec.json.Decoder(_ModelInfo)
_TOKENIZED: Final = msgspec.json.Decoder(_Tokenized)


def parse_model_info(body: bytes) -> ModelInfo:
    """Raises :class:`WorkerError` for what is no model info."""
    found = read_json(_MODEL_INFO, body, "model info")
    mode = found.disaggregation_mode
    return ModelInfo(
        weight_version=version_text(found.weight_version),
        reasoning_parser=found.reasoning_parser or None,
        disaggregation_mode=mode if isinstance(mode, str) else None,
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


def parse_loads(body: bytes) -> WorkerLoads:
    """Raises :class:`WorkerError` for what tells no load."""
    ranks = read_json(_LOADS, body, "load").loads
    return WorkerLoads(
        running=sum(rank.num_running_reqs for rank in ranks),
        waiting=sum(rank.num_waiting_reqs for rank in ranks),
        token_usage=max(rank.token_usage or 0.0 for rank in ranks),
    )
