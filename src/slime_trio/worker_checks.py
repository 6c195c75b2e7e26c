"""How often, how patiently and how strictly one worker is checked.

The settings hold for all workers; what a worker's registration asks for goes before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from slime_core.enlistment import Details, read_details
from slime_core.fleet import Worker
from slime_core.health import HealthLimits
from slime_trio.config import Settings

__all__ = ["CheckPlan", "check_plan", "details_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckPlan:
    """``enabled``: whether health checks are made, every ``interval_s``, each for at most
    ``timeout_s``; ``limits``: what failures lead to, of checks and of calls."""

    enabled: bool
    interval_s: float
    timeout_s: float
    limits: HealthLimits


def check_plan(args: Settings, worker: Worker) -> CheckPlan:
    """The plan for this worker."""
    return _plan(args, worker.extras)


def details_of(worker: Worker) -> Details:
    """What its registration said."""
    return _details(worker.extras)


@lru_cache(maxsize=1024)
def _details(extras: bytes) -> Details:
    return read_details(extras)


@lru_cache(maxsize=1024)
def _plan(args: Settings, extras: bytes) -> CheckPlan:
    said = _details(extras)
    return CheckPlan(
        enabled=args.health_check and not said.disable_health_check,
        interval_s=said.health_check_interval_secs or args.health_check_interval_s,
        timeout_s=said.health_check_timeout_secs or args.health_check_timeout_s,
        limits=HealthLimits(
            failure_threshold=said.health_failure_threshold or args.failure_threshold,
            quarantine_s=args.quarantine_s,
        ),
    )
