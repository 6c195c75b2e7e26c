"""Long work in threads, short work where it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

import trio

__all__ = ["INLINE_BYTES", "LIFTED", "LOGPROBS_COST", "RENDERING_COSTS", "is_short", "off_loop"]

P = ParamSpec("P")
T = TypeVar("T")

INLINE_BYTES: Final = 256 * 1024
"""JSON up to this size is read or written on the event loop: two milliseconds at most, where the
way to a thread and back costs a tenth of one."""

LIFTED: Final = 4
"""Where the long lists of JSON are lifted out of it, reading costs so many times less."""

LOGPROBS_COST: Final = 12
"""Showing logprobs in OpenAI's words, token by token, takes this many times as long as reading
them."""

RENDERING_COSTS: Final = 16
"""Rendering a body through a chat template takes this many times as long as reading it."""


def is_short(size: int) -> bool:
    """Whether work on ``size`` bytes is done on the event loop: then it needs no
    :func:`off_loop`, which costs a small request as much as some of its work does."""
    return size <= INLINE_BYTES


async def off_loop(
    size: int, work: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs
) -> T:
    """``work(...)``, in a thread if ``size`` bytes are too many for the event loop.

    ``work`` must read nothing that others change. Cancellation is noticed when it is done; short
    work is no checkpoint.
    """
    if is_short(size):
        return work(*arguments, **keywords)
    return await trio.to_thread.run_sync(lambda: work(*arguments, **keywords))
