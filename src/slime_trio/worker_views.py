"""A worker as ``GET /workers`` and ``/get_server_info`` show it: the SGLang Model Gateway's fields,
and what is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from slime_core.fleet import Worker, WorkerKind
from slime_core.health import Condition
from slime_trio.router import Router
from slime_trio.worker_checks import details_of

__all__ = ["worker_entry", "worker_list"]

_OUT = (Condition.JOINING, Condition.QUARANTINED)


def worker_entry(router: Router, worker: Worker) -> dict[str, Any]:
    """One worker. Its key is not among it."""
    details = details_of(worker)
    entry: dict[str, Any] = {
        "id": worker.id,
        "url": worker.url,
        "model_id": details.model_id or router.shared.served_model,
        "priority": details.priority,
        "cost": details.cost,
        "worker_type": worker.kind.value,
        "is_healthy": worker.health.condition not in _OUT and worker.mismatch is None,
        "load": worker.load,
        "connection_mode": "http",
        "labels": details.labels,
        "metadata": details.labels,
        "disable_health_check": details.disable_health_check,
        "status": _status(worker),
        "reason": worker.unfit,
        "weight_version": worker.version,
        "stale": worker.stale,
        "paused": worker.paused,
        "logprob_kind": worker.logprob_kind.value,
        "health": {
            "condition": worker.health.condition.value,
            "failures": worker.health.failures,
            "quarantines": worker.health.quarantines,
            "allowance": worker.health.allowance,
        },
        "reported_load": _reported(worker),
    }
    if worker.bootstrap_port is not None:
        entry["bootstrap_port"] = worker.bootstrap_port
    return entry


def worker_list(router: Router, workers: Sequence[Worker]) -> dict[str, Any]:
    """Workers and their numbers by kind."""
    kinds = Counter(worker.kind for worker in workers)
    return {
        "workers": [worker_entry(router, worker) for worker in workers],
        "total": len(workers),
        "stats": {f"{kind.value}_count": kinds[kind] for kind in WorkerKind},
    }


def _status(worker: Worker) -> str:
    if worker.leaving:
        return "draining"
    if worker.health.condition is Condition.JOINING:
        return "pending"
    if worker.mismatch is not None:
        return "failed"
    return "ready" if worker.is_fit else "not_ready"


def _reported(worker: Worker) -> dict[str, Any] | None:
    told = worker.reported
    if told is None:
        return None
    return {"running": told.running, "waiting": told.waiting, "token_usage": told.token_usage}
