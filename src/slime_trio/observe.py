"""Metrics and logs: of committed transitions, and of the trace that is recorded of them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from slime_core.state import RouterState
from slime_core.transitions import (
    CallCaptured,
    CallLost,
    SegmentsGone,
    Transition,
    VersionSeen,
    WorkerAdded,
    WorkerHealth,
    WorkerRemoved,
)
from slime_core.types import token_count
from slime_trio.router import Router
from slime_trio.trace import TraceRecorder

__all__ = ["CaptureLog", "configure_logging", "metrics_json", "metrics_text"]

_RAISE_WITH: Final = {
    "evicted": "--capture-max-mb",
    "collected": "--gc-threshold-k",
    "expired": "--session-idle-s",
}

_WARN_EVERY: Final = 1000
"""Lost data is reported at the first loss and then once in so many answers: a full memory would
otherwise write a line for every call."""


def configure_logging(*, verbose: bool) -> None:
    """Logs as lines on stderr; ``verbose`` adds one for every call."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                # The other formatters print local variables: prompts, keys, whole states.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbose else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class CaptureLog:
    """An observer that writes what an operator should know."""

    def __init__(self) -> None:
        self._log: Any = structlog.get_logger("slime_router")
        self._lost = 0

    def __call__(self, fact: Transition, state: RouterState, /) -> None:
        """Log ``fact``, if it is worth a line."""
        match fact:
            case WorkerAdded(worker=worker):
                self._log.info("worker added", worker=worker)
            case WorkerRemoved(worker=worker):
                self._log.info("worker removed", worker=worker)
            case WorkerHealth(worker=worker, health=health, event=event):
                words = {"health": health.condition.value, "because": event.value}
                self._log.info("worker health", worker=worker, **words)
            case VersionSeen(worker=worker, version=version):
                self._log.info("weights", worker=worker, version=version)
            case SegmentsGone() if fact.unretrieved:
                self._warn_of_loss(fact, state)
            case CallCaptured():
                self._log.debug(
                    "captured",
                    call=fact.call,
                    prompt_tokens=token_count(fact.prompt_ids) + fact.token_start,
                    sampled=token_count(fact.answer_ids),
                    outcome=fact.answer.outcome.value,
                )
            case CallLost():
                level = self._log.warning if fact.sampled else self._log.debug
                level("not captured", call=fact.call, reason=fact.reason)
            case _:
                pass

    def _warn_of_loss(self, fact: SegmentsGone, state: RouterState) -> None:
        if self._lost % _WARN_EVERY == 0:
            self._log.warning(
                "captured answers left memory before anyone retrieved them",
                reason=fact.reason,
                so_far=state.counters.answers_lost_unretrieved,
                raise_with=_RAISE_WITH.get(fact.reason),
            )
        self._lost += fact.unretrieved


def metrics_json(router: Router, *, all: bool = True) -> dict[str, Any]:
    """The metrics as the documents show them, and some more; without ``all`` the tenant's only."""
    state = router.state
    counters, forest, workers = state.counters, state.forest, state.fleet.listed()
    fleet = {
        "active_workers": sum(1 for worker in workers if worker.is_fit),
        "worker_loads": {worker.url: worker.load for worker in workers},
        "total_in_flight": state.fleet.total_in_flight,
    }
    return {
        "router": {
            **(fleet if all else {}),
            "calls_captured": counters.calls_captured,
            "calls_lost": counters.calls_lost,
            "answers_not_captured": counters.answers_not_captured,
            "retrievals": counters.retrievals,
            "branches": counters.branches,
            "prompts_with_special_tokens_as_text": counters.spelled_prompts,
            "retries_joined": router.attempts.joined,
            "retries_replayed": router.attempts.replayed,
            "sessions": len(state.sessions.known),
            "trace_lines_lost": _trace_lines_lost(router),
            "weight_version": state.versions.newest,
        },
        "cache": {
            "total_entries": len(forest.segments),
            "cache_hits": counters.hits,
            "cache_misses": counters.lookups - counters.hits,
            "hit_rate": _ratio(counters.hits, counters.lookups),
            "token_hit_rate": _ratio(counters.reused_tokens, counters.prompt_tokens),
            "cur_cache_size": forest.reuse_tokens,
            "max_cache_size": router.args.radix_tree_max_size,
            "cache_size_mb": forest.total_bytes / 2**20,
            "data_mb": forest.data_bytes / 2**20,
            "gc_threshold_k": router.args.gc_threshold_k,
            "total_tokens": forest.total_tokens,
            "evicted": counters.segments_evicted,
            "collected": counters.segments_collected,
            "lost_unretrieved": counters.answers_lost_unretrieved,
        },
    }


