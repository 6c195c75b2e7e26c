"""Weight versions: SGLang's strings, their order, and which tokens each sampled.

SGLang names weights by strings (``"default"`` until an update says otherwise; trainers count
``"1"``, ``"2"``, …). Decimal strings are ordered as numbers and outrank every other name; other
names are ordered by when they were first seen, but for ``"default"``, which all outrank: an engine
that was restarted says so, whenever that is.

How *old* something is, is measured in :attr:`VersionOrder.epoch`: it grows by the difference when
a higher number follows a number, and by one when a version of another kind takes the lead.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from slime_core.errors import InvariantError

__all__ = [
    "NOT_SAMPLED",
    "UNNAMED",
    "UNNUMBERED",
    "VersionOrder",
    "VersionRun",
    "as_number",
    "runs_problem",
    "version_text",
]

NOT_SAMPLED: Final = -1
"""The integer version of a token that no model sampled."""
UNNAMED: Final = "default"
"""What SGLang calls weights that no update has named."""
UNNUMBERED: Final = -2
"""The integer version of a token sampled by weights whose name is not a number."""

_NAMES_MOST: Final = 4096  # versions whose names are no numbers; a trainer counts
_NEVER: Final = -1  # the epoch in which a name led that never did
_MAX_DIGITS: Final = 18  # what fits a signed 64-bit integer on every trainer's side


class VersionRun(Struct, frozen=True, gc=False):
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
    """Every version seen, and which of them is the newest.

    ``max_staleness``: how many epochs behind the newest a worker may be and still work; it is kept
    here because all who share the fleet share it too.

    A trainer may start over, with lower numbers or an old name: then the newest *falls back*. What
    outranks the new newest and was known before belongs to the *past* from then on; only a worker
    that is found to have changed to it makes it the newest again.
    """

    def __init__(self, *, max_staleness: int = 0) -> None:
        self.max_staleness: Final = max_staleness
        self.newest: str | None = None
        self.epoch = 0
        """Never goes back, whatever the versions do."""
        self.sighting = 0
        """Counts how often the newest became another: polls that began before know nothing of it.
        """
        self.unheld_since: float | None = None
        """Since when workers wait because nobody holds new enough weights (seconds; see
        :mod:`slime_core.weights`)."""
        self._past: str | None = None
        self._names: dict[str, tuple[int, int]] = {}
        self._next_name = 0

    def outranks(self, version: str, other: str | None) -> bool:
        """Whether ``version`` is newer than ``other``. Unseen names are newer than seen ones."""
        if other is None:
            return True
        return self._rank(version) > self._rank(other)

    def _rank(self, version: str) -> tuple[int, int]:
        number = as_number(version)
        if number != UNNUMBERED:
            return (2, number)
        if version == UNNAMED:
            return (0, 0)
        return (1, self._names.get(version, (self._next_name, 0))[0])

    def is_past(self, version: str) -> bool:
        """Whether it was outranked by what the fleet fell back from, and outranks the newest."""
        if self._past is None or not self.outranks(version, self.newest):
            return False
        return not self.outranks(version, self._past)

    def lag(self, version: str) -> int | None:
        """How many epochs ``version`` is older than the newest; ``None``: there is no telling.

        That is so of the past of a trainer that started over. A name that never was the newest
        counts as number 0, from which trainers count, and as older than all that was seen.
        """
        newest = self.newest
        if newest is None or version == newest:
            return 0
        if self.outranks(version, newest):
            return None
        old, new = as_number(version), as_number(newest)
        if UNNUMBERED not in (old, new):
            return new - old
        led = self._names.get(version, (0, _NEVER))[1]
        return max(1, self.epoch - led, new if led == _NEVER else 0)

    def note(self, version: str) -> None:
        """Take notice of a version that a worker holds or has sampled with."""
        if not isinstance(version, str):
            raise InvariantError("a version is a string")
        if version != self.newest and self.outranks(version, self.newest):
            if not self.is_past(version):
                self._past = None
            self._lead(version, self.epoch + self._distance(version))
        else:
            self.remember(version)

    def remember(self, version: str) -> None:
        """Take notice that a version exists, without making it the newest."""
        if as_number(version) == UNNUMBERED and version not in self._names:
            self._name(version, _NEVER)

    def fall_back(self, version: str) -> None:
        """The trainer started over: ``version`` is the newest from now on."""
        old = self.newest
        if old is None:
            raise InvariantError("there is nothing to fall back from")
        if self._past is None or self.outranks(old, self._past):
            self._past = old
        self._lead(version, self.epoch + 1)

    def _lead(self, version: str, epoch: int) -> None:
        self.newest, self.epoch, self.unheld_since = version, epoch, None
        self.sighting += 1
        if as_number(version) == UNNUMBERED:
            self._name(version, epoch)

    def _name(self, version: str, epoch: int) -> None:
        """A name, ranked by when it was first seen; old ones are forgotten beyond a number."""
        order = self._names.pop(version, (self._next_name, 0))[0]
        self._next_name = max(self._next_name, order + 1)
        self._names[version] = (order, epoch)
        if len(self._names) > _NAMES_MOST:
            del self._names[next(iter(self._names))]

    def _distance(self, version: str) -> int:
        old, new = as_number(self.newest), as_number(version)
        if self.newest is None:
            return 0
        return new - old if UNNUMBERED not in (old, new) else 1

    def facts(self) -> tuple[object, ...]:
        """What a digest of the state includes."""
        seen = (self.newest, self.epoch, self.sighting, self.unheld_since, self._past)
        return (*seen, self.max_staleness, tuple(self._names.items()))
