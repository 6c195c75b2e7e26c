"""What a simulation brings: the numbers of one policy in one scenario.

All times are seconds of simulated time, all lengths tokens. Percentiles are by nearest rank: the
smallest value that at least so many of a hundred do not exceed, so each of them did occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Result", "Spread", "TurnResult", "WorkerResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a quantity is spread over requests; all 0 if there were none."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    most: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of ``values``, in any order."""
        if not values:
            return cls()
        ordered = sorted(values)
        count = len(ordered)
        return cls(
            count=count,
            mean=sum(ordered) / count,
            p50=ordered[-(-count * 50 // 100) - 1],
            p90=ordered[-(-count * 90 // 100) - 1],
            p99=ordered[-(-count * 99 // 100) - 1],
            most=ordered[-1],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnResult:
    """The completed requests that were the ``turn``-th (from 1) of their sessions."""

    turn: int
    requests_per_s: float
    latency_s: Spread
    first_token_s: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerResult:
    """One worker.

    ``attempts`` reached it. ``utilisation``: the share of the makespan in which it computed;
    ``prefill_share``: in which it computed prompts. ``mean_in_flight``: calls that the router
    counted as its own, averaged over time.
    """

    url: str
    attempts: int
    failures: int
    utilisation: float
    prefill_share: float
    mean_in_flight: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int

    @property
    def cache_hit_rate(self) -> float:
        """Cached tokens per token of the prompts that it began with."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One policy.

    ``requests``: asked; each was ``completed`` or ``failed`` (given up after its retries);
    ``not_asked`` would have followed one that failed. ``attempts_lost`` were lost with a worker or
    aborted, ``attempts_refused`` found no worker; ``retries`` is how often a client tried again.

    ``makespan_s``: from 0 to the end of the last request. Throughput counts completed requests and
    their answers, over the makespan.

    ``latency_s``: from the first attempt to the whole answer; ``first_token_s``: to the first token
    of the attempt that completed.

    ``prompt_tokens`` is what the router would have encoded without keeping anything, attempts that
    are repeated included; ``encoded_tokens`` what it did encode (0 without capture).

    ``cache_hit_rate``: prompt tokens found in the workers' prefix caches. ``imbalance``: how many
    calls the busiest worker had, over the fewest it could have had (all calls in flight dealt
    evenly over the workers that were up), both summed over time; 1 is as even as can be.

    ``lost_tokens``: sampled and thrown away.
    """

    policy: str
    requests: int
    completed: int
    failed: int
    not_asked: int
    sessions: int
    sessions_failed: int
    retries: int
    attempts_lost: int
    attempts_refused: int
    makespan_s: float
    requests_per_s: float
    output_tokens: int
    output_tokens_per_s: float
    latency_s: Spread
    first_token_s: Spread
    turns: tuple[TurnResult, ...]
    prompt_tokens: int
    encoded_tokens: int
    cache_hit_rate: float
    imbalance: float
    lost_tokens: int
    worker_failures: int
    weight_updates: int
    workers: tuple[WorkerResult, ...]
