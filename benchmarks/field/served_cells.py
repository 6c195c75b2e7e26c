"""The cells in which all peers answer the same requests: what is sent, and how it is told.

Cost is the processor time of the router's process for a request, or for an event of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from benchmarks.field.canned import Body, Payload, conversation, ids_request, spoken, text_request
from benchmarks.field.outcome import Outcome
from benchmarks.field.running import Fleet, Running
from benchmarks.field.sampling import Row, Sampler, Series
from benchmarks.processes import Client
from benchmarks.report import Cell, Table

__all__ = [
    "BASE",
    "FILL_TOKENS",
    "PAYLOADS",
    "SERVED",
    "ServedCell",
    "capture_notes",
    "fill_row",
    "measure_served",
    "metrics",
    "multi_row",
    "retrieval_row",
    "row_figures",
    "served_table",
    "small_row",
    "tiny_row",
]

BASE: Final = "fast"
"""The peer that the others are compared with; where it is not there, the first of this project."""

_TINY: Final = 2
_SMALL: Final = 16
_LARGE: Final = 8192
_BURST: Final = Payload(tokens=400, events=200)
_PACED: Final = Payload(tokens=300, events=150, interval_us=10_000)
_PACED_BEGIN_S: Final = 0.5
"""Within so long all paced streams begin: at once, first bytes would wait for other requests."""
FILL_TOKENS: Final = 1000
"""Tokens of an answer with which the cache is filled."""
_TURNS: Final = 16
_SAID: Final = tuple(range(1080, 1080 + _TURNS))
"""Tokens of the answer of each turn; each has another number, by which the worker knows it."""
_QUESTION: Final = 600
_RETRIEVED_TURNS: Final = 14
"""After so many turns a conversation has about 18,000 tokens."""
PAYLOADS: Final = (
    *(Payload(tokens=tokens) for tokens in (_TINY, _SMALL, _LARGE, FILL_TOKENS, *_SAID)),
    *(_BURST, _PACED),
)
"""What the canned worker must know."""


@cache
def _small() -> tuple[Body, ...]:
    return (ids_request(64, _SMALL),)


@cache
def _talk() -> tuple[Body, ...]:
    return tuple(conversation(_TURNS, _QUESTION, _SAID))


def small_row(name: str = "64", *, connections: int = 64, sessions: int = 0) -> Row:
    """Small requests by ids, each with a prompt of its own."""
    return Row(name=name, bodies=_small(), connections=connections, sessions=sessions)


def tiny_row() -> Row:
    """As little as can be, to warm a router up without filling its cache."""
    return Row(name="tiny", bodies=(ids_request(10, _TINY),))


def fill_row(requests: int) -> Row:
    """Requests whose answers fill the cache."""
    return Row(name="fill", bodies=(ids_request(64, FILL_TOKENS),), requests=requests)


def multi_row(connections: int = 32) -> Row:
    """Conversations by text, each turn with all that was said before."""
    return Row(name=str(connections), bodies=_talk(), connections=connections, turns=_TURNS)


def retrieval_row() -> tuple[Row, Row]:
    """One conversation of about 18,000 tokens, and requests to retrieve it."""
    turns = _RETRIEVED_TURNS
    said = Row(
        name="said", bodies=_talk()[:turns], connections=1, turns=turns, requests=turns, number=0
    )
    text = spoken(_talk()[:turns], _SAID[:turns])
    body = Body.of({"text": text})
    path = "/retrieve_from_text"
    wanted = Row(name="18k", bodies=(body,), path=path, connections=8, marker='"loss_mask"')
    return said, wanted


def _one(make: Callable[[], Body]) -> Callable[[], tuple[Row, ...]]:
    return lambda: (Row(name="64", bodies=(make(),)),)


def _stream_rows() -> tuple[Row, ...]:
    burst = ids_request(64, _BURST.tokens, stream=True)
    paced = ids_request(64, _PACED.tokens, stream=True)
    streams = 64
    return (
        Row(name="burst", bodies=(burst,), events=_BURST.events + 1),
        Row(
            name="paced",
            bodies=(paced,),
            connections=streams,
            requests=streams,
            events=_PACED.events + 1,
            interval_us=_PACED.interval_us,
            rate=streams / _PACED_BEGIN_S,
        ),
    )


def _latency_rows() -> tuple[Row, ...]:
    return tuple(Row(name=f"{rate} requests/s", bodies=_small(), rate=rate) for rate in (200, 2000))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCell:
    """One cell; ``rows`` are made when it is run. ``direct``: the worker itself is asked too."""

    title: str
    rows: Callable[[], tuple[Row, ...]]
    direct: bool = False
    without: tuple[str, ...] = ()
    """Peers that are left out: variants of others, where there are many rows."""

    def takes(self, peer: str) -> bool:
        """Whether the peer is measured here."""
        return peer not in self.without


_VARIANTS: Final = ("hypercorn-off", "sglang-router-cache", "smg-cache", "plain")

SERVED: Final[Mapping[str, ServedCell]] = {
    "small": ServedCell(
        title="Small: 64 ids in, 16 tokens with logprobs out",
        rows=lambda: (small_row(),),
    ),
    "large": ServedCell(
        title="Large: 8,192 tokens with logprobs out",
        rows=_one(lambda: ids_request(64, _LARGE)),
    ),
    "text64k": ServedCell(
        title="64 KB of new text in, a small answer out",
        rows=_one(lambda: text_request(65_536, _SMALL)),
    ),
    "multi": ServedCell(
        title="Conversations of 16 turns by text, 32 at once",
        rows=lambda: (multi_row(),),
    ),
    "ids32k": ServedCell(
        title="32,768 ids in, a small answer out",
        rows=_one(lambda: ids_request(32_768, _SMALL)),
    ),
    "stream": ServedCell(
        title="Streams of 2 tokens an event, 64 at once",
        rows=_stream_rows,
        direct=True,
        without=_VARIANTS,
    ),
    "connections": ServedCell(
        title="Small, by number of connections",
        rows=lambda: tuple(small_row(str(some), connections=some) for some in (8, 64, 256, 1024)),
        without=_VARIANTS,
    ),
    "latency": ServedCell(
        title="Latency at a fixed rate, small",
        rows=_latency_rows,
        direct=True,
        without=_VARIANTS,
    ),
}
"""The cells by name. Text comes before long prompts by ids: a router that has these decodes them
all when text is first looked up, for which a quick run, with one router for all, would wait."""


def measure_served(name: str, fleet: Fleet, sampler: Sampler) -> Outcome:
    """All rows of a cell: a table each, and every figure by its name."""
    cell = SERVED[name]
    tables, figures = [], dict[str, float]()
    rows = cell.rows()
    running = [one for one in fleet.running if cell.takes(one.peer.name)]
    for row in rows:
        series = sampler.series(row, running)
        found = row_figures(f"{name}/{row.name}", series)
        figures.update(found)
        title = cell.title if len(rows) == 1 else f"{cell.title}: {row.name}"
        tables.append(served_table(title, row, series))
    notes = tuple(note for one in running for note in capture_notes(one))
    tables[-1] = replace(tables[-1], notes=(*tables[-1].notes, *notes))
    return Outcome(tables=tuple(tables), figures=figures, absent=fleet.absent)


def metrics(one: Running) -> dict[str, Any]:
    """What a router of this project tells of itself."""
    with closing(Client(f"http://127.0.0.1:{one.port}")) as client:
        told: dict[str, Any] = client.get("/metrics")
        return told


def capture_notes(one: Running) -> Iterator[str]:
    """How many calls a capturing router captured; nothing is measured that was not."""
    if not one.peer.captures:
        return
    told = metrics(one)["router"]
    yield (
        f"{one.peer.name} captured {told['calls_captured']:,} calls; "
        f"not captured: {told['answers_not_captured']:,}"
    )


_FIGURES: Final = ("cpu_us", "per_second", "p50_ms", "p99_ms", "first_byte_p50_ms", "event_p99_ms")


def row_figures(prefix: str, series: Mapping[str, Series]) -> dict[str, float]:
    """The medians by name; first bytes also as the time after the worker's own."""
    direct = series.get("direct")
    worker = direct.median("first_byte_p50_ms") if direct is not None else None
    figures = {}
    for peer, one in series.items():
        for name in _FIGURES:
            value = one.median(name)
            if value is not None:
                figures[f"{prefix}/{peer}/{name}"] = value
        first = one.median("first_byte_p50_ms")
        if first is not None and worker is not None:
            figures[f"{prefix}/{peer}/first_byte_late_ms"] = first - worker
    return figures


