"""``slime-router simulate`` as a user meets it: tables, JSON, pictures, errors, repeatability."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from slime_trio.cli import main
from slime_trio.simulate import add_arguments
from slime_trio.simulate.choices import Choices, from_file, with_flags
from slime_trio.simulate.command import run
from slime_trio.simulate.fields import FIELDS, Field
from slime_trio.simulate.scenarios import points
from slime_trio.simulate.words import shown, word_of
from slime_trio.trace import TracedCall, TraceRecorder
from tests.server.harness import embedded_worker, router_with, settled

SMALL = ("--sessions", "40", "--concurrency", "8", "--workers", "2", "--quiet")
ONE = (*SMALL, "--policy", "random")


def simulate(*words: str) -> int:
    return main(["simulate", *words])


def told_json(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert simulate(*words, "--json", "-") == 0
    return json.loads(capsys.readouterr().out)


def in_a_process(*words: str, hash_seed: str = "0") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "slime_trio", "simulate", *words],
        capture_output=True, timeout=60, check=False,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
    )  # fmt: skip


# -- what is shown -----------------------------------------------------------------------


def test_the_table_has_a_row_for_every_value_and_policy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert simulate(*SMALL, "--sweep", "workers=1,2", "--policy", "random,round-robin") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["workers", "policy"]
    assert [line.split()[:2] for line in lines[3:]] == [
        ["1", "random"], ["1", "round-robin"], ["2", "random"], ["2", "round-robin"],
    ]  # fmt: skip


def test_a_piped_table_is_whole_and_plain() -> None:
    done = in_a_process(*SMALL, "--per-turn", "--per-worker")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode("ascii")
    assert "consistent-hashing" in text
    assert "worker-2" in text
    assert "\x1b" not in text


def test_tables_tell_the_numbers_of_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = told_json(capsys, *ONE)["runs"]
    assert simulate(*ONE, "--per-turn", "--per-worker") == 0
    first, turns, workers = capsys.readouterr().out.split("\n\n")
    assert f"{run['requests_per_s']:.3f}" in first.splitlines()[-1].split()
    assert f"{run['latency_s']['p99']:.3f}" in first.splitlines()[-1].split()
    assert [line.split()[1:3] for line in turns.splitlines()[3:]] == [
        [str(turn["turn"]), str(turn["latency_s"]["count"])] for turn in run["turns"]
    ]
    assert [line.split()[2] for line in workers.splitlines()[3:]] == [
        str(worker["attempts"]) for worker in run["workers"]
    ]


def test_the_json_repeats_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = (*ONE, "--think-s", "exponential:2", "--seed", "7", "--sweep", "capture=on,off")
    told = told_json(capsys, *words)
    scenario = told["scenario"]
    assert (scenario["sessions"], scenario["think_s"], scenario["seed"]) == (
        40, "exponential:2", 7,
    )  # fmt: skip
    assert told["sweep"] == {"capture": [True, False]}
    assert [run["sweep"]["capture"] for run in told["runs"]] == [True, False]
    assert {run["seed"] for run in told["runs"]} == {7}
    assert [run["policy"] for run in told["runs"]] == ["random", "random"]


def test_the_scenario_of_the_json_can_be_given_back_as_toml(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = (*ONE, "--input-tokens", "100,uniform:50:60", "--update-mode", "abort")
    told = told_json(capsys, *words)
    lines = [
        f"{name} = {json.dumps(value)}"
        for name, value in told["scenario"].items()
        if value is not None
    ]
    path = tmp_path / "again.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert told_json(capsys, str(path), "--policy", "random", "--quiet") == told


def test_json_goes_beside_the_table_into_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "out.json"
    assert simulate(*ONE, "--json", str(path)) == 0
    assert "random" in capsys.readouterr().out
    assert json.loads(path.read_text())["runs"][0]["policy"] == "random"


@pytest.mark.parametrize(
    "sweep", [(), ("--sweep", "workers=1,2"), ("--sweep", "turns=1,2", "--sweep", "capture=on,off")]
)
def test_a_picture_is_drawn(sweep: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    assert simulate(*SMALL, *sweep, "--plot", str(path)) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


# -- same seed, same numbers -------------------------------------------------------------

LIVELY = (
    *("--turns", "uniform:1:4", "--answer-tokens", "lognormal:60:1", "--think-s", "exponential:1"),
    *("--group-size", "4", "--system-tokens", "50", "--prefix-cache-tokens", "3000"),
    *("--mean-s-between-failures", "9", "--repair-s", "exponential:2", "--update-every-s", "5"),
    *("--update-mode", "abort", "--update-takes-s", "1", "--capture", "off", "--drift", "0.3"),
)


def test_the_same_seed_gives_the_same_bytes_in_processes_with_other_hash_seeds() -> None:
    words = (*SMALL, *LIVELY, "--json", "-", "--seed", "3")
    one, two = (in_a_process(*words, hash_seed=seed) for seed in ("1", "2"))
    assert one.returncode == 0, one.stderr
    assert one.stdout == two.stdout
    runs = json.loads(one.stdout)["runs"]
    assert min(run["worker_failures"] for run in runs) > 0
    assert min(run["weight_updates"] for run in runs) > 0


def test_another_seed_gives_other_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = (told_json(capsys, *ONE, *LIVELY, "--seed", seed)["runs"] for seed in "12")
    assert one[0]["latency_s"] != two[0]["latency_s"]


def test_every_policy_gets_the_same_work(capsys: pytest.CaptureFixture[str]) -> None:
    words = (*SMALL, "--turns", "uniform:1:9", "--answer-tokens", "lognormal:60:1")
    runs = told_json(capsys, *words)["runs"]
    assert len({(run["requests"], run["output_tokens"]) for run in runs}) == 1


def test_jobs_change_nothing() -> None:
    words = (*SMALL, *LIVELY, "--json", "-")
    assert in_a_process(*words, "--jobs", "2").stdout == in_a_process(*words).stdout


# -- traces ------------------------------------------------------------------------------


def trace_file(tmp_path: Path, *calls: dict[str, Any]) -> str:
    common: dict[str, Any] = {
        "duration_s": 1.0, "session": "s", "parent": None, "kept_tokens": 0, "new_tokens": 100,
        "answer_tokens": 10, "worker": "w", "outcome": "complete", "finish": "stop",
    }  # fmt: skip
    lines = [json.dumps(common | {"prompt": call["call"]} | call) for call in calls]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def test_a_trace_is_replayed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    calls = [{"call": "a", "at_s": 50.0}, {"call": "b", "at_s": 53.0, "parent": "a",
             "kept_tokens": 110}]  # fmt: skip
    told = told_json(capsys, "--trace", trace_file(tmp_path, *calls), "--policy", "random")
    (run,) = told["runs"]
    assert (run["requests"], run["completed"], run["output_tokens"]) == (2, 2, 20)
    assert [turn["turn"] for turn in run["turns"]] == [1, 2]
    assert 3 < run["makespan_s"] < 4
    assert told["calls_continuing_untraced_calls"] == 0


def test_calls_that_continue_what_is_not_there_are_told_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = trace_file(tmp_path, {"call": "b", "at_s": 1.0, "parent": "a", "kept_tokens": 9})
    assert simulate("--trace", path, "--policy", "random", "--json", "-") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["calls_continuing_untraced_calls"] == 1
    assert "1 of 1 calls go on with calls that the trace does not hold" in said.err


async def test_what_a_router_recorded_can_be_replayed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    params = {"max_new_tokens": 4, "ignore_eos": True}
    async with embedded_worker() as worker, router_with(worker.url) as served:
        recorder = TraceRecorder(path)
        served.router.observers.append(recorder)
        text = "A first question:"
        for _ in range(3):
            group = await served.generate(text=text, sampling_params=params | {"n": 3})
            text += group.json()[0]["text"] + " and more"
        await settled(served)
        await trio.to_thread.run_sync(recorder.close)
        prompts = sum(len(record.prompt_ids) for record in worker.records)
    (run,) = told_json(capsys, "--trace", str(path), "--policy", "random")["runs"]
    assert (run["completed"], run["output_tokens"]) == (9, 36)
    assert run["prompt_tokens"] == prompts


# -- the page ----------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "simulate.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_has_its_row_with_its_default(field: Field) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{field.flag}` |"))
    default = "none" if field.default is None else word_of(shown(field.default))
    assert row.split("|")[2].strip() == default


def parsed(command: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(command.split())


EXAMPLES = re.findall(
    r"^```sh\nslime-router simulate ([^\n]*)\n```\n\n```text\n(.*?)^```",
    PAGE,
    re.DOTALL | re.MULTILINE,
)
"""Commands, and what the page says that they print."""


@pytest.fixture
def files_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """They lie in the working directory."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```toml (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for name, text in blocks:
        (tmp_path / name).write_text(text, encoding="utf-8")
    return [tmp_path / name for name, _ in blocks]


