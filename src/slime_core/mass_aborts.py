"""An abort of everything that was sent straight to the workers, told from aborts of single calls.

A trainer that ends a rollout tells each worker to abort all that it has, and then waits until the
workers have nothing left. It does not know of a queue in the router. What waits there must end
too, or it would be sent to the workers that were just emptied. All that can be seen of it here is
how calls end: a worker ends, unasked, all calls that it had in flight with finish reason
``abort``.

The first such end is a *sign*. What the worker had in flight at that moment is watched: once all
of it has ended likewise, everything was aborted. A few that came to their own end meanwhile do not
count against it (of many calls some always do); more than a tenth do, and so does a second without
a further sign. While it is not known yet, the places of the calls that were aborted are better
kept free: filled at once, they would bring to the worker just what should have ended.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Final

__all__ = ["AbortWatch", "Emptied", "Ending"]

_PATIENCE_S: Final = 1.0
_FEW: Final = 10
"""One in so many may come to its own end meanwhile."""


class Ending(enum.Enum):
    """How a request at a worker ended."""

    ABORTED = "aborted"
    """The worker aborted it, and nobody had asked for that here."""
    BY_ITSELF = "by itself"
    """In any way that the worker or the model chose."""
    UNTOLD = "untold"
    """Its client left, or had it aborted: that tells nothing of the worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emptied:
    """A worker was told to abort everything: first seen at ``since``; it hit ``tenants``."""

    since: float
    tenants: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Suspicion:
    """``left``: what the worker had in flight at the first sign and has not ended yet."""

    since: float
    deadline: float
    left: dict[Hashable, None] = field(default_factory=dict)
    tenants: dict[str, None] = field(default_factory=dict)
    aborted: int = 0
    others: int = 0

    @property
    def is_refuted(self) -> bool:
        return self.others * _FEW > self.aborted + len(self.left)


class AbortWatch:
    """Told of every end of a request at a worker; finds those that were aborted all at once."""

    def __init__(self) -> None:
        self._suspicions: Final[dict[Hashable, _Suspicion]] = {}

    @property
    def kept_free(self) -> int:
        """How many places had better not be given to anybody yet."""
        if not self._suspicions:
            return 0  # nearly always, and asked for every call
        return sum(one.aborted for one in self._suspicions.values())

    @property
    def next_deadline(self) -> float:
        """When :meth:`expire` has something to do, in seconds; infinity: never."""
        return min((one.deadline for one in self._suspicions.values()), default=math.inf)

    def ended(
        self,
        worker: Hashable,
        request: Hashable,
        ending: Ending,
        others: Iterable[Hashable],
        now: float,
        *,
        tenant: str = "",
    ) -> Emptied | None:
        """A request of ``tenant`` ended at ``worker``, which has ``others`` in flight.

        If everything was aborted: since when, and whose. What those waited for then was meant too.
        A tenant that had nothing there was not meant, as far as can be seen.
        """
        suspicion = self._suspicions.get(worker)
        if suspicion is None:
            if ending is not Ending.ABORTED:
                return None
            left = dict.fromkeys(one for one in others if one != request)
            suspicion = _Suspicion(since=now, deadline=now + _PATIENCE_S, left=left)
            self._suspicions[worker] = suspicion
        elif request not in suspicion.left:
            return None  # it came to the worker after the first sign
        else:
            del suspicion.left[request]
        if ending is Ending.ABORTED:
            suspicion.aborted += 1
            suspicion.tenants[tenant] = None
            suspicion.deadline = now + _PATIENCE_S
        elif ending is Ending.BY_ITSELF:
            suspicion.others += 1
        if not suspicion.left or suspicion.is_refuted:
            del self._suspicions[worker]
        if suspicion.left or suspicion.is_refuted:
            return None
        return Emptied(since=suspicion.since, tenants=tuple(suspicion.tenants))

    def expire(self, now: float) -> None:
        """Whatever shows no further sign was no abort of everything."""
        for worker, suspicion in list(self._suspicions.items()):
            if suspicion.deadline <= now:
                del self._suspicions[worker]
