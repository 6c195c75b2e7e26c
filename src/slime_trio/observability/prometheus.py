"""The metrics in Prometheus' text format, read from their owners when they are asked for.

No second set of books: gauges are the state's own numbers, counters are kept where the counted
thing happens. Labels are bounded: workers that are registered, tenants that are configured, and
words from closed sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from slime_core.fleet import Worker
from slime_core.health import Condition
from slime_core.versions import as_number
from slime_trio.observability.counts import Counts
from slime_trio.router import Router
from slime_trio.trace import TraceRecorder

__all__ = ["metrics_text", "trace_lines_lost"]

_Value = Callable[[Router], float]

_CALLS: Final[tuple[tuple[str, str, _Value], ...]] = (
    ("slime_calls", "Calls begun", lambda r: r.state.counters.calls_opened),
    ("slime_calls_captured", "Calls captured", lambda r: r.state.counters.calls_captured),
    (
        "slime_answers_not_captured",
        "Calls for which a model sampled something that could not be kept",
        lambda r: r.state.counters.answers_not_captured,
    ),
    ("slime_lookups", "Prompts looked up", lambda r: r.state.counters.lookups),
    (
        "slime_lookup_hits",
        "Prompts of which something was known",
        lambda r: r.state.counters.hits,
    ),
    ("slime_prompt_tokens", "Tokens of all prompts", lambda r: r.state.counters.prompt_tokens),
    (
        "slime_reused_tokens",
        "Prompt tokens not encoded anew",
        lambda r: r.state.counters.reused_tokens,
    ),
    ("slime_retrievals", "Trajectories delivered", lambda r: r.state.counters.retrievals),
    ("slime_segments_evicted", "Segments evicted", lambda r: r.state.counters.segments_evicted),
    (
        "slime_segments_collected",
        "Segments collected",
        lambda r: r.state.counters.segments_collected,
    ),
    (
        "slime_answers_lost_unretrieved",
        "Captured answers that left memory before anyone retrieved them",
        lambda r: r.state.counters.answers_lost_unretrieved,
    ),
    (
        "slime_branches",
        "Chat calls that went on from no captured turn",
        lambda r: r.state.counters.branches,
    ),
    (
        "slime_special_tokens_as_text",
        "Chat calls whose content spells special tokens",
        lambda r: r.state.counters.spelled_prompts,
    ),
    (
        "slime_retries_joined",
        "Retries that joined their first attempt",
        lambda r: r.attempts.joined,
    ),
    ("slime_retries_replayed", "Retries answered again", lambda r: r.attempts.replayed),
    ("slime_sessions_opened", "Sessions opened", lambda r: r.state.counters.sessions_opened),
    ("slime_sessions_deleted", "Sessions deleted", lambda r: r.state.counters.sessions_deleted),
    (
        "slime_sessions_expired",
        "Sessions that expired",
        lambda r: r.state.counters.sessions_expired,
    ),
    (
        "slime_sessions_collected",
        "Samples of sessions given",
        lambda r: r.state.counters.sessions_collected,
    ),
    (
        "slime_segments_freed",
        "Segments freed with sessions",
        lambda r: r.state.counters.segments_freed,
    ),
)
"""Counters of one tenant."""

_HELD: Final[tuple[tuple[str, str, _Value], ...]] = (
    ("slime_open_calls", "Calls that have not ended", lambda r: len(r.state.open_calls)),
    ("slime_segments", "Segments kept", lambda r: len(r.state.forest.segments)),
    ("slime_reuse_tokens", "Tokens kept only for reuse", lambda r: r.state.forest.reuse_tokens),
    (
        "slime_data_bytes",
        "Bytes captured and not yet retrieved",
        lambda r: r.state.forest.data_bytes,
    ),
    ("slime_sessions", "Sessions that are open", lambda r: len(r.state.sessions.known)),
)
"""Gauges of one tenant."""

_WORKER: Final[tuple[tuple[str, str, Callable[[Worker], float]], ...]] = (
    ("slime_worker_in_flight", "Calls in flight on a worker", lambda w: w.load),
    ("slime_worker_fit", "Whether a worker may get new work", lambda w: w.is_fit),
    ("slime_worker_paused", "Whether a worker's generation is paused", lambda w: w.paused),
    ("slime_worker_stale", "Whether a worker is known to hold old weights", lambda w: w.stale),
    (
        "slime_worker_weight_version",
        "A worker's weight version, -2 if its name is no number",
        lambda w: as_number(w.version),
    ),
)
"""Gauges of one worker."""


def metrics_text(router: Router, *, all: bool = True) -> bytes:
    """The metrics of every tenant and of the fleet; with ``all`` off, of ``router`` alone."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Books(router, all=all))
    return generate_latest(registry)


def trace_lines_lost(router: Router) -> int:
    """Lines of recorded traces that found no room."""
    return sum(one.lost for one in router.observers if isinstance(one, TraceRecorder))


