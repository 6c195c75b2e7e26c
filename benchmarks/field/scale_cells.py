"""The cells about this project alone: cost and memory against what is cached, workers, sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from benchmarks import loop_stall, memory, retrieval
from benchmarks.field.answered import measure_answered
from benchmarks.field.loads import Load, let_begin, run_load, start_load
from benchmarks.field.outcome import Outcome
from benchmarks.field.processor import resident_bytes
from benchmarks.field.running import Running
from benchmarks.field.sampling import Row
from benchmarks.field.scene import ALL_KEPT, Scene
from benchmarks.field.served_cells import (
    FILL_TOKENS,
    SERVED,
    fill_row,
    metrics,
    multi_row,
    retrieval_row,
    row_figures,
    served_table,
    small_row,
    tiny_row,
)
from benchmarks.report import Cell, Table, median

__all__ = ["SCALES"]

_LITTLE_ROOM: Final = "16"
_FLEET_PEERS: Final = ("fast", "hypercorn", "sglang-router", "smg", "nginx")
_WARM_REQUESTS: Final = 600
_FEW_REQUESTS: Final = 64
_MANY_REQUESTS: Final = 4096
_TURN_TOKENS: Final = 1250
"""Of a turn of the conversations by text, about."""
_HEALTH_RATE: Final = 50.0
_HEALTH_REQUESTS: Final = 100
_BUSY: Final = ("large", "ids32k", "text64k")
_FILL_S: Final = 60.0
"""Filling that would take longer than this is left out."""


def _nothing(words: str) -> Outcome:
    return Outcome(tables=(), absent={"": words})


@contextmanager
def _base(scene: Scene, *flags: str) -> Iterator[Running | None]:
    """This project's router alone; ``None`` if it cannot be started."""
    with scene.fleet([scene.base], *flags) as fleet:
        yield fleet.running[0] if fleet.running else None


def measure_retrieval(scene: Scene) -> Outcome:
    """A trajectory of about 18,000 tokens: over HTTP, and inside the router."""
    said, wanted = retrieval_row()
    # What has been retrieved counts as kept for reuse only, which is bounded by default.
    with scene.fleet([peer for peer in scene.peers if peer.captures], *ALL_KEPT) as fleet:
        for one in fleet.running:
            scene.sampler.take(said, one, said.requests)
        series = scene.sampler.series(wanted, fleet.running)
    served = served_table("Retrieval of about 18,000 tokens by text", wanted, series)
    inside = retrieval.Options(sizes=(18_000,), others=(10, 1_000))
    tables = (served, *retrieval.measure(inside))
    return Outcome(tables=tables, figures=row_figures("retrieval/18k", series), absent=fleet.absent)


def measure_memory(scene: Scene) -> Outcome:
    """Memory of what is captured, by the token."""
    options = memory.Options(
        tokens=(1_000,),
        texts=("ascii", "chinese"),
        widths=("float32",),
        shapes=("rollouts",),
        total=scene.scale.memory_tokens,
    )
    (table,) = memory.measure(options)
    place = table.columns.index("bytes per token")
    worst = max(float(row[place] or 0) for row in table.rows)
    return Outcome(tables=(table,), figures={"memory/bytes_per_token": worst})


