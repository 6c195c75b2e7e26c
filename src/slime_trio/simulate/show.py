"""Results as tables, as wide as they are: nothing is wrapped or cut when they are piped."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from slime_core.simulation import Result, TurnResult, WorkerResult
from slime_trio.simulate.report import Run
from slime_trio.simulate.words import shown, word_of

__all__ = ["table_of_runs", "table_of_turns", "table_of_workers"]


_WIDEST: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Column:
    """``title`` may have several lines."""

    title: str
    cell: Callable[[Result], str]


def _amount(value: float) -> str:
    """Three digits that count, at least."""
    if abs(value) >= 1e9:
        return f"{value:.2e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


_MEASURES: Final = (
    _Column("requests\nper s", lambda r: _amount(r.requests_per_s)),
    _Column("sampled\ntokens/s", lambda r: _amount(r.output_tokens_per_s)),
    _Column("latency\np50 s", lambda r: _amount(r.latency_s.p50)),
    _Column("\np90 s", lambda r: _amount(r.latency_s.p90)),
    _Column("\np99 s", lambda r: _amount(r.latency_s.p99)),
    _Column("1st token\np50 s", lambda r: _amount(r.first_token_s.p50)),
    _Column("\np99 s", lambda r: _amount(r.first_token_s.p99)),
    _Column("cache\nhits %", lambda r: _percent(r.cache_hit_rate)),
    _Column("encoded by\nrouter %", lambda r: _percent(_share(r.encoded_tokens, r.prompt_tokens))),
    _Column("imbal-\nance", lambda r: f"{r.imbalance:.2f}"),
    _Column("lost\ntokens", lambda r: f"{r.lost_tokens:,}"),
    _Column("failed\nrequests", lambda r: f"{r.failed:,}"),
    _Column("took\ns", lambda r: _amount(r.makespan_s)),
)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def table_of_runs(runs: Sequence[Run]) -> str:
    """A row for every run."""
    table = _table(runs)
    for column in _MEASURES:
        table.add_column(column.title, justify="right")
    for run in runs:
        table.add_row(*_names(run), *(column.cell(run[1]) for column in _MEASURES))
    return _text(table)


def table_of_turns(runs: Sequence[Run]) -> str:
    """A row for every turn of every run."""
    table = _table(runs)
    titles = ("turn", "requests", "requests\nper s", "latency\nmean s", "\np50 s", "\np99 s")
    for title in (*titles, "1st token\np50 s", "\np99 s"):
        table.add_column(title, justify="right")
    for run in runs:
        for turn in run[1].turns:
            table.add_row(*_names(run), *_of_turn(turn))
    return _text(table)


def _of_turn(turn: TurnResult) -> Iterator[str]:
    yield str(turn.turn)
    yield f"{turn.latency_s.count:,}"
    times = (turn.latency_s.mean, turn.latency_s.p50, turn.latency_s.p99)
    for value in (turn.requests_per_s, *times, turn.first_token_s.p50, turn.first_token_s.p99):
        yield _amount(value)


def table_of_workers(runs: Sequence[Run]) -> str:
    """A row for every worker of every run."""
    table = _table(runs)
    table.add_column("worker")
    titles = ("calls", "in flight\nmean", "busy %", "prefill %", "cache\nhits %", "sampled\ntokens")
    for title in (*titles, "failures"):
        table.add_column(title, justify="right")
    for run in runs:
        for worker in run[1].workers:
            table.add_row(*_names(run), *_of_worker(worker))
    return _text(table)


def _of_worker(worker: WorkerResult) -> Iterator[str]:
    yield worker.url
    yield f"{worker.attempts:,}"
    yield _amount(worker.mean_in_flight)
    for share in (worker.utilisation, worker.prefill_share, worker.cache_hit_rate):
        yield _percent(share)
    yield f"{worker.output_tokens:,}"
    yield f"{worker.failures:,}"


def _table(runs: Sequence[Run]) -> Table:
    """An empty table with the columns that tell the runs apart."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="", padding=(0, 1, 0, 0)
    )
    for name in runs[0][0].swept:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    return table


def _names(run: Run) -> Iterator[str]:
    point = run[0]
    for value in point.swept.values():
        yield word_of(shown(value))
    yield point.policy


def _text(table: Table) -> str:
    """The table in plain characters, as wide as it is."""
    console = Console(width=_WIDEST, file=io.StringIO(), color_system=None)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().replace("─", "-").splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)
