"""What was asked of the control plane and what workers did of it: one list each in the story."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["ERRAND", "Asked", "Served"]

ERRAND: Final = "x-sim-errand"
"""The header field by which workers know which request to the router they are being told of."""


@dataclass(slots=True, kw_only=True)
class Served:
    """One control request at one worker: the truth, whatever the worker told.

    ``at``: when it arrived; ``done_at``, ``done_s``: when what it asks for was done;
    ``None``: never.
    ``status``: what the worker answered, if it answered at all.
    """

    at: int
    worker: str
    path: str
    errand: int | None
    body: dict[str, Any]
    done_at: int | None = None
    done_s: float | None = None
    status: int | None = None


@dataclass(slots=True, kw_only=True)
class Asked:
    """One request to the router, and its answer.

    ``status`` is ``None`` where none came: the caller left, or the connection broke.
    ``registered``: the workers that were in the fleet at some time meanwhile, by id.
    """

    number: int
    kind: str
    method: str
    path: str
    body: dict[str, Any] | None
    at: int
    now: float
    ended_at: int | None = None
    status: int | None = None
    answer: Any = None
    left: bool = False
    waited: tuple[str, ...] = ()
    """Of an abort: the calls that it means and that waited in the router when it was sent, and
    waited without end until it was answered."""
    meant: tuple[str, ...] = ()
    """Of an abort: all calls that it means and that were there when it was sent."""
    problems: list[str] = field(default_factory=list)
    """What was seen to be wrong at once."""
