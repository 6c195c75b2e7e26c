"""Where the router's time goes in a cell: py-spy beside the load, told by parts and by functions.

py-spy stops the process for each sample, so that stacks are whole, and reads those of C too, which
show system calls and the garbage collector. What the kernel takes as a whole, and page faults, come
from the process's own account of a load without py-spy.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.field.parts import FILES, NATIVE, REST, busy, parts_of, within
from benchmarks.field.processor import usage
from benchmarks.field.results import markdown_table
from benchmarks.field.running import Running
from benchmarks.field.sampling import Row
from benchmarks.field.scene import ALL_KEPT, Scene
from benchmarks.field.served_cells import SERVED, retrieval_row
from benchmarks.report import Cell, Table

__all__ = ["PROFILED", "NoProfiler", "Profile", "flat", "profile_cells", "profiled", "shares_table"]

PROFILED: Final = ("small", "large", "ids32k", "text64k", "multi", "stream", "retrieval")
"""The cells that can be profiled."""
_RATE: Final = 100
_SECONDS: Final = 8.0
_LONGER: Final = 4
"""A load beside a profile lasts so much longer than a sample: opening connections counts little."""
_SHOWN: Final = 40
_COUNTS: Final = 0.005
_LEAST: Final = 0.0005
"""A share below this is shown as nothing."""


class NoProfiler(RuntimeError):
    """py-spy is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Of one row and one peer. Cost and faults are of a request or an event; shares of one."""

    cell: str
    row: str
    peer: str
    unit: str
    cpu_us: float
    kernel: float
    """What the kernel took of the time."""
    faults: float
    """Page faults that needed no disk."""
    parts: Mapping[str, float]
    functions: Mapping[str, Mapping[str, float]]
    """Of each part those with a share that counts."""

    @property
    def title(self) -> str:
        """What was sent."""
        return self.cell if self.row.isdigit() or self.cell == "retrieval" else self.row


@contextmanager
def profiled(pid: int, stacks: Path) -> Iterator[None]:
    """Sample the process's stacks until the block ends, into a file. Raises :class:`NoProfiler`."""
    beside = Path(sys.executable).parent / "py-spy"
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise NoProfiler("py-spy was not found: pip install py-spy")
    command = [program, "record", "--pid", str(pid), "--rate", str(_RATE), "--native"]
    command += ["--format", "raw", "--output", str(stacks), "--duration", "3600"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        process.send_signal(2)  # on an interrupt it writes what it has
        _, complaint = process.communicate(timeout=60)
        if not stacks.exists():
            raise RuntimeError(f"py-spy: {complaint.decode(errors='replace').strip()}")


def profile_cells(scene: Scene, cells: Sequence[str], out: Path) -> list[Profile]:
    """Profile this project's routers among the scene's peers.

    Leaves ``profile-CELL.md`` in ``out``, the stacks and a list of functions of every row, and
    ``profiles.json`` and ``profiles.md`` with all of them. Raises :class:`NoProfiler`.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: list[Profile] = []
    for cell in cells:
        some = list(_profile_cell(scene, cell, out))
        found.extend(some)
        text = markdown_table(shares_table(f"Where the time goes: {cell}", some))
        (out / f"profile-{cell}.md").write_text(text, encoding="utf-8")
        print(text)
    whole = markdown_table(shares_table("Where the time goes", found))
    (out / "profiles.md").write_text(whole, encoding="utf-8")
    (out / "profiles.json").write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    return found


def _profile_cell(scene: Scene, cell: str, out: Path) -> Iterator[Profile]:
    is_retrieval = cell == "retrieval"
    peers = [peer for peer in scene.peers if peer.is_own and (peer.captures or not is_retrieval)]
    with scene.fleet(peers, *(ALL_KEPT if is_retrieval else ())) as fleet:
        for one in fleet.running:
            for row in _rows(scene, cell, one):
                stacks = out / f"profile-{cell}-{row.name}-{one.peer.name}.stacks"
                yield _profile(scene, cell, row, one, stacks)


def _rows(scene: Scene, cell: str, one: Running) -> tuple[Row, ...]:
    if cell != "retrieval":
        return SERVED[cell].rows()
    said, wanted = retrieval_row()
    scene.sampler.take(said, one, said.requests)
    return (wanted,)


def _profile(scene: Scene, cell: str, row: Row, one: Running, stacks: Path) -> Profile:
    """Raises ``RuntimeError`` where a request fails."""
    assert one.pid is not None
    series = scene.sampler.series(row, [one])[one.peer.name]
    if series.problem:
        raise RuntimeError(f"{cell}, {one.peer.name}: {series.problem}")
    requests = series.requests * _LONGER
    before = usage(one.pid)
    alone = scene.sampler.take(row, one, requests)
    spent = usage(one.pid) - before
    with profiled(one.pid, stacks):
        ends = time.monotonic() + _SECONDS
        while time.monotonic() < ends:
            scene.sampler.take(row, one, requests)
    text = stacks.read_text(encoding="utf-8")
    stacks.with_suffix(".txt").write_text(flat(text), encoding="utf-8")
    units = alone.loaded.events if row.interval_us else alone.loaded.answered
    return Profile(
        cell=cell,
        row=row.name,
        peer=one.peer.name,
        unit=row.unit,
        cpu_us=alone.cpu_us,
        kernel=spent.system_s / max(spent.user_s + spent.system_s, 1e-9),
        faults=spent.faults / max(1, units),
        parts=parts_of(text),
        functions=_counting(within(text)),
    )


def _counting(functions: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {
        part: {name: share for name, share in some.items() if share >= _COUNTS}
        for part, some in functions.items()
    }


def shares_table(title: str, profiles: Sequence[Profile]) -> Table:
    """Parts by profiles, in per cent of each; below them the cost, the kernel and page faults."""
    rows: list[tuple[Cell, ...]] = []
    for part in (*NATIVE, *FILES, REST):
        shares = [one.parts.get(part, 0.0) for one in profiles]
        if any(share >= _LEAST for share in shares):
            rows.append((part, *(_percent(share) for share in shares)))
    rows.append(("µs by itself", *(f"{one.cpu_us:,.0f}" for one in profiles)))
    rows.append(("of that in the kernel", *(_percent(one.kernel) for one in profiles)))
    rows.append(("page faults for each", *(f"{one.faults:.1f}" for one in profiles)))
    return Table(
        title=title,
        columns=("%", *(f"{one.title}, {one.peer}" for one in profiles)),
        rows=tuple(rows),
        notes=(
            "a sample counts for the innermost part that is named, so nothing counts twice",
            "threads that wait are left out, and so is what epoll_wait takes by itself; the system "
            "calls are part of what is in the kernel, page faults lie within all parts",
        ),
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if share >= _LEAST else ""


def flat(stacks: str) -> str:
    """Functions by the share of samples in them alone (``self``), and in what they called too.

    ``stacks``: py-spy's raw format, a line for each stack: frames from the outermost on, separated
    by semicolons, and how often it was seen. Threads that wait are left out.
    """
    alone, called, total = Counter[str](), Counter[str](), 0
    for frames, number in busy(stacks):
        names = [_function(frame) for frame in frames]
        total += number
        alone[names[-1]] += number
        for name in dict.fromkeys(names):  # recursion counts once
            called[name] += number
    lines = [f"{total} samples", "", "  self    all  function"]
    for by in (alone, called):
        lines.extend(
            f"{alone[name] / total:6.1%} {called[name] / total:6.1%}  {name}"
            for name, _ in by.most_common(_SHOWN)
        )
        lines.append("")
    return "\n".join(lines)


def _function(frame: str) -> str:
    """A frame without its line: ``name (file:line)`` becomes ``name (file)``."""
    name, _, line = frame.rpartition(":")
    return f"{name})" if name and line.rstrip(")").isdigit() else frame
