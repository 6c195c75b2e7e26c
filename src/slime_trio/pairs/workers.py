"""The two workers of a pair, as far as a pair must know them, and what they do together."""

from __future__ import annotations

from typing import Protocol

from slime_core.disaggregation import GENERATION_PATHS
from slime_core.types import WorkerUrl

__all__ = ["Addressed", "PrefillWorker", "generates"]


class Addressed(Protocol):
    """A worker, as far as a pair must know it."""

    @property
    def url(self) -> WorkerUrl:
        """Its base URL."""


class PrefillWorker(Addressed, Protocol):
    """One that computes prompts."""

    @property
    def bootstrap_port(self) -> int | None:
        """Where decode workers find it; ``None``: its own default."""


def generates(path: str) -> bool:
    """Whether a request to this path is a generation, which takes a pair; all else takes one
    worker."""
    return path in GENERATION_PATHS
