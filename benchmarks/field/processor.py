"""What the system says of processes: processor time, resident memory, which CPUs they may use.

Processor time comes from a process's own clock, which is the account that ``/proc/PID/stat`` shows
rounded to 10 ms: user and system time of all its threads. Descendants are added, so that servers of
several processes are measured whole.
"""

from __future__ import annotations

import mmap
import os
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = [
    "Pins",
    "Stat",
    "Usage",
    "allow_files",
    "cpu_seconds",
    "family",
    "noise",
    "parse_stat",
    "pins",
    "resident_bytes",
    "touch_memory",
    "usage",
]

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_SCHEDULED: Final = 2
"""Of a clock that counts the time for which a process was scheduled (``CPUCLOCK_SCHED``)."""
_TOUCHED: Final = 8 * 2**30
_BLOCK: Final = 2**20
_QUIET: Final = 0.5
"""Load average below which a machine counts as quiet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """What ``/proc/PID/stat`` says; seconds of user and system time together."""

    parent: int
    cpu_s: float
    ended_children_s: float
    """Of children that have ended and were waited for."""


def parse_stat(text: str) -> Stat:
    """Read a line of ``/proc/PID/stat``. The command's name may hold blanks and parentheses."""
    fields = text[text.rindex(")") + 2 :].split()
    user, system, children_user, children_system = map(int, fields[11:15])
    return Stat(
        parent=int(fields[1]),
        cpu_s=(user + system) / _TICKS,
        ended_children_s=(children_user + children_system) / _TICKS,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What ``/proc/PID/stat`` says of a process: time in its own code and in the kernel, faults."""

    user_s: float
    system_s: float
    faults: int
    """Page faults that were served without a disk."""

    def __sub__(self, before: Usage) -> Usage:
        return Usage(
            user_s=self.user_s - before.user_s,
            system_s=self.system_s - before.system_s,
            faults=self.faults - before.faults,
        )


def usage(pid: int) -> Usage:
    """Of the process, all its threads, without descendants."""
    text = (_PROC / str(pid) / "stat").read_text()
    fields = text[text.rindex(")") + 2 :].split()
    user, system = int(fields[11]), int(fields[12])
    return Usage(user_s=user / _TICKS, system_s=system / _TICKS, faults=int(fields[7]))


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    children = defaultdict(list)
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                stat = parse_stat((entry / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue
            children[stat.parent].append(int(entry.name))
    found = [pid]
    for one in found:  # which grows meanwhile
        found.extend(children[one])
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of the process and its descendants so far."""
    total = 0.0
    for one in family(pid):
        try:
            total += time.clock_gettime(~one << 3 | _SCHEDULED)
        except OSError:  # it has ended since
            continue
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of the process and its descendants."""
    pages = [int((_PROC / str(one) / "statm").read_text().split()[1]) for one in family(pid)]
    return sum(pages) * _PAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """The CPUs of what is measured, and of what measures; ``None``: any."""

    router: frozenset[int] | None
    others: frozenset[int] | None

    def router_only(self) -> Callable[[], None]:
        """For ``preexec_fn``: run where the router is measured."""
        return _moved(self.router)

    def others_only(self) -> Callable[[], None]:
        """For ``preexec_fn``: run beside it."""
        return _moved(self.others)

    @property
    def words(self) -> str:
        """A sentence for the report."""
        if self.router is None or self.others is None:
            return "one CPU only: router, generator and worker share it, so times are of no use"
        return (
            f"router pinned to CPU {_listed(self.router)}, "
            f"generator and worker to CPU {_listed(self.others)}"
        )


def _moved(cpus: frozenset[int] | None) -> Callable[[], None]:
    return lambda: None if cpus is None else os.sched_setaffinity(0, cpus)


def _listed(cpus: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(cpus)))


def pins() -> Pins:
    """The first CPU that may be used is for the router, the second for all else."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        return Pins(router=None, others=None)
    return Pins(router=frozenset(cpus[:1]), others=frozenset(cpus[1:2]))


def allow_files() -> None:
    """As many open files as the system allows, for a thousand connections on either side.

    Programs that are started inherit it.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def touch_memory(most: int = _TOUCHED) -> int:
    """Write to ``most`` bytes once, or to half of what is available; how many.

    A virtual machine gets a page from its host when the page is first written to, for several
    times what a page costs that was used before. Whoever keeps data would pay for that, and only
    in the first run after the machine was started.
    """
    lines = (_PROC / "meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    size = min(most, available * 1024 // 2) // _BLOCK * _BLOCK
    if size:
        with mmap.mmap(-1, size) as pages:
            for _ in range(0, size, _BLOCK):
                pages.write(b"\1" * _BLOCK)
    return size


def noise() -> str | None:
    """A warning where other programs keep the machine busy; else ``None``."""
    load = os.getloadavg()[0]
    if load < _QUIET:
        return None
    return f"not a quiet machine: load average {load:.2f} before the start (quiet: below {_QUIET})"
