"""A network in memory: connections whose bytes take their time, come in pieces, stop or break off.

A connection is two pipes. What is sent waits in its pipe until it is due, however little the
reader takes then; a full pipe holds up the sender, as a full window does. Conditions are read when
they matter, so whoever changes them calls :meth:`Network.changed` for those who wait.

A :class:`SimStream` is a Trio stream for Hypercorn and for clients, and a
:class:`slime_trio.byte_stream.ClientStream` for the router's own listener and for its pool.
"""

from __future__ import annotations

import errno
import operator
import os
import random
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Final, Protocol

import trio

from slime_trio.upstream import Origin
from tests.simulate.chance import derive

__all__ = ["CALM", "Address", "Answers", "Calm", "Conditions", "Network", "SimStream", "Weather"]

_TRICKLE: Final = (1, 1, 2, 3, 5, 8, 21, 89)
_TRICKLE_S: Final = 0.001
_WHOLE: Final = 65536
"""Chunks of this size are not cut: a read brings what has arrived."""
_CUT_OFTEN: Final = 0.3
"""How often a read brings one chunk and no more, where there are chunks; else several."""
_CHUNKS: Final = 16
_LATENCIES: Final = (0.0, 0.0, 0.5, 1.0)
"""Shares of the network's delay; each pipe draws its own."""
_TOLD: Final = 0.7
"""How often there is something like a socket, of which the kernel tells when its peer has left."""
_WINDOWS: Final = (512, 4096, _WHOLE, _WHOLE)


class Weather(Protocol):
    """What happens to the bytes of a link."""

    @property
    def delay_s(self) -> float:
        """How long bytes take, beside the link's own latency."""

    @property
    def partitioned(self) -> bool:
        """Nothing arrives, in either direction; nothing is lost."""

    @property
    def trickle(self) -> bool:
        """A few bytes arrive at a time."""


class Conditions(Weather, Protocol):
    """What happens to a worker's links and to those who want one."""

    @property
    def refuse(self) -> bool:
        """Connecting fails at once."""

    @property
    def hang(self) -> bool:
        """Connecting takes for ever."""


@dataclass(slots=True)
class Calm:
    """Conditions that are good until someone changes them."""

    delay_s: float = 0.0
    partitioned: bool = False
    trickle: bool = False
    refuse: bool = False
    hang: bool = False


CALM: Final[Weather] = Calm()


@dataclass(slots=True)
class Answers:
    """What a worker's connection carries: the answer to an exchange, of pieces up to a size.

    ``ahead`` is what the router has taken of it since the agent has last read (``reads`` times) and
    its connection is full, the latest read left out: that may have brought any number of pieces.
    """

    exchange: int
    longest: int = 0
    ahead: int = 0
    latest: int = 0
    reads: int = 0

    def take(self, count: int, *, is_held_up: bool) -> None:
        """The router has read so much."""
        self.ahead = self.ahead + self.latest if is_held_up else 0
        self.latest = count if is_held_up else 0


