"""Where the router's time goes in a cell: py-spy beside the load, told as a flat list."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["NoProfiler", "flat", "profiled"]

_RATE: Final = 500
_SHOWN: Final = 40


class NoProfiler(RuntimeError):
    """py-spy is not installed."""


@contextmanager
def profiled(pid: int, stacks: Path) -> Iterator[None]:
    """Sample the process's stacks until the block ends, into a file. Raises :class:`NoProfiler`."""
    beside = Path(sys.executable).parent / "py-spy"
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise NoProfiler("py-spy was not found: pip install py-spy")
    command = [program, "record", "--pid", str(pid), "--rate", str(_RATE), "--nonblocking"]
    command += ["--format", "raw", "--output", str(stacks), "--duration", "3600"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        process.send_signal(2)  # on an interrupt it writes what it has
        _, complaint = process.communicate(timeout=60)
        if not stacks.exists():
            raise RuntimeError(f"py-spy: {complaint.decode(errors='replace').strip()}")


def flat(stacks: str) -> str:
    """Functions by the share of samples in them alone (``self``), and in what they called too.

    ``stacks``: py-spy's raw format, a line for each stack: frames from the outermost on, separated
    by semicolons, and how often it was seen.
    """
    alone, within, total = Counter[str](), Counter[str](), 0
    for line in stacks.splitlines():
        frames, _, number = line.rpartition(" ")
        if not number.isdigit():
            continue
        names = [_function(frame) for frame in frames.split(";")]
        total += int(number)
        alone[names[-1]] += int(number)
        for name in dict.fromkeys(names):  # recursion counts once
            within[name] += int(number)
    lines = [f"{total} samples", "", "  self    all  function"]
    for by in (alone, within):
        lines.extend(
            f"{alone[name] / total:6.1%} {within[name] / total:6.1%}  {name}"
            for name, _ in by.most_common(_SHOWN)
        )
        lines.append("")
    return "\n".join(lines)


def _function(frame: str) -> str:
    """A frame without its line: ``name (file:line)`` becomes ``name (file)``."""
    name, _, line = frame.rpartition(":")
    return f"{name})" if name and line.rstrip(")").isdigit() else frame
