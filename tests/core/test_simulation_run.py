"""Whole simulations: times worked out by hand, and what must hold in any of them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.engine import PauseMode
from slime_core.errors import ClientError
from slime_core.policies import POLICIES
from slime_core.simulation import (
    Chance,
    Faults,
    Fixed,
    Fleet,
    Lognormal,
    Result,
    Retries,
    Router,
    Scenario,
    Spread,
    Trace,
    TraceEntry,
    Uniform,
    Updates,
    WorkerSpeed,
    Workload,
    simulate,
)
from slime_core.simulation.workload import Call, generated
from tests.core.simulation_support import Numbers, chances, scenarios

_SPEED = WorkerSpeed(prefill_tokens_per_s=128.0, s_per_token=1 / 8)
_TWO_TURNS = Workload(
    sessions=1,
    turns=Fixed(2),
    input_tokens=(Fixed(64), Fixed(32)),
    answer_tokens=Fixed(8),
    think_s=Fixed(1),
)


def _run(scenario: Scenario, policy: str = "least-in-flight", seed: int = 1) -> Result:
    return simulate(scenario, policy, chances(seed))


def _latencies(result: Result) -> list[float]:
    return [turn.latency_s.mean for turn in result.turns]


# -- by hand ---------------------------------------------------------------------------------------


def test_every_step_of_a_request_takes_its_time_with_capture() -> None:
    router = Router(encode_tokens_per_s=1024.0, overhead_s=0.5, network_s=0.25)
    result = _run(Scenario(fleet=Fleet.of(1, _SPEED), workload=_TWO_TURNS, router=router))
    # Overhead, encoding, there, prefill, eight tokens, back.
    first = 0.5 + 64 / 1024 + 0.25 + 64 / 128 + 1 + 0.25
    # Of the prompt's 104 tokens 32 are new to the router, and 33 to the worker.
    second = 0.5 + 32 / 1024 + 0.25 + 33 / 128 + 1 + 0.25
    assert _latencies(result) == [first, second]
    first_tokens = [turn.first_token_s.mean for turn in result.turns]
    assert first_tokens == [first - 7 / 8, second - 7 / 8]
    assert result.makespan_s == first + 1 + second
    assert (result.prompt_tokens, result.encoded_tokens) == (168, 96)
    assert result.cache_hit_rate == 71 / 168
    assert result.output_tokens_per_s == 16 / result.makespan_s
    assert result.workers[0].utilisation == (97 / 128 + 2) / result.makespan_s
    assert result.imbalance == 1.0


def test_without_capture_the_worker_encodes_every_prompt_anew() -> None:
    speed = replace(_SPEED, encode_tokens_per_s=1024.0)
    router = Router(capture=False, encode_tokens_per_s=1.0)
    result = _run(Scenario(fleet=Fleet.of(1, speed), workload=_TWO_TURNS, router=router))
    assert _latencies(result) == [64 / 1024 + 64 / 128 + 1, 104 / 1024 + 33 / 128 + 1]
    assert (result.prompt_tokens, result.encoded_tokens) == (168, 0)


def test_an_answer_that_drifts_is_computed_again_only_without_capture() -> None:
    workload = replace(_TWO_TURNS, drift=1.0)
    ours = Scenario(fleet=Fleet.of(1, _SPEED), workload=workload)
    theirs = replace(ours, router=Router(capture=False))

    def numbers(name: str) -> Chance:
        return Numbers([0.0, 0.5, 0.0, 0.5] if name == "workload/drift" else [0.0, 0.0])

    assert simulate(ours, "round-robin", numbers).workers[0].cached_tokens == 71
    assert simulate(theirs, "round-robin", numbers).workers[0].cached_tokens == 68


def test_the_next_session_begins_when_one_ends() -> None:
    workload = Workload(sessions=3, concurrency=2, answer_tokens=Fixed(8))
    fleet = Fleet.of(1, replace(_SPEED, prefill_tokens_per_s=0.0))
    result = _run(Scenario(fleet=fleet, workload=workload))
    assert (result.makespan_s, result.latency_s.most) == (2.0, 1.0)
    assert result.workers[0].mean_in_flight == 1.5


def test_imbalance_compares_the_busiest_worker_with_an_even_deal() -> None:
    fleet = Fleet.of(2, replace(_SPEED, prefill_tokens_per_s=0.0))
    entries = [TraceEntry(at_s=0, session=s, new_tokens=1, answer_tokens=8) for s in "abcd"]
    trace = Scenario(fleet=fleet, workload=Trace(entries=tuple(entries)))
    assert _run(trace).imbalance == 1.0
    all_on_one = simulate(trace, "random", lambda name: Numbers([0.1] * 4))
    assert all_on_one.imbalance == 2.0
    assert [one.mean_in_flight for one in all_on_one.workers] == [4.0, 0.0]


def test_a_session_stays_with_its_worker_and_finds_its_prefix_there() -> None:
    workload = Workload(
        sessions=40,
        concurrency=8,
        turns=Fixed(5),
        answer_tokens=Fixed(20),
        think_s=Uniform(0, 1),
    )
    scenario = Scenario(fleet=Fleet.of(4), workload=workload)
    rates = {name: _run(scenario, name).cache_hit_rate for name in POLICIES}
    best = rates.pop("consistent-hashing")
    # All but the new input and the last sampled token of each turn is found.
    prompts = [100 + 120 * turn for turn in range(5)]
    assert best == (sum(prompts) - 500 - 4) / sum(prompts)
    assert all(rate < best for rate in rates.values())


def test_samples_of_one_question_share_it_at_the_router_and_at_the_worker() -> None:
    workload = Workload(sessions=8, concurrency=1, group_size=8, answer_tokens=Fixed(1))
    result = _run(Scenario(workload=workload))
    assert (result.prompt_tokens, result.encoded_tokens) == (800, 100)
    assert result.workers[0].cached_tokens == 7 * 99


def test_what_a_session_left_behind_is_reused_within_the_limit_only() -> None:
    workload = Workload(
        sessions=3, concurrency=1, system_tokens=50, turns=Fixed(2), answer_tokens=Fixed(10)
    )
    encoded = {
        limit: _run(Scenario(workload=workload, router=Router(reuse_tokens=limit))).encoded_tokens
        for limit in (0, 49, 50, 10_000)
    }
    # Within a session everything is kept, whatever the limit.
    assert encoded == {0: 750, 49: 750, 50: 650, 10_000: 650}


def test_a_trace_is_sent_at_its_times_and_after_the_answers_that_it_repeats() -> None:
    trace = Trace(
        entries=(
            TraceEntry(at_s=1.0, session="a", new_tokens=128, answer_tokens=8),
            TraceEntry(at_s=1.5, session="a", parent=0, new_tokens=64, answer_tokens=8),
            TraceEntry(at_s=9.0, session="a", parent=1, new_tokens=64, answer_tokens=8),
        )
    )
    result = _run(Scenario(fleet=Fleet.of(1, _SPEED), workload=trace))
    assert _latencies(result) == [2.0, 1 + 65 / 128, 1 + 65 / 128]
    assert result.makespan_s == 9 + 1 + 65 / 128
    assert result.sessions == 1


# -- faults ----------------------------------------------------------------------------------------


def _failing(*waits: float) -> Chance:
    """Failures of a worker that runs one second on average, after these many seconds each."""
    return Numbers([1 - exp(-wait) for wait in waits])


def test_what_a_dead_worker_ran_is_tried_again_elsewhere() -> None:
    scenario = Scenario(
        fleet=Fleet.of(2, _SPEED),
        workload=Workload(sessions=1, input_tokens=(Fixed(64),), answer_tokens=Fixed(16)),
        faults=Faults(mean_s_between_failures=1.0, repair_s=Fixed(100)),
        retries=Retries(most=1, after_s=0.25),
    )

    def numbers(name: str) -> Chance:
        waits = {"failures/worker-1": 1.3, "failures/worker-2": 20.0}
        return _failing(waits[name]) if name in waits else random.Random(1)

    result = simulate(scenario, "least-in-flight", numbers)
    # Prefill until 0.5, six tokens until 1.3.
    assert (result.lost_tokens, result.attempts_lost, result.retries) == (6, 1, 1)
    assert (result.completed, result.failed, result.worker_failures) == (1, 0, 1)
    assert result.makespan_s == pytest.approx(1.3 + 0.25 + 0.5 + 2)
    assert [worker.attempts for worker in result.workers] == [1, 1]


def test_a_session_whose_request_fails_for_good_is_given_up() -> None:
    scenario = Scenario(
        fleet=Fleet.of(1, _SPEED),
        workload=Workload(sessions=2, concurrency=1, turns=Fixed(3), answer_tokens=Fixed(80)),
        updates=Updates(every_s=5.0, mode=PauseMode.ABORT),
        retries=Retries(most=2, after_s=0.0),
    )
    result = _run(scenario)
    assert (result.requests, result.failed, result.not_asked, result.completed) == (2, 2, 4, 0)
    assert (result.sessions, result.sessions_failed, result.retries) == (2, 2, 4)
    assert result.makespan_s == 30.0
    # Each attempt sampled for five seconds less its prefill of 100/128 s: 33 tokens and a bit.
    assert result.lost_tokens == 6 * 33
    assert result.latency_s == Spread()


def test_who_repeats_an_answer_that_never_came_fails_with_it() -> None:
    entries = (
        TraceEntry(at_s=0.0, session="a", new_tokens=64, answer_tokens=80),
        TraceEntry(at_s=0.0, session="b", parent=0, new_tokens=1, answer_tokens=1),
        TraceEntry(at_s=6.0, session="c", parent=0, kept_tokens=64, new_tokens=1, answer_tokens=1),
    )
    result = _run(
        Scenario(
            fleet=Fleet.of(1, _SPEED),
            workload=Trace(entries=entries),
            updates=Updates(every_s=5.0, mode=PauseMode.ABORT),
            retries=Retries(most=0),
        )
    )
    assert (result.requests, result.failed, result.not_asked, result.completed) == (2, 1, 1, 1)
    assert (result.sessions, result.sessions_failed) == (3, 2)


def test_a_fleet_that_is_all_down_refuses() -> None:
    scenario = Scenario(
        fleet=Fleet.of(1, _SPEED),
        workload=Workload(sessions=1, answer_tokens=Fixed(16)),
        faults=Faults(mean_s_between_failures=1.0, repair_s=Fixed(10)),
        retries=Retries(most=5, after_s=4.0),
    )
    result = simulate(
        scenario,
        "round-robin",
        lambda name: _failing(1, 20) if "/" in name else random.Random(1),
    )
    # Lost at 1, refused at 5 and 9, taken at 13.
    assert (result.attempts_lost, result.attempts_refused, result.retries) == (1, 2, 3)
    assert result.makespan_s == pytest.approx(13 + 100 / 128 + 2)


@pytest.mark.parametrize(
    ("mode", "makespan"),
    [(PauseMode.IN_PLACE, 3.0), (PauseMode.RETRACT, 2.5 + 76 / 128 + 0.5)],
)
def test_an_update_costs_its_time_and_what_its_mode_computes_again(
    mode: PauseMode, makespan: float
) -> None:
    scenario = Scenario(
        fleet=Fleet.of(1, _SPEED),
        workload=Workload(sessions=1, input_tokens=(Fixed(64),), answer_tokens=Fixed(16)),
        updates=Updates(every_s=2.0, takes_s=0.5, mode=mode),
    )
    result = _run(scenario)
    # Prefill until 0.5, and twelve of sixteen tokens until the pause.
    assert result.makespan_s == makespan
    assert (result.weight_updates, result.lost_tokens, result.retries) == (1, 0, 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_batches_that_prompts_stop_again_and_again_come_to_their_end(seed: int) -> None:
    # Rounding once left a batch some 1e-15 tokens short of its next token, with no time to pass.
    speed = WorkerSpeed(prefill_tokens_per_s=5000, s_per_token=0.005, prefill_stops_decode=True)
    workload = Workload(
        sessions=20,
        turns=Fixed(3),
        input_tokens=(Fixed(100), Fixed(150), Fixed(200)),
        answer_tokens=Lognormal.with_mean(64, 0.5),
    )
    result = _run(Scenario(fleet=Fleet.of(2, speed), workload=workload), "random", seed)
    assert result.completed == 60


def test_updates_that_leave_no_time_to_compute_a_prompt_are_refused() -> None:
    scenario = Scenario(
        fleet=Fleet.of(2, _SPEED),
        workload=Workload(sessions=1, input_tokens=(Fixed(64),), answer_tokens=Fixed(8)),
        updates=Updates(every_s=0.75, takes_s=0.25, mode=PauseMode.RETRACT),
    )
    with pytest.raises(ClientError) as caught:
        _run(scenario)
    assert caught.value.param == "every_s"
    enough = replace(scenario, updates=replace(scenario.updates, every_s=4.0))
    assert _run(enough).completed == 1


# -- what must hold --------------------------------------------------------------------------------


def _all_calls(workload: Workload, seed: int) -> list[Call]:
    calls = list(generated(workload, chances(seed), exact=True))
    for call in calls:
        calls += call.then
    return calls


@settings(max_examples=60, deadline=None)
@given(scenarios(faults=True), st.sampled_from(sorted(POLICIES)), st.integers(0, 1000))
def test_every_request_ends_once_and_every_token_is_accounted_for(
    scenario: Scenario, policy: str, seed: int
) -> None:
    result = _run(scenario, policy, seed)
    assert isinstance(scenario.workload, Workload)
    calls = _all_calls(scenario.workload, seed)
    assert result.requests == result.completed + result.failed
    assert result.requests + result.not_asked == len(calls)
    assert result.sessions == scenario.workload.sessions
    attempts = result.requests + result.retries
    assert result.completed + result.attempts_lost + result.attempts_refused == attempts
    assert sum(worker.attempts for worker in result.workers) <= attempts - result.attempts_refused
    assert sum(worker.output_tokens for worker in result.workers) == result.output_tokens
    assert result.failed <= result.sessions_failed <= result.sessions
    if not result.failed:
        assert result.output_tokens == sum(call.answer_tokens for call in calls)


@settings(max_examples=60, deadline=None)
@given(scenarios(faults=False), st.sampled_from(sorted(POLICIES)), st.integers(0, 1000))
def test_without_faults_nothing_is_lost_and_the_books_agree(
    scenario: Scenario, policy: str, seed: int
) -> None:
    result = _run(scenario, policy, seed)
    assert isinstance(scenario.workload, Workload)
    calls = _all_calls(scenario.workload, seed)
    assert (result.completed, result.failed, result.not_asked) == (len(calls), 0, 0)
    assert (result.retries, result.lost_tokens, result.worker_failures) == (0, 0, 0)
    assert result.prompt_tokens == sum(call.prompt_tokens for call in calls)
    assert sum(worker.prompt_tokens for worker in result.workers) == result.prompt_tokens
    assert 0 <= result.encoded_tokens <= result.prompt_tokens
    assert sum(turn.latency_s.count for turn in result.turns) == len(calls)
    assert result.imbalance >= 1 - 1e-9
    for worker in result.workers:
        assert 0 <= worker.prefill_share <= worker.utilisation <= 1 + 1e-9
        assert 0 <= worker.cache_hit_rate < 1


@settings(max_examples=50, deadline=None)
@given(scenarios(faults=False), st.sampled_from(sorted(POLICIES)), st.integers(0, 1000))
def test_calls_in_flight_over_time_are_the_time_that_calls_took(
    scenario: Scenario, policy: str, seed: int
) -> None:
    quick = Router(capture=scenario.router.capture, network_s=scenario.router.network_s)
    result = _run(replace(scenario, router=quick), policy, seed)
    in_flight = sum(worker.mean_in_flight for worker in result.workers)
    total = result.latency_s.mean * result.latency_s.count
    assert in_flight * result.makespan_s == pytest.approx(total)


@settings(max_examples=30, deadline=None)
@given(scenarios(faults=True), st.sampled_from(sorted(POLICIES)), st.integers(0, 1000))
def test_the_same_seed_gives_the_same_result(scenario: Scenario, policy: str, seed: int) -> None:
    assert _run(scenario, policy, seed) == _run(scenario, policy, seed)


def test_another_seed_gives_another_result() -> None:
    scenario = Scenario(workload=Workload(sessions=20, answer_tokens=Lognormal(50, 1)))
    assert _run(scenario, seed=1) != _run(scenario, seed=2)


_PROGRAM = """
import random
from slime_core.policies import POLICIES
from slime_core.simulation import *
scenario = Scenario(
    fleet=Fleet.of(3, WorkerSpeed(prefix_cache_tokens=2000, max_running=4)),
    workload=Workload(sessions=60, group_size=4, turns=Uniform(1, 4), drift=0.5,
                      answer_tokens=Lognormal(60, 1), think_s=Exponential(0.2)),
    router=Router(encode_tokens_per_s=1e5, reuse_tokens=500, network_s=0.001),
    updates=Updates(every_s=2.0, takes_s=0.1),
    faults=Faults(mean_s_between_failures=8.0, repair_s=Fixed(1)),
)
for policy in POLICIES:
    print(simulate(scenario, policy, lambda name: random.Random(f"7/{name}")))
