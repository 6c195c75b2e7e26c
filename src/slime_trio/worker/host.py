"""The engine in the world of clocks: one task that drives it, one channel per live request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType

import trio

from slime_core.engine import Emission, Engine, Generation
from slime_trio.worker.faults import Faults

__all__ = ["EngineHost", "Subscription"]


class EngineHost:
    """Drives an engine. :meth:`run` is to be started once; everything else is synchronous."""

    def __init__(self, engine: Engine, faults: Faults) -> None:
        self.engine = engine
        self._faults = faults
        self._wake = trio.Event()
        self._stepped = trio.Event()
        self._listeners: dict[str, trio.MemorySendChannel[Emission]] = {}
        self._told: dict[str, int] = {}

    async def run(self) -> None:
        """Steps the engine whenever it has something to do, until cancelled.

        A task that has nothing but tokens to make still gives the others a turn after each round.
        """
        while True:
            deadline = self.engine.next_deadline
            if deadline is None or deadline > trio.current_time():
                with trio.move_on_at(math.inf if deadline is None else deadline):
                    await self._wake.wait()
            else:
                await trio.lowlevel.checkpoint()
            self._wake = trio.Event()
            for emission in self.engine.advance(trio.current_time()):
                self._deliver(emission)
            self._stepped.set()
            self._stepped = trio.Event()

    def poke(self) -> None:
        """To be called after every change of the engine from outside."""
        self._wake.set()

    def subscribe(self, generations: Sequence[Generation]) -> Subscription:
        """Submits them when entered; see :class:`Subscription`."""
        return Subscription(self, generations)

    @property
    def stepped(self) -> trio.Event:
        """Set after the next step of the engine."""
        return self._stepped

    async def wait_idle(self) -> None:
        """Until nothing runs or waits; at once if that is so."""
        while not self.engine.idle:
            await self._stepped.wait()

    def _deliver(self, emission: Emission) -> None:
        listener = self._listeners.get(emission.rid)
        if listener is not None:
            listener.send_nowait(emission)
        if emission.finish is not None:
            self._listeners.pop(emission.rid, None)
            self._told.pop(emission.rid, None)
        else:
            self._abort_on_purpose(emission)

    def _abort_on_purpose(self, emission: Emission) -> None:
        """The fault ``abort:N``, before another token can be made."""
        limit = self._faults.number("abort")
        if limit is not None:
            told = self._told.get(emission.rid, 0) + len(emission.tokens)
            self._told[emission.rid] = told
            if told >= limit:
                self.engine.abort(emission.rid)


class Subscription:
    """``with host.subscribe(generations) as emissions``: what they emit, interleaved.

    Leaving the block before all have finished aborts the rest; that is how a client that goes
    away aborts its generation. Everything but receiving is synchronous, so nothing can leak.
    """

    def __init__(self, host: EngineHost, generations: Sequence[Generation]) -> None:
        self._host = host
        self._generations = generations

    def __enter__(self) -> trio.MemoryReceiveChannel[Emission]:
        # Unbounded, as the queue between SGLang's processes is: a slow reader must not stop the
        # batch. What it can hold is bounded by the limits of its requests.
        send, receive = trio.open_memory_channel[Emission](math.inf)
        for generation in self._generations:
            self._host._listeners[generation.rid] = send
            self._host.engine.submit(generation)
        self._host.poke()
        return receive

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for generation in self._generations:
            if self._host._listeners.pop(generation.rid, None) is not None:
                self._host.engine.discard(generation.rid)
        self._host.poke()