def _trace_lines_lost(router: Router) -> int:
    return sum(one.lost for one in router.observers if isinstance(one, TraceRecorder))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def metrics_text(router: Router, *, all: bool = True) -> bytes:
    """The metrics in the Prometheus text format; without ``all`` the tenant's only."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StateCollector(router, all=all))
    return generate_latest(registry)


class _StateCollector(Collector):
    """Reads the state at scrape time: no second set of books."""

    def __init__(self, router: Router, *, all: bool) -> None:
        self._router = router
        self._state = router.state
        self._all = all

    def collect(self) -> Iterable[Metric]:
        if self._all:
            yield from self._of_fleet()
        yield from self._of_calls()
        yield from self._of_chats()
        yield from self._of_memory()
        yield CounterMetricFamily(
            "slime_trace_lines_lost",
            "Lines of the recorded trace that found no room",
            value=_trace_lines_lost(self._router),
        )

    def _of_fleet(self) -> Iterable[Metric]:
        load = GaugeMetricFamily(
            "slime_worker_in_flight", "Calls in flight on a worker", labels=["worker"]
        )
        fit = GaugeMetricFamily(
            "slime_worker_fit", "Whether a worker may get new work", labels=["worker"]
        )
        for worker in self._state.fleet.listed():
            load.add_metric([worker.url], worker.load)
            fit.add_metric([worker.url], float(worker.is_fit))
        yield load
        yield fit

    def _of_calls(self) -> Iterable[Metric]:
        counters = self._state.counters
        for name, words, value in (
            ("slime_calls", "Calls begun", counters.calls_opened),
            ("slime_calls_captured", "Calls captured", counters.calls_captured),
            ("slime_calls_lost", "Calls that ended without a capture", counters.calls_lost),
            (
                "slime_answers_not_captured",
                "Calls for which a model sampled something that could not be kept",
                counters.answers_not_captured,
            ),
            ("slime_lookups", "Prompts looked up", counters.lookups),
            ("slime_lookup_hits", "Prompts of which something was known", counters.hits),
            ("slime_prompt_tokens", "Tokens of all prompts", counters.prompt_tokens),
            ("slime_reused_tokens", "Prompt tokens not encoded anew", counters.reused_tokens),
            ("slime_retrievals", "Trajectories delivered", counters.retrievals),
            ("slime_segments_evicted", "Segments evicted", counters.segments_evicted),
            ("slime_segments_collected", "Segments collected", counters.segments_collected),
            (
                "slime_answers_lost_unretrieved",
                "Captured answers that left memory before anyone retrieved them",
                counters.answers_lost_unretrieved,
            ),
        ):
            yield CounterMetricFamily(name, words, value=value)

    def _of_chats(self) -> Iterable[Metric]:
        counters, attempts = self._state.counters, self._router.attempts
        for name, words, value in (
            ("slime_branches", "Chat calls that went on from no captured turn", counters.branches),
            (
                "slime_special_tokens_as_text",
                "Chat calls whose content spells special tokens",
                counters.spelled_prompts,
            ),
            ("slime_retries_joined", "Retries that joined their first attempt", attempts.joined),
            ("slime_retries_replayed", "Retries answered again", attempts.replayed),
            ("slime_sessions_opened", "Sessions opened", counters.sessions_opened),
            ("slime_sessions_deleted", "Sessions deleted", counters.sessions_deleted),
            ("slime_sessions_expired", "Sessions that expired", counters.sessions_expired),
            ("slime_sessions_collected", "Samples of sessions given", counters.sessions_collected),
            ("slime_segments_freed", "Segments freed with sessions", counters.segments_freed),
        ):
            yield CounterMetricFamily(name, words, value=value)

    def _of_memory(self) -> Iterable[Metric]:
        forest = self._state.forest
        for name, words, value in (
            ("slime_segments", "Segments kept", len(forest.segments)),
            ("slime_reuse_tokens", "Tokens kept only for reuse", forest.reuse_tokens),
            ("slime_data_bytes", "Bytes captured and not yet retrieved", forest.data_bytes),
            ("slime_open_calls", "Calls that have not ended", len(self._state.open_calls)),
        ):
            yield GaugeMetricFamily(name, words, value=value)