class _Pipe:
    """One direction of a connection."""

    def __init__(
        self, chance: random.Random, weather: Weather, *, delay_s: float, chunk_bytes: int
    ) -> None:
        self.chance = chance
        self.weather = weather
        self.chunk_bytes = chunk_bytes
        self.latency_s = delay_s * chance.choice(_LATENCIES)
        window = chance.choice(_WINDOWS)
        self.window = window if chunk_bytes < _WHOLE else _WHOLE
        self.flying: deque[tuple[float, bytes]] = deque()
        self.arrived = bytearray()
        self.held = 0
        self.last_due = -inf
        self.end_due: float | None = None
        self.end_is_reset = False
        self.reader_gone_at = inf
        self.not_before = -inf
        self.readers = trio.lowlevel.ParkingLot()
        self.writers = trio.lowlevel.ParkingLot()
        self.answers: Answers | None = None

    # -- the sender's side ---------------------------------------------------------------

    def due(self) -> float:
        """When what is sent now arrives: never before what was sent earlier."""
        now = trio.current_time()
        self.last_due = max(self.last_due, now + self.latency_s + self.weather.delay_s)
        return self.last_due

    def put(self, data: bytes) -> int:
        """Send what there is room for; how much that was."""
        taken = data[: self.window - self.held]
        if taken and trio.current_time() >= self.reader_gone_at - self.latency_s:
            return len(taken)  # nobody is there any more to whom it could arrive
        if taken:
            self.flying.append((self.due(), taken))
            self.held += len(taken)
            self.readers.unpark_all()
        return len(taken)

    def finish(self, *, reset: bool, lose: bool = False) -> None:
        """End the pipe behind what was sent, or, with ``lose``, instead of it."""
        if lose:
            self.flying.clear()
            self.arrived.clear()
            self.held = 0
        if self.end_due is None or reset:
            self.end_due, self.end_is_reset = self.due(), reset
        self.readers.unpark_all()

    @property
    def told_gone_at(self) -> float:
        """When the sender learns that nobody reads; while nothing comes through, never."""
        return inf if self.weather.partitioned else self.reader_gone_at

    @property
    def is_broken(self) -> bool:
        """Whether the sender has learnt that nobody reads."""
        return not self.weather.partitioned and trio.current_time() >= self.reader_gone_at

    # -- the reader's side ---------------------------------------------------------------

    def arrive(self) -> None:
        """Let arrive what is due."""
        if self.weather.partitioned:
            return
        now = trio.current_time()
        while self.flying and self.flying[0][0] <= now:
            self.arrived += self.flying.popleft()[1]

    @property
    def is_ended(self) -> bool:
        """Whether the end has arrived and nothing is left before it."""
        if self.end_due is None or self.flying or self.arrived or self.weather.partitioned:
            return False
        return trio.current_time() >= self.end_due

    @property
    def told_ended_at(self) -> float:
        """When the end has come through, whatever is unread before it; if not in sight, never."""
        return inf if self.end_due is None or self.weather.partitioned else self.end_due

    @property
    def next_due(self) -> float:
        """When to look again."""
        if self.weather.partitioned:
            return inf
        dues = [self.flying[0][0]] if self.flying else []
        if self.arrived:
            dues.append(self.not_before)
        if self.end_due is not None and not dues:
            dues.append(self.end_due)  # It waits until what was sent before it has been read.
        return min(dues, default=inf)

    @property
    def is_readable(self) -> bool:
        """Whether a byte can be read now."""
        return bool(self.arrived) and trio.current_time() >= self.not_before

    def take(self, most: int) -> bytes:
        """What one read brings."""
        count = min(len(self.arrived), most)
        if self.weather.trickle:
            count = min(count, self.chance.choice(_TRICKLE))
            self.not_before = trio.current_time() + _TRICKLE_S
        elif self.chunk_bytes < _WHOLE:
            cut = self.chance.random() < _CUT_OFTEN
            chunk = self.chance.randint(1, self.chunk_bytes) if cut else _CHUNKS * self.chunk_bytes
            count = min(count, chunk)
        data = bytes(self.arrived[:count])
        del self.arrived[:count]
        self.held -= count
        self.writers.unpark_all()
        return data

    def wake(self) -> None:
        self.readers.unpark_all()
        self.writers.unpark_all()


@dataclass(frozen=True, slots=True)
class Address:
    """What Hypercorn asks a socket for."""

    name: tuple[str, int]
    peer: tuple[str, int]
    family: int = socket.AF_INET

    def getsockname(self) -> tuple[str, int]:
        return self.name

    def getpeername(self) -> tuple[str, int]:
        return self.peer


