"""The router: owner of the state, and the one place where transitions are committed.

``commit`` is synchronous: apply, then tell the observers (metrics, logs), then let go of what no
longer fits. Nobody else changes the state, and between a decision and its commit nothing awaits.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import msgspec
import trio

from slime_core.decide import Limits, choose_worker, next_gone, next_untold, tell
from slime_core.errors import ClientError, WorkerError
from slime_core.fleet import Worker
from slime_core.lookup import TokenizerFacts
from slime_core.policy import POLICIES, Placement
from slime_core.state import RouterState
from slime_core.transitions import Transition
from slime_core.types import CallId, WorkerUrl
from slime_trio.attempts import Attempts
from slime_trio.chatting import Chatting, load_chatting
from slime_trio.config import Settings
from slime_trio.registry import ComponentRegistry
from slime_trio.tokenizer import Checkpoint, Tokenizer
from slime_trio.upstream import Pool

__all__ = ["Observer", "Router"]

_GONE_AT_ONCE: Final = 64
"""How many segments one commit lets go of; more would hold the event loop too long. What is left
over is let go of by the housekeeper (:mod:`slime_trio.tending`) and by later commits."""

_REMEMBERED_AT_ONCE: Final = 2**19
"""How many characters of what goes one commit may read."""

_ABORT_S: Final = 5.0

_TELL_INLINE_BYTES: Final = 16 * 1024
"""Prompts up to this many bytes of ids are decoded on the event loop, longer ones in a thread."""


class Observer(Protocol):
    """Reads committed transitions; it must not raise, await or commit."""

    def __call__(self, fact: Transition, state: RouterState, /) -> None:
        """``fact`` was just applied to ``state``."""


class Router:
    """Settings, state, tokenizer, upstream pool and shared components of one process.

    Middleware gets it as ``router``: ``router.args`` are the settings and
    ``router.component_registry`` the shared components.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        checkpoint: Checkpoint | None = None,
        pool: Pool | None = None,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.args: Final = settings
        self.checkpoint: Final = checkpoint
        self.pool: Final = pool or Pool(connect_timeout_s=settings.connect_timeout_s)
        self.component_registry: Final = ComponentRegistry()
        self.observers: Final[list[Observer]] = []
        self.housekeeping: trio.Event = trio.Event()
        self.nursery: trio.Nursery | None = None
        """Where work that outlives a request is done; set while the router is tended."""
        self._policy = POLICIES[settings.policy]
        self._new_id = new_id
        self._chance = chance
        self._limits = Limits(
            reuse_tokens=settings.radix_tree_max_size,
            data_bytes=settings.capture_max_mb * 2**20,
            epochs=settings.gc_threshold_k,
        )
        tokenizer = checkpoint.tokenizer if checkpoint is not None else None
        self.state: Final = RouterState(
            one_text_root=tokenizer is None or not tokenizer.adds_special_tokens
        )
        self.attempts: Final = Attempts(memory_mb=settings.retry_memory_mb)
        self.told_context_length: int | None = None
        """The least that a worker told of its context length."""
        self.parses_reasoning: Final[dict[WorkerUrl, bool]] = {}
        """Which workers said that they have a reasoning parser."""
        self._chatting_lock = trio.Lock()
        self._chatting: Chatting | None = None
        self._register(tokenizer)

    def _register(self, tokenizer: Tokenizer | None) -> None:
        registry = self.component_registry
        registry.register("settings", self.args)
        registry.register("state", self.state)
        registry.register("pool", self.pool)
        self._facts = None
        if tokenizer is not None:
            registry.register("tokenizer", tokenizer)
            registry.register("radix_tree", self.state.forest)
            self._facts = TokenizerFacts(
                vocabulary=tokenizer.vocabulary,
                hard_tokens=tokenizer.hard_tokens,
                raw_prefix=len(tokenizer.prefix_ids),
            )

    @property
    def captures(self) -> bool:
        """Whether calls are captured at all."""
        return self._facts is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer. Raises ``ClientError`` (501) where capture is off."""
        if self.checkpoint is None:
            raise _capture_is_off()
        return self.checkpoint.tokenizer

    @property
    def facts(self) -> TokenizerFacts:
        """What look-ups need of the tokenizer. Raises ``ClientError`` (501) likewise."""
        if self._facts is None:
            raise _capture_is_off()
        return self._facts

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and answer may have together: the least that a worker or the
        checkpoint told."""
        named = None if self.checkpoint is None else self.checkpoint.context_length
        told = [length for length in (named, self.told_context_length) if length is not None]
        return min(told, default=None)

    @property
    def can_constrain_behind_reasoning(self) -> bool:
        """Whether every worker can make a grammar wait for the end of reasoning."""
        listed = self.state.fleet.listed()
        return all(self.parses_reasoning.get(worker.url, False) for worker in listed)

    async def chatting(self) -> Chatting:
        """The checkpoint's chat template and parsers, loaded in a thread by whoever asks first.

        Raises ``ClientError`` (501) where capture is off, ``CheckpointError`` if it is unreadable.
        """
        checkpoint = self.checkpoint
        if checkpoint is None:
            raise _capture_is_off()
        async with self._chatting_lock:
            if self._chatting is None:
                self._chatting = await trio.to_thread.run_sync(
                    load_chatting, checkpoint.path, checkpoint.tokenizer, self.args
                )
                self.component_registry.register("chat_template", self._chatting.template)
        return self._chatting

    @property
    def known_chatting(self) -> Chatting | None:
        """What :meth:`chatting` gives, if it has been loaded."""
        return self._chatting

    def require_capture(self) -> None:
        """Raise ``ClientError`` (501) where nothing is captured."""
        if not self.captures:
            raise _capture_is_off()

    def new_call_id(self) -> CallId:
        """A fresh id. All have one length: none is a prefix of another, as aborts match."""
        return CallId(self._new_id())

    def choose_worker(self, session: str | None = None) -> Worker:
        """The worker for the next call. Raises ``WorkerError`` (503) if none is fit."""
        placement = Placement(session=session, chance=self._chance())
        return choose_worker(self.state, self._policy, placement)

    def commit(self, *facts: Transition) -> None:
        """Make ``facts`` true, in their order, and let go of what no longer fits."""
        for fact in facts:
            self.state.apply(fact)
            for observe in self.observers:
                observe(fact, self.state)
        if not self.let_go():
            self.housekeeping.set()

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
            for observe in self.observers:
                observe(gone, self.state)
        return False

    def abort_later(self, worker: WorkerUrl, calls: Sequence[CallId]) -> None:
        """Have ``worker`` stop these calls, without waiting for it."""
        if self.nursery is not None:
            for call in calls:
                self.nursery.start_soon(self._abort, worker, call)

    async def _abort(self, worker: WorkerUrl, call: CallId) -> None:
        body = msgspec.json.encode({"rid": call})
        headers = [(b"content-type", b"application/json")]
        # Best effort: a worker that cannot be told has noticed the closed connection.
        with trio.move_on_after(_ABORT_S), suppress(WorkerError):
            async with self.pool.request(
                "POST", worker, b"/abort_request", headers, body
            ) as response:
                await response.read(max_bytes=1024)

    async def tell_all(self) -> None:
        """Give every prompt that came as ids its text, so that text look-ups find it."""
        while (untold := next_untold(self.state)) is not None:
            vocabulary = self.facts.vocabulary
            if len(untold.ids) <= _TELL_INLINE_BYTES:
                told = tell(untold, vocabulary)
                await trio.lowlevel.checkpoint()
            else:
                told = await trio.to_thread.run_sync(tell, untold, vocabulary)
            if untold.segment in self.state.forest.untold:
                self.commit(told)


def _capture_is_off() -> ClientError:
    return ClientError(
        "this router captures nothing: it was started without a checkpoint or with --capture off",
        status=501,
        code="capture_off",
    )