def measure_many(scene: Scene) -> Outcome:
    """Resident memory while requests go on and on, with room for few of them."""
    parts, each = 5, max(1, scene.scale.many // 5)
    rows: list[tuple[Cell, ...]] = []
    with _base(scene, "--capture-max-mb", _LITTLE_ROOM) as one:
        if one is None or one.pid is None:
            return _nothing("the router cannot be started")
        rows.append((0, 0, resident_bytes(one.pid) / 2**20, 0.0, None))
        for part in range(1, parts + 1):
            sample = scene.sampler.take(fill_row(each), one, each)
            held = metrics(one)["cache"]
            mib = resident_bytes(one.pid) / 2**20
            rows.append((part * each, held["total_tokens"], mib, held["data_mb"], sample.cpu_us))
    last, middle = float(rows[-1][2] or 0), float(rows[parts // 2 + 1][2] or 0)
    table = Table(
        title=f"Memory after many requests of {FILL_TOKENS} tokens, {_LITTLE_ROOM} MiB to keep",
        columns=("requests", "tokens held", "resident MiB", "captured MiB", "µs/request"),
        rows=tuple(rows),
        notes=(f"{one.peer.name}; nothing is retrieved, so the oldest goes (--capture-max-mb)",),
    )
    return Outcome(tables=(table,), figures={"many/growth_second_half": last / middle})


def measure_cached(scene: Scene) -> Outcome:
    """Cost of a request against the number of tokens in the cache."""
    rows: list[tuple[Cell, ...]] = []
    figures = {}
    with _base(scene, *ALL_KEPT) as one:
        if one is None or one.pid is None:
            return _nothing("the router cannot be started")
        scene.sampler.take(tiny_row(), one, _WARM_REQUESTS)
        held, rate = _held(one), 0.0
        empty, at_first = resident_bytes(one.pid), held
        for level in scene.scale.cached:
            missing = max(0, level - held) // (FILL_TOKENS + 64)
            if rate and missing / rate > _FILL_S:
                rows.append((level, *(None,) * 4, f"{missing / rate:,.0f} s to fill"))
                continue
            if missing:
                rate = scene.sampler.take(fill_row(missing), one, missing).loaded.per_second
            held = _held(one)
            bytes_each = (resident_bytes(one.pid) - empty) / max(1, held - at_first)
            small, turn = _costs(scene, one, level)
            figures[f"cached/{level}/{one.peer.name}/cpu_us"] = small
            rows.append((level, held, small, turn, bytes_each, ""))
    table = Table(
        title="Cost against tokens in the cache",
        columns=("level", "tokens held", "small µs", "turn µs", "resident B/token", ""),
        rows=tuple(rows),
        notes=(f"{one.peer.name}, answers of {FILL_TOKENS} tokens, each to a prompt of its own",),
    )
    return Outcome(tables=(table,), figures=figures)


def _costs(scene: Scene, one: Running, level: int) -> tuple[float, float | None]:
    """A small request, and a turn by text; few enough to leave the level what it is."""
    few = min(_MANY_REQUESTS, max(_FEW_REQUESTS, level // 320))
    small = [scene.sampler.take(small_row(), one, few).cpu_us for _ in range(scene.scale.rounds)]
    row = multi_row(1)
    talks = min(8, level // (4 * row.turns * _TURN_TOKENS))
    if not talks:
        return median(small), None
    turns = [scene.sampler.take(row, one, talks * row.turns).cpu_us for _ in range(3)]
    return median(small), median(turns)


def _held(one: Running) -> int:
    return int(metrics(one)["cache"]["total_tokens"])


def measure_workers(scene: Scene) -> Outcome:
    """Small requests against the number of workers."""
    tables, figures, absent = [], dict[str, float](), dict[str, str]()
    peers = [peer for peer in scene.peers if peer.name in _FLEET_PEERS]
    for number in scene.scale.workers:
        with scene.fleet(peers, workers=number) as fleet:
            row = small_row(f"{number} workers")
            series = scene.sampler.series(row, fleet.running)
        tables.append(served_table(f"Small, {number} workers", row, series))
        figures.update(row_figures(f"workers/{number}", series))
        absent.update(fleet.absent)
    return Outcome(tables=tuple(tables), figures=figures, absent=absent)


def measure_sessions(scene: Scene) -> Outcome:
    """Small requests against the number of sessions, each of which has one call at least."""
    rows: list[tuple[Cell, ...]] = []
    figures = {}
    with _base(scene) as one:
        if one is None:
            return _nothing("the router cannot be started")
        seen, rate = 0, 0.0
        for number in scene.scale.sessions:
            row = small_row(sessions=number)
            missing = number - seen
            if rate and missing / rate > _FILL_S:
                rows.append((number, None, f"{missing / rate:,.0f} s to fill"))
                continue
            rate = scene.sampler.take(row, one, number).loaded.per_second
            seen = number
            cost = scene.sampler.series(row, [one])[one.peer.name]
            figures[f"sessions/{number}/{one.peer.name}/cpu_us"] = cost.median("cpu_us") or 0.0
            rows.append((number, cost.median("cpu_us"), cost.problem))
    table = Table(
        title="Small, by number of sessions (X-Session-ID)",
        columns=("sessions", "µs/request", ""),
        rows=tuple(rows),
        notes=(f"{one.peer.name}; few sessions have many calls each, many have few",),
    )
    return Outcome(tables=(table,), figures=figures)


def measure_health(scene: Scene) -> Outcome:
    """How long ``/health`` takes while large requests keep the router busy."""
    rows: list[tuple[Cell, ...]] = []
    figures = {}
    with scene.fleet([peer for peer in scene.peers if peer.is_own]) as fleet:
        for one in fleet.running:
            for name in _BUSY:
                p50, p99 = _health_ms(scene, one, SERVED[name].rows()[0])
                figures[f"health/{name}/{one.peer.name}/p99_ms"] = p99
                rows.append((one.peer.name, name, p50, p99))
    table = Table(
        title=f"/health, {_HEALTH_RATE:.0f} times a second, beside 16 connections of requests",
        columns=("peer", "beside", "p50 ms", "p99 ms"),
        rows=tuple(rows),
    )
    return Outcome(tables=(table,), figures=figures, absent=fleet.absent)


def _health_ms(scene: Scene, one: Running, row: Row) -> tuple[float, float]:
    asked = Load(
        requests=_HEALTH_REQUESTS, connections=16, method="GET", path="/health", rate=_HEALTH_RATE
    )
    with (
        scene.sampler.load(row, 10**6, connections=16) as load,
        start_load(one.port, load, scene.pins) as busy,
    ):
        let_begin(busy)
        loaded, _ = run_load(one.port, asked, scene.pins)
    return loaded.p50_ms, loaded.p99_ms


def measure_start(scene: Scene) -> Outcome:
    """Time from the start of the process to ``/health`` and to readiness."""
    rows: list[tuple[Cell, ...]] = []
    figures, absent = {}, dict[str, str]()
    for peer in (peer for peer in scene.peers if peer.is_own):
        seen: list[Running] = []
        for _ in range(scene.scale.starts):
            with scene.fleet([peer]) as fleet:
                seen.extend(fleet.running)
                absent.update(fleet.absent)
        if not seen:
            continue
        health = median([one.health_s for one in seen])
        ready = median([one.ready_s for one in seen])
        figures[f"start/{peer.name}/ready_s"] = ready
        rows.append((peer.name, "yes" if peer.captures else "no", health, ready))
    table = Table(
        title="Start",
        columns=("peer", "tokenizer", "/health after s", "ready after s"),
        rows=tuple(rows),
        notes=("wall time on one CPU; the small shipped vocabulary",),
    )
    return Outcome(tables=(table,), figures=figures, absent=absent)


def measure_stalls(scene: Scene) -> Outcome:
    """The event loop's longest stalls (``benchmarks.loop_stall``)."""
    repeats = scene.scale.stall_repeats
    if not repeats:
        return _nothing("left out of a quick run")
    phases, stalls = loop_stall.measure(loop_stall.Options(repeats=repeats))
    place = phases.columns.index("longest stall ms")
    seen = {str(row[0]): float(row[place] or 0) for row in phases.rows}
    floor = seen.pop("nothing")  # what the machine does to a process that is idle
    figures = {"stalls/longest_ms": max(seen.values()), "stalls/nothing_ms": floor}
    return Outcome(tables=(phases, stalls), figures=figures)


SCALES: Final[Mapping[str, Callable[[Scene], Outcome]]] = {
    "answered": measure_answered,
    "retrieval": measure_retrieval,
    "memory": measure_memory,
    "many": measure_many,
    "cached": measure_cached,
    "workers": measure_workers,
    "sessions": measure_sessions,
    "health": measure_health,
    "start": measure_start,
    "stalls": measure_stalls,
}
"""The cells by name."""
