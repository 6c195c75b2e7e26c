"""Values as words: what stands behind a flag, in a sweep or in a TOML file, and back again.

A length or a time that is drawn by chance is written ``KIND:NUMBER:…`` (:data:`DISTRIBUTIONS`), a
plain number is always the same. Every parser raises ``ValueError`` with words for the user.
"""

from __future__ import annotations

import enum
from typing import Any, Final

from slime_core.errors import ClientError
from slime_core.simulation import (
    Choice,
    Distribution,
    Exponential,
    Fixed,
    Lognormal,
    Uniform,
)

__all__ = ["DISTRIBUTIONS", "count", "distribution", "number", "shown", "switch", "word_of"]

DISTRIBUTIONS: Final = (
    "N, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA, lognormal-mean:MEAN:SIGMA, exponential:MEAN, or "
    "choice:A:B:… (with weights: choice:A@3:B@1)"
)
"""How distributions are written."""

_MOST: Final = 2**63 - 1
_SWITCH: Final = {"on": True, "true": True, "yes": True, "1": True}
_SWITCH_OFF: Final = {"off": False, "false": False, "no": False, "0": False}


def count(word: str) -> int:
    """A whole number; ``1e6`` and ``1_000_000`` are some too."""
    try:
        value = int(word)
    except ValueError:
        told = number(word)
        if not told.is_integer():
            raise ValueError("expected a whole number") from None
        value = int(told)
    if abs(value) > _MOST:
        raise ValueError(f"expected at most {_MOST}")
    return value


def number(word: str) -> float:
    """A finite number."""
    try:
        value = float(word)
    except ValueError:
        raise ValueError("expected a number") from None
    if not float("-inf") < value < float("inf"):
        raise ValueError("expected a finite number")
    return value


def switch(word: str) -> bool:
    """On or off."""
    known = (_SWITCH | _SWITCH_OFF).get(word.strip().lower())
    if known is None:
        raise ValueError("expected on or off")
    return known


def distribution(word: str) -> Distribution:
    """A distribution, as :data:`DISTRIBUTIONS` says."""
    kind, *parts = word.split(":")
    try:
        if kind == "choice":
            return _choice(parts)
        values = [number(part) for part in parts]
        match kind, values:
            case "uniform", [low, high]:
                return Uniform(low, high)
            case "lognormal", [median, sigma]:
                return Lognormal(median, sigma)
            case "lognormal-mean", [mean, sigma]:
                return Lognormal.with_mean(mean, sigma)
            case "exponential", [mean]:
                return Exponential(mean)
            case _, []:
                return Fixed(number(kind))
            case _:
                raise ValueError(f"expected {DISTRIBUTIONS}")
    except ClientError as error:
        raise ValueError(str(error)) from error


def _choice(parts: list[str]) -> Choice:
    split = [part.partition("@") for part in parts]
    values = tuple(number(value) for value, _, _ in split)
    if not any(at for _, at, _ in split):
        return Choice(values)
    return Choice(values, tuple(number(weight) if at else 1.0 for _, at, weight in split))


def shown(value: Any) -> Any:
    """A value for JSON and for tables: numbers as they are, everything else as its words."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return int(value) if value.is_integer() else value
        case Fixed():
            return shown(value.value)
        case Uniform():
            return f"uniform:{shown(value.low)}:{shown(value.high)}"
        case Lognormal():
            return f"lognormal:{shown(value.median)}:{shown(value.sigma)}"
        case Exponential():
            return f"exponential:{shown(value.mean)}"
        case Choice():
            weights = [f"@{shown(weight)}" for weight in value.weights] or [""] * len(value.values)
            pairs = zip(value.values, weights, strict=True)
            return ":".join(["choice", *(f"{shown(one)}{weight}" for one, weight in pairs)])
        case enum.Enum():
            return value.value
        case tuple() | list():
            return [shown(one) for one in value]
        case _:
            raise TypeError(f"no words for {type(value).__name__}")


def word_of(value: object) -> str:
    """A TOML value as the word that a flag would have. A list's parts are split by blanks."""
    match value:
        case bool():
            return "on" if value else "off"
        case int() | float() | str():
            return str(value)
        case list():
            return " ".join(word_of(one) for one in value)
        case _:
            raise ValueError("expected a number, a text, a switch or a list of those")
