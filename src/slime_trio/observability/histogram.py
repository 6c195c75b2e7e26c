"""Histograms of durations, as Prometheus counts them."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Final

__all__ = ["SECONDS", "Histogram"]

SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
"""Upper bounds for generations: from a router's own milliseconds to an hour of reasoning."""


class Histogram:
    """How often a duration fell under each bound of :data:`SECONDS`, and the sum of all."""

    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self.total = 0.0
        """The sum of everything observed, in seconds."""

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        """How many were observed."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """``(upper bound, how many were not above it)``, the last bound being ``+Inf``."""
        bounds = [*map(str, SECONDS), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