class SimStream(trio.abc.HalfCloseableStream):
    """One end of a connection.

    ``stall_s``: a send that makes no progress for so long breaks the connection, as the kernel
    does for a listener with ``TCP_USER_TIMEOUT``.
    """

    sends_now: Final = True

    def __init__(
        self,
        label: str,
        outgoing: _Pipe,
        incoming: _Pipe,
        address: Address,
        *,
        network: Network,
        stall_s: float = inf,
    ) -> None:
        self.label: Final = label
        self.number = -1
        self.socket: Final = address
        self._out: Final = outgoing
        self._in: Final = incoming
        self._stall_s = stall_s
        self._network = network
        self._is_sending = self._is_receiving = False
        self.reads = 0
        self._sent_eof = False
        self.is_closed = False

    # -- sending -------------------------------------------------------------------------

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As Trio's. Cancelled, part of ``data`` may be gone."""
        self._begin_sending()
        try:
            await trio.lowlevel.checkpoint()
            rest = bytes(data)
            stalled_at = trio.current_time() + self._stall_s
            while self._may_send() and rest:
                if count := self._out.put(rest):
                    rest, stalled_at = rest[count:], trio.current_time() + self._stall_s
                elif trio.current_time() >= stalled_at:
                    self.reset()
                    raise trio.BrokenResourceError from _gone(errno.ETIMEDOUT)
                else:
                    self._network._held_up(self._out)
                    wake_at = min(stalled_at, self._out.told_gone_at)
                    await _park(self._out.writers, wake_at)
        finally:
            self._is_sending = False

    def send_now(self, data: bytes | memoryview) -> int:
        """As of a socket: nobody waits, and part may be taken."""
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending")
        return self._out.put(bytes(data)) if self._may_send() else 0

    async def send_some(self, data: memoryview) -> int:
        """As of a socket."""
        await self.wait_send_all_might_not_block()
        return self.send_now(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As Trio's."""
        self._begin_sending()
        try:
            await trio.lowlevel.checkpoint()
            while self._may_send() and self._out.held >= self._out.window:
                self._network._held_up(self._out)
                await _park(self._out.writers, self._out.told_gone_at)
        finally:
            self._is_sending = False

    async def send_eof(self) -> None:
        """As Trio's."""
        self._begin_sending()
        try:
            await trio.lowlevel.checkpoint()
            if self.is_closed:
                raise trio.ClosedResourceError("this stream was closed")
            if not self._sent_eof:
                self._sent_eof = True
                self._out.finish(reset=False)
        finally:
            self._is_sending = False

    def _begin_sending(self) -> None:
        if self._is_sending:
            raise trio.BusyResourceError("another task is sending")
        self._is_sending = True

    def _may_send(self) -> bool:
        """``True``. Raises what Trio's streams raise where nothing can be sent."""
        if self.is_closed or self._sent_eof:
            raise trio.ClosedResourceError("this stream was closed")
        if self._out.is_broken:
            raise trio.BrokenResourceError from _gone(errno.EPIPE)
        return True

    # -- receiving -----------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As Trio's."""
        if max_bytes is not None and (max_bytes := operator.index(max_bytes)) < 1:
            raise ValueError("max_bytes must be at least 1")
        pipe = self._in
        async with _Receiving(self):
            pipe.arrive()
            if pipe.is_readable or pipe.is_ended or self.is_closed:
                await trio.lowlevel.checkpoint()
            while not pipe.is_readable:
                if self.is_closed:
                    raise trio.ClosedResourceError("this stream was closed")
                if pipe.is_ended:
                    if pipe.end_is_reset:
                        raise trio.BrokenResourceError from _gone(errno.ECONNRESET)
                    return b""
                await _park(pipe.readers, pipe.next_due)
                pipe.arrive()
            if self.is_closed:
                raise trio.ClosedResourceError("this stream was closed")
            self._network.reads += 1
            self.reads += 1
            data = pipe.take(max_bytes or _WHOLE)
            if pipe.answers is not None:
                self._network._relayed(pipe.answers, len(data))
            return data

    @property
    def is_full(self) -> bool:
        """Whether the peer can send nothing until something is read here."""
        return self._in.held >= self._in.window

    def begin_answer(self, exchange: int) -> Answers:
        """What is sent from now on answers that exchange."""
        self._out.answers = Answers(exchange)
        return self._out.answers

    async def wait_hangup(self) -> None:
        """Until the peer has ended its side, or the connection is broken or closed here.

        Bytes that arrive meanwhile stay; an end behind them counts.
        """
        pipe = self._in
        while not self.is_closed and trio.current_time() < pipe.told_ended_at:
            await _park(pipe.readers, pipe.told_ended_at)

    def is_stale(self) -> bool:
        """Whether, idle, the connection has been ended or has brought stray bytes."""
        self._in.arrive()
        return self.is_closed or bool(self._in.arrived) or self._in.is_ended

    def socket_number(self) -> int:
        """What a watch knows it by; -1 where only reading tells of the end, as with TLS."""
        return self.number

    # -- the end -------------------------------------------------------------------------

    def reset(self, *, lose: bool = False) -> None:
        """Break the connection, for both sides; with ``lose``, so are bytes under way.

        This end still has to be closed.
        """
        for pipe in (self._out, self._in):
            pipe.finish(reset=True, lose=lose)
            pipe.reader_gone_at = min(pipe.reader_gone_at, trio.current_time() + pipe.latency_s)
            pipe.wake()

    def close(self) -> None:
        """Close at once. What was not read by then makes it a reset, as TCP has it."""
        if self.is_closed:
            return
        self.is_closed = True
        unread = bool(self._in.arrived or self._in.flying)
        self._out.finish(reset=unread)
        back_s = self._in.latency_s + self._in.weather.delay_s
        self._in.reader_gone_at = min(self._in.reader_gone_at, trio.current_time() + back_s)
        self._in.wake()
        self._out.wake()
        self._network._closed(self)

    async def aclose(self) -> None:
        """As Trio's."""
        self.close()
        await trio.lowlevel.checkpoint()


class _Receiving:
    """The guard of the one task that may receive."""

    def __init__(self, stream: SimStream) -> None:
        self._stream = stream

    async def __aenter__(self) -> None:
        if self._stream._is_receiving:
            raise trio.BusyResourceError("another task is receiving")
        self._stream._is_receiving = True

    async def __aexit__(self, *_error: object) -> None:
        self._stream._is_receiving = False


async def _park(lot: trio.lowlevel.ParkingLot, until: float) -> None:
    """Wait for a change in the pipe, or for ``until``."""
    if until == inf:
        await lot.park()
        return
    with trio.move_on_at(until):
        await lot.park()


def _gone(number: int) -> OSError:
    return OSError(number, os.strerror(number))


Serve = Callable[[SimStream], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Listener:
    serve: Serve
    conditions: Conditions


class Network:
    """All connections of one run, and who listens where. Handlers run in ``nursery``.

    ``delay_s`` is the delay of a link, at most; a read brings about ``chunk_bytes``.
    """

    def __init__(
        self,
        seed: int,
        nursery: trio.Nursery,
        *,
        delay_s: float = 0.0,
        chunk_bytes: int = _WHOLE,
    ) -> None:
        self._seed = seed
        self._nursery = nursery
        self._delay_s = delay_s
        self._chunk_bytes = chunk_bytes
        self._listeners: dict[tuple[str, int], _Listener] = {}
        self._opened: dict[str, int] = {}
        self._open: dict[SimStream, None] = {}
        self._next_number = 0
        self.numbered: dict[int, SimStream] = {}
        """Open streams of whose ends a watch can tell."""
        self.reads = 0
        """How often bytes were received."""
        self.asking: dict[int, SimStream] = {}
        """The agents' ends of the connections on which exchanges are under way."""
        self.read_ahead: dict[int, tuple[int, int]] = {}
        """See :attr:`tests.simulate.story.Story.read_ahead`."""

    def listen(self, host: str, port: int, serve: Serve, conditions: Conditions) -> None:
        """Hand every connection to ``host:port`` to ``serve``, which has to close it."""
        self._listeners[host, port] = _Listener(serve, conditions)

    async def connect(self, origin: Origin, _tls: object = None) -> SimStream:
        """A connection to whoever listens there. Raises ``OSError``.

        This is a :class:`slime_trio.upstream.Connect`.
        """
        await trio.lowlevel.checkpoint()
        listener = self._listeners.get((origin.host, origin.port))
        if listener is None or listener.conditions.refuse:
            raise _gone(errno.ECONNREFUSED)
        conditions = listener.conditions
        while conditions.hang or conditions.partitioned:  # noqa: ASYNC110 - as SYNs are repeated
            await trio.sleep(1.0)
        await trio.sleep(conditions.delay_s)
        if conditions.refuse:
            raise _gone(errno.ECONNREFUSED)
        near, far = self.pair(f"{origin.host}:{origin.port}", conditions)
        self._nursery.start_soon(listener.serve, far)
        return near

    def pair(
        self, label: str, weather: Weather = CALM, *, stall_s: float = inf
    ) -> tuple[SimStream, SimStream]:
        """A connection's two ends: who opened it, and who accepted it (with ``stall_s``)."""
        number = self._opened[label] = self._opened.get(label, 0) + 1
        there, back = (
            _Pipe(
                derive(self._seed, "link", label, number, way),
                weather,
                delay_s=self._delay_s,
                chunk_bytes=self._chunk_bytes,
            )
            for way in ("there", "back")
        )
        here, peer = ("198.51.100.1", 10000 + number), ("203.0.113.1", 80)
        name = f"{label} #{number}"
        near = SimStream(f"{name}, near", there, back, Address(here, peer), network=self)
        far = SimStream(
            f"{name}, far",
            back,
            there,
            Address(peer, here),
            stall_s=stall_s,
            network=self,
        )
        self._open[near] = self._open[far] = None
        if derive(self._seed, "link", label, number, "told").random() < _TOLD:
            for stream in (near, far):
                stream.number = self._next_number
                self.numbered[stream.number] = stream
                self._next_number += 1
        return near, far

    def _held_up(self, pipe: _Pipe) -> None:
        """Whoever sends into this pipe waits for its reader."""
        for exchange, agents in self.asking.items():
            if agents._in is pipe:
                self.read_ahead.setdefault(exchange, (0, 0))

    def _relayed(self, answers: Answers, count: int) -> None:
        """The router took so much of an answer."""
        asking = self.asking.get(answers.exchange)
        is_held_up = asking is not None and asking.is_full and asking.reads == answers.reads
        answers.reads = 0 if asking is None else asking.reads
        answers.take(count, is_held_up=is_held_up)
        if answers.latest:
            most = max(answers.ahead, self.read_ahead.get(answers.exchange, (0, 0))[0])
            self.read_ahead[answers.exchange] = most, answers.longest

    def _closed(self, stream: SimStream) -> None:
        self._open.pop(stream, None)
        self.numbered.pop(stream.number, None)

    @property
    def open_streams(self) -> list[SimStream]:
        """Ends that nobody has closed, oldest first."""
        return list(self._open)

    def changed(self) -> None:
        """Conditions have changed: whoever waits looks again."""
        for stream in self._open:
            stream._in.wake()
            stream._out.wake()