_Figure = Callable[[Series], float | None]


def _median_of(name: str) -> _Figure:
    return lambda one: one.median(name)


def served_table(title: str, row: Row, series: Mapping[str, Series]) -> Table:
    """A line for each peer: cost with its spread, what the client saw, and cost by that of ours."""
    columns: list[tuple[str, _Figure]] = [
        (f"µs/{row.unit}", _median_of("cpu_us")),
        ("least", lambda one: _end(one, 0)),
        ("most", lambda one: _end(one, 1)),
        *((title, _median_of(name)) for title, name in _seen(row)),
    ]
    base = _base(series)
    rows = [
        (
            peer,
            *(figure(one) if one.samples else None for _, figure in columns),
            _ratio(one, base),
            one.problem,
        )
        for peer, one in series.items()
    ]
    return Table(
        title=title,
        columns=("peer", *(name for name, _ in columns), "cost / ours", ""),
        rows=tuple(_without_direct_costs(cells) for cells in rows),
        notes=(_note(row),),
    )


def _seen(row: Row) -> Sequence[tuple[str, str]]:
    if row.interval_us:
        return (
            ("first byte p50 ms", "first_byte_p50_ms"),
            ("p99 ms", "first_byte_p99_ms"),
            ("event late p50 ms", "event_p50_ms"),
            ("event late p99 ms", "event_p99_ms"),
        )
    return (("requests/s", "per_second"), ("p50 ms", "p50_ms"), ("p99 ms", "p99_ms"))


def _end(series: Series, place: int) -> float | None:
    spread = series.spread()
    return spread[place] if spread else None


def _base(series: Mapping[str, Series]) -> float | None:
    for name in (BASE, "hypercorn"):
        if name in series and series[name].samples:
            return series[name].median("cpu_us")
    return None


def _ratio(one: Series, base: float | None) -> float | None:
    cost = one.median("cpu_us")
    return cost / base if cost is not None and base else None


def _without_direct_costs(cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """Where nothing lies between client and worker, nothing costs."""
    if cells[0] != "direct":
        return cells
    return ("direct", None, None, None, *cells[4:-2], None, cells[-1])


def _note(row: Row) -> str:
    sizes = [len(body.data) for body in row.bodies]
    size = f"{min(sizes) / 1e3:,.1f}" if sizes else "0"
    if sizes and max(sizes) != min(sizes):
        size += f" to {max(sizes) / 1e3:,.1f}"
    words = [f"{row.connections} connections", f"{size} KB in"]
    if row.turns > 1:
        words.append(f"{row.turns} turns each")
    if row.interval_us:
        words.append(f"{1e6 / row.interval_us:g} events/s each")
    elif row.rate:
        words.append("times count from when a request was due")
    return ", ".join(words)
