"""Samples of several peers in turn, so that whatever else the machine does meets all of them.

A round takes one sample of every peer, each round beginning with another one; figures are medians
over the rounds, with the smallest and the largest. How many requests a sample has is found out
beforehand: as many as keep the peer busy for the time that a sample shall last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Final, TypeVar

from benchmarks.field.canned import Body, write_bodies
from benchmarks.field.loads import Load, Loaded, run_load
from benchmarks.field.processor import Pins, cpu_seconds
from benchmarks.field.running import Running
from benchmarks.report import median

__all__ = ["Row", "Sample", "Sampler", "Series", "order", "requests_for"]

_Some = TypeVar("_Some")

_ENOUGH: Final = 1.25
"""How much more than a fixed rate a peer must manage before latency at that rate means anything."""
_FEWEST: Final = 2
"""Requests of a sample for each connection, at least."""
_PATIENCE: Final = 1.5
"""A peer whose samples take long for that reason gets fewer: this times what all should take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is sent, and how. Costs are per request, or per event of a stream at a fixed pace."""

    name: str
    bodies: Sequence[Body]
    marker: str = '"finish_reason"'
    path: str = "/generate"
    connections: int = 64
    turns: int = 1
    events: int = 0
    interval_us: int = 0
    rate: float = 0.0
    requests: int = 0
    """Of every sample; 0: as many as fit."""
    sessions: int = 0
    number: int | None = None
    """The number of the first conversation; ``None``: one that is new."""

    @property
    def unit(self) -> str:
        """What a cost is the cost of."""
        return "event" if self.interval_us else "request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample: processor time of the router per request or event, and what the client saw."""

    cpu_us: float
    loaded: Loaded


@dataclass(slots=True, kw_only=True)
class Series:
    """All samples of one peer; ``problem``: why there is none, or none that counts."""

    samples: list[Sample] = field(default_factory=list)
    requests: int = 0
    rounds: int = 0
    problem: str = ""

    def median(self, name: str) -> float | None:
        """Of ``cpu_us``, or of one of the generator's figures; ``None`` without samples."""
        values = [
            sample.cpu_us if name == "cpu_us" else float(getattr(sample.loaded, name))
            for sample in self.samples
        ]
        return median(values) if values else None

    def spread(self) -> tuple[float, float] | None:
        """The smallest and the largest cost."""
        costs = [sample.cpu_us for sample in self.samples]
        return (min(costs), max(costs)) if costs else None


def order(rounds: int, peers: Sequence[_Some]) -> Iterator[_Some]:
    """Who is sampled when: A B C, B C A, C A B, …"""
    for number in range(rounds):
        first = number % len(peers) if peers else 0
        yield from (*peers[first:], *peers[:first])


def requests_for(row: Row, per_second: float, sample_s: float) -> int:
    """How many requests make a sample: whole conversations, and some for every connection."""
    if row.requests:
        return row.requests
    pace = row.rate or per_second
    # Conversations of several turns are long enough to give every connection one only.
    fewest = row.connections * (row.turns if row.turns > 1 else _FEWEST)
    wanted = max(pace * sample_s, 1 if row.rate else fewest)
    return max(1, round(wanted / row.turns)) * row.turns


