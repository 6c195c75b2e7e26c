"""Whether a worker can work: one state machine for quarantine, circuit breaking and slow start.

A worker that fails is left alone for a while (``QUARANTINED``), then looked at, then given one
call, two, four, … (``TRIAL``) until it has shown that it carries its share again (``READY``).
Nothing here knows *why* a worker is asked: calls, health checks and polls all tell the same few
events. What an application answers, 400 or 500, is an answer (``ANSWERED``) and never a failure;
how many tokens it took is no concern of this module.

The machine is :data:`TABLE`: what every event does in every condition. Events that arrive late,
from calls or probes that began before the condition did, are named there as much as any other;
thousands of calls that break off with one worker put it into quarantine once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

__all__ = [
    "JOINING",
    "READY",
    "TABLE",
    "Condition",
    "Event",
    "Health",
    "HealthLimits",
    "next_look",
    "step",
]


class Condition(enum.Enum):
    """What is thought of a worker."""

    JOINING = "joining"
    """Registered and not yet contacted: it gets no work."""
    READY = "ready"
    """It gets work."""
    TRIAL = "trial"
    """It was in quarantine and answers again: it gets as much work as its allowance says."""
    QUARANTINED = "quarantined"
    """It failed: no work, and nobody looks at it until its time is over."""


class Event(enum.Enum):
    """What was learnt of a worker."""

    ANSWERED = "answered"
    """A call got an HTTP answer, whatever its status."""
    CALL_FAILED = "call_failed"
    """A call's connection was lost, or its time was over, before the answer's first byte."""
    UNREACHABLE = "unreachable"
    """It took no connection."""
    PROBE_PASSED = "probe_passed"
    """First contact, or a health check, went well."""
    PROBE_FAILED = "probe_failed"
    """It took a connection, and the health check did not go well."""
    REGISTERED = "registered"
    """Someone says that it is there: what it did before is forgiven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """``failure_threshold``: failures in a row that end in quarantine. ``first_s`` and
    ``quarantine_s``: the first quarantine, in seconds, and the longest; each is twice the one
    before it. ``growth``: by how much an answer multiplies the allowance of a worker in trial,
    which is ready once that would be ``enough`` calls in flight."""

    failure_threshold: int = 3
    first_s: float = 1.0
    quarantine_s: float = 30.0
    growth: int = 2
    enough: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """A worker's condition, and what led to it.

    ``failures`` in a row; ``quarantines`` since it was last ready, which set the length of the
    next; ``until`` when nobody looks at it (seconds; ``QUARANTINED`` only); ``allowance``: calls
    that it may have in flight (``TRIAL`` only).
    """

    condition: Condition = Condition.JOINING
    failures: int = 0
    quarantines: int = 0
    until: float | None = None
    allowance: int | None = None


JOINING: Final = Health()
"""A worker that was just registered."""
READY: Final = Health(condition=Condition.READY)
"""A worker without any fault."""


def step(health: Health, event: Event, now: float, limits: HealthLimits) -> Health:
    """The health after ``event`` at ``now`` seconds; ``health`` itself where that changes nothing.

    ``now`` is of the same clock as every other ``now`` and never earlier than the last.
    """
    return TABLE[health.condition, event](health, now, limits)


def next_look(healths: Iterable[Health]) -> float | None:
    """When the next quarantine is over, in seconds; ``None`` if there is none."""
    return min((one.until for one in healths if one.until is not None), default=None)


# -- what an event does ----------------------------------------------------------------------


def _stays(health: Health, now: float, limits: HealthLimits) -> Health:
    """It tells nothing new."""
    return health


def _proves(health: Health, now: float, limits: HealthLimits) -> Health:
    """A worker at work works: the row of failures has ended."""
    return health if health == READY else READY


def _fails(health: Health, now: float, limits: HealthLimits) -> Health:
    """One failure more; one too many ends in quarantine."""
    failures = health.failures + 1
    if failures >= limits.failure_threshold:
        return _confines(health, now, limits)
    return replace(health, failures=failures)


