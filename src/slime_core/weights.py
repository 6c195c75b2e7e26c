"""Which weights the workers hold, which of them are too old to work with, and who asks for which.

The router is told of updates by nobody: it learns versions from answers and from polls.

* An answer tells what its *last* token was sampled with. It began earlier, so it proves only that
  the worker held these weights *then*: newer ones than known are believed at once, older ones
  leave doubt, which a poll must settle (:func:`unsettled`).
* A new newest version is a *sighting*. Nothing polled before it says anything about who lags
  behind, so all are polled at once; a poll that began since and finds older weights *confirms*
  them. ``stale`` means that, and no more: in a normal update most workers are never stale, and a
  worker that came back with old weights stays stale until its version matches.
* If nobody holds weights that are new enough, while others wait with older ones, then after a
  grace time the newest *falls back* to theirs: their trainer started over. Who is merely paused
  holds what it holds: whole fleets are paused for as long as the trainer computes.
"""

from __future__ import annotations

import enum
from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slime_core.errors import ClientError
from slime_core.fleet import Fleet, Worker, WorkerKind
from slime_core.health import Condition
from slime_core.transitions import NewestUnheld, VersionFellBack, VersionSeen
from slime_core.versions import VersionOrder

if TYPE_CHECKING:
    from slime_core.state import RouterState

__all__ = [
    "ANY_VERSION",
    "VERSION_HEADER",
    "Demand",
    "VersionWish",
    "fall_back",
    "fall_back_deadline",
    "judge",
    "parse_version_wish",
    "see",
    "unsettled",
]

VERSION_HEADER: Final = "x-smg-version-policy"
"""The request header that :func:`parse_version_wish` reads."""
_LONGEST_WISH: Final = 256
_MOST_DIGITS: Final = 9


# -- what is learnt ----------------------------------------------------------------------------


def see(fleet: Fleet, versions: VersionOrder, fact: VersionSeen) -> None:
    """Apply ``fact``: for :class:`slime_core.state.RouterState` only."""
    worker = fleet.workers.get(fact.worker)
    known = None if worker is None else worker.version
    before = versions.sighting
    # A poll that began before the newest became another is worth no more than an answer.
    is_asked = fact.sighting is not None and fact.sighting >= before
    if _is_news(versions, fact.version, known, is_asked=is_asked):
        versions.note(fact.version)
    else:
        versions.remember(fact.version)
    if worker is None:
        return
    if is_asked:
        _hold(fleet, worker, fact.version)
        # Who brings the news itself needs not be asked again.
        worker.confirmed = versions.sighting
    elif known is None or _is_newer(versions, fact.version, known):
        _hold(fleet, worker, fact.version)
    elif known != fact.version:
        worker.confirmed = -1
    if versions.sighting != before:
        judge(fleet, versions)
    else:
        _judge_one(worker, versions)
        fleet.revised()


def _is_newer(versions: VersionOrder, version: str, known: str) -> bool:
    return versions.outranks(version, known) and not versions.is_past(version)


def _is_news(versions: VersionOrder, version: str, known: str | None, *, is_asked: bool) -> bool:
    """Whether the version may become the newest. The past may not, unless a worker that was asked
    has turned to it."""
    if not versions.is_past(version):
        return True
    return is_asked and known not in (None, version)


def _hold(fleet: Fleet, worker: Worker, version: str) -> None:
    if worker.version != version:
        worker.version = version
        # What it computed with other weights is of no use to these.
        fleet.prefixes.forget(worker.url)


def judge(fleet: Fleet, versions: VersionOrder) -> None:
    """Say of every worker anew whether it is stale: likewise for ``RouterState`` only."""
    for worker in fleet.workers.values():
        _judge_one(worker, versions)
    fleet.revised()


def _judge_one(worker: Worker, versions: VersionOrder) -> None:
    lag = 0 if worker.version is None else versions.lag(worker.version)
    if lag is not None and lag <= versions.max_staleness:
        worker.stale = False
    elif worker.confirmed >= versions.sighting:
        worker.stale = True


def unsettled(state: RouterState) -> list[Worker]:
    """The workers to poll at once: the newest became another, or answers left doubt, since they
    were asked. None that is out of reach, or that tells no version."""
    conditions = (Condition.READY, Condition.TRIAL)
    return [
        one
        for one in state.fleet.listed()
        if one.version is not None
        and one.confirmed < state.versions.sighting
        and one.health.condition in conditions
    ]


# -- a trainer that starts over ----------------------------------------------------------------


