"""The books that no state keeps: of requests, refusals, durations, and of what was committed.

Everything here has a bounded number of keys: kinds and reasons come from closed sets, or are
counted as ``other`` once a set is full.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from slime_core.health import Condition
from slime_core.state import RouterState
from slime_core.transitions import (
    AnswerWithdrawn,
    CallLost,
    Transition,
    VersionFellBack,
    WorkerHealth,
)
from slime_trio.observability.histogram import Histogram

__all__ = ["GENERATING", "Counts", "Tally", "kind_of"]

_MOST: Final = 256
"""How many keys a tally may have: the codes of this router's own errors are far fewer."""

_KINDS: Final = {
    "generate": "generate",
    "v1/chat/completions": "chat",
    "v1/completions": "completions",
    "retrieve_from_text": "retrieval",
    "retrieve_from_messages_template": "retrieval",
    "trajectories": "retrieval",
    "sessions": "sessions",
    "workers": "workers",
    "add_worker": "workers",
    "remove_worker": "workers",
    "list_workers": "workers",
    **dict.fromkeys(
        (
            *("health", "liveness", "readiness", "health_generate", "metrics"),
            *("server_info", "get_server_info", "model_info", "get_model_info", "openapi.json"),
        ),
        "operations",
    ),
}
GENERATING: Final = ("generate", "chat", "completions")
"""The kinds whose durations are counted."""


def kind_of(path: str) -> str:
    """What a path is for, in one of few words; ``other``: it is passed through or fanned out."""
    parts = path.strip("/").split("/")
    if parts[0] == "sessions" and "v1" in parts[2:3]:
        parts = parts[2:]
    depth = 3 if parts[:2] == ["v1", "chat"] else 2 if parts[0] == "v1" else 1
    return _KINDS.get("/".join(parts[:depth]), "other")


class Tally(defaultdict[tuple[str, ...], int]):
    """Counts by key; past a bound, keys never seen before count as ``other``."""

    def __init__(self) -> None:
        super().__init__(int)

    def add(self, key: tuple[str, ...], count: int = 1) -> None:
        """Count ``key``."""
        if key not in self and len(self) >= _MOST:
            key = ("other",) * len(key)
        self[key] += count


class Counts:
    """One process's books; an observer of committed transitions besides."""

    kinds: Final = (CallLost, AnswerWithdrawn, WorkerHealth, VersionFellBack)
    """What it is to be told of."""

    def __init__(self) -> None:
        self.requests: Final = Tally()
        """Requests by kind and status; ``unfinished``: the answer was not given whole."""
        self.refusals: Final = Tally()
        """Errors that this router answered with, by status and code."""
        self.received: Final = Tally()
        """Bytes of requests' bodies, by kind."""
        self.sent: Final = Tally()
        """Bytes of answers' bodies, by kind."""
        self.first_byte: Final = {kind: Histogram() for kind in GENERATING}
        """From a request's head to the first byte of its answer's body."""
        self.whole: Final = {kind: Histogram() for kind in GENERATING}
        """From a request's head to the end of its answer."""
        self.lost: Final = Tally()
        """Calls that ended without a capture, or were withdrawn, by tenant and reason."""
        self.waits: Final = Histogram()
        """How long generations waited for their turn and a worker before they were sent first."""
        self.attempts: Final = Tally()
        """Requests sent to workers, by what came of them and whether another was tried."""
        self.drained = 0
        """Generations that were aborted while they waited."""
        self.control: Final = Tally()
        """What workers made of control calls, by path and result."""
        self.probes: Final = Tally()
        """What workers answered when they were asked about themselves, by path and status."""
        self.quarantines: Final = Tally()
        """Quarantines that began, or were prolonged, by what led to them."""
        self.fall_backs = 0
        """How often an older version of the weights came to count as the newest."""

    def __call__(self, fact: Transition, state: RouterState, /) -> None:
        """Count ``fact``, if it is one of those that no state counts."""
        if isinstance(fact, CallLost | AnswerWithdrawn):
            self.lost.add((state.tenant, fact.reason))
        elif isinstance(fact, WorkerHealth):
            if fact.health.condition is Condition.QUARANTINED:
                self.quarantines.add((fact.event.value,))
        elif isinstance(fact, VersionFellBack):
            self.fall_backs += 1
