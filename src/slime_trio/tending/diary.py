"""What tending remembers of one worker between two looks at it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Diary"]


@dataclass(slots=True, kw_only=True)
class Diary:
    """``busy`` are the chores under way, ``ended`` when each was last done, in seconds."""

    busy: set[str] = field(default_factory=set)
    ended: dict[str, float] = field(default_factory=dict)
    asked_at: int = -1
    """The sighting of new weights at which the worker was last asked for its own."""
    is_doubted: bool = False
    """Whether an answer told of other weights since it was asked."""
    tells_nothing: bool = False
    """Whether it answered, and named no weights."""
    refused: bool = False
    """Whether it took no connection since it was last contacted: it may have been restarted."""
    is_new: bool = False
    """Whether it has registered, or took no connection, since it last said whether it takes
    requests: what was told to it may be void."""
    said_paused: bool = False
    """Whether it said itself, since it is known as paused, that it takes nothing."""
    ready_in_a_row: int = 0
    """How often it said since that it does, although it is known as paused."""
    logprob_tries: int = 0
    """How often it was tried in vain, since it was contacted, to find out about its logprobs."""
    jitter: float = 0.0
    """A number in [0, 1) that moves the next health check."""

    def since(self, chore: str) -> float:
        """When ``chore`` was last done, in seconds; minus infinity if it never was."""
        return self.ended.get(chore, float("-inf"))

    def note_pause(self) -> None:
        """The worker is known as paused, or as not, from now on."""
        self.said_paused, self.ready_in_a_row, self.is_new = False, 0, False