def fall_back(
    state: RouterState, now: float, grace_s: float
) -> NewestUnheld | VersionFellBack | None:
    """What follows from nobody holding new enough weights, if anything does at ``now`` seconds.

    Ask again after applying it, whenever health or versions changed, and at
    :func:`fall_back_deadline`.
    """
    versions = state.versions
    if versions.newest is None:
        return None
    heir = None if _is_held(state) else _heir(state)
    since = versions.unheld_since
    if heir is None:
        return None if since is None else NewestUnheld(since=None)
    if since is None:
        return NewestUnheld(since=now)
    return VersionFellBack(version=heir) if now >= since + grace_s else None


def fall_back_deadline(state: RouterState, grace_s: float) -> float | None:
    """When :func:`fall_back` must be asked next, in seconds; ``None``: when something happens."""
    since = state.versions.unheld_since
    return None if since is None else since + grace_s


def _is_held(state: RouterState) -> bool:
    """Whether those who work, or are paused, may generate with the weights that they hold."""
    versions = state.versions
    kinds = set[WorkerKind]()
    for one in state.fleet.workers.values():
        if _works(one) and one.version is not None:
            lag = versions.lag(one.version)
            if lag is not None and lag <= versions.max_staleness:
                kinds.add(one.kind)
    return _can_generate(kinds)


def _can_generate(kinds: Set[WorkerKind]) -> bool:
    """A worker does it alone, or a prefill and a decode worker do it together."""
    return WorkerKind.REGULAR in kinds or kinds >= {WorkerKind.PREFILL, WorkerKind.DECODE}


def _works(worker: Worker) -> bool:
    """Whether nothing is wrong with it but its weights, and that it may be paused."""
    is_well = worker.health.condition in (Condition.READY, Condition.TRIAL)
    return is_well and worker.mismatch is None and not worker.leaving


def _heir(state: RouterState) -> str | None:
    """The newest of the versions with which workers could generate that only their weights keep
    from work."""
    waiting: dict[str, set[WorkerKind]] = {}
    for one in state.fleet.workers.values():
        if _works(one) and not one.paused and one.version is not None:
            waiting.setdefault(one.version, set()).add(one.kind)
    heir: str | None = None
    for version, kinds in waiting.items():
        if _can_generate(kinds) and state.versions.outranks(version, heir):
            heir = version
    return heir


# -- what a request asks for -------------------------------------------------------------------


class Demand(enum.Enum):
    """What a request demands of the weights."""

    ANY = "any"
    LATEST_ONLY = "latest-only"
    MIN_VERSION = "min-version"
    MAX_STALENESS = "max-staleness"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionWish:
    """Which weights a request may be answered with. It only narrows what the fleet allows.

    ``version`` with ``MIN_VERSION``, ``epochs`` with ``MAX_STALENESS``.
    """

    demand: Demand = Demand.ANY
    version: str = ""
    epochs: int = 0

    def __str__(self) -> str:
        """As in the header."""
        match self.demand:
            case Demand.MIN_VERSION:
                return f"{self.demand.value}:{self.version}"
            case Demand.MAX_STALENESS:
                return f"{self.demand.value}:{self.epochs}"
            case _:
                return str(self.demand.value)

    def admits(self, versions: VersionOrder, version: str | None) -> bool:
        """Whether a worker that holds ``version`` (``None``: it never told) may answer."""
        if self.demand is Demand.ANY:
            return True
        if version is None:
            return versions.newest is None and self.demand is not Demand.MIN_VERSION
        if self.demand is Demand.MIN_VERSION:
            return version == self.version or versions.outranks(version, self.version)
        lag = versions.lag(version)
        return lag is not None and lag <= self.epochs


ANY_VERSION: Final = VersionWish()
"""A request that asks for nothing."""


def parse_version_wish(text: str | None) -> VersionWish:
    """The header's ``any | latest-only | min-version:v | max-staleness:k``; ``None``: any.

    Raises ``ClientError`` that names the header.
    """
    if text is None:
        return ANY_VERSION
    word, _, rest = (part.strip() for part in text.partition(":"))
    if len(text) <= _LONGEST_WISH:
        if text.strip() in (Demand.ANY.value, Demand.LATEST_ONLY.value):
            return VersionWish(demand=Demand(word))
        if word == Demand.MIN_VERSION.value and rest:
            return VersionWish(demand=Demand.MIN_VERSION, version=rest)
        is_number = rest.isascii() and rest.isdigit() and len(rest) <= _MOST_DIGITS
        if word == Demand.MAX_STALENESS.value and is_number:
            return VersionWish(demand=Demand.MAX_STALENESS, epochs=int(rest))
    raise ClientError(
        f"{VERSION_HEADER} must be any, latest-only, min-version:<version> or "
        "max-staleness:<number of versions>",
        param=VERSION_HEADER,
    )