"""


def test_results_do_not_depend_on_the_hash_seed() -> None:
    told = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1
    assert told.pop().count("worker_failures") == len(POLICIES)


# -- asking ----------------------------------------------------------------------------------------


def test_progress_is_told_now_and_then() -> None:
    told: list[tuple[int, int]] = []
    scenario = Scenario(workload=Workload(sessions=2500, answer_tokens=Uniform(1, 5)))
    simulate(scenario, "random", chances(1), lambda ended, done: told.append((ended, done)))
    assert told == [(1000, 1000), (2000, 2000)]


def test_an_unknown_policy_is_the_clients_error() -> None:
    with pytest.raises(ClientError) as caught:
        simulate(Scenario(), "best", chances(1))
    assert caught.value.param == "policy"


@given(st.lists(st.floats(0, 100), min_size=1))
def test_percentiles_are_the_smallest_values_that_reach_their_share(values: list[float]) -> None:
    spread = Spread.of(values)
    for share, value in ((50, spread.p50), (90, spread.p90), (99, spread.p99)):
        assert value in values
        assert 100 * sum(one <= value for one in values) >= share * len(values)
        assert 100 * sum(one < value for one in values) < share * len(values)
    assert (spread.count, spread.most) == (len(values), max(values))
    assert spread.mean == pytest.approx(sum(values) / len(values))
