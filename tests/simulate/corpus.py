"""The seeds that run with every change, and those that once found something.

``CORE`` and ``SHELL`` are fixed: a change is judged by the same runs as the one before it. A seed
that found a bug is added to ``FOUND`` as the knobs that shrinking left, with what it had found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["CORE", "FOUND", "SEEDS", "SHELL", "Found"]

CORE: Final[Sequence[int]] = range(300)
SHELL: Final[Sequence[int]] = (*range(90), 95, 106, 115, 180, 182)
"""The last ones are there for faults that are rare."""
SEEDS: Final = {"core": CORE, "shell": SHELL}


class Found(NamedTuple):
    """A regression. ``settings`` as ``--quiet-knobs --set …`` takes them."""

    what: str
    harness: str
    seed: int
    settings: tuple[str, ...]


FOUND: Final[tuple[Found, ...]] = ()