class Sampler:
    """Takes samples. Conversations have numbers that no earlier one of the run had."""

    def __init__(self, pins: Pins, folder: Path, *, rounds: int, sample_s: float) -> None:
        self._pins = pins
        self._folder = folder
        self._rounds = rounds
        self._sample_s = sample_s
        self._files = count()
        self._next = 1

    def series(self, row: Row, running: Sequence[Running]) -> dict[str, Series]:
        """The row's samples of every peer, by its name."""
        with self._written(row) as file:
            found = {one.peer.name: self._first(row, one, file) for one in running}
            for one in order(self._rounds, running):
                self._add(found[one.peer.name], row, one, file)
        for series in found.values():
            _judge(series)
        return found

    def _add(self, series: Series, row: Row, one: Running, file: Path) -> None:
        if series.problem or len(series.samples) == series.rounds:
            return
        try:
            series.samples.append(self._sample(row, one, file, series.requests))
        except RuntimeError as error:
            series.problem = str(error)

    def take(self, row: Row, one: Running, requests: int) -> Sample:
        """One sample of one peer. Raises ``RuntimeError``, also where a request failed."""
        with self._written(row) as file:
            sample = self._sample(row, one, file, requests)
        if sample.loaded.errors:
            raise RuntimeError(f"{sample.loaded.errors} failed: {sample.loaded.first_error}")
        return sample

    @contextmanager
    def load(self, row: Row, requests: int, connections: int) -> Iterator[Load]:
        """What a sample would send, for a load that goes on beside something else."""
        with self._written(row) as file:
            yield replace(self._load(row, file, requests), connections=connections)

    @contextmanager
    def _written(self, row: Row) -> Iterator[Path]:
        file = self._folder / f"bodies-{next(self._files)}"
        write_bodies(file, row.bodies)
        try:
            yield file
        finally:
            file.unlink()

    def _first(self, row: Row, one: Running, file: Path) -> Series:
        """Warm it up, without a fixed rate, and see how much it manages.

        Twice, the second time with a whole sample: the first thousand requests of a Python process
        cost more than those that follow.
        """
        few = row.requests or row.connections * row.turns
        # What is paced by the worker is warmed up at its pace, all else as fast as it goes.
        free = row if row.interval_us else replace(row, rate=0.0)
        try:
            loaded = self._sample(free, one, file, few).loaded
            whole = requests_for(free, loaded.per_second, self._sample_s)
            is_slow = whole > 2 * self._sample_s * loaded.per_second
            if not (loaded.errors or row.interval_us or is_slow):
                loaded = self._sample(free, one, file, whole).loaded
        except RuntimeError as error:
            return Series(problem=str(error))
        if loaded.errors:
            return Series(problem=f"{loaded.errors} failed: {loaded.first_error}")
        if free is not row and loaded.per_second < row.rate * _ENOUGH:
            return Series(problem=f"manages {loaded.per_second:,.0f} requests/s only")
        return self._planned(row, loaded.per_second)

    def _planned(self, row: Row, per_second: float) -> Series:
        """How many requests a sample has, and how many samples there is patience for."""
        requests = requests_for(row, per_second, self._sample_s)
        lasts = requests / (row.rate or per_second)
        rounds = self._rounds
        if not row.interval_us:
            rounds = max(1, min(rounds, int(_PATIENCE * rounds * self._sample_s / lasts)))
        return Series(requests=requests, rounds=rounds)

    def _load(self, row: Row, file: Path, requests: int) -> Load:
        first = self._next if row.number is None else row.number
        self._next += requests // row.turns
        return Load(
            requests=requests,
            connections=min(row.connections, requests),
            bodies=file if row.bodies else None,
            path=row.path,
            marker=row.marker,
            turns=row.turns,
            rate=row.rate,
            first=first,
            sessions=row.sessions,
            events=row.events,
            interval_us=row.interval_us,
        )

    def _sample(self, row: Row, one: Running, file: Path, requests: int) -> Sample:
        load = self._load(row, file, requests)
        loaded, spent = run_load(one.port, load, self._pins, lambda: _spent(one))
        units = loaded.events if row.interval_us else loaded.answered
        return Sample(cpu_us=spent * 1e6 / max(1, units), loaded=loaded)


def _spent(one: Running) -> float:
    return 0.0 if one.pid is None else cpu_seconds(one.pid)


def _judge(series: Series) -> None:
    """Samples with errors do not count: what failed is cheap."""
    failed = [sample.loaded for sample in series.samples if sample.loaded.errors]
    if failed:
        total = sum(loaded.errors for loaded in failed)
        series.problem = f"{total} failed: {failed[0].first_error}"
        series.samples = [sample for sample in series.samples if not sample.loaded.errors]
