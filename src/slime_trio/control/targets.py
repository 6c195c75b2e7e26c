"""Which workers a control call is for: all of them, or those that it names or describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from slime_core.errors import ClientError, WorkerError
from slime_core.fleet import Fleet, Worker
from slime_trio.control.outcomes import Target
from slime_trio.control.requests import ControlCall
from slime_trio.control.selectors import parse_selector
from slime_trio.worker_checks import details_of

if TYPE_CHECKING:
    from slime_trio.shared import Shared

__all__ = ["ENGINE", "facts_of", "find_worker", "target_of", "targets_of"]

ENGINE: Final = "sglang"
"""What all workers of this router are."""


def target_of(worker: Worker) -> Target:
    """The worker as one that is asked."""
    return Target(worker.id, worker.url)


def find_worker(fleet: Fleet, name: str) -> Worker:
    """The worker of this id or URL. Raises :class:`ClientError` (404, ``worker_not_found``)."""
    for worker in fleet.listed():
        if name in (worker.id, worker.url):
            return worker
    raise ClientError(
        f"no worker has the id or URL {name!r}",
        status=404,
        code="worker_not_found",
        param="worker",
    )


def targets_of(shared: Shared, call: ControlCall) -> list[Target]:
    """The workers that the call is for, in the order of their joining.

    Raises :class:`ClientError` for names or a selector that mean none, and :class:`WorkerError`
    (503, ``no_workers``) where there are none at all.
    """
    workers: Sequence[Worker] = shared.fleet.listed()
    if call.workers:
        named = {find_worker(shared.fleet, name).url for name in call.workers}
        workers = [worker for worker in workers if worker.url in named]
    if call.selector is not None:
        selector = parse_selector(call.selector)
        model = shared.served_model
        workers = [worker for worker in workers if selector.matches(facts_of(worker, model))]
        if not workers:
            raise ClientError(
                "no worker is meant by this selector",
                status=404,
                code="worker_not_found",
                param="selector",
            )
    if not workers:
        raise WorkerError(
            "no workers are registered", status=503, code="no_workers", retry_after_s=1.0
        )
    return [target_of(worker) for worker in workers]


def facts_of(worker: Worker, served_model: str) -> dict[str, str]:
    """What selectors can ask of a worker: its labels, and what the router knows itself."""
    details = details_of(worker)
    known = {
        "engine": ENGINE,
        "id": worker.id,
        "kind": worker.kind.value,
        "model_id": details.model_id or served_model,
        "url": worker.url,
        "weight_version": worker.version,
        "worker_type": worker.kind.value,
    }
    return dict(details.labels) | {key: value for key, value in known.items() if value is not None}
