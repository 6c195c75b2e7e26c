"""What all tenants of one process share: settings, fleet, weight versions, tokenizer, connections.

A :class:`~slime_trio.router.Router` is one tenant's view; its forest, sessions and retries are its
own. Everything here is there once, whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

import trio

from slime_core.errors import ClientError
from slime_core.fleet import Fleet
from slime_core.health import HealthLimits
from slime_core.id_texts import IdTexts
from slime_core.known_ids import KnownIds
from slime_core.long_lists import IdList
from slime_core.lookup import TokenizerFacts
from slime_core.types import CallId, WorkerUrl
from slime_core.versions import VersionOrder
from slime_trio.chatting import Chatting, load_chatting
from slime_trio.config import Settings
from slime_trio.control import Control
from slime_trio.dispatch.dispatcher import Dispatcher
from slime_trio.exchange import Headers, for_worker
from slime_trio.keys import Keyring, without_keys
from slime_trio.observability.about import REQUEST_FACTS, note_request
from slime_trio.observability.counts import Counts
from slime_trio.observability.spans import NO_SPANS, Spans
from slime_trio.observers import Observers
from slime_trio.readers_writer import ReadersWriterLock
from slime_trio.registry import ComponentRegistry
from slime_trio.tls import WorkerTls
from slime_trio.tokenizer import Checkpoint, Tokenizer
from slime_trio.upstream import Pins, Pool
from slime_trio.worker_book import WorkerBook

if TYPE_CHECKING:
    from slime_trio.router import Router
    from slime_trio.tending.keeper import Keeper

__all__ = ["Shared"]


class Shared:
    """One process: what its tenants have in common, and their routers by name."""

    def __init__(
        self,
        settings: Settings,
        *,
        checkpoint: Checkpoint | None,
        pool: Pool | None,
        new_id: Callable[[], str],
        chance: Callable[[], float],
    ) -> None:
        self.keys: Final = Keyring.of(settings)
        self.args: Final = replace(settings, admin_key=None, api_key=())
        """The settings, without the keys: what is left of those is in ``keys``."""
        self.checkpoint: Final = checkpoint
        self.worker_tls: Final = WorkerTls(settings)
        self.pool: Final = pool or _pool(settings, self.worker_tls)
        self.component_registry: Final = ComponentRegistry()
        self.counts: Final = Counts()
        self.id_texts: Final = IdTexts()
        """Writes prompts for workers."""
        self.known_ids: Final = KnownIds(IdList())
        """Reads prompts of clients."""
        self.spans: Spans = NO_SPANS
        self.observers: Final = Observers()
        self.observers.append(self.counts)
        self.observers.append(note_request, of=REQUEST_FACTS)
        self.fleet: Final = Fleet()
        self.versions: Final = VersionOrder(max_staleness=settings.max_weight_staleness)
        self.health_limits: Final = HealthLimits(
            failure_threshold=settings.failure_threshold, quarantine_s=settings.quarantine_s
        )
        self.routers: Final[dict[str, Router]] = {}
        """The tenants' routers by name; ``""`` is the default tenant."""
        self.rooms: Final[set[int]] = set()
        """Under which prompts change hands in pairs at work (:mod:`slime_trio.pairs`)."""
        self.nursery: trio.Nursery | None = None
        """Where work that outlives a request is done; set while the process is tended."""
        self.keeper: Keeper | None = None
        """Who looks after the workers, likewise."""
        self.chance: Final = chance
        self.context_lengths: Final[dict[WorkerUrl, int]] = {}
        """What workers with the router's own tokenizer told of their context length."""
        self.parses_reasoning: Final[dict[WorkerUrl, bool]] = {}
        """Which workers said that they have a reasoning parser."""
        self.worker_book: Final = WorkerBook(new_id, default_key=settings.worker_api_key)
        self.control: Final = Control(self)
        self.gate: Final = ReadersWriterLock()
        """Generating calls read, from when a worker is chosen to the end of their slot; weight
        updates write."""
        self.is_stopping = False
        """Nothing new begins any more; what is in flight may end."""
        self.dispatcher: Final = Dispatcher(self)
        self.new_call_id: Final = cast("Callable[[], CallId]", new_id)
        """A fresh id. All have one length: none is a prefix of another, as aborts match."""
        self.own_ids: Final = self.keys.configured
        """Whether workers know requests by the router's ids only, never by the clients'.

        Workers abort by prefix: a tenant's id could begin as another's does.
        """
        self._chatting_lock = trio.Lock()
        self._chatting: Chatting | None = None
        self._facts = None if checkpoint is None else _facts_of(checkpoint.tokenizer)

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
        told = list(self.context_lengths.values())
        return min(told if named is None else [named, *told], default=None)

    @property
    def can_constrain_behind_reasoning(self) -> bool:
        """Whether every worker can make a grammar wait for the end of reasoning."""
        listed = self.fleet.listed()
        return all(self.parses_reasoning.get(worker.url, False) for worker in listed)

    @property
    def served_model(self) -> str:
        """The model's name in ``/v1/models``, and of workers that were registered without one."""
        if self.args.served_model_name is not None:
            return self.args.served_model_name
        return "default" if self.checkpoint is None else self.checkpoint.path.resolve().name

    @property
    def is_idle(self) -> bool:
        """Whether no tenant has a call open and no worker's slot is taken."""
        busy = any(router.state.open_calls for router in self.routers.values())
        return not busy and not self.fleet.total_in_flight

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

    def use_chatting(self, chatting: Chatting) -> None:
        """Chat with what was loaded elsewhere."""
        self._chatting = chatting

    def require_capture(self) -> None:
        """Raise ``ClientError`` (501) where nothing is captured."""
        if not self.captures:
            raise _capture_is_off()

    def worker_headers(
        self,
        worker: WorkerUrl,
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        readable: bool = False,
    ) -> Headers:
        """The fields of a request to ``worker``, made from a client's ``headers``.

        No key of the router's is among them; the worker's own is, if it has one. ``readable``: the
        answer will be read here, so it must not come compressed.
        """
        sent = without_keys(for_worker(headers, readable=readable), keyed=self.keys.configured)
        own = self.worker_book.authorization(worker)
        if own:
            sent = [field for field in sent if field[0] != b"authorization"]
        return sent + own


def _pool(settings: Settings, tls: WorkerTls) -> Pool:
    """Connections to workers. Those that the operator named are looked up whenever they are
    needed; others lead where their registration found them."""
    named = (*settings.worker_urls, *(one.url for one in settings.prefill), *settings.decode)
    pins = Pins(trusted=named)
    return Pool(connect_timeout_s=settings.connect_timeout_s, tls=tls, pins=pins)


def _facts_of(tokenizer: Tokenizer) -> TokenizerFacts:
    return TokenizerFacts(
        vocabulary=tokenizer.vocabulary,
        hard_tokens=tokenizer.hard_tokens,
        raw_prefix=len(tokenizer.prefix_ids),
    )


def _capture_is_off() -> ClientError:
    return ClientError(
        "this router captures nothing: it was started without a checkpoint or with --capture off",
        status=501,
        code="capture_off",
    )
