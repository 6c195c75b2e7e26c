"""The command line of the simulation: its exit statuses, and what it prints."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.simulate.__main__ import main


def heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_seeds_that_break_no_rule_give_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1", "--harness", "core"]) == 0
    assert "0 seeds broke a rule" in _told(capsys)


def test_the_command_of_a_failure_repeats_it(capsys: pytest.CaptureFixture[str]) -> None:
    bug = ["--harness", "core", "--planted", "mask_off_by_one"]
    assert main(["--seeds", "2", *bug]) == 1
    _, again = _told(capsys).split("again: python -m tests.simulate ")
    assert main(shlex.split(again)) == 1
    assert "✗ 2 mask, logprobs, versions" in _told(capsys)


def test_the_command_of_a_failure_of_pairs_repeats_it(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ["--harness", "pairs", "--seed", "7", "--quiet-knobs"]
    assert main(pairs) == 0
    told = _told(capsys)
    assert "prefill http://w0:30000 got" in told
    assert "pairs: seed 7 broke no rule" in told
    assert main([*pairs, "--planted", "mask_off_by_one"]) == 1
    _, again = _told(capsys).split("again: python -m tests.simulate ")
    assert main([*shlex.split(again), "--no-shrink"]) == 1
    assert "✗ 2 mask, logprobs, versions" in _told(capsys)


@pytest.mark.parametrize(
    "words", [["--set", "nothing=1"], ["--set", "agents=many"], ["--seeds", "0"], ["--jobs", "0"]]
)
def test_what_makes_no_sense_is_refused_in_a_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert refused.value.code == 2
    assert words[0] in capsys.readouterr().err.splitlines()[-1]


def test_several_processes_find_what_one_finds(capsys: pytest.CaptureFixture[str]) -> None:
    def counted(jobs: str) -> list[str]:
        assert main(["--seeds", "4", "--harness", "shell", "--jobs", jobs]) == 0
        return re.findall(r"[\d]+ (?:requests|faults|events)", _told(capsys))

    assert counted("2") == counted("1")


@pytest.mark.parametrize("harness", ["core", "shell"])
def test_an_interrupted_search_ends_and_blames_no_seed(harness: str, tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    code = "import pathlib, sys; from tests.simulate import __main__ as command"
    code += f"; real = command.check; mark = pathlib.Path({str(mark)!r})"
    code += "; command.check = lambda *a, **k: (mark.touch(), real(*a, **k))[1]"
    code += "; sys.exit(command.main(sys.argv[1:]))"
    words = ["--seeds", "100000", "--harness", harness, "--set", "agents=1"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts,
    ) as search:  # fmt: skip
        while not mark.exists() and search.poll() is None:
            time.sleep(0.01)
        search.send_signal(signal.SIGINT)
        told, complained = search.communicate(timeout=60)
    assert search.returncode == 130
    assert (told, complained) == ("", "interrupted\n")
