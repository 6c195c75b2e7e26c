"""What can be simulated, and what is refused, by the name of the field."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan

import pytest

from slime_core.errors import ClientError
from slime_core.simulation import (
    Faults,
    Fleet,
    Retries,
    Router,
    Scenario,
    Trace,
    TraceEntry,
    Updates,
    WorkerSpeed,
    Workload,
)


def _entry(**changed: object) -> TraceEntry:
    fields = {"at_s": 0.0, "session": "s", "new_tokens": 5, "answer_tokens": 5} | changed
    return TraceEntry(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: WorkerSpeed(prefill_tokens_per_s=-1), "prefill_tokens_per_s"),
        (lambda: WorkerSpeed(prefill_tokens_per_s=1e-9), "prefill_tokens_per_s"),
        (lambda: WorkerSpeed(s_per_token=0), "s_per_token"),
        (lambda: WorkerSpeed(s_per_token=1e13), "s_per_token"),
        (lambda: WorkerSpeed(s_per_token=nan), "s_per_token"),
        (lambda: WorkerSpeed(s_per_token_per_other=inf), "s_per_token_per_other"),
        (lambda: WorkerSpeed(max_running=0), "max_running"),
        (lambda: WorkerSpeed(prefix_cache_tokens=-1), "prefix_cache_tokens"),
        (lambda: WorkerSpeed(encode_tokens_per_s=-1), "encode_tokens_per_s"),
        (lambda: Fleet(workers=()), "workers"),
        (lambda: Fleet.of(0), "workers"),
        (lambda: Fleet.of(10_001), "workers"),
        (lambda: Router(encode_tokens_per_s=-1), "encode_tokens_per_s"),
        (lambda: Router(reuse_tokens=-1), "reuse_tokens"),
        (lambda: Router(overhead_s=-1), "overhead_s"),
        (lambda: Router(network_s=nan), "network_s"),
        (lambda: Workload(sessions=0), "sessions"),
        (lambda: Workload(concurrency=0), "concurrency"),
        (lambda: Workload(group_size=0), "group_size"),
        (lambda: Workload(answer_tokens_max=0), "answer_tokens_max"),
        (lambda: Workload(sessions_per_s=0), "sessions_per_s"),
        (lambda: Workload(system_tokens=-1), "system_tokens"),
        (lambda: Workload(input_tokens=()), "input_tokens"),
        (lambda: Workload(drift=1.5), "drift"),
        (lambda: _entry(at_s=-1), "at_s"),
        (lambda: _entry(new_tokens=-1), "new_tokens"),
        (lambda: _entry(answer_tokens=0), "answer_tokens"),
        (lambda: _entry(kept_tokens=-1), "kept_tokens"),
        (lambda: Trace(entries=()), "entries"),
        (lambda: Trace(entries=(_entry(),), system_tokens=-1), "system_tokens"),
        (lambda: Trace(entries=(_entry(parent=0),)), "entries[0].parent"),
        (lambda: Trace(entries=(_entry(), _entry(parent=-1))), "entries[1].parent"),
        (
            lambda: Trace(entries=(_entry(), _entry(parent=0, kept_tokens=11))),
            "entries[1].kept_tokens",
        ),
        (lambda: Trace(entries=(_entry(kept_tokens=1),)), "entries[0].kept_tokens"),
        (lambda: Trace(entries=(_entry(new_tokens=0),)), "entries[0].new_tokens"),
        (lambda: Updates(every_s=-1), "every_s"),
        (lambda: Updates(every_s=1e-9), "every_s"),
        (lambda: Updates(every_s=5, takes_s=5), "takes_s"),
        (lambda: Faults(mean_s_between_failures=-1), "mean_s_between_failures"),
        (lambda: Faults(mean_s_between_failures=1e-9), "mean_s_between_failures"),
        (lambda: Retries(most=-1), "most"),
        (lambda: Retries(after_s=-1), "after_s"),
    ],
)
def test_what_makes_no_sense_is_refused_by_the_name_of_its_field(
    make: Callable[[], object], field: str
) -> None:
    with pytest.raises(ClientError) as caught:
        make()
    assert caught.value.param == field
    assert caught.value.message.startswith(field)


def test_everything_has_a_default() -> None:
    assert Scenario() == Scenario(fleet=Fleet.of(1), workload=Workload())


def test_a_trace_may_repeat_all_of_its_parent_and_add_nothing() -> None:
    again = _entry(parent=0, new_tokens=0)
    assert Trace(entries=(_entry(), again)).entries[1] is again
