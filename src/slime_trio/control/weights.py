"""What a weight update asks of the router, and what it tells of a worker's weights."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

import msgspec
import trio

from slime_core.errors import ClientError
from slime_core.strict_json import BAD_JSON
from slime_core.transitions import Transition, VersionSeen, WorkerFlushed
from slime_trio.control.outcomes import Outcome
from slime_trio.offload import off_loop
from slime_trio.readers_writer import ReadersWriterLock

__all__ = ["Named", "exclusive", "named_in", "seen", "with_applied"]

_UPDATED: Final = re.compile(r"\b(?:updat|appl)", re.IGNORECASE)
_FLUSH: Final = re.compile(r"flush", re.IGNORECASE)


class Named(msgspec.Struct, frozen=True):
    """What an update's body says that matters here; whatever else it holds is not looked at."""

    weight_version: str | None = None
    new_version: str | None = None
    flush_cache: bool | None = None
    abort_all_requests: bool | None = None

    @property
    def version(self) -> str | None:
        """The version that the weights will have, if the update names one."""
        return self.new_version or self.weight_version


_NAMED: Final = msgspec.json.Decoder(Named)
_WORDS: Final = (b"_version", b"flush_cache", b"abort_all_requests")


async def named_in(body: bytes) -> Named:
    """What ``body`` names; a body that no worker will take either names nothing.

    Tensors make bodies of hundreds of megabytes, so one that does not hold the words is not read.
    """
    if not any(word in body for word in _WORDS):
        return Named()
    try:
        return await off_loop(len(body), _NAMED.decode, body)
    except BAD_JSON:
        return Named()


@asynccontextmanager
async def exclusive(
    gate: ReadersWriterLock, mode: str, *, drain_s: float, drained: Callable[[], Awaitable[None]]
) -> AsyncIterator[None]:
    """Be the only update: ``hold`` lets no new dispatch begin, ``drain`` also waits for calls in
    flight, ``none`` minds neither.

    ``drained`` waits for those calls. Raises :class:`ClientError` (503, ``drain_timeout``) if it
    does so for longer than ``drain_s``; nothing has been done then.
    """
    if mode == "none":
        yield
        return
    async with gate.write(drain=False):
        if mode == "drain":
            with trio.move_on_after(drain_s) as scope:
                await drained()
            if scope.cancelled_caught:
                raise ClientError(
                    f"calls were still in flight after {drain_s:g} s, and nothing was done; pause "
                    "the workers first, or choose another mode",
                    status=503,
                    code="drain_timeout",
                    retry_after_s=1.0,
                )
        yield


def with_applied(outcome: Outcome) -> Outcome:
    """The outcome of an update, with a refusal that says that the weights *were* updated and only
    the cache could not be flushed marked as ``applied``.

    SGLang answers 400 then, in words that name both (0.5.23: "Cache flush failed after updating
    weights").
    """
    if outcome.status != 400 or not outcome.is_answered:
        return outcome
    words = outcome.message
    both = _FLUSH.search(words) and _UPDATED.search(words)
    return replace(outcome, applied=True) if both else outcome


def seen(
    outcomes: Sequence[Outcome], named: Named, *, flushes: bool, sighting: int
) -> Iterator[Transition]:
    """What is known now of the workers that were updated; ``sighting`` is the fleet's.

    ``flushes``: such an update empties the cache unless it says otherwise.
    """
    emptied = flushes if named.flush_cache is None else named.flush_cache
    for outcome in outcomes:
        if outcome.succeeded:
            worker = outcome.target.url
            if emptied and not outcome.applied:
                yield WorkerFlushed(worker=worker)
            if named.version is not None:
                yield VersionSeen(worker=worker, version=named.version, sighting=sighting)
