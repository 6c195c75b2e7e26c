"""Starting: what cannot start says why in one line and with exit status 2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.server.harness import CHECKPOINT

MIDDLEWARE = "tests.server.test_middleware"


def _run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slime_trio", *arguments],
        capture_output=True, text=True, timeout=30, env=_environment(environ), check=False,
    )  # fmt: skip


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLIME_ROUTER_")}
    return clean | dict(more)


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        ([], {}, "--hf-checkpoint is missing"),
        (["serve"], {}, "--hf-checkpoint is missing"),
        (["--hf-checkpoint", "/does/not/exist"], {}, "/does/not/exist"),
        (["--hf-checkpoint", os.path.dirname(__file__)], {}, "tokenizer.json"),
        (["--capture", "off", "--middleware", "nowhere.at.All"], {}, "nowhere"),
        (["--capture", "off", "--middleware", "JustAName"], {}, "dotted path"),
        (["--capture", "off", "--middleware", "..x.Y"], {}, "..x.Y"),
        (["--capture", "off", "--middleware", "os.no_such"], {}, "no_such"),
        (["--capture", "off", "--middleware", "os.sep"], {}, "os"),
        (["--capture", "off", "--middleware", f"{MIDDLEWARE}.Needy"], {},
         "Required component 'x' not found. Available components: ["),
        (["--capture", "off", "--middleware", f"{MIDDLEWARE}.OldStyle"], {}, "router"),
        (["--capture", "off"], {"SLIME_ROUTER_PORT": "many"}, "SLIME_ROUTER_PORT"),
        (["--capture", "off"], {"SLIME_ROUTER_TYPO": "1"}, "SLIME_ROUTER_TYPO"),
        (["--capture", "perhaps"], {}, "--capture"),
        (["--capture", "off", "--port", "70000"], {}, "--port"),
        (["--capture", "off", "--worker-url", "host:1"], {}, "--worker-url"),
        (["--capture", "off", "--policy", "fair"], {}, "--policy"),
        (["--capture", "off", "--host", "no such host"], {}, "no such host"),
    ],
)  # fmt: skip
def test_what_cannot_start_says_why(
    arguments: list[str], environ: dict[str, str], words: str
) -> None:
    done = _run(*arguments, **environ)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert words in lines[0]


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = _run("--hf-checkpoint", CHECKPOINT, "--host", "127.0.0.1", "--port", str(port))
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert str(port) in line


def test_a_checkpoint_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    done = _run("--hf-checkpoint", str(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
