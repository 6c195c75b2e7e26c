"""What the reader of an answer must know of the request."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Asked"]


class Asked(Protocol):
    """What a request says about the form of its answer."""

    @property
    def samples(self) -> int:
        """How many answers were asked for."""

    @property
    def array(self) -> bool:
        """Whether they come as an array."""

    def shows_logprobs(self, sample: int) -> bool:
        """Whether the client asked for this sample's logprobs."""
