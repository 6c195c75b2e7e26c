"""Carries prompts from prefill to decode engines, in virtual time.

It stands for the network between workers, which the router never sees: what it carries takes a
moment, and is lost with either engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final

import trio

from slime_core.engine import Engine, Generation, Role, RoomKey
from slime_trio.upstream import parse_origin
from tests.simulate.pairs.world import HalfWorker
from tests.simulate.story import Story

__all__ = ["Courier"]

_DELAYS: Final = (0.0, 0.001, 0.05, 1.0)


class Courier:
    """``changed`` is called with the URL of a worker for which something was done."""

    def __init__(
        self,
        workers: Mapping[str, HalfWorker],
        story: Story,
        chance: random.Random,
        changed: Callable[[str], None],
    ) -> None:
        self._workers = workers
        self._story = story
        self._delay_s: Final = chance.choice(_DELAYS)
        self._changed = changed
        self._bell = trio.lowlevel.ParkingLot()
        self._carried: dict[tuple[str, RoomKey], None] = {}
        self._hosts = {parse_origin(url).host: one for url, one in workers.items()}
        for worker in workers.values():
            worker.stirred = self._stir

    def _stir(self) -> None:
        self._bell.unpark_all()

    async def run(self) -> None:
        """Carry whatever is wanted, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                for worker in self._workers.values():
                    for wanted in self._new_at(worker):
                        nursery.start_soon(self._carry, worker, worker.engine, wanted)
                await self._bell.park()

    def _new_at(self, worker: HalfWorker) -> list[Generation]:
        if worker.role is not Role.DECODE or not worker.alive:
            return []
        found = []
        for wanted in worker.engine.wanted():
            assert wanted.room is not None
            name = worker.url, wanted.room.key
            if name not in self._carried:
                self._carried[name] = None
                found.append(wanted)
        return found

    async def _carry(self, decode: HalfWorker, taker: Engine, wanted: Generation) -> None:
        assert wanted.room is not None
        key = wanted.room.key
        prefill = self._hosts[wanted.room.host]
        giver = prefill.engine
        while True:
            if not _waits(decode, taker, key):
                self._lose(prefill, giver, key, "decode")
                return
            if not prefill.alive or prefill.engine is not giver or giver.is_over(key):
                self._lose(decode, taker, key, "prefill")
                return
            if giver.offered(key) is not None:
                await trio.sleep(self._delay_s)
                offer = giver.offered(key)
                if offer is not None and prefill.alive and _waits(decode, taker, key):
                    taker.received(key, offer)
                    giver.given(key)
                    self._story.marks["pairs:transferred"] += 1
                    self._tell(prefill, decode)
                    return
                continue
            await self._bell.park()

    def _lose(self, left: HalfWorker, engine: Engine, key: RoomKey, gone: str) -> None:
        """The other side has gone: the one that is left fails."""
        if left.alive and left.engine is engine:
            engine.transfer_failed(key, f"KV transfer failed: the {gone} worker has gone.")
            self._story.marks[f"pairs:{gone}_gone"] += 1
            self._tell(left)

    def _tell(self, *workers: HalfWorker) -> None:
        for worker in workers:
            self._changed(worker.url)


def _waits(decode: HalfWorker, engine: Engine, key: RoomKey) -> bool:
    rooms = [one.room.key for one in engine.wanted() if one.room is not None]
    return decode.alive and decode.engine is engine and key in rooms
