"""Random generators by name: leaving out one part of a run does not change the others."""

from __future__ import annotations

import random

__all__ = ["derive"]


def derive(seed: int, *names: object) -> random.Random:
    """The generator that ``names`` (their words) have under ``seed``, the same in every process."""
    return random.Random("/".join(map(str, (seed, *names))))
