"""Workers that get work at once, for tests that are about something else."""

from __future__ import annotations

from slime_core.health import READY, Event
from slime_core.transitions import WorkerAdded, WorkerHealth
from slime_core.types import WorkerUrl

__all__ = ["joined", "ready"]


def ready(url: str) -> WorkerHealth:
    """A worker is found to be well."""
    return WorkerHealth(worker=WorkerUrl(url), health=READY, event=Event.PROBE_PASSED)


def joined(url: str) -> tuple[WorkerAdded, WorkerHealth]:
    """A worker is registered and found to be well."""
    return WorkerAdded(worker=WorkerUrl(url)), ready(url)
