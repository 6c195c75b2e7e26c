"""Runs the load generator: what is sent, how, and what came back."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Timer
from typing import Final

import msgspec

from benchmarks.field.native import build
from benchmarks.field.processor import Pins

__all__ = ["Load", "Loaded", "let_begin", "run_load", "start_load"]

_GRACE_S: Final = 30.0
_ACCEPT_S: Final = 0.02
_ACCEPT_EACH_S: Final = 0.0002
"""What a server gets to accept connections before anything is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The generator's options under its own names; see ``native/load.c``."""

    requests: int
    connections: int = 64
    bodies: Path | None = None
    method: str = "POST"
    path: str = "/generate"
    marker: str = ""
    turns: int = 1
    rate: float = 0.0
    first: int = 0
    sessions: int = 0
    events: int = 0
    interval_us: int = 0
    limit_s: float = 60.0

    def arguments(self) -> list[str]:
        """The command line, without the program and the port."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        words = [(f"--{name.replace('_', '-')}", str(value)) for name, value in named if value]
        return [word for pair in words for word in pair]


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What the generator says. Times are of answers (``event``: of events after they were due)."""

    requests: int
    answered: int
    errors: int
    reconnects: int
    seconds: float
    bytes: int
    events: int
    p50_ms: float
    p99_ms: float
    first_byte_p50_ms: float
    first_byte_p99_ms: float
    event_p50_ms: float
    event_p99_ms: float
    first_error: str

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds if self.seconds else 0.0


@contextmanager
def start_load(port: int, load: Load, pins: Pins) -> Iterator[subprocess.Popen[str]]:
    """The generator, whose connections stand; a line lets it begin. It is ended with the block.

    Raises ``RuntimeError`` with the generator's words where it cannot connect.
    """
    process = subprocess.Popen(
        [str(build("load")), "--port", str(port), *load.arguments()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=pins.others_only(),
    )
    watchdog = Timer(load.limit_s + _GRACE_S, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != "connected\n":
            raise RuntimeError(f"load generator: {process.stderr.read().strip() or 'it hangs'}")
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def let_begin(process: subprocess.Popen[str]) -> None:
    """Have a generator send what it is to send."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def run_load(
    port: int, load: Load, pins: Pins, clock: Callable[[], float] = lambda: 0.0
) -> tuple[Loaded, float]:
    """Send it all; what came back, and by how much ``clock`` advanced meanwhile.

    Between connecting and closing, that is: neither is part of what is measured. Raises
    ``RuntimeError`` with the generator's words where it cannot.
    """
    with start_load(port, load, pins) as process:
        time.sleep(_ACCEPT_S + load.connections * _ACCEPT_EACH_S)
        before = clock()
        let_begin(process)
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()
        advanced = clock() - before
        if not said:
            raise RuntimeError(f"load generator: {process.stderr.read().strip() or 'it hangs'}")
    return msgspec.json.decode(said, type=Loaded), advanced
