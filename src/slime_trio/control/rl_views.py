"""A worker as the RL interface of the SGLang Model Gateway shows it (``GET /v1/rl/workers``)."""

from __future__ import annotations

from typing import Any, Final

from slime_core.fleet import Worker
from slime_trio.control.targets import ENGINE
from slime_trio.worker_checks import details_of

__all__ = ["rl_worker"]

_CAPABILITIES: Final[dict[str, Any]] = {
    "source": "engine",
    "pause_modes": ["abort", "retract", "in_place"],
    "update_from": ["disk", "tensor", "distributed", "ipc"],
    "abort": True,
    "flush_cache": True,
    "sleep_wake": True,
    "reports_weight_version": True,
}
"""What SGLang can; a worker that cannot says so itself when it is asked."""


def rl_worker(worker: Worker, served_model: str) -> dict[str, Any]:
    """The entry of one worker. What only the engine knows, such as its parallel sizes, is asked of
    itself: ``/v1/rl/workers/{id}/engine/server_info``."""
    details = details_of(worker)
    return {
        "id": worker.id,
        "url": worker.url,
        "base_url": worker.url,
        "control_url": worker.url,
        "engine": ENGINE,
        "model_id": details.model_id or served_model,
        "worker_type": worker.kind.value,
        "role": worker.kind.value,
        "connection_mode": "http",
        "health": "healthy" if worker.unfit in (None, "paused") else "unhealthy",
        "unfit": worker.unfit,
        "paused": worker.paused,
        "weight_version": worker.version,
        "labels": dict(details.labels),
        "capabilities": _CAPABILITIES,
    }
