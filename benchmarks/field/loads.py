"""Runs the load generator: what is sent, how, and what came back."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.field.native import build
from benchmarks.field.processor import Pins

__all__ = ["Load", "Loaded", "run_load", "start_load"]

_GRACE_S: Final = 30.0


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


def start_load(port: int, load: Load, pins: Pins) -> subprocess.Popen[str]:
    """The generator, running; it prints its line when it has ended."""
    return subprocess.Popen(
        [str(build("load")), "--port", str(port), *load.arguments()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=pins.others_only(),
    )


def run_load(port: int, load: Load, pins: Pins) -> Loaded:
    """Send it all. Raises ``RuntimeError`` with the generator's words where it cannot."""
    with start_load(port, load, pins) as process:
        try:
            said, complaint = process.communicate(timeout=load.limit_s + _GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RuntimeError("the load generator hangs") from None
    if process.returncode != 0:
        raise RuntimeError(f"load generator: {complaint.strip()}")
    return msgspec.json.decode(said, type=Loaded)
