"""What is counted while a simulation runs."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

__all__ = ["Balance", "Tally"]


class Balance:
    """How evenly calls in flight lie on the workers, over time.

    Compares the busiest worker with the fewest calls that it could have if all were dealt evenly
    over the workers that are up. Moments at which none is up do not count.
    """

    def __init__(self, workers: int) -> None:
        self._loads = [0] * workers
        self._at_load = {0: workers}
        self._peak = 0
        self._total = 0
        self._up = workers
        self._since = 0.0
        self._peak_time = 0.0
        self._even_time = 0.0
        self._changed = [0.0] * workers
        self._load_time = [0.0] * workers

    def change(self, worker: int, by: int, now: float) -> None:
        """One call more (``by=1``) or less (-1) on that worker."""
        self._catch_up(now)
        load = self._loads[worker]
        self._load_time[worker] += load * (now - self._changed[worker])
        self._changed[worker] = now
        self._loads[worker] = load + by
        self._total += by
        self._at_load[load] -= 1
        self._at_load[load + by] = self._at_load.get(load + by, 0) + 1
        if load + by > self._peak:
            self._peak = load + by
        elif not self._at_load[self._peak]:
            self._peak -= 1

    def set_up(self, up: int, now: float) -> None:
        """So many workers are up from now on."""
        self._catch_up(now)
        self._up = up

    def imbalance(self, now: float) -> float:
        """See :class:`Result`; 1 if nothing ever was in flight."""
        self._catch_up(now)
        return self._peak_time / self._even_time if self._even_time else 1.0

    def mean_load(self, worker: int, now: float) -> float:
        """Calls in flight on that worker, averaged over time."""
        rest = self._loads[worker] * (now - self._changed[worker])
        return (self._load_time[worker] + rest) / now if now else 0.0

    @property
    def total(self) -> int:
        """Calls in flight on all workers."""
        return self._total

    def _catch_up(self, now: float) -> None:
        passed = now - self._since
        self._since = now
        if passed and self._up:
            self._peak_time += self._peak * passed
            self._even_time += -(-self._total // self._up) * passed


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of what clients and router did; times by turn, in seconds."""

    requests: int = 0
    completed: int = 0
    failed: int = 0
    not_asked: int = 0
    sessions: int = 0
    sessions_failed: int = 0
    retries: int = 0
    attempts_lost: int = 0
    attempts_refused: int = 0
    output_tokens: int = 0
    prompt_tokens: int = 0
    encoded_tokens: int = 0
    weight_updates: int = 0
    ended_at: float = 0.0
    latency: dict[int, array[float]] = field(default_factory=dict)
    first_token: dict[int, array[float]] = field(default_factory=dict)

    def complete(self, turn: int, latency_s: float, first_token_s: float) -> None:
        """A request of that turn was answered."""
        self.completed += 1
        self.latency.setdefault(turn, array("d")).append(latency_s)
        self.first_token.setdefault(turn, array("d")).append(first_token_s)
