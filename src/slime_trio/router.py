"""The router: owner of one tenant's state, and the one place where transitions are committed.

``commit`` is synchronous: apply, then tell the observers (metrics, logs), then let go of what no
longer fits. Nobody else changes the state, and between a decision and its commit nothing awaits.
What tenants share is in :mod:`slime_trio.shared`, and can be had from here under its own names.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec
import structlog
import trio

from slime_core.decide import Limits, next_gone, next_untold, tell
from slime_core.errors import WorkerError
from slime_core.lookup import TokenizerFacts
from slime_core.state import RouterState
from slime_core.transitions import (
    Lookup,
    SegmentsGone,
    SlotsGiven,
    SlotsTaken,
    Transition,
    VersionFellBack,
    VersionSeen,
)
from slime_core.types import CallId, WorkerUrl
from slime_core.unread import next_unread, read_unread
from slime_trio.attempts import Attempts
from slime_trio.chatting import Chatting
from slime_trio.config import Settings
from slime_trio.observers import Observers
from slime_trio.registry import ComponentRegistry
from slime_trio.shared import Shared
from slime_trio.tokenizer import Checkpoint, Tokenizer
from slime_trio.upstream import Pool

__all__ = ["Router"]

_log: Any = structlog.get_logger("slime_router")

_GONE_AT_ONCE: Final = 64
"""How many segments one commit lets go of; more would hold the event loop too long. What is left
over is let go of by the housekeeper (:mod:`slime_trio.tending`) and by later commits."""

_REMEMBERED_AT_ONCE: Final = 2**19
"""How many characters of what goes one commit may read."""

_KEEPING_ALL: Final = frozenset({Lookup, SlotsGiven, SlotsTaken})
"""Facts by which nothing is kept that was not before, and nothing grows older."""
_AGING: Final = frozenset({VersionFellBack, VersionSeen})

_ID_BYTES: Final = 16

_ABORT_S: Final = 5.0

_READ_INLINE_BYTES: Final = 512 * 1024
"""Logprobs written in up to this many bytes are read on the event loop, longer ones in a thread."""

_TELL_INLINE_BYTES: Final = 16 * 1024
"""Prompts up to this many bytes of ids are decoded on the event loop, longer ones in a thread."""


def _random_ids() -> Iterator[str]:
    """Ids of 128 bits that nobody can guess. The system is asked for many at once."""
    while True:
        drawn = os.urandom(64 * _ID_BYTES).hex()
        for at in range(0, len(drawn), 2 * _ID_BYTES):
            yield drawn[at : at + 2 * _ID_BYTES]


class Router:
    """One tenant's forest, sessions and retries, and a view of what all tenants share.

    ``Router(settings)`` is the default tenant's, with a new :class:`Shared` in whose ``routers``
    are those of the tenants that have keys; with ``shared`` it is one of these. They divide the
    memory among them. Middleware gets the default tenant's as ``router``: ``router.args`` are the
    settings and ``router.component_registry`` the shared components. Raises
    :class:`ConfigurationError` for keys that collide.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        checkpoint: Checkpoint | None = None,
        pool: Pool | None = None,
        new_id: Callable[[], str] | None = None,
        chance: Callable[[], float] = random.random,
        shared: Shared | None = None,
        tenant: str = "",
    ) -> None:
        self.shared: Final = shared or Shared(
            settings,
            checkpoint=checkpoint,
            pool=pool,
            new_id=new_id or partial(next, _random_ids()),
            chance=chance,
        )
        self.new_call_id: Final[Callable[[], CallId]] = self.shared.new_call_id
        """A fresh id; all tenants' have one length."""
        self.tenant: Final = tenant
        """Its name in metrics and logs; ``""`` is the default tenant's."""
        self.housekeeping: trio.Event = trio.Event()
        sharers = max(1, len(self.shared.keys.tenants))
        self._limits = Limits(
            reuse_tokens=settings.radix_tree_max_size // sharers,
            data_bytes=settings.capture_max_mb * 2**20 // sharers,
            epochs=settings.gc_threshold_k,
        )
        one_text_root = not self.captures or not self.tokenizer.adds_special_tokens
        self.state: Final = RouterState(
            one_text_root=one_text_root,
            fleet=self.shared.fleet,
            versions=self.shared.versions,
            tenant=tenant,
        )
        self._reading: Final = trio.Lock()
        self._telling: Final = trio.Lock()
        self._settles = False
        self.attempts: Final = Attempts(most_bytes=settings.retry_memory_mb * 2**20 // sharers)
        self.shared.routers[tenant] = self
        if not tenant:
            self._register()
            for name in self.shared.keys.tenants:
                Router(settings, shared=self.shared, tenant=name)

    def _register(self) -> None:
        registry = self.component_registry
        registry.register("settings", self.args)
        registry.register("state", self.state)
        registry.register("pool", self.pool)
        if self.captures:
            registry.register("tokenizer", self.tokenizer)
            registry.register("radix_tree", self.state.forest)

    # -- what is shared ------------------------------------------------------------------------

    @property
    def args(self) -> Settings:
        """The settings."""
        return self.shared.args

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint; ``None`` where capture is off."""
        return self.shared.checkpoint

    @property
    def pool(self) -> Pool:
        """Connections to the workers."""
        return self.shared.pool

    @property
    def component_registry(self) -> ComponentRegistry:
        """What middleware and router share, by name."""
        return self.shared.component_registry

    @property
    def observers(self) -> Observers:
        """Who is told of every committed transition, of all tenants."""
        return self.shared.observers

    @property
    def nursery(self) -> trio.Nursery | None:
        """Where work that outlives a request is done, while there is one."""
        return self.shared.nursery

    @nursery.setter
    def nursery(self, nursery: trio.Nursery | None) -> None:
        self.shared.nursery = nursery

    @property
    def captures(self) -> bool:
        """Whether calls are captured at all."""
        return self.shared.captures

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. Raises ``ClientError`` (501) where capture is off."""
        return self.shared.tokenizer

    @property
    def facts(self) -> TokenizerFacts:
        """What look-ups need of the tokenizer. Raises ``ClientError`` (501) likewise."""
        return self.shared.facts

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and answer may have together, as far as it is known."""
        return self.shared.context_length

    @property
    def parses_reasoning(self) -> dict[WorkerUrl, bool]:
        """Which workers said that they have a reasoning parser."""
        return self.shared.parses_reasoning

    @property
    def can_constrain_behind_reasoning(self) -> bool:
        """Whether every worker can make a grammar wait for the end of reasoning."""
        return self.shared.can_constrain_behind_reasoning

    @property
    def known_chatting(self) -> Chatting | None:
        """What :meth:`chatting` gives, if it has been loaded."""
        return self.shared.known_chatting

    async def chatting(self) -> Chatting:
        """The checkpoint's chat template and parsers.

        Raises ``ClientError`` (501) where capture is off, ``CheckpointError`` if it is unreadable.
        """
        return await self.shared.chatting()

    def require_capture(self) -> None:
        """Raise ``ClientError`` (501) where nothing is captured."""
        self.shared.require_capture()

    # -- the tenant's own ----------------------------------------------------------------------

    def commit(self, *facts: Transition) -> None:
        """Make ``facts`` true, in their order, let go of what no longer fits, and let those in who
        waited for it."""
        state, shared = self.state, self.shared
        keeps_all = True
        for fact in facts:
            kind = type(fact)
            state.apply(fact)
            for observe in shared.observers.of(kind):
                observe(fact, state)
            if kind not in _KEEPING_ALL:
                keeps_all = False
                if kind in _AGING:
                    self._age_others()
        if not keeps_all and not self.let_go():
            self.housekeeping.set()
        shared.dispatcher.room.committed(facts)

    def _age_others(self) -> None:
        """New weights make what the other tenants keep older too."""
        for router in self.shared.routers.values():
            if router is not self:
                router.housekeeping.set()

    def let_go(self) -> bool:
        """Drop what no longer fits, up to a bounded number; whether everything fits now."""
        remembered = 0
        for _ in range(_GONE_AT_ONCE):
            gone = next_gone(self.state, self._limits)
            if gone is None:
                return True
            if remembered > _REMEMBERED_AT_ONCE:
                return False
            # A text that goes is remembered by its fingerprint, which reads all of it.
            remembered += self.state.forest.segments[gone.segments[0]].text_end
            self.state.apply(gone)
            for observe in self.observers.of(SegmentsGone):
                observe(gone, self.state)
        return False

    def abort_later(self, worker: WorkerUrl, names: Sequence[str]) -> None:
        """Have ``worker`` stop the calls that it knows by these names, without waiting for it."""
        if self.nursery is not None:
            for name in names:
                self.nursery.start_soon(self._abort, worker, name)

    async def _abort(self, worker: WorkerUrl, name: str) -> None:
        body = msgspec.json.encode({"rid": name})
        fields = [(b"content-type", b"application/json")]
        headers = self.shared.worker_headers(worker, fields)
        # Best effort: a worker that cannot be told has noticed the closed connection, also of a
        # pool that was closed under this.
        with trio.move_on_after(_ABORT_S), suppress(WorkerError, trio.ClosedResourceError):
            async with self.pool.request(
                "POST", worker, b"/abort_request", headers, body
            ) as response:
                await response.read(max_bytes=1024)

    async def settle(self) -> None:
        """Read the logprobs that were kept unread. No checkpoint where there are none."""
        while self.state.forest.unread:
            async with self._reading:
                unread = next_unread(self.state)
                if unread is None:
                    return
                if len(unread.triples) <= _READ_INLINE_BYTES:
                    self.commit(read_unread(unread))
                    continue
                fact = await trio.to_thread.run_sync(read_unread, unread)
                if unread.call in self.state.forest.unread:
                    self.commit(fact)

    def settle_soon(self) -> None:
        """Have it done once those who wait for their answers have them. Look-ups do not wait."""
        if self.state.forest.unread and self.nursery is not None and not self._settles:
            self._settles = True
            self.nursery.start_soon(self._settle)

    async def _settle(self) -> None:
        try:
            await self.settle()
        except Exception:
            # One answer's trouble must not end everything.
            _log.exception("internal error", task="reading logprobs")
        finally:
            self._settles = False

    async def tell_all(self) -> None:
        """Give every prompt that came as ids its text, so that text look-ups find it."""
        if not self.state.forest.untold:
            return
        async with self._telling:  # once, however many wait for it
            await self._tell_all()

    async def _tell_all(self) -> None:
        while (untold := next_untold(self.state)) is not None:
            vocabulary = self.facts.vocabulary
            if len(untold.ids) <= _TELL_INLINE_BYTES:
                told = tell(untold, vocabulary)
                await trio.lowlevel.checkpoint()
            else:
                told = await trio.to_thread.run_sync(tell, untold, vocabulary)
            if untold.segment in self.state.forest.untold:
                self.commit(told)
