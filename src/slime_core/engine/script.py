"""Scripted answers: what a test wants a worker to say, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from slime_core.engine.generation import Finish

__all__ = ["Reply", "Script", "in_turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The ids to answer with, one after the other.

    ``logprobs``: as long as ``ids``, reported exactly as stated; ``None`` reports the model's own
    (which is finite: the model gives every id of its vocabulary a probability). ``finish``: the
    reason once the ids are used up; ``None`` means ``length``. Stop tokens, stop strings and the
    request's limit end the answer earlier, as they would end a sampled one. Raises ``ValueError``
    for lengths that differ and for an empty answer.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    finish: Finish | None = None

    def __post_init__(self) -> None:
        if not self.ids:
            raise ValueError("a scripted answer needs at least one id")
        if self.logprobs is not None and len(self.logprobs) != len(self.ids):
            raise ValueError("a scripted answer needs one logprob per id")


Script = Callable[[Sequence[int]], Reply | None]
"""Chooses the reply for a prompt (its ids); ``None`` leaves the answer to the model."""


def in_turn(replies: Iterable[Reply]) -> Script:
    """A script that gives each reply once, in the order in which requests start to run."""
    waiting = iter(replies)
    return lambda _prompt_ids: next(waiting, None)
