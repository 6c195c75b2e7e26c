"""What is simulated: a fleet of workers, a router, the work, and what goes wrong.

These are plain values. All times are seconds, all lengths tokens; a rate of 0 means that the step
takes no time at all. Every problem is a ``ClientError`` whose ``param`` names the field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from slime_core.engine.generation import PauseMode
from slime_core.simulation.lengths import MOST, Distribution, Fixed, require

__all__ = [
    "MOST_WORKERS",
    "Faults",
    "Fleet",
    "Retries",
    "Router",
    "Scenario",
    "Trace",
    "TraceEntry",
    "Updates",
    "WorkerSpeed",
    "Workload",
]

_LEAST_GAP_S: Final = 0.001
_LEAST_RATE: Final = 1e-6
_LEAST_S_PER_TOKEN: Final = 1e-30
MOST_WORKERS: Final = 10_000
_NOTHING: Final = Fixed(0)
_ONE: Final = Fixed(1)
_MINUTE: Final = Fixed(60)
_HUNDRED: Final = Fixed(100)


def _require_times(of: object, *fields: str) -> None:
    for name in fields:
        require(0 <= getattr(of, name) <= MOST, name, f"must be from 0 to {MOST:g}")


def _require_rates(of: object, *fields: str) -> None:
    for name in fields:
        rate = getattr(of, name)
        ok = rate == 0 or _LEAST_RATE <= rate <= MOST
        require(ok, name, f"must be 0, or from {_LEAST_RATE:g} to {MOST:g}")


def _require_gap(of: object, field: str) -> None:
    """Things that happen again and again must let time pass, or a simulation has no end."""
    gap = getattr(of, field)
    ok = gap == 0 or _LEAST_GAP_S <= gap <= MOST
    require(ok, field, f"must be 0, or from {_LEAST_GAP_S} to {MOST:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpeed:
    """One worker's hardware.

    Prefill is serial: one prompt after the other, ``prefill_tokens_per_s`` of what its prefix
    cache does not hold. Then every request of the running batch gets one token each
    ``s_per_token + s_per_token_per_other * (requests that decode beside it)``.

    ``prefill_stops_decode``: nobody decodes while a prompt is computed, as engines do that do not
    mix the two. ``max_running``: requests in prefill and decode at once; the others wait.
    ``prefix_cache_tokens``: distinct tokens kept for reuse. ``encode_tokens_per_s``: how fast it
    turns text into tokens, one text after the other, where the router leaves that to it.
    """

    prefill_tokens_per_s: float = 20_000.0
    s_per_token: float = 0.02
    s_per_token_per_other: float = 0.0
    prefill_stops_decode: bool = False
    max_running: int = 256
    prefix_cache_tokens: int = 200_000
    encode_tokens_per_s: float = 0.0

    def __post_init__(self) -> None:
        _require_rates(self, "prefill_tokens_per_s", "encode_tokens_per_s")
        _require_times(self, "s_per_token_per_other")
        ok = _LEAST_S_PER_TOKEN <= self.s_per_token <= MOST
        require(ok, "s_per_token", f"must be from {_LEAST_S_PER_TOKEN:g} to {MOST:g}")
        require(self.max_running >= 1, "max_running", "must be at least 1")
        require(self.prefix_cache_tokens >= 0, "prefix_cache_tokens", "must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The workers, each with its speed."""

    workers: tuple[WorkerSpeed, ...]

    def __post_init__(self) -> None:
        ok = 1 <= len(self.workers) <= MOST_WORKERS
        require(ok, "workers", f"must be from 1 to {MOST_WORKERS}")

    @classmethod
    def of(cls, count: int, speed: WorkerSpeed | None = None) -> Fleet:
        """``count`` equal workers."""
        return cls(workers=(speed or WorkerSpeed(),) * count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """What lies between clients and workers.

    ``capture``: the router keeps what it has seen, encodes only the new part of each prompt and
    sends ids; without it each worker encodes the whole text of every turn. Encoding runs at
    ``encode_tokens_per_s``, one text after the other, before a worker is chosen. What belongs to a
    session is kept while the session lasts; afterwards ``reuse_tokens`` are kept for others.

    ``overhead_s``: what every request costs the router's one process, one after the other.
    ``network_s``: one way between router and worker; clients sit next to the router.
    """

    capture: bool = True
    encode_tokens_per_s: float = 0.0
    reuse_tokens: int = 10_000
    overhead_s: float = 0.0
    network_s: float = 0.0

    def __post_init__(self) -> None:
        _require_rates(self, "encode_tokens_per_s")
        _require_times(self, "overhead_s", "network_s")
        require(self.reuse_tokens >= 0, "reuse_tokens", "must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Sessions (rollouts) of several turns, each turn one request, drawn by chance.

    The first turn's prompt is ``system_tokens``, shared by all, and an input; every later one is
    all that was said before and another input. ``input_tokens`` has one distribution per turn; the
    last one serves all later turns. A group of ``group_size`` sessions shares its first input, as
    the samples of one question do.

    ``concurrency`` sessions are under way at once, and the next begins when one ends; or, if
    ``sessions_per_s`` is given, groups arrive by chance at that rate of sessions, however many are
    under way. ``answer_tokens_max`` cuts answers short, as ``max_new_tokens`` does. ``think_s``:
    what the agent or its tool takes between an answer and the next turn.

    ``drift``: how likely it is that an answer, encoded again from its text, differs from what was
    sampled, from some token on, wherever; without capture, workers then find that much less of it
    in their caches.
    """

    sessions: int = 1000
    concurrency: int = 32
    sessions_per_s: float | None = None
    group_size: int = 1
    system_tokens: int = 0
    turns: Distribution = _ONE
    input_tokens: tuple[Distribution, ...] = (_HUNDRED,)
    answer_tokens: Distribution = _HUNDRED
    answer_tokens_max: int = 32_768
    think_s: Distribution = _NOTHING
    drift: float = 0.0

    def __post_init__(self) -> None:
        for name in ("sessions", "concurrency", "group_size", "answer_tokens_max"):
            require(getattr(self, name) >= 1, name, "must be at least 1")
        rate = self.sessions_per_s
        ok = rate is None or _LEAST_RATE <= rate <= MOST
        require(ok, "sessions_per_s", f"must be from {_LEAST_RATE:g} to {MOST:g}")
        ok = rate is None or self.group_size / rate <= MOST
        require(ok, "sessions_per_s", "is too small for groups of that size")
        require(self.system_tokens >= 0, "system_tokens", "must not be negative")
        require(bool(self.input_tokens), "input_tokens", "must not be empty")
        require(0 <= self.drift <= 1, "drift", "must be from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEntry:
    """One recorded request.

    It was sent at ``at_s``. Its prompt is the first ``kept_tokens`` of what the entry ``parent``
    (its place in the trace; ``None``: none) had when it ended, prompt and answer, and then
    ``new_tokens``; ``kept_tokens=None`` keeps all. ``answer_tokens`` were sampled.
    """

    at_s: float
    session: str
    parent: int | None = None
    kept_tokens: int | None = None
    new_tokens: int
    answer_tokens: int

    def __post_init__(self) -> None:
        _require_times(self, "at_s")
        require(self.new_tokens >= 0, "new_tokens", "must not be negative")
        require(self.answer_tokens >= 1, "answer_tokens", "must be at least 1")
        kept = self.kept_tokens
        require(kept is None or kept >= 0, "kept_tokens", "must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Recorded requests, each after its parent.

    They are sent at their times, but never before an answer that they repeat a part of. A parent
    of another session is a prefix that the two share; entries without a parent share their first
    ``system_tokens``, as far as their prompts go.
    """

    entries: tuple[TraceEntry, ...]
    system_tokens: int = 0

    def __post_init__(self) -> None:
        require(self.system_tokens >= 0, "system_tokens", "must not be negative")
        require(bool(self.entries), "entries", "must not be empty")
        lengths: list[int] = []
        for place, entry in enumerate(self.entries):
            where = f"entries[{place}]"
            parent, kept = entry.parent, entry.kept_tokens
            ok = parent is None or 0 <= parent < place
            require(ok, f"{where}.parent", "must be the place of an earlier entry")
            most = 0 if parent is None else lengths[parent]
            kept = most if kept is None else kept
            require(kept <= most, f"{where}.kept_tokens", "is more than the parent has")
            require(kept + entry.new_tokens >= 1, f"{where}.new_tokens", "leaves an empty prompt")
            lengths.append(kept + entry.new_tokens + entry.answer_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Updates:
    """New weights: every ``every_s`` all workers pause for ``takes_s``, in SGLang's ``mode``.

    ``ABORT`` throws running and waiting requests away, their clients try again. ``RETRACT`` sends
    the running ones back to the queue: what they sampled stays, and is computed again. Both empty
    the prefix caches. ``IN_PLACE`` keeps everything where it is. ``every_s=0``: never. A simulation
    in which nothing can be computed between two updates ends with a ``ClientError``.
    """

    every_s: float = 0.0
    takes_s: float = 0.0
    mode: PauseMode = PauseMode.IN_PLACE

    def __post_init__(self) -> None:
        _require_gap(self, "every_s")
        _require_times(self, "takes_s")
        require(not self.every_s or self.takes_s < self.every_s, "takes_s", "is all of every_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Workers die and come back: each on its own, at moments that are all equally likely.

    ``mean_s_between_failures``: how long a worker runs on average (0: for ever); ``repair_s``: how
    long it is gone. What it ran and kept is lost; the router sends it nothing meanwhile.
    """

    mean_s_between_failures: float = 0.0
    repair_s: Distribution = _MINUTE

    def __post_init__(self) -> None:
        _require_gap(self, "mean_s_between_failures")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """What a client does when a request is lost or refused: again, ``most`` times at most,
    ``after_s`` later each time; then it gives the session up."""

    most: int = 10
    after_s: float = 1.0

    def __post_init__(self) -> None:
        require(self.most >= 0, "most", "must not be negative")
        _require_times(self, "after_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All that is simulated, the balancing policy and the seed apart."""

    fleet: Fleet = field(default_factory=lambda: Fleet.of(1))
    workload: Workload | Trace = field(default_factory=Workload)
    router: Router = field(default_factory=Router)
    updates: Updates = field(default_factory=Updates)
    faults: Faults = field(default_factory=Faults)
    retries: Retries = field(default_factory=Retries)
