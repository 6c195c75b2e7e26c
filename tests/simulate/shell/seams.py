"""Where the shell meets what a simulation must own: threads, the wall clock, logs, the collector.

All of it is put back afterwards. Nothing of the product's own decisions is replaced.
"""

from __future__ import annotations

import gc
import logging
import random
import sys
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Final
from unittest.mock import patch

import structlog
import trio

from slime_core import unread
from slime_trio import app, endpoints, offload, router, routes, tokenizer
from slime_trio.chatting import Chatting, load_chatting
from slime_trio.config import Settings
from tests.simulate.tokens import Tokens, of

__all__ = ["Logs", "chatting_of", "owned", "sweep"]

_EPOCH: Final = 1_700_000_000
_THREAD_S: Final = 0.02
"""What the work of a thread takes, at most."""
_THRESHOLDS: Final = (
    (offload, "INLINE_BYTES"),
    (tokenizer, "INLINE_CHARS"),
    (router, "_READ_INLINE_BYTES"),
    (unread, "UNREAD_FROM"),
    (router, "_TELL_INLINE_BYTES"),
)
"""Below these sizes work is done on the event loop, without a pause in which others act,
and logprobs are read at once."""


class Logs(logging.Handler):
    """Collects what is logged as an error, by structlog or by the standard library."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._complain = complain

    def emit(self, record: logging.LogRecord) -> None:
        """Of the standard library: Quart, Hypercorn, asyncio-like things beneath."""
        raised = record.exc_info[1] if record.exc_info else None
        self._complain(f"{record.name} logged: {record.getMessage()} {_words(raised)}".strip())

    def process(
        self, _logger: Any, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Of structlog: the last processor."""
        if method in ("error", "critical", "exception"):
            raised = event.pop("exc_info", None)
            told = sys.exc_info()[1] if raised is True else raised
            self._complain(f"the router logged: {event} {_words(told)}".strip())
        raise structlog.DropEvent


def _words(error: Any) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(_words, error.exceptions))
    return "" if error is None else f"{type(error).__name__}: {error}"


@contextmanager
def owned(logs: Logs, chance: random.Random) -> Iterator[None]:
    """Run the shell within this, and nothing else."""
    with ExitStack() as stack:
        stack.enter_context(_logging(logs))
        stack.enter_context(_no_collection())
        stack.enter_context(patch.object(app, "_settle_garbage", lambda: None))
        # Of several processes that search, each has a router that is alone in its world.
        stack.enter_context(patch.object(app, "claim_process", lambda: None))
        stack.enter_context(patch.object(endpoints, "time", _Time))
        stack.enter_context(patch.object(routes, "time", _Time))
        stack.enter_context(patch.object(trio.to_thread, "run_sync", _inline(chance)))
        if chance.random() < 0.5:
            for module, name in _THRESHOLDS:
                stack.enter_context(patch.object(module, name, 0))
        yield


class _Time:
    """Stands for the module ``time``."""

    @staticmethod
    def time() -> float:
        return _EPOCH + trio.current_time()


def _inline(chance: random.Random) -> Callable[..., Any]:
    """``trio.to_thread.run_sync`` without a thread: virtual time passes, then the work is done."""

    async def run_sync(
        work: Callable[..., Any],
        *arguments: Any,
        limiter: trio.CapacityLimiter | None = None,
        **_options: Any,
    ) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        limit = trio.CapacityLimiter(1) if limiter is None else limiter
        async with limit:
            # As a thread does, it ends whatever becomes of who waits for it.
            with trio.CancelScope(shield=True):
                await trio.sleep(_THREAD_S * chance.random())
            return work(*arguments)

    return run_sync


@contextmanager
def _logging(logs: Logs) -> Iterator[None]:
    before = structlog.get_config()
    root = logging.getLogger()

    def configure(**_settings: Any) -> None:
        structlog.configure(
            processors=[logs.process],
            wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
            cache_logger_on_first_use=False,
        )

    root.addHandler(logs)
    try:
        configure()
        with patch.object(app, "configure_logging", configure):
            yield
    finally:
        root.removeHandler(logs)
        structlog.configure(**before)


@contextmanager
def _no_collection() -> Iterator[None]:
    """When garbage is collected depends on everything that this process did before.

    So it is collected by :func:`sweep`, which need not look at what was there before the run. Trio
    warns of the generators that httpx leaves unfinished when a connection breaks under it.
    """
    interval, was_on = sys.getswitchinterval(), gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)
        if was_on:
            gc.enable()


async def sweep() -> None:
    """Collect the run's garbage while Trio still runs, which finishes async generators."""
    gc.collect()
    await trio.lowlevel.checkpoint()


def chatting_of(tokens: Tokens) -> Chatting:
    """Chat template and parsers, loaded once: that takes seconds, which no run can spare."""
    return _chatting(tokens.name, tokens.template_name)


@cache
def _chatting(name: str, template: str) -> Chatting:
    checkpoint = of(name, template).checkpoint
    return load_chatting(checkpoint.path, checkpoint.tokenizer, Settings())