def _confines(health: Health, now: float, limits: HealthLimits) -> Health:
    """Into quarantine, each time for twice as long."""
    length_s = min(limits.quarantine_s, limits.first_s)
    for _ in range(health.quarantines):
        length_s = min(limits.quarantine_s, 2 * length_s)
        if length_s == limits.quarantine_s:
            break
    return Health(
        condition=Condition.QUARANTINED,
        quarantines=health.quarantines + 1,
        until=now + length_s,
    )


def _is_early(health: Health, now: float) -> bool:
    """Whether a probe began before its worker was put into quarantine: it says nothing of now."""
    return health.until is not None and now < health.until


def _confines_again(health: Health, now: float, limits: HealthLimits) -> Health:
    """The look at the end of a quarantine was in vain."""
    return health if _is_early(health, now) else _confines(health, now, limits)


def _returns(health: Health, now: float, limits: HealthLimits) -> Health:
    """The look at the end of a quarantine went well."""
    if _is_early(health, now):
        return health
    return Health(condition=Condition.TRIAL, quarantines=health.quarantines, allowance=1)


def _grows(health: Health, now: float, limits: HealthLimits) -> Health:
    """A worker in trial may have more, and in the end as much as any."""
    assert health.allowance is not None
    allowance = health.allowance * limits.growth
    return READY if allowance >= limits.enough else replace(health, allowance=allowance)


def _joins(health: Health, now: float, limits: HealthLimits) -> Health:
    """Known again as if it were new."""
    return health if health == JOINING else JOINING


def _enters(health: Health, now: float, limits: HealthLimits) -> Health:
    """First contact went well."""
    return READY


TABLE: Final[Mapping[tuple[Condition, Event], Callable[[Health, float, HealthLimits], Health]]] = {
    # Nothing is known yet; what calls of its former life meet with is no matter.
    (Condition.JOINING, Event.ANSWERED): _stays,
    (Condition.JOINING, Event.CALL_FAILED): _stays,
    (Condition.JOINING, Event.UNREACHABLE): _confines,
    (Condition.JOINING, Event.PROBE_PASSED): _enters,
    (Condition.JOINING, Event.PROBE_FAILED): _confines,
    (Condition.JOINING, Event.REGISTERED): _joins,
    # At work. Registering again what works disturbs nothing: some do so every few seconds.
    (Condition.READY, Event.ANSWERED): _proves,
    (Condition.READY, Event.CALL_FAILED): _fails,
    (Condition.READY, Event.UNREACHABLE): _confines,
    (Condition.READY, Event.PROBE_PASSED): _proves,
    (Condition.READY, Event.PROBE_FAILED): _fails,
    (Condition.READY, Event.REGISTERED): _stays,
    # Back, on trial: one failure is enough.
    (Condition.TRIAL, Event.ANSWERED): _grows,
    (Condition.TRIAL, Event.CALL_FAILED): _confines,
    (Condition.TRIAL, Event.UNREACHABLE): _confines,
    (Condition.TRIAL, Event.PROBE_PASSED): _grows,
    (Condition.TRIAL, Event.PROBE_FAILED): _confines,
    (Condition.TRIAL, Event.REGISTERED): _joins,
    # In quarantine. The rest of what broke with it makes it no longer, and late answers no
    # shorter: only the look at its end counts, or a word that it is there again.
    (Condition.QUARANTINED, Event.ANSWERED): _stays,
    (Condition.QUARANTINED, Event.CALL_FAILED): _stays,
    (Condition.QUARANTINED, Event.UNREACHABLE): _confines_again,
    (Condition.QUARANTINED, Event.PROBE_PASSED): _returns,
    (Condition.QUARANTINED, Event.PROBE_FAILED): _confines_again,
    (Condition.QUARANTINED, Event.REGISTERED): _joins,
}
"""What an event does to a worker's health, for every condition it may be in."""
