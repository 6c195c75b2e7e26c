"""Running what is asked for: one point after the other, or several at once in processes.

Every run draws from generators of its own, which follow from its seed and their names alone: what
is drawn, and with it every number, is the same whatever runs beside or before it.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from slime_core.simulation import Result, Trace, simulate
from slime_trio.simulate.report import Run
from slime_trio.simulate.scenarios import Point

__all__ = ["run_all"]

_Advance: TypeAlias = Callable[[float], None]
"""Told the share of a run that was done since it was told last."""


def run_all(points: Sequence[Point], *, jobs: int, shows_progress: bool) -> list[Run]:
    """Run every point with at most ``jobs`` processes; the results in the order of ``points``."""
    with _progress(len(points), shown=shows_progress) as advance:
        if jobs == 1 or len(points) == 1:
            return [(point, _run(point, advance)) for point in points]
        runs = []
        with _results(points, min(jobs, len(points))) as results:
            for point, result in zip(points, results, strict=True):
                runs.append((point, result))
                advance(1)
        return runs


@contextmanager
def _results(points: Sequence[Point], processes: int) -> Iterator[Iterator[Result]]:
    """The results of all points, in order, as they come.

    An exception ends the processes at once, not after all that they still have to do.
    """
    # A fresh interpreter for each: nothing of this process can leak into a result.
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        # Ctrl-C reaches every process of the terminal; this one alone is to act on it, and others
        # inherit what is blocked when they begin, which is here.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            results = pool.map(_run, points)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield results
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _run(point: Point, advance: _Advance | None = None) -> Result:
    if advance is None:
        return simulate(point.scenario, point.policy, _Chances(point.seed))
    size = _expected_calls(point)
    told = 0.0

    def progress(ended: int, completed: int) -> None:
        nonlocal told
        share = min(1.0, ended / size)
        advance(share - told)
        told = share

    result = simulate(point.scenario, point.policy, _Chances(point.seed), progress)
    advance(1 - told)
    return result


def _expected_calls(point: Point) -> float:
    workload = point.scenario.workload
    if isinstance(workload, Trace):
        return len(workload.entries)
    return workload.sessions * max(1.0, workload.turns.mean)


@dataclass(frozen=True, slots=True)
class _Chances:
    """A generator for each name. Strings seed alike in every process, whatever its hash seed."""

    seed: int

    def __call__(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{name}")


@contextmanager
def _progress(runs: int, *, shown: bool) -> Iterator[_Advance]:
    """A bar on stderr over all runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    bar = Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        disable=not shown,
    )  # fmt: skip
    with bar:
        task = bar.add_task(f"{runs} runs" if runs > 1 else "1 run", total=runs)
        yield lambda share: bar.advance(task, share)
