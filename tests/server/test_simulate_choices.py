"""What is asked of a simulation: words, flags, TOML files, traces, and what each refuses."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from slime_core.policies import POLICIES
from slime_core.simulation import (
    Choice,
    Distribution,
    Exponential,
    Faults,
    Fixed,
    Lognormal,
    Retries,
    Router,
    TraceEntry,
    Uniform,
    Updates,
    WorkerSpeed,
    Workload,
)
from slime_trio.config import ConfigurationError
from slime_trio.simulate import add_arguments
from slime_trio.simulate.choices import Choices, from_file, with_flags
from slime_trio.simulate.fields import FIELDS, Field
from slime_trio.simulate.replay import replay_of
from slime_trio.simulate.scenarios import Point, points
from slime_trio.simulate.words import count, distribution, shown, word_of
from slime_trio.trace import TracedCall, TraceError

OTHER = {
    "turns": "uniform:2:5", "input_tokens": "100,lognormal:50:1", "answer_tokens": "exponential:9",
    "think_s": "choice:1:2", "repair_s": "5", "update_mode": "abort", "capture": "off",
    "prefill_stops_decode": "on", "drift": "0.5", "update_every_s": "0", "update_takes_s": "3",
}  # fmt: skip
"""A word for each field, or else ``7``."""


def asked(*words: str) -> Choices:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(words)
    return with_flags(Choices() if args.file is None else from_file(args.file), vars(args))


def one_point(choices: Choices) -> Point:
    return next(points(choices, None))


def toml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# -- words -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("100", Fixed(100)),
        ("0.5", Fixed(0.5)),
        ("uniform:50:200", Uniform(50, 200)),
        ("lognormal:300:1.2", Lognormal(300, 1.2)),
        ("exponential:2.5", Exponential(2.5)),
        ("choice:100:200:400", Choice((100, 200, 400))),
        ("choice:100@9:5000@1", Choice((100, 5000), (9, 1))),
    ],
)
def test_a_distribution_reads_as_it_is_shown(word: str, value: Distribution) -> None:
    assert distribution(word) == value
    assert str(shown(value)) == word


def test_a_lognormal_may_be_told_by_its_mean() -> None:
    assert distribution("lognormal-mean:300:1.2").mean == pytest.approx(300)


@pytest.mark.parametrize(
    "word",
    ["", "many", "uniform:1", "uniform:2:1", "uniform:a:b", "normal:1:2", "-1", "nan", "inf",
     "lognormal:0:1", "choice", "choice:", "choice:1@x", "choice:1@0", "1:2"],
)  # fmt: skip
def test_what_is_no_distribution_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"expected|must"):
        distribution(word)


@pytest.mark.parametrize(("word", "value"), [("12", 12), ("1e6", 1_000_000), ("1_000", 1000)])
def test_a_count_may_be_written_in_several_ways(word: str, value: int) -> None:
    assert count(word) == value


@pytest.mark.parametrize("word", ["1.5", "x", "", "nan", "inf", "1e30", "9" * 5000])
def test_what_is_no_count_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        count(word)


def test_a_toml_value_that_no_flag_could_have_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a number"):
        word_of({"a": 1})


# -- fields ------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [WorkerSpeed, Router, Workload, Updates, Faults, Retries])
def test_every_field_of_a_scenario_has_one_row(part: type[Any]) -> None:
    rows = [row.inner for row in FIELDS if row.part is part]
    assert sorted(rows) == sorted(field.name for field in dataclasses.fields(part))


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_flag_and_a_key_say_the_same(field: Field, tmp_path: Path) -> None:
    word = OTHER.get(field.name, "7")
    path = toml(tmp_path, f'{field.name} = "{word}"\n')
    by_flag, by_key = asked(field.flag, word), asked(path)
    assert by_flag.values == by_key.values
    if field.name != "update_every_s":
        assert by_flag.values[field.name] != field.default
    assert one_point(by_flag).scenario == one_point(by_key).scenario


def test_nothing_given_is_the_standard() -> None:
    choices = asked()
    assert choices.policies == tuple(POLICIES)
    assert one_point(choices).scenario.workload == Workload(turns=Fixed(3))
    assert len(one_point(choices).scenario.fleet.workers) == 4


def test_a_flag_wins_over_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, "workers = 3\nsessions = 5\n")
    scenario = one_point(asked(path, "--workers", "2")).scenario
    assert len(scenario.fleet.workers) == 2
    assert scenario.workload == Workload(sessions=5, turns=Fixed(3))


def test_a_file_speaks_toml(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """
        policy = ["random", "round-robin"]
        input_tokens = [100, "uniform:1:2"]
        capture = false
        s_per_token = 0.01
        [sweep]
        workers = [1, 2]
        """,
    )
    found = list(points(asked(path), None))
    assert [(one.swept["workers"], one.policy) for one in found] == [
        (1, "random"), (1, "round-robin"), (2, "random"), (2, "round-robin"),
    ]  # fmt: skip
    workload = found[0].scenario.workload
    assert isinstance(workload, Workload)
    assert workload.input_tokens == (Fixed(100), Uniform(1, 2))
    assert not found[0].scenario.router.capture


def test_workers_may_differ(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        "s_per_token_per_other = 0\nmax_running = 8\n[[fleet]]\nworkers = 2\n"
        "[[fleet]]\ns_per_token = 0.5\nmax_running = 9\n",
    )
    fast, slow = WorkerSpeed(max_running=8), WorkerSpeed(max_running=9, s_per_token=0.5)
    assert one_point(asked(path)).scenario.fleet.workers == (fast, fast, slow)


def test_sweeps_multiply() -> None:
    choices = asked("--sweep", "workers=1,2", "--sweep", "capture=on,off", "--policy", "random")
    found = [tuple(one.swept.values()) for one in points(choices, None)]
    assert found == [(1, True), (1, False), (2, True), (2, False)]


def test_a_sweep_changes_what_is_simulated() -> None:
    found = points(asked("--sweep", "max-running=1,2", "--policy", "random"), None)
    assert [one.scenario.fleet.workers[0].max_running for one in found] == [1, 2]


def test_seeds_may_be_swept() -> None:
    found = points(asked("--sweep", "seed=1,2", "--policy", "random"), None)
    assert [one.seed for one in found] == [1, 2]


def test_a_value_that_is_given_twice_is_run_once() -> None:
    found = points(asked("--sweep", "workers=1,2,1", "--policy", "random"), None)
    assert [one.swept["workers"] for one in found] == [1, 2]


def test_a_replay_may_be_told_what_all_prompts_begin_with() -> None:
    trace = replay_of([call("a", 1), call("b", 2)]).trace
    found = points(
        asked("--trace", "t", "--sweep", "system_tokens=0,5", "--policy", "random"), trace
    )
    assert [one.scenario.workload for one in found] == [
        trace,
        dataclasses.replace(trace, system_tokens=5),
    ]


def test_policies_add_up() -> None:
    words = ["--policy", "random,round-robin", "--policy", "power-of-two", "--policy", "random"]
    assert asked(*words).policies == ("random", "round-robin", "power-of-two")
    assert asked("--policy", "random", "--policy", "all").policies == tuple(POLICIES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "many"], "--workers: 'many' is not valid: expected a number"),
        (["--workers", "0"], "--workers: '0' is not valid: expected 1 to 10000"),
        (["--s-per-token", "0"], "--s-per-token: must be from 1e-30 to 1e+12"),
        (["--update-every-s", "5", "--update-takes-s", "5"], "--update-takes-s: is all of"),
        (["--update-mode", "fast"], "--update-mode: 'fast' is not valid: expected one of abort"),
        (["--repair-s", "often"], "--repair-s: 'often' is not valid"),
        (["--retries", "-1"], "--retries: must not be negative"),
        (["--input-tokens", ","], "--input-tokens: ',' is not valid: expected at least one"),
        (["--policy", "fair"], "--policy: 'fair' is not one of least-in-flight"),
        (["--policy", ""], "--policy: expected at least one"),
        (["--sweep", "workers"], "--sweep: 'workers' is not valid: expected FIELD=VALUE"),
        (["--sweep", "colour=1"], "--sweep: colour is not a field"),
        (["--sweep", "workers=1,x"], "--sweep workers: 'x' is not valid"),
        (["--sweep", "workers=1,0"], "--sweep workers: '0' is not valid: expected 1 to"),
        (["--sweep", "drift=0,2"], "--sweep drift: must be from 0 to 1"),
        (["--sweep", "drift=0", "--sweep", "drift=1"], "--sweep drift: is there twice"),
        (["--trace", "t", "--sessions", "5"], "--sessions: has no effect with --trace"),
        (["--trace", "t", "--sweep", "turns=1"], "--turns: has no effect with --trace"),
    ],
)
def test_a_flag_that_makes_no_sense_is_named(words: list[str], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        list(points(asked(*words), None))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "colour is not a field of a scenario"),
        ("workers = 'x'", "scenario.toml: workers: 'x' is not valid"),
        ("workers = {a = 1}", "scenario.toml: workers: expected a number"),
        ("drift = 2", "scenario.toml: drift: must be from 0 to 1"),
        ("policy = 'fair'", "scenario.toml: policy: 'fair' is not one of"),
        ("workers =", "scenario.toml: not TOML"),
        ("fleet = 3", "scenario.toml: fleet: expected tables"),
        ("[[fleet]]\ncolour = 1", "scenario.toml: fleet 1: colour is not a field of a worker"),
        ("[[fleet]]\nworkers = 'x'", "scenario.toml: fleet 1: workers: 'x' is not valid"),
        ("workers = 3\n[[fleet]]", "scenario.toml: workers: is told by each [[fleet]] already"),
        ("[sweep]\ncolour = 1", "scenario.toml: sweep: colour is not a field"),
        ("[sweep]\nworkers = ['x']", "scenario.toml: sweep.workers: 'x' is not valid"),
        ("[sweep]\nworkers = [1]\n[[fleet]]", "--sweep workers: is told by each [[fleet]]"),
        ("sweep = 1", "scenario.toml: sweep: expected a table"),
        ("trace = 't'\nturns = 3", "scenario.toml: turns: has no effect with"),
        ("policy = []", "scenario.toml: policy: expected at least one"),
        ("[sweep]\nworkers = []", "scenario.toml: sweep.workers: expected at least one"),
        ("[[fleet]]\nworkers = 0", "scenario.toml: fleet 1: workers: '0' is not valid"),
        ("[[fleet]]\nworkers = 9_999\n[[fleet]]\nworkers = 2", "scenario.toml: fleet: must be"),
    ],
)
def test_a_key_that_makes_no_sense_is_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        list(points(asked(toml(tmp_path, text)), None))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: No such file"):
        asked("nowhere.toml")


def test_the_trace_of_a_file_lies_beside_it(tmp_path: Path) -> None:
    assert asked(toml(tmp_path, "trace = 'a.jsonl'")).trace == tmp_path / "a.jsonl"


# -- traces ------------------------------------------------------------------------------


def call(name: str, at_s: float, **more: Any) -> TracedCall:
    told: dict[str, Any] = {
        "call": name, "at_s": at_s, "duration_s": 1.0, "session": None, "parent": None,
        "prompt": name, "kept_tokens": 0, "new_tokens": 10, "answer_tokens": 5, "worker": "w",
        "outcome": "complete", "finish": "stop",
    }  # fmt: skip
    return TracedCall(**told | more)


def test_a_trace_begins_at_zero_and_keeps_parents_and_lengths() -> None:
    calls = [
        call("a", 100.0, session="s"),
        call("b", 104.0, session="s", parent="a", kept_tokens=15),
    ]
    replay = replay_of(calls)
    assert replay.trace.entries == (
        TraceEntry(at_s=0.0, session="s", new_tokens=10, answer_tokens=5),
        TraceEntry(at_s=4.0, session="s", parent=0, kept_tokens=15, new_tokens=10, answer_tokens=5),
    )
    assert replay.orphans == 0


def test_calls_without_a_session_belong_to_that_of_their_parent() -> None:
    calls = [call("a", 1), call("b", 2, parent="a", kept_tokens=15), call("c", 3)]
    one, two, three = replay_of(calls).trace.entries
    assert one.session == two.session != three.session


def test_calls_of_one_prompt_share_it() -> None:
    calls = [call("a", 1), call("b", 2, prompt="a")]
    _, twin = replay_of(calls).trace.entries
    assert (twin.parent, twin.kept_tokens, twin.new_tokens) == (0, 10, 0)


def test_a_call_whose_parent_is_not_there_is_new_and_counted() -> None:
    replay = replay_of([call("b", 2, parent="a", kept_tokens=15)])
    (entry,) = replay.trace.entries
    assert (entry.parent, entry.new_tokens, replay.orphans) == (None, 25, 1)


def test_an_answer_without_tokens_is_played_with_one() -> None:
    assert replay_of([call("a", 1, answer_tokens=0)]).trace.entries[0].answer_tokens == 1


def test_a_call_that_keeps_more_than_there_is_is_named() -> None:
    calls = [call("a", 1), call("b", 2, parent="a", kept_tokens=16)]
    with pytest.raises(TraceError, match="call 'b': `kept_tokens` is more than the parent has"):
        replay_of(calls)
