"""Which chores there are, and when each is due for a worker: pure functions of what is known.

Chores of one worker do not wait for each other: a health check that takes its 25 s delays no poll.
None is under way twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from slime_core.fleet import Worker, WorkerKind
from slime_core.health import Condition
from slime_core.logprob_kinds import LogprobKind
from slime_trio.config import Settings
from slime_trio.tending.diary import Diary
from slime_trio.worker_checks import check_plan

__all__ = ["DUE", "LOADS_S", "LOGPROBS_S", "LOGPROB_TRIES", "SOON_S", "Known"]

SOON_S: Final = 1.0
"""How long until something is asked again that should come about any moment."""
LOADS_S: Final = 2.0
"""How often loads are asked for, where a policy reads them."""
LOGPROBS_S: Final = 30.0
"""How long until it is tried again to find out about logprobs."""
LOGPROB_TRIES: Final = 3
_JITTER: Final = 0.1
"""Health checks are moved by up to this share of their interval, so that they spread out."""
_AT_ONCE: Final = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What decides when a chore is due. ``newest`` are the newest weights, and ``sighting`` is
    theirs; ``answered``: when a client's call last got an answer from the worker, in seconds."""

    args: Settings
    worker: Worker
    diary: Diary
    sighting: int
    newest: str | None
    answered: float
    wants_loads: bool


def _contact(known: Known) -> float | None:
    """New workers at once; those in quarantine when that is over. Never again and again: what a
    paused worker does not answer makes its quarantine no longer."""
    if not _is_out(known.worker):
        return None
    again = known.diary.since("contact") + SOON_S
    return max(again, known.worker.health.until or again)


def _poll(known: Known) -> float | None:
    """At once when new weights were seen; every second while the worker's own are too old, or in
    doubt; otherwise now and then."""
    if _is_out(known.worker):
        return None
    if known.diary.asked_at < known.sighting and known.worker.version != known.newest:
        return _AT_ONCE
    in_doubt = known.worker.confirmed < known.sighting and not known.diary.tells_nothing
    is_late = in_doubt or known.worker.stale
    often_s = min(SOON_S, known.args.poll_interval_s)
    last = max(known.diary.since("poll"), known.diary.since("contact"))
    return last + (often_s if is_late else known.args.poll_interval_s)


def _check(known: Known) -> float | None:
    """An interval after the last sign of life; never of a worker that is paused."""
    plan = check_plan(known.args, known.worker)
    if not plan.enabled or _is_out(known.worker) or known.worker.paused:
        return None
    last = max(known.diary.since("check"), known.diary.since("contact"), known.answered)
    return last + plan.interval_s * (1 - _JITTER + 2 * _JITTER * known.diary.jitter)


def _resume(known: Known) -> float | None:
    """Every second while paused."""
    if _is_out(known.worker) or not known.worker.paused:
        return None
    return known.diary.since("resume") + SOON_S


def _loads(known: Known) -> float | None:
    """Often, if anybody reads them."""
    if not known.wants_loads or _is_out(known.worker):
        return None
    return known.diary.since("loads") + LOADS_S


def _logprobs(known: Known) -> float | None:
    """At once when it gets work, and a few times again, until it is known."""
    worker, tries = known.worker, known.diary.logprob_tries
    is_told = worker.logprob_kind is not LogprobKind.UNKNOWN
    if is_told or tries >= LOGPROB_TRIES or not worker.is_fit or not known.args.probe_logprobs:
        return None
    if worker.kind is not WorkerKind.REGULAR:
        return None  # half of a pair generates nothing by itself
    return known.diary.since("logprobs") + (LOGPROBS_S if tries else 0.0)


def _is_out(worker: Worker) -> bool:
    """Whether it has to be contacted before anything else is asked of it."""
    return worker.health.condition in (Condition.JOINING, Condition.QUARANTINED)


DUE: Final[Mapping[str, Callable[[Known], float | None]]] = {
    "contact": _contact,
    "poll": _poll,
    "check": _check,
    "resume": _resume,
    "loads": _loads,
    "logprobs": _logprobs,
}
"""Chores by name: when each is due, in seconds; ``None``: not at all, as things stand."""
