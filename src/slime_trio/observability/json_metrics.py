"""The metrics as JSON: in the documents' shape, and some more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slime_trio.observability.prometheus import trace_lines_lost
from slime_trio.router import Router

__all__ = ["metrics_json"]


def metrics_json(router: Router, *, all: bool = True) -> dict[str, Any]:
    """What ``router`` captured, and the fleet.

    ``all``: for the operator, with the workers' URLs and every tenant's calls in the sums of
    the fleet; without it, for a tenant: nothing but its own.
    """
    routers = list(router.shared.routers.values()) if all else [router]
    workers = router.shared.fleet.listed()
    return {
        "router": {
            "active_workers": sum(1 for worker in workers if worker.is_fit),
            "total_in_flight": sum(len(one.state.open_calls) for one in routers),
            **_of_calls(routers),
            "weight_version": router.shared.versions.newest,
            **(_of_process(router) if all else {}),
        },
        "cache": _of_cache(routers),
    }


def _of_calls(routers: Sequence[Router]) -> dict[str, Any]:
    books = [one.state.counters for one in routers]
    return {
        "calls_captured": sum(one.calls_captured for one in books),
        "calls_lost": sum(one.calls_lost for one in books),
        "answers_not_captured": sum(one.answers_not_captured for one in books),
        "retrievals": sum(one.retrievals for one in books),
        "branches": sum(one.branches for one in books),
        "prompts_with_special_tokens_as_text": sum(one.spelled_prompts for one in books),
        "retries_joined": sum(one.attempts.joined for one in routers),
        "retries_replayed": sum(one.attempts.replayed for one in routers),
        "sessions": sum(len(one.state.sessions.known) for one in routers),
    }


def _of_process(router: Router) -> dict[str, Any]:
    """What is the operator's to know."""
    fleet = router.shared.fleet
    workers = fleet.listed()
    return {
        "worker_loads": {worker.url: worker.load for worker in workers},
        "worker_conditions": {worker.url: worker.health.condition.value for worker in workers},
        "worker_versions": {worker.url: worker.version for worker in workers},
        "total_in_flight": fleet.total_in_flight,
        "trace_lines_lost": trace_lines_lost(router),
    }


def _of_cache(routers: Sequence[Router]) -> dict[str, Any]:
    forests = [one.state.forest for one in routers]
    books = [one.state.counters for one in routers]
    hits, lookups = sum(one.hits for one in books), sum(one.lookups for one in books)
    prompt_tokens = sum(one.prompt_tokens for one in books)
    settings = routers[0].args
    return {
        "total_entries": sum(len(one.segments) for one in forests),
        "cache_hits": hits,
        "cache_misses": lookups - hits,
        "hit_rate": _ratio(hits, lookups),
        "token_hit_rate": _ratio(sum(one.reused_tokens for one in books), prompt_tokens),
        "cur_cache_size": sum(one.reuse_tokens for one in forests),
        "max_cache_size": settings.radix_tree_max_size,
        "cache_size_mb": sum(one.total_bytes for one in forests) / 2**20,
        "data_mb": sum(one.data_bytes for one in forests) / 2**20,
        "gc_threshold_k": settings.gc_threshold_k,
        "total_tokens": sum(one.total_tokens for one in forests),
        "evicted": sum(one.segments_evicted for one in books),
        "collected": sum(one.segments_collected for one in books),
        "lost_unretrieved": sum(one.answers_lost_unretrieved for one in books),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
