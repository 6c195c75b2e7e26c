"""Values of knobs as words of a command line, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

__all__ = ["Names", "Rates", "read", "written"]

Rates = tuple[tuple[str, float], ...]
"""Kinds by name, each with its measure; kinds that are not live are left out."""


Names = tuple[str, ...]
"""Words without a comma."""


def read(word: str, kind: Any) -> Any:
    """The value of a knob of type ``kind``. Raises ``ValueError`` that says what was expected."""
    return _READERS[kind](word)


def written(value: Any) -> str:
    """The word that :func:`read` makes this value of."""
    if isinstance(value, tuple):
        pairs = (one if isinstance(one, str) else f"{one[0]}:{one[1]}" for one in value)
        return ",".join(pairs)
    return str(value)


def _number(word: str) -> float:
    value = float(word)
    if not 0 <= value < float("inf"):
        raise ValueError("expected a number of at least 0")
    return value


def _count(word: str) -> int:
    value = int(word)
    if value < 0:
        raise ValueError("expected a whole number of at least 0")
    return value


def _truth(word: str) -> bool:
    values = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}
    if word.lower() not in values:
        raise ValueError("expected true or false")
    return values[word.lower()]


def _pairs(word: str) -> Rates:
    pairs = []
    for pair in filter(None, word.split(",")):
        name, colon, number = pair.partition(":")
        if not colon or not name:
            raise ValueError(f"expected KIND:NUMBER, not {pair!r}")
        pairs.append((name, _number(number)))
    return tuple(pairs)


def _names(word: str) -> Names:
    return tuple(filter(None, word.split(",")))


_READERS: Final[dict[Any, Callable[[str], Any]]] = {
    int: _count,
    float: _number,
    bool: _truth,
    str: str,
    Rates: _pairs,
    Names: _names,
}
