"""Who is told of committed transitions.

Most observers care for few kinds of facts, and every request commits half a dozen. So an observer
says which kinds it wants, and a fact is told to those only who want it: a look into a table,
however many observe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from slime_core.state import RouterState
from slime_core.transitions import Transition

__all__ = ["Observer", "Observers"]

Kind = type[Transition]


class Observer(Protocol):
    """Reads committed transitions; it must not raise, await or commit.

    One that has an attribute ``kinds``, types of facts, is told of those only.
    """

    def __call__(self, fact: Transition, state: RouterState, /) -> None:
        """``fact`` was just applied to ``state``, which is one tenant's."""


class Observers:
    """All of them, told in the order in which they were added."""

    def __init__(self) -> None:
        self._all: list[tuple[Observer, frozenset[Kind]]] = []
        self._of: dict[Kind, tuple[Observer, ...]] = {}

    def __iter__(self) -> Iterator[Observer]:
        return iter([observer for observer, _ in self._all])

    def append(self, observer: Observer, *, of: Iterable[Kind] = ()) -> None:
        """Tell ``observer`` of facts of these kinds, or its own, from now on; else of all."""
        self._all.append((observer, frozenset(of or getattr(observer, "kinds", ()))))
        self._of = {}

    def extend(self, observers: Iterable[Observer]) -> None:
        """Tell each of these of everything."""
        for observer in observers:
            self.append(observer)

    def remove(self, observer: Observer) -> None:
        """Tell ``observer`` of nothing any more. Raises ``ValueError`` if it was told nothing."""
        place = [one for one, _ in self._all].index(observer)
        del self._all[place]
        self._of = {}

    def of(self, kind: Kind) -> tuple[Observer, ...]:
        """Who is told of facts of this kind."""
        found = self._of.get(kind)
        if found is None:
            found = tuple(one for one, kinds in self._all if not kinds or kind in kinds)
            self._of[kind] = found
        return found
