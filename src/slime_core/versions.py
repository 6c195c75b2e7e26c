"""Weight versions: SGLang's strings, their order, and which tokens each sampled.

SGLang names weights by strings (``"default"`` until an update says otherwise; trainers count
``"1"``, ``"2"``, …). Decimal strings are ordered as numbers and outrank every other name; other
names are ordered by when they were first seen.

How *old* something is, is measured in :attr:`VersionOrder.epoch`: it grows by the difference when
a higher number follows a number, and by one when a version of another kind takes the lead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from slime_core.errors import InvariantError

__all__ = [
    "NOT_SAMPLED",
    "UNNUMBERED",
    "VersionOrder",
    "VersionRun",
    "as_number",
    "runs_problem",
    "version_text",
]

NOT_SAMPLED: Final = -1
"""The integer version of a token that no model sampled."""
UNNUMBERED: Final = -2
"""The integer version of a token sampled by weights whose name is not a number."""

_MAX_DIGITS: Final = 18  # what fits a signed 64-bit integer on every trainer's side


@dataclass(frozen=True, slots=True)
class VersionRun:
    """Tokens ``start`` to ``end`` (exclusive) were sampled by ``version``; ``None``: not told."""

    version: str | None
    start: int
    end: int


def version_text(version: str | int | None) -> str | None:
    """A worker's version as SGLang's string: some workers tell an integer, or nothing."""
    return None if version is None else str(version)


def as_number(version: str | None) -> int:
    """A decimal version as its number; :data:`UNNUMBERED` for any other name or none."""
    if version is None or not version.isascii() or not version.isdigit():
        return UNNUMBERED
    return int(version) if len(version) <= _MAX_DIGITS else UNNUMBERED


def runs_problem(runs: tuple[VersionRun, ...], count: int) -> str | None:
    """Why ``runs`` do not cover ``count`` tokens without gap or overlap; ``None`` if they do.

    A run without tokens is none.
    """
    at = 0
    for run in runs:
        if run.start != at or run.end <= run.start:
            return f"version runs are not contiguous at token {at}"
        at = run.end
    return None if at == count else f"version runs cover {at} of {count} tokens"


class VersionOrder:
    """Every version seen, and which of them is the newest."""

    def __init__(self) -> None:
        self._arrival: dict[str, int] = {}
        self.newest: str | None = None
        self.epoch = 0

    def outranks(self, version: str, other: str | None) -> bool:
        """Whether ``version`` is newer than ``other``. Unseen names are newer than seen ones."""
        if other is None:
            return True
        return self._rank(version) > self._rank(other)

    def _rank(self, version: str) -> tuple[int, int]:
        number = as_number(version)
        if number != UNNUMBERED:
            return (1, number)
        return (0, self._arrival.get(version, len(self._arrival)))

    def note(self, version: str) -> None:
        """Take notice of a version that a worker holds or has sampled with."""
        if not isinstance(version, str):
            raise InvariantError("a version is a string")
        if version != self.newest and self.outranks(version, self.newest):
            self.epoch += self._distance(version)
            self.newest = version
        if as_number(version) == UNNUMBERED:
            self._arrival.setdefault(version, len(self._arrival))

    def _distance(self, version: str) -> int:
        old, new = as_number(self.newest), as_number(version)
        if self.newest is None:
            return 0
        return new - old if UNNUMBERED not in (old, new) else 1

    def facts(self) -> tuple[object, ...]:
        """What a digest of the state includes."""
        return (self.newest, self.epoch, tuple(self._arrival.items()))
