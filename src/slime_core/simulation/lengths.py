"""Lengths and times that are drawn by chance: how many tokens, how many seconds.

A distribution is a value that draws numbers with a generator it is given; it keeps nothing, so that
the same generator gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from math import exp, log, log1p
from typing import Final, Protocol, TypeAlias

from slime_core.errors import ClientError

__all__ = [
    "MOST",
    "Chance",
    "Chances",
    "Choice",
    "Distribution",
    "Exponential",
    "Fixed",
    "Lognormal",
    "Uniform",
    "draw_count",
    "require",
]

MOST: Final = 1e12
"""The largest length, time or rate that can be asked for: sums of them must stay finite."""


class Chance(Protocol):
    """A generator of random numbers, such as ``random.Random``."""

    def random(self) -> float:
        """The next number in [0, 1), all equally likely."""

    def gauss(self, mu: float, sigma: float, /) -> float:
        """The next number of the normal distribution."""


Chances: TypeAlias = Callable[[str], Chance]
"""Makes the generator of that name; the same name from the same seed gives the same numbers."""


def require(ok: bool, field: str, problem: str) -> None:
    """Raises ``ClientError`` that names ``field`` unless ``ok``."""
    if not ok:
        raise ClientError(f"{field} {problem}", param=field)


def _require_amounts(amounts: Iterable[float], field: str) -> None:
    require(all(0 <= one <= MOST for one in amounts), field, f"must be from 0 to {MOST:g}")


def _require_positive(amount: float, field: str) -> None:
    require(0 < amount <= MOST, field, f"must be positive and at most {MOST:g}")


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same. Raises ``ClientError``, as all of these do, for what cannot be a length."""

    value: float

    def __post_init__(self) -> None:
        _require_amounts([self.value], "value")

    @property
    def mean(self) -> float:
        """The mean."""
        return self.value

    def draw(self, chance: Chance) -> float:
        """The next number."""
        return self.value


@dataclass(frozen=True, slots=True)
class Uniform:
    """Anything from ``low`` to ``high``, all equally likely."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _require_amounts([self.low, self.high], "low and high")
        require(self.low <= self.high, "low", "must not be greater than high")

    @property
    def mean(self) -> float:
        """The mean."""
        return (self.low + self.high) / 2

    def draw(self, chance: Chance) -> float:
        """The next number."""
        return self.low + (self.high - self.low) * chance.random()


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Half lie above ``median``, some far above: the length of answers is often of this kind.

    ``sigma`` is the spread: the standard deviation of the logarithm. 16% lie above
    ``median * e**sigma``, 2% above ``median * e**(2 * sigma)``.
    """

    median: float
    sigma: float

    def __post_init__(self) -> None:
        _require_positive(self.median, "median")
        require(0 <= self.sigma <= 10, "sigma", "must be from 0 to 10")

    @classmethod
    def with_mean(cls, mean: float, sigma: float) -> Lognormal:
        """The one with this mean, which lies above its median."""
        _require_positive(mean, "mean")
        require(0 <= sigma <= 10, "sigma", "must be from 0 to 10")
        return cls(mean * exp(-sigma * sigma / 2), sigma)

    @property
    def mean(self) -> float:
        """The mean."""
        return self.median * exp(self.sigma * self.sigma / 2)

    def draw(self, chance: Chance) -> float:
        """The next number."""
        return exp(chance.gauss(log(self.median), self.sigma))


@dataclass(frozen=True, slots=True)
class Exponential:
    """The time until something that is as likely at every moment: arrivals, failures."""

    mean: float

    def __post_init__(self) -> None:
        _require_amounts([self.mean], "mean")

    def draw(self, chance: Chance) -> float:
        """The next number."""
        return -self.mean * log1p(-chance.random())


@dataclass(frozen=True, slots=True)
class Choice:
    """One of ``values``; ``weights`` (none: all equal) say how likely each is."""

    values: tuple[float, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.values), "values", "must not be empty")
        _require_amounts(self.values, "values")
        _require_amounts(self.weights, "weights")
        if self.weights:
            require(len(self.weights) == len(self.values), "weights", "must be as many as values")
            require(sum(self.weights) > 0, "weights", "must not all be 0")

    @property
    def mean(self) -> float:
        """The mean."""
        weights = self._weights
        return sum(map(float.__mul__, map(float, self.values), weights)) / sum(weights)

    @property
    def _weights(self) -> tuple[float, ...]:
        return tuple(map(float, self.weights or (1,) * len(self.values)))

    def draw(self, chance: Chance) -> float:
        """The next number."""
        bounds = list(accumulate(self._weights))
        place = chance.random() * bounds[-1]
        return next((v for v, bound in zip(self.values, bounds, strict=True) if place < bound))


Distribution: TypeAlias = Fixed | Uniform | Lognormal | Exponential | Choice


def draw_count(distribution: Distribution, chance: Chance, least: int = 1) -> int:
    """The next number as a count: rounded, and at least ``least``."""
    if isinstance(distribution, Uniform):
        # Rounded draws would come out as either end half as often as what lies between.
        low, high = round(distribution.low), round(distribution.high)
        return max(least, min(high, low + int((high - low + 1) * chance.random())))
    return max(least, round(distribution.draw(chance)))
