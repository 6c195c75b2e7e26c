"""How much of a request's cost comes before the client has its answer, and how much after it.

The clock of a process that runs is exact only when it is switched out. So some requests follow one
another on one connection; as soon as the last byte of the last answer is here, the router is
stopped (``SIGSTOP``), its clock is read, and it may go on. What it takes from there until it rests,
less what being stopped costs by itself, is what comes after one answer; all else is before. What
runs between the last byte's arrival and the stop counts as before: that is an upper bound.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final

from benchmarks.field.canned import Body
from benchmarks.field.outcome import Outcome
from benchmarks.field.processor import Pins, cpu_seconds
from benchmarks.field.running import Running
from benchmarks.field.sampling import order
from benchmarks.field.scene import Scene
from benchmarks.field.served_cells import BASE, SERVED
from benchmarks.report import Cell, Table, median

__all__ = ["ANSWERED", "Spent", "answered_table", "ask", "exchange", "measure_answered"]

ANSWERED: Final = ("small", "large")
"""The cells whose requests are sent."""
_PEERS: Final = ("fast", "fast-off", "hypercorn", "sglang-router", "smg", "nginx")
_WARM: Final = 100
_EACH: Final = 8
"""Samples of a peer in each round."""
_IN_A_ROW: Final = 12
"""Requests of a sample: enough to find caches as a busy router does."""
_REST_S: Final = 0.002
"""A process whose clock stands still for so long has nothing more to do."""
_TIMEOUT_S: Final = 30.0
_ROOM: Final = 1 << 20
_HEAD: Final = (
    b"POST /generate HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
)
_LENGTH: Final = b"content-length:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Processor time of one request in µs: until its answer has arrived, and all of it."""

    before_us: float
    whole_us: float


def measure_answered(scene: Scene) -> Outcome:
    """A table for each of the cells in ``ANSWERED``, and the medians by name."""
    tables, figures = [], dict[str, float]()
    numbers = count(1)
    peers = [peer for peer in scene.peers if peer.name in _PEERS]
    with scene.fleet(peers) as fleet, _beside(scene.pins):
        for cell in ANSWERED:
            (body,) = SERVED[cell].rows()[0].bodies
            seen = _samples(fleet.running, body, scene.scale.rounds, numbers)
            tables.append(answered_table(cell, seen))
            for peer, some in seen.items():
                for name in ("before_us", "whole_us"):
                    figures[f"answered/{cell}/{peer}/{name}"] = _median(some, name)
    return Outcome(tables=tuple(tables), figures=figures, absent=fleet.absent)


def _samples(
    running: Sequence[Running], body: Body, rounds: int, numbers: Iterator[int]
) -> dict[str, list[Spent]]:
    found: dict[str, list[Spent]] = {one.peer.name: [] for one in running}
    for one in running:
        with socket.create_connection(("127.0.0.1", one.port), _TIMEOUT_S) as connection:
            for _ in range(_WARM):
                exchange(connection, body.numbered(next(numbers)))
    for one in order(rounds, running):
        with socket.create_connection(("127.0.0.1", one.port), _TIMEOUT_S) as connection:
            for _ in range(_EACH):
                sends = [
                    partial(exchange, connection, body.numbered(next(numbers)))
                    for _ in range(_IN_A_ROW)
                ]
                found[one.peer.name].append(ask(one, sends))
    return found


@contextmanager
def _beside(pins: Pins) -> Iterator[None]:
    """Keep off the router's CPU."""
    before = os.sched_getaffinity(0)
    pins.others_only()()
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def ask(one: Running, sends: Sequence[Callable[[], None]]) -> Spent:
    """What one of ``sends``, called in a row, costs a router that rests before and after them.

    ``one`` leads a process group of its own, which is stopped for a moment.
    """
    assert one.pid is not None
    _, stopping = _stopped(one.pid)
    at_first = _at_rest(one.pid)
    for send in sends:
        send()
    at_last, after = _stopped(one.pid)
    after = max(0.0, after - stopping)
    whole = (at_last - at_first + after) / len(sends)
    return Spent(before_us=(whole - after) * 1e6, whole_us=whole * 1e6)


def _stopped(pid: int) -> tuple[float, float]:
    """Stop it at once: its clock, and what it takes from there until it rests."""
    try:
        os.killpg(pid, signal.SIGSTOP)
        stopped = _at_rest(pid)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGCONT)
    return stopped, _at_rest(pid) - stopped


def _at_rest(pid: int) -> float:
    """The clock, once it stands still."""
    before = cpu_seconds(pid)
    while True:
        time.sleep(_REST_S)
        now = cpu_seconds(pid)
        if now == before:
            return now
        before = now


def exchange(connection: socket.socket, data: bytes) -> None:
    """Send a request, and return as soon as the last byte of its answer is here.

    Raises ``RuntimeError`` for another status than 200 and for an answer that breaks off.
    """
    connection.sendall(_HEAD % len(data) + data)
    answer, room = bytearray(), bytearray(_ROOM)
    while not _is_whole(answer):
        got = connection.recv_into(room)
        if not got:
            raise RuntimeError("the answer broke off")
        answer += memoryview(room)[:got]
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(bytes(answer[:200]).decode(errors="replace"))


def _is_whole(answer: bytearray) -> bool:
    """Whether an answer has arrived: by its length, or else by its last chunk."""
    end = answer.find(b"\r\n\r\n") + 4
    if end < 4:
        return False
    fields = bytes(answer[:end]).lower()
    _, found, length = fields.partition(_LENGTH)
    if not found:
        return answer.endswith(b"0\r\n\r\n")
    return len(answer) >= end + int(length[: length.index(b"\r")])


def _median(some: Sequence[Spent], name: str) -> float:
    return median([getattr(one, name) for one in some])


def answered_table(cell: str, seen: dict[str, list[Spent]]) -> Table:
    """A line for each peer: medians, and how much of the whole comes first."""
    rows: list[tuple[Cell, ...]] = []
    base = _median(seen.get(BASE, ()), "before_us")
    for peer, some in seen.items():
        before, whole = _median(some, "before_us"), _median(some, "whole_us")
        rows.append((peer, before, whole, *(_over(before, by) for by in (whole, base))))
    return Table(
        title=f"Until the client has its answer: {SERVED[cell].title}",
        columns=("peer", "µs before", "µs in all", "before / in all", "before / ours"),
        rows=tuple(rows),
        notes=("one connection, one request after the other",),
    )


def _over(value: float, by: float) -> float | None:
    return value / by if by else None
