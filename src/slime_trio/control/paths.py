"""Every control path of SGLang and how the router serves it, as one table.

``Kind`` says what a call does to the router besides what it does to the workers; the service
(:mod:`slime_trio.control.service`) has one method for each.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

__all__ = ["PATHS", "How", "Kind", "how_of"]


class Kind(enum.Enum):
    """What becomes of a call to a control path."""

    PLAIN = "plain"
    """Told to all workers that are meant; nothing else happens."""
    ABORT = "abort"
    """Told to those that hold the call."""
    PAUSE = "pause"
    """A paused worker gets no new work; a lease ends the pause."""
    CONTINUE = "continue"
    FLUSH = "flush"
    """The worker's prefix cache is empty."""
    WEIGHTS = "weights"
    """Excludes new dispatches, and may bring a new version."""
    VERSION = "version"
    """The same, but never aborts what is in flight unless asked."""
    RELEASE = "release"
    """A worker without its memory gets no new work."""
    RESUME = "resume"
    OPEN_SESSION = "open session"
    """One worker holds it."""
    CLOSE_SESSION = "close session"
    LOADS = "loads"
    """The answers become one."""
    METRICS = "metrics"
    HEALTH = "health"
    """Paused workers are left out: they cannot pass."""
    ROLE = "role"
    """One worker, taken out of service meanwhile."""


@dataclass(frozen=True, slots=True)
class How:
    """``seconds`` is what a worker may take; ``asked`` the worker's own path, if it is another."""

    kind: Kind
    methods: tuple[str, ...]
    seconds: float
    asked: str = ""


_GET: Final = ("GET",)
_POST: Final = ("POST",)
_BOTH: Final = ("GET", "POST")

_AT_ONCE_S: Final = 5.0
_SOON_S: Final = 60.0
_LONG_S: Final = 600.0
"""Weights: a trainer may need minutes for its side of a broadcast."""

PATHS: Final[dict[str, How]] = {
    "abort_request": How(Kind.ABORT, _POST, _AT_ONCE_S),
    "pause_generation": How(Kind.PAUSE, _POST, _LONG_S),
    "continue_generation": How(Kind.CONTINUE, _POST, _SOON_S),
    "flush_cache": How(Kind.FLUSH, _BOTH, _LONG_S),
    "update_weights_from_disk": How(Kind.WEIGHTS, _POST, _LONG_S),
    "update_weights_from_tensor": How(Kind.WEIGHTS, _POST, _LONG_S),
    "update_weights_from_distributed": How(Kind.WEIGHTS, _POST, _LONG_S),
    "update_weights_from_ipc": How(Kind.WEIGHTS, _POST, _LONG_S),
    "begin_weight_update": How(Kind.PLAIN, _POST, _LONG_S),
    "end_weight_update": How(Kind.PLAIN, _POST, _LONG_S),
    "init_weights_update_group": How(Kind.PLAIN, _POST, _LONG_S),
    "destroy_weights_update_group": How(Kind.PLAIN, _POST, _LONG_S),
    "init_weights_send_group_for_remote_instance": How(Kind.PLAIN, _POST, _LONG_S),
    "send_weights_to_remote_instance": How(Kind.PLAIN, _POST, _LONG_S),
    "update_weight_version": How(Kind.VERSION, _POST, _LONG_S),
    "get_weights_by_name": How(Kind.PLAIN, _BOTH, _LONG_S),
    "weights_checker": How(Kind.PLAIN, _BOTH, _LONG_S),
    "release_memory_occupation": How(Kind.RELEASE, _BOTH, _LONG_S),
    "resume_memory_occupation": How(Kind.RESUME, _BOTH, _LONG_S),
    "load_lora_adapter": How(Kind.PLAIN, _POST, _LONG_S),
    "load_lora_adapter_from_tensors": How(Kind.PLAIN, _POST, _LONG_S),
    "unload_lora_adapter": How(Kind.PLAIN, _POST, _LONG_S),
    "start_profile": How(Kind.PLAIN, _BOTH, _SOON_S),
    "stop_profile": How(Kind.PLAIN, _BOTH, _LONG_S),
    "start_expert_distribution_record": How(Kind.PLAIN, _BOTH, _SOON_S),
    "stop_expert_distribution_record": How(Kind.PLAIN, _BOTH, _SOON_S),
    "dump_expert_distribution_record": How(Kind.PLAIN, _BOTH, _LONG_S),
    "slow_down": How(Kind.PLAIN, _BOTH, _SOON_S),
    "set_internal_state": How(Kind.PLAIN, _POST, _SOON_S),
    "freeze_gc": How(Kind.PLAIN, _BOTH, _SOON_S),
    "configure_logging": How(Kind.PLAIN, _BOTH, _SOON_S),
    "clear_hicache_storage_backend": How(Kind.PLAIN, _BOTH, _SOON_S),
    "open_session": How(Kind.OPEN_SESSION, _BOTH, _SOON_S),
    "close_session": How(Kind.CLOSE_SESSION, _BOTH, _SOON_S),
    "pd_role_switch": How(Kind.ROLE, _POST, _LONG_S),
    "get_loads": How(Kind.LOADS, _GET, _SOON_S, "v1/loads"),
    "v1/loads": How(Kind.LOADS, _GET, _SOON_S),
    "engine_metrics": How(Kind.METRICS, _GET, _SOON_S, "metrics"),
    "health_generate": How(Kind.HEALTH, _GET, _SOON_S),
}
"""Path without its slash → how it is served. The documentation's table is this one."""

_UNKNOWN: Final = How(Kind.PLAIN, (), _LONG_S)
_ANY: Final = {Kind.LOADS, Kind.METRICS, Kind.HEALTH, Kind.OPEN_SESSION, Kind.CLOSE_SESSION}


def how_of(path: str) -> How:
    """How a path is served when single workers are named: whatever is not in the table is told to
    them as it is, and so is what would otherwise be merged."""
    how = PATHS.get(path, _UNKNOWN)
    return _UNKNOWN if how.kind in _ANY else how
