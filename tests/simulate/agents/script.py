"""What an agent is: a script that is asked for its next step once the last one has ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from tests.simulate.story import Ask, Delivered, Exchange

__all__ = ["Agent", "Retrieve", "Send", "Step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Requests that are sent side by side, after ``think_s``."""

    asks: tuple[Ask, ...]
    think_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieve:
    """One retrieval, after ``think_s``. A path under ``/trajectories/`` is a ``GET`` without body,
    all others are a ``POST`` of ``body`` as JSON."""

    path: str
    body: dict[str, Any]
    think_s: float = 0.0


Step = Send | Retrieve


class Agent(ABC):
    """One agent. ``name`` is its own in the whole run."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def next(self) -> Step | None:
        """The next step, or ``None`` if there is none any more.

        Call it at first, and again when all of the last step has ended and was told.
        """

    def ended(self, exchange: Exchange) -> None:  # noqa: B027 - not all want to know
        """One request of the last step has ended. ``exchange.ask`` is the object that was given."""

    def delivered(self, delivered: Delivered) -> None:  # noqa: B027 - not all want to know
        """The last step's retrieval has ended."""