class _Books(Collector):
    def __init__(self, router: Router, *, all: bool) -> None:
        shared = router.shared
        self._router = router
        self._all = all
        self._routers = list(shared.routers.values()) if all else [router]
        # One tenant needs no label, and has none.
        self._labels = ("tenant",) if len(shared.routers) > 1 else ()

    def collect(self) -> Iterator[Metric]:
        yield from self._of_tenants()
        if self._all:
            yield from _of_fleet(self._router)
            yield from _of_requests(self._router.shared.counts)
            yield from _of_dispatching(self._router)
            yield _counter(
                "slime_trace_lines_lost",
                "Lines of the recorded trace that found no room",
                trace_lines_lost(self._router),
            )

    def _named(self, router: Router) -> list[str]:
        return [router.tenant] if self._labels else []

    def _of_tenants(self) -> Iterator[Metric]:
        for name, words, value in _CALLS:
            counter = CounterMetricFamily(name, words, labels=self._labels)
            for router in self._routers:
                counter.add_metric(self._named(router), value(router))
            yield counter
        for name, words, value in _HELD:
            gauge = GaugeMetricFamily(name, words, labels=self._labels)
            for router in self._routers:
                gauge.add_metric(self._named(router), value(router))
            yield gauge
        yield self._of_lost_calls()

    def _of_lost_calls(self) -> Metric:
        lost = CounterMetricFamily(
            "slime_calls_lost",
            "Calls that ended without a capture",
            labels=(*self._labels, "reason"),
        )
        names = {router.tenant for router in self._routers}
        for (tenant, reason), count in self._router.shared.counts.lost.items():
            if tenant in names:
                lost.add_metric([*([tenant] if self._labels else []), reason], count)
        return lost


def _of_fleet(router: Router) -> Iterator[Metric]:
    workers, versions = router.shared.fleet.listed(), router.shared.versions
    for name, words, value in _WORKER:
        gauge = GaugeMetricFamily(name, words, labels=("worker",))
        for worker in workers:
            gauge.add_metric([worker.url], float(value(worker)))
        yield gauge
    yield _conditions(workers)
    info = GaugeMetricFamily(
        "slime_worker_info", "Always 1", labels=("worker", "id", "kind", "version")
    )
    for worker in workers:
        info.add_metric([worker.url, worker.id, worker.kind.value, worker.version or ""], 1)
    yield info
    yield from _reported(workers)
    yield _gauge(
        "slime_weight_version",
        "The newest weight version, -2 if its name is no number",
        as_number(versions.newest),
    )
    yield _gauge("slime_weight_epoch", "How often the newest weights changed", versions.epoch)
    counts = router.shared.counts
    yield _counter(
        "slime_weight_fall_backs",
        "Times that an older version came to count as the newest",
        counts.fall_backs,
    )
    yield _tally(
        "slime_quarantines", "Quarantines begun or prolonged", ("after",), counts.quarantines
    )


def _conditions(workers: Iterable[Worker]) -> Metric:
    gauge = GaugeMetricFamily(
        "slime_worker_condition", "1 for a worker's condition", labels=("worker", "condition")
    )
    for worker in workers:
        for condition in Condition:
            is_it = worker.health.condition is condition
            gauge.add_metric([worker.url, condition.value], float(is_it))
    return gauge


def _reported(workers: Iterable[Worker]) -> Iterator[Metric]:
    requests = GaugeMetricFamily(
        "slime_worker_reported_requests",
        "Requests that a worker itself says it has",
        labels=("worker", "state"),
    )
    usage = GaugeMetricFamily(
        "slime_worker_reported_token_usage", "Its KV cache in use, 0 to 1", labels=("worker",)
    )
    for worker in workers:
        if worker.reported is not None:
            requests.add_metric([worker.url, "running"], worker.reported.running)
            requests.add_metric([worker.url, "waiting"], worker.reported.waiting)
            usage.add_metric([worker.url], worker.reported.token_usage)
    yield requests
    yield usage


def _of_requests(counts: Counts) -> Iterator[Metric]:
    yield _tally(
        "slime_requests", "Requests by kind and status", ("kind", "status"), counts.requests
    )
    yield _tally(
        "slime_refusals",
        "Errors that the router answered with",
        ("status", "code"),
        counts.refusals,
    )
    yield _tally("slime_received_bytes", "Bytes of requests' bodies", ("kind",), counts.received)
    yield _tally("slime_sent_bytes", "Bytes of answers' bodies", ("kind",), counts.sent)
    for name, words, histograms in (
        ("slime_first_byte_seconds", "Until an answer's first byte", counts.first_byte),
        ("slime_request_seconds", "Until an answer's end", counts.whole),
    ):
        family = HistogramMetricFamily(name, words, labels=("kind",))
        for kind, histogram in histograms.items():
            family.add_metric([kind], histogram.buckets(), histogram.total)
        yield family


def _of_dispatching(router: Router) -> Iterator[Metric]:
    shared, counts, room = router.shared, router.shared.counts, router.shared.dispatcher.room
    yield _gauge("slime_running", "Generations that were let in", room.running)
    yield _gauge("slime_waiting", "Generations that wait to be let in", room.waiting_count)
    yield _gauge(
        "slime_pairs_running", "Prompts that change hands between pairs", len(shared.rooms)
    )
    family = HistogramMetricFamily("slime_wait_seconds", "How long generations waited", labels=())
    family.add_metric([], counts.waits.buckets(), counts.waits.total)
    yield family
    yield _counter("slime_aborted_waiting", "Generations aborted while they waited", counts.drained)
    yield _tally("slime_attempts", "Requests sent to workers", ("outcome", "then"), counts.attempts)
    yield _tally(
        "slime_control", "Workers' answers to control calls", ("path", "result"), counts.control
    )
    yield _tally(
        "slime_probes", "Workers' answers about themselves", ("path", "result"), counts.probes
    )


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(name, words, value=value)


def _tally(
    name: str, words: str, labels: tuple[str, ...], counts: dict[tuple[str, ...], int]
) -> Metric:
    family = CounterMetricFamily(name, words, labels=labels)
    for key, count in counts.items():
        family.add_metric(list(key), count)
    return family
