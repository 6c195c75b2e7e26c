"""Caches, weights and memory: what changes a worker, and what is known of it then."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Final

import msgspec
import trio

from slime_core.strict_json import decode_field, is_null
from slime_core.transitions import (
    SlotsGiven,
    Transition,
    WorkerFlushed,
    WorkerPaused,
    WorkerRemoved,
)
from slime_core.types import WorkerUrl
from slime_trio.control.outcomes import Outcome, Target
from slime_trio.control.paths import How
from slime_trio.control.pauses import MEMORY_TAGS, Pauses
from slime_trio.control.requests import ControlCall, object_of, with_fields
from slime_trio.control.teller import Teller
from slime_trio.control.weights import exclusive, named_in, seen, with_applied

__all__ = ["Updating"]

_TAGS: Final = msgspec.json.Decoder(list[str])


class Updating:
    """``flush_cache``, ``update_weights_*``, ``update_weight_version``, memory occupation."""

    def __init__(self, teller: Teller, pauses: Pauses) -> None:
        self._teller = teller
        self._pauses = pauses
        self._draining = trio.lowlevel.ParkingLot()

    def note(self, fact: Transition) -> None:
        """Look again where calls are waited for: ``fact`` was committed."""
        if isinstance(fact, (SlotsGiven, WorkerPaused, WorkerRemoved)):
            self._draining.unpark_all()

    async def flush(self, call: ControlCall, how: How, targets: Sequence[Target]) -> list[Outcome]:
        """Whoever says so has an empty cache."""
        outcomes = await self._teller.tell(self._teller.order(call, how), targets)
        self._note_flushed(outcomes)
        return outcomes

    async def update(
        self,
        call: ControlCall,
        how: How,
        targets: Sequence[Target],
        *,
        flushes: bool = True,
    ) -> list[Outcome]:
        """An update excludes others and, by its mode, dispatches.

        What workers hold then is known if the update named it and was answered; else all are asked.
        """
        named = await named_in(call.body)
        order = self._teller.order(call, how)
        is_known = False
        try:
            async with self._excluding(call, targets, "hold"):
                if named.abort_all_requests:
                    self._teller.expect_aborts(targets)
                told = await self._teller.tell(order, targets)
                outcomes = [with_applied(one) for one in told]
                sighting = self._teller.shared.versions.sighting
                self._teller.commit(seen(outcomes, named, flushes=flushes, sighting=sighting))
            is_known = named.version is not None and all(one.succeeded for one in outcomes)
        finally:
            if not is_known:
                self._teller.look_again()
        return outcomes

    async def update_version(
        self, call: ControlCall, how: How, targets: Sequence[Target]
    ) -> list[Outcome]:
        """SGLang aborts all that is in flight unless it is told not to: here it is told."""
        fields = object_of(call.body)
        fields.setdefault("abort_all_requests", msgspec.Raw(b"false"))
        gentle = replace(call, body=with_fields(fields))
        return await self.update(gentle, how, targets, flushes=False)

    async def release(
        self, call: ControlCall, how: How, targets: Sequence[Target]
    ) -> list[Outcome]:
        """SGLang breaks if anything runs while it gives memory back, so calls are waited for."""
        tags = _tags_in(call.body)
        order = self._teller.order(call, how)
        async with self._excluding(call, targets, "drain"):
            outcomes = await self._teller.tell(order, targets)
            for one in outcomes:
                if one.succeeded:
                    self._pauses.release(one.target.url, tags)
            if "kv_cache" in tags:
                self._note_flushed(outcomes)
        return outcomes

    async def resume(self, call: ControlCall, how: How, targets: Sequence[Target]) -> list[Outcome]:
        """Whoever has all its memory again gets work again."""
        tags = _tags_in(call.body)
        outcomes = await self._teller.tell(self._teller.order(call, how), targets)
        for one in outcomes:
            if one.succeeded:
                self._pauses.resume(one.target.url, tags)
        return outcomes

    def _excluding(
        self, call: ControlCall, targets: Sequence[Target], default: str
    ) -> AbstractAsyncContextManager[None]:
        return exclusive(
            self._teller.shared.gate,
            call.mode(default),
            drain_s=call.drain_timeout_s,
            drained=partial(self._drained, [one.url for one in targets]),
        )

    async def _drained(self, workers: Sequence[WorkerUrl]) -> None:
        """Wait for the calls that these workers have. Others are nobody's business here, and calls
        on a paused worker do not end."""
        known = self._teller.shared.fleet.workers
        await trio.lowlevel.checkpoint()
        while any(
            url in known and known[url].in_flight and not known[url].paused for url in workers
        ):
            await self._draining.park()

    def _note_flushed(self, outcomes: Sequence[Outcome]) -> None:
        done = [one.target.url for one in outcomes if one.succeeded]
        self._teller.commit(WorkerFlushed(worker=worker) for worker in done)


def _tags_in(body: bytes) -> tuple[str, ...]:
    """Which parts of the memory are meant: those named, else all. Raises ``ClientError``."""
    fields = object_of(body)
    if "tags" not in fields or is_null(fields["tags"]):
        return MEMORY_TAGS
    return tuple(decode_field(_TAGS, fields["tags"], "tags")) or MEMORY_TAGS
