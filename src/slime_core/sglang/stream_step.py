"""What one event of a worker's stream brought, and the two ways in which workers stream."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from slime_core.errors import SlimeError
from slime_core.sglang.answer import FinishReason
from slime_core.types import PackedIds

__all__ = ["Mode", "StreamStep"]

_NO_IDS: Final = PackedIds(b"")


class Mode(enum.Enum):
    """How a worker streams."""

    UNKNOWN = "unknown"
    """Nothing has been seen that would tell."""
    CUMULATIVE = "cumulative"
    """Every event repeats all that came before."""
    INCREMENTAL = "incremental"
    """Every event holds what is new."""


class StreamStep(msgspec.Struct, frozen=True, kw_only=True):
    """What one event brought. (A struct: each event makes one, and a dataclass costs tenfold.)"""

    raw: bytes
    """The client's view: the event's own bytes, or the event without logprobs."""
    sample: int | None = None
    """Which sample; ``None`` for errors and for the end of the stream."""
    text: str = ""
    """The new text."""
    ids: PackedIds = _NO_IDS
    """The new token ids."""
    logprobs: tuple[float | None, ...] = ()
    """The new logprobs; one per new id unless the sample has a problem."""
    top_logprobs: bytes = b""
    """The new ``output_top_logprobs`` as a raw JSON array; empty if there are none."""
    tokens: int = 0
    """How many tokens the sample has now."""
    cached_tokens: int = 0
    """How many tokens of the prompt the worker had cached, as far as it has told."""
    reasoning_tokens: int = 0
    """How many of the sample's tokens the worker counts as reasoning."""
    finish_reason: FinishReason | None = None
    """Set by the event that finishes the sample."""
    error: SlimeError | None = None
    """The worker reports an error instead of an answer."""
    done: bool = False
    """This is ``[DONE]``."""
