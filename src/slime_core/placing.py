"""Which worker gets a call: who may have it at all, what is due to affinity, and then the policy.

the kind asked for → not excluded → fit → weights as wished → room in its trial
      → the target, if one is named → the key's home, if it carries no more than it should
      → the policy
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec.structs import replace

from slime_core.errors import ClientError, InvariantError, WorkerError
from slime_core.fleet import Worker
from slime_core.health import Event, HealthLimits, step
from slime_core.policies import Placement, Policy, is_overloaded, reads_prefixes
from slime_core.prefixes import page_digests
from slime_core.state import RouterState
from slime_core.transitions import WorkerHealth
from slime_core.types import PackedIds, WorkerUrl
from slime_core.weights import ANY_VERSION

__all__ = ["TARGET_HEADER", "NoWorker", "health_change", "pages_for", "place", "target_worker"]

TARGET_HEADER: Final = "x-smg-target-worker"
"""The request header that names :attr:`slime_core.policies.Placement.target`."""
_RETRY_S: Final = 1.0
_OF_PAUSES: Final = frozenset({Event.CALL_FAILED, Event.PROBE_FAILED})
"""What befalls a worker merely because it is paused: calls and health checks time out."""


class NoWorker(WorkerError):
    """No worker can take the call (503). ``may_come``: one that could is only paused, stale, on
    trial or not yet contacted, so that waiting makes sense."""

    status = 503
    code = "no_fit_workers"

    def __init__(self, message: str, *, may_come: bool, code: str | None = None) -> None:
        super().__init__(message, code=code, retry_after_s=_RETRY_S)
        self.may_come = may_come


def health_change(
    state: RouterState, url: WorkerUrl, event: Event, now: float, limits: HealthLimits
) -> WorkerHealth | None:
    """What ``event`` at ``now`` seconds makes of a worker's health; ``None``: nothing.

    A paused worker is not sick: that it answers nothing is no failure of it. That it takes no
    connection is one.
    """
    worker = state.fleet.workers.get(url)
    if worker is None or (worker.paused and event in _OF_PAUSES):
        return None
    health = step(worker.health, event, now, limits)
    if health is worker.health:
        return None
    return WorkerHealth(worker=url, health=health, event=event)


def pages_for(policy: Policy, prompt: PackedIds) -> tuple[bytes, ...]:
    """The prompt's pages, for ``Placement`` and ``SlotsTaken``; none if ``policy`` reads none."""
    return page_digests(prompt) if reads_prefixes(policy) else ()


def target_worker(state: RouterState, target: str) -> Worker:
    """The worker that a client names: by its place in the list from 0, by id or by URL.

    Raises ``ClientError`` (400, naming the header) if there is none.
    """
    listed = state.fleet.listed()
    worker = state.fleet.named(target)
    if worker is None and target.isascii() and target.isdigit() and len(target) < len("1000000"):
        worker = listed[int(target)] if int(target) < len(listed) else None
    if worker is None:
        raise ClientError(
            f"{TARGET_HEADER} names no worker: it takes a place in the list of workers (from 0), "
            "a worker's id or its URL",
            param=TARGET_HEADER,
            code="worker_not_found",
        )
    return worker


def place(state: RouterState, policy: Policy, placement: Placement) -> Worker:
    """The worker for a call. Commit ``SlotsTaken`` with the placement's key and pages.

    Raises :class:`NoWorker` (503) if none can take it, ``ClientError`` (400) if the target that it
    names is unknown.
    """
    candidates: Sequence[Worker] = ()
    if placement.versions is ANY_VERSION and placement.target is None and not placement.excluded:
        candidates = state.fleet.ready(placement.kind)  # any fit worker of its kind will do
    candidates = candidates or _candidates(state, placement)
    if placement.key is not None and placement.sticky:
        home = _home(state, placement.key, candidates)
        if home is not None:
            return home
    if reads_prefixes(policy):
        prefixes = state.fleet.prefixes
        placement = replace(
            placement,
            matched=prefixes.matched(placement.pages or page_digests(placement.prompt)),
            typical_uncached=prefixes.typical_uncached,
        )
    chosen = policy(candidates, placement)
    if chosen not in candidates:
        raise InvariantError("the policy chose none of the workers that it was given")
    return chosen


def _home(state: RouterState, key: str, candidates: Sequence[Worker]) -> Worker | None:
    url = state.fleet.home(key)
    worker = None if url is None else state.fleet.workers.get(url)
    if worker is None or worker not in candidates or is_overloaded(worker, candidates):
        return None
    return worker


def _candidates(state: RouterState, placement: Placement) -> Sequence[Worker]:
    """Those that may have the call, at least one. Raises :class:`NoWorker`."""
    workers = state.fleet.listed()
    if placement.target is not None:
        workers = [target_worker(state, placement.target)]
    left = _of_kind(workers, placement)
    versions = state.versions
    hurdles: tuple[tuple[Callable[[Worker], bool], str], ...] = (
        (lambda one: one.url not in placement.excluded, "failed this request already"),
        (lambda one: one.is_fit, ""),
        (
            lambda one: placement.versions.admits(versions, one.version),
            f"holds other weights than asked for ({placement.versions})",
        ),
        (lambda one: one.has_room, "has as many calls as its trial allows"),
    )
    reasons: list[str] = []
    may_come = False
    for passes, reason in hurdles:
        failed = [one for one in left if not passes(one)]
        left = [one for one in left if passes(one)]
        reasons += [reason or one.unfit or "" for one in failed]
        may_come |= any(one.may_come for one in failed if one.url not in placement.excluded)
    if left:
        return left
    raise NoWorker(
        f"none of {len(reasons)} workers can take work: {'; '.join(sorted(set(reasons)))}",
        may_come=may_come,
    )


def _of_kind(workers: Sequence[Worker], placement: Placement) -> list[Worker]:
    left = [one for one in workers if one.kind is placement.kind]
    if left:
        return left
    kind = placement.kind.value
    if placement.target is not None:
        raise NoWorker(f"the worker named by {TARGET_HEADER} is not {kind}", may_come=False)
    what = "workers" if kind == "regular" else f"{kind} workers"
    raise NoWorker(f"no {what} are registered", may_come=False, code="no_workers")
