"""Which worker, or which pair of workers, a request gets: the core's placing, as configured."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from slime_core.fleet import Worker, WorkerKind
from slime_core.placing import NoWorker, pages_for, place, target_worker
from slime_core.policies import Placement, Policy
from slime_core.transitions import SlotsTaken
from slime_core.types import CallId, WorkerUrl
from slime_trio.dispatch.wish import Wish
from slime_trio.policies import load_policy

if TYPE_CHECKING:
    from slime_trio.config import Settings
    from slime_trio.router import Router

__all__ = ["Place", "Places", "needs_of"]

_PAIR: Final = (WorkerKind.PREFILL, WorkerKind.DECODE)
_ONE: Final = (WorkerKind.REGULAR,)


class Place(Struct, frozen=True, kw_only=True):
    """A worker for a request; ``key`` and ``pages`` as in ``SlotsTaken``."""

    worker: Worker
    key: str | None
    pages: tuple[bytes, ...]

    def taken_by(self, calls: tuple[CallId, ...]) -> SlotsTaken:
        """That it is taken by these calls."""
        return SlotsTaken(worker=self.worker.url, calls=calls, key=self.key, pages=self.pages)


def needs_of(wish: Wish, excluded: frozenset[WorkerUrl]) -> Hashable:
    """What alone decides whether any worker can take a request."""
    return wish.target, wish.versions, wish.pairs, excluded


class Places:
    """Finds them. Raises :class:`~slime_trio.config.ConfigurationError` for unknown policies."""

    def __init__(self, args: Settings) -> None:
        self._args: Final = args
        self._policies: Final[dict[WorkerKind, Policy]] = {
            WorkerKind.REGULAR: load_policy(args.policy),
            WorkerKind.PREFILL: load_policy(args.prefill_policy),
            WorkerKind.DECODE: load_policy(args.decode_policy),
        }
        self._regular: Final = self._policies[WorkerKind.REGULAR]

    def find(
        self,
        router: Router,
        wish: Wish,
        excluded: frozenset[WorkerUrl],
        *,
        chance: Callable[[], float] | None,
    ) -> tuple[Place, ...]:
        """One worker, or a prefill and a decode worker. Changes nothing.

        Without ``chance`` it is only asked whether there are any. Raises :class:`NoWorker` (503;
        ``no_pair`` where one side is missing) and ``ClientError`` for a target that is unknown.
        """
        draw = chance or (lambda: 0.0)
        if self.kinds(router) is _ONE:
            return (self._one(router, wish, excluded, WorkerKind.REGULAR, draw()),)
        if not (wish.generates and wish.pairs):
            return (self._any(router, wish, excluded, draw()),)
        if wish.target is not None:
            target_worker(router.state, wish.target)  # Unknown, it is so whoever else is missing.
        self._require_both(router)
        prefill = self._one(router, wish, excluded, WorkerKind.PREFILL, draw())
        return prefill, self._fitting(router, wish, excluded, prefill.worker, draw())

    def kinds(self, router: Router) -> tuple[WorkerKind, ...]:
        """What a generation takes one worker of each: a pair's kinds, once half of one is there."""
        halves = self._args.pd_disaggregation or router.shared.fleet.has_halves
        return _PAIR if halves else _ONE

    def _require_both(self, router: Router) -> None:
        kinds = router.shared.fleet.kinds
        missing = [kind.value for kind in _PAIR if kind not in kinds]
        if missing:
            raise NoWorker(
                f"a generation takes a prefill and a decode worker, and no {missing[0]} worker is "
                "registered",
                may_come=False,
                code="no_pair",
            )

    def _fitting(
        self,
        router: Router,
        wish: Wish,
        excluded: frozenset[WorkerUrl],
        prefill: Worker,
        chance: float,
    ) -> Place:
        """A decode worker: of the same weights, if there is one, since it reads what prefill
        computed with them."""
        workers = router.state.fleet.workers.values()
        others = {one.url for one in workers if one.version != prefill.version}
        try:
            return self._one(router, wish, excluded | others, WorkerKind.DECODE, chance)
        except NoWorker:
            return self._one(router, wish, excluded, WorkerKind.DECODE, chance)

    def _any(
        self, router: Router, wish: Wish, excluded: frozenset[WorkerUrl], chance: float
    ) -> Place:
        """One worker of whatever kind, prefill workers first."""
        for kind in (WorkerKind.PREFILL, WorkerKind.REGULAR):
            try:
                return self._one(router, wish, excluded, kind, chance)
            except NoWorker:
                continue
        return self._one(router, wish, excluded, WorkerKind.DECODE, chance)

    def _one(
        self,
        router: Router,
        wish: Wish,
        excluded: frozenset[WorkerUrl],
        kind: WorkerKind,
        chance: float,
    ) -> Place:
        policy = self._regular if kind is WorkerKind.REGULAR else self._policies[kind]
        key = None if wish.key is None else _key(router, wish.key, kind)
        placement = Placement(
            key=key,
            sticky=self._args.affinity,
            chance=chance,
            prompt=wish.prompt,
            pages=pages_for(policy, wish.prompt),
            kind=kind,
            excluded=excluded,
            versions=wish.versions,
        )
        if wish.target is not None and self._is_meant(router, wish.target, kind):
            placement = replace(placement, target=wish.target)
        worker = place(router.state, policy, placement)
        return Place(worker=worker, key=key, pages=placement.pages)

    def _is_meant(self, router: Router, target: str, kind: WorkerKind) -> bool:
        """Of a pair only the side is bound to the target that has its kind."""
        meant = target_worker(router.state, target).kind
        return meant is kind or kind is WorkerKind.REGULAR or meant is WorkerKind.REGULAR


def _key(router: Router, key: str, kind: WorkerKind) -> str:
    """Sessions of one name are none of each other's in two tenants, nor on the sides of a pair."""
    side = "" if kind is WorkerKind.REGULAR else kind.value
    return f"{router.tenant}\n{side}\n{key}" if router.tenant or side else key
