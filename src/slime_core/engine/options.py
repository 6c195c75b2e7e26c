"""What an engine is like, and how busy it is."""

from __future__ import annotations

from dataclasses import dataclass

from slime_core.engine.transfers import Role

__all__ = ["EngineOptions", "Load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the engine's hardware would be like.

    ``prefill_tokens_per_s`` 0 means infinitely fast; ``queue_max`` 0 means no limit;
    ``records_max`` is how many finished requests are remembered. ``role``: one half of a pair does
    only its part of each generation that has a room; ``transfer_timeout_s`` is how long it waits
    for the other half.
    """

    context_length: int = 32768
    max_running_requests: int = 256
    queue_max: int = 0
    s_per_token: float = 0.0
    prefill_tokens_per_s: float = 0.0
    prefix_cache_tokens: int = 200_000
    records_max: int = 100_000
    role: Role = Role.REGULAR
    transfer_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy the engine is; requests and tokens."""

    running: int
    waiting: int
    held: int
    waiting_uncached_tokens: int
    used_tokens: int