def test_the_claim_of_the_page_prints_what_it_shows(
    files_of_the_page: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (command, shown), *_ = EXAMPLES
    assert simulate(*command.split()) == 0
    runs, turns = capsys.readouterr().out.split("\n\n")
    head, rows = turns.splitlines()[:3], turns.splitlines()[3:]
    third = [row for row in rows if row.split()[3] == "3"]
    assert shown.split("\n\n") == [runs, "".join(f"{line}\n" for line in head + third)]


@pytest.mark.parametrize(
    ("command", "shown"), EXAMPLES[1:], ids=["workers", "grpo", "updates", "cache"]
)
def test_the_last_row_that_the_page_shows_is_what_its_command_prints(
    command: str, shown: str, files_of_the_page: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    row = shown.splitlines()[-1].split()
    args = parsed(command)
    swept = [sweep.partition("=")[0] for sweep in args.sweep]
    args.sweep = [f"{name}={value}" for name, value in zip(swept, row, strict=False)]
    args.policy = [row[len(swept)]]
    assert run(args) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == row


def test_every_command_of_the_page_can_be_run(
    tmp_path: Path, files_of_the_page: list[Path]
) -> None:
    for path in files_of_the_page:
        assert list(points(from_file(path), None))
    commands = re.findall(r"^slime-router simulate (.*)$", PAGE, re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        args = parsed(command)
        choices = Choices() if args.file is None else from_file(tmp_path / args.file)
        assert list(points(with_flags(choices, vars(args)), None))


def test_every_field_of_a_trace_is_documented() -> None:
    table = PAGE.split("## Recorded traces")[1]
    assert [name for name in TracedCall.__struct_fields__ if f"`{name}`" not in table] == []


# -- what cannot be done -----------------------------------------------------------------

RESTLESS = (
    *("--update-takes-s", "0.5", "--update-mode", "retract", "--prefill-tokens-per-s", "100"),
    *("--policy", "random"),
)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere.toml",), "nowhere.toml: No such file"),
        (("--workers", "0"), "--workers: '0' is not valid: expected 1 to 10000"),
        (("--trace", "nowhere.jsonl"), "--trace: nowhere.jsonl: No such file"),
        (("--json", "/does/not/exist/out.json"), "--json: /does/not/exist/out.json"),
        (("--json", "/tmp"), "--json: /tmp: Is a directory"),
        (("--plot", "/does/not/exist/out.png"), "--plot: /does/not/exist/out.png"),
        (("--jobs", "0"), "--jobs: expected at least 1"),
        (("--plot", "out"), "--plot: out: expected a name that ends in one of .avif"),
        (("--plot", "out.xyz"), "--plot: out.xyz: expected a name that ends in one of .avif"),
        (("--turns", "1e9", "--quiet"), "--turns: came out as more than 10000"),
        (("--turns", "1e9", "--quiet", "--jobs", "2"), "--turns: came out as more than 10000"),
        (("--answer-tokens", "exponential:1e308"), "--answer-tokens: 'exponential:1e308' is not"),
        (
            (*RESTLESS, "--sweep", "update_every_s=0.75", "--quiet"),
            "--sweep update_every_s: leaves no time to compute anything",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_status_2(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("slime-router: ")
    assert said in line


def test_a_malformed_trace_names_line_and_field(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = trace_file(tmp_path, {"call": "a", "at_s": 1.0}, {"call": "b", "at_s": "late"})
    assert simulate("--trace", path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--trace: {path}, line 2: Expected `float`, got `str` - at `at_s`" in line


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    script = f"{sys.executable} -m slime_trio simulate {' '.join(SMALL)} --json -"
    done = subprocess.run(
        # The reader is gone before anything is written.
        ["bash", "-c", f"{script} | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (b"0\n", b"")


def test_a_full_disk_behind_stdout_is_one_line_and_exit_status_2() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "slime_trio", "simulate", *SMALL],
            stdout=full, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == b"slime-router: stdout: No space left on device\n"


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupt_ends_every_process_at_once_and_without_a_traceback(
    jobs: str, tmp_path: Path
) -> None:
    """Ctrl-C in a terminal reaches all processes of the command: its group."""
    words = ["--sessions", "100_000_000", "--jobs", jobs]
    trace = tmp_path / "begun"
    code = (
        "import pathlib, sys; from slime_trio import cli; from slime_trio.simulate import command"
    )
    code += f"; real = command.run_all; mark = pathlib.Path({str(trace)!r})"
    code += "; command.run_all = lambda *a, **k: (mark.touch(), real(*a, **k))[1]"
    code += "; sys.exit(cli.main(['simulate', *sys.argv[1:]]))"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        # What a shell starts in the background ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        while not trace.exists() and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")


def test_without_matplotlib_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "matplotlib" else find(name, *more),
    )
    assert simulate(*ONE, "--plot", str(tmp_path / "out.png")) == 2
    assert "pip install 'slime-router[plot]'" in capsys.readouterr().err


def test_matplotlib_is_imported_only_for_a_picture() -> None:
    code = """
import sys
from slime_trio.cli import main
assert main(["simulate", "--sessions", "2", "--quiet"]) == 0
assert "matplotlib" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
