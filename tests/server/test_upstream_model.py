"""The pool against a naive model: lists that are scanned, and no connection ever hidden."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from slime_trio.upstream import Exchange, Origin, Pool, UpstreamError
from tests.server.upstream_support import HTTP_OK, URL

LIMIT = 2
TIMEOUT_S = 4.0


class Canned:
    """A stream whose worker answers every request at once, until it is made to die.

    ``death`` says how: ``seen`` shows in a test of the idle connection, ``unseen`` only in use.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.death: str | None = None
        self.is_closed = False
        self._waiting = b""

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        assert not self.is_closed
        self._waiting = HTTP_OK

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        assert not self.is_closed
        waiting, self._waiting = self._waiting, b""
        return b"" if self.death else waiting

    def is_stale(self) -> bool:
        return self.death == "seen"

    def socket_number(self) -> int:
        return self.number

    def close(self) -> None:
        self.is_closed = True


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """``what`` happens; ``which`` picks among the connections there are, ``seconds`` pass."""

    what: str
    which: int = 0
    seconds: float = 0.0


steps = st.one_of(
    st.builds(Step, st.just("request")),
    st.builds(Step, st.sampled_from(["finish", "abort"]), which=st.integers(0, 9)),
    st.builds(Step, st.sampled_from(["seen", "unseen"]), which=st.integers(0, 9)),
    st.builds(Step, st.sampled_from(["noticed", "noticed in use"]), which=st.integers(0, 9)),
    st.builds(Step, st.just("wait"), seconds=st.sampled_from([0.5, 2.0, 4.0])),
    st.builds(Step, st.just("expire")),
)


class Notices:
    """A watch that notices what it is told to."""

    def __init__(self) -> None:
        self.ended: dict[int, Callable[[], None]] = {}

    def add(self, descriptor: int, ended: Callable[[], None]) -> None:
        self.ended[descriptor] = ended

    def remove(self, descriptor: int) -> None:
        del self.ended[descriptor]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        raise AssertionError("nobody runs it")


class Run:
    """A pool, its streams, and beside it the model: idle as (since, number), oldest first."""

    def __init__(self, clock: MockClock) -> None:
        self.clock = clock
        self.streams: list[Canned] = []
        self.watch = Notices()
        self.pool = Pool(
            connect=self.connect,
            max_idle_per_origin=LIMIT,
            idle_timeout_s=TIMEOUT_S,
            watch=self.watch,
        )
        self.ended: set[int] = set()
        self.idle: list[tuple[float, int]] = []
        self.in_use: list[tuple[int, Exchange]] = []

    async def connect(self, origin: Origin, tls: ssl.SSLContext | None) -> Canned:
        await trio.lowlevel.checkpoint()
        self.streams.append(Canned(len(self.streams)))
        return self.streams[-1]

    async def step(self, step: Step) -> None:
        if step.what == "request":
            await self.request()
        elif step.what == "wait":
            self.clock.jump(step.seconds)
        elif step.what == "expire":
            self.pool.expire()
            self.expire()
        elif step.what in ("finish", "abort"):
            if self.in_use:
                await self.leave(step)
        elif step.what == "noticed in use":
            if self.in_use:
                number = self.in_use[step.which % len(self.in_use)][0]
                self.watch.ended[number]()
                self.ended.add(number)
        elif self.idle:
            self.die(step)
        self.check()

    def die(self, step: Step) -> None:
        at = step.which % len(self.idle)
        number = self.idle[at][1]
        if step.what == "noticed":
            del self.idle[at]
            self.watch.ended[number]()
        else:
            self.streams[number].death = step.what

    def expire(self) -> None:
        now = trio.current_time()
        self.idle = [(since, number) for since, number in self.idle if now - since < TIMEOUT_S]

    async def request(self) -> None:
        expected = self.expected()
        exchange = self.pool.request("POST", URL, b"/", (), b"x")
        await exchange.__aenter__()
        self.in_use.append((expected, exchange))

    def expected(self) -> int:
        """The youngest that lives; one that dies in use is replaced by a fresh one."""
        self.expire()
        while self.idle:
            _, number = self.idle.pop()
            if self.streams[number].death is None:
                return number
            if self.streams[number].death == "unseen":
                break
        return len(self.streams)

    async def leave(self, step: Step) -> None:
        number, exchange = self.in_use.pop(step.which % len(self.in_use))
        if step.what == "abort":
            error = LookupError()
            await exchange.__aexit__(LookupError, error, None)
            return
        await exchange.__aexit__(None, None, None)
        if number in self.ended:
            return
        self.expire()
        self.idle = [*self.idle, (trio.current_time(), number)][-LIMIT:]

    def check(self) -> None:
        mine = {number for _, number in self.idle} | {number for number, _ in self.in_use}
        assert {stream.number for stream in self.streams if not stream.is_closed} == mine
        assert self.watch.ended.keys() == mine
        assert self.pool.idle(URL) == len(self.idle)
        assert self.pool.stats().in_use == len(self.in_use)


@given(st.lists(steps, max_size=40))
def test_the_pool_holds_what_the_model_holds(plan: list[Step]) -> None:
    clock = MockClock()

    async def main() -> None:
        run = Run(clock)
        for step in plan:
            await run.step(step)

    trio.run(main, clock=clock)


async def test_taking_a_connection_looks_at_no_other() -> None:
    looked_at: list[int] = []

    class Shy(Canned):
        def is_stale(self) -> bool:
            looked_at.append(self.number)
            return False

    streams: list[Shy] = []

    async def connect(origin: Origin, tls: ssl.SSLContext | None) -> Shy:
        streams.append(Shy(len(streams)))
        return streams[-1]

    pool = Pool(connect=connect)
    exchanges = [pool.request("GET", URL, b"/") for _ in range(50)]
    for exchange in exchanges:
        await exchange.__aenter__()
    for exchange in exchanges:
        await exchange.__aexit__(None, None, None)
    async with pool.request("GET", URL, b"/") as response:
        await response.read()
    assert looked_at == [49]


async def test_a_failed_try_leaves_the_counts_straight() -> None:
    async def connect(origin: Origin, tls: ssl.SSLContext | None) -> Canned:
        stream = Canned(0)
        stream.death = "unseen"
        return stream

    pool = Pool(connect=connect)
    with pytest.raises(UpstreamError):
        await pool.request("GET", URL, b"/").__aenter__()
    assert repr(pool) == "<Pool idle=0 in_use=0 opened=1>"
