"""Logs: lines of key and value, of committed transitions and of requests.

What happened is read from transitions once they are committed, so no line tells of something that
did not become true. Every line that a request causes names it (``request``), its tenant and its
session, whoever writes it. Bodies, texts, keys and header fields are in none.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Final

import structlog

from slime_core.health import Condition
from slime_core.state import RouterState
from slime_core.transitions import (
    CallCaptured,
    CallLost,
    NewestUnheld,
    SegmentsGone,
    SessionEnded,
    SessionOpened,
    SlotsTaken,
    Transition,
    VersionFellBack,
    VersionSeen,
    WorkerAdded,
    WorkerHealth,
    WorkerMismatch,
    WorkerPaused,
    WorkerRemoved,
)
from slime_core.types import WorkerUrl, token_count
from slime_trio.observability.about import ABOUT

__all__ = ["FactLog", "configure_logging", "server_logger"]

_RAISE_WITH: Final = {
    "evicted": "--capture-max-mb",
    "collected": "--gc-threshold-k",
    "expired": "--session-idle-s",
}

_WARN_EVERY: Final = 1000
"""Lost data is reported at the first loss and then once in so many answers: a full memory would
otherwise write a line for every call."""

_SERVER: Final = "slime_router.server"

_Line = MutableMapping[str, Any]


def configure_logging(*, verbose: bool, format: str = "console") -> None:
    """Logs as lines on stderr, for people (``console``) or machines (``json``).

    ``verbose`` adds lines for every request and call.
    """
    shared: list[structlog.types.Processor] = [
        _name_the_request,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    written = _written(format)
    structlog.configure(
        processors=[*shared, *written],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.DEBUG if verbose else logging.INFO
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *written],
        )
    )
    server = server_logger()
    server.handlers[:] = [handler]
    server.setLevel(logging.WARNING)
    server.propagate = False


def server_logger() -> logging.Logger:
    """What the HTTP server writes to: the same lines as all others."""
    return logging.getLogger(_SERVER)


def _written(format: str) -> list[structlog.types.Processor]:
    """The last processors: those that make a line of text."""
    if format == "json":
        # Without its locals, which hold prompts, keys and whole states.
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,  # likewise
        )
    ]


def _name_the_request(_logger: object, _method: str, line: _Line) -> _Line:
    """Add whose work it is that the line tells of."""
    about = ABOUT.get()
    if about is None:
        return line
    line.setdefault("request", about.request)
    if about.tenant:
        line.setdefault("tenant", about.tenant)
    if about.session is not None:
        line.setdefault("session", about.session)
    return line


_CONDITIONS: Final = {
    Condition.JOINING: "worker not contacted yet",
    Condition.READY: "worker takes work",
    Condition.TRIAL: "worker is back, and on trial",
    Condition.QUARANTINED: "worker in quarantine",
}


class _Told:
    """What was last logged of a worker."""

    __slots__ = ("condition", "stale", "version")

    def __init__(self) -> None:
        self.condition = Condition.JOINING
        self.stale = False
        self.version: str | None = None


class FactLog:
    """An observer that writes what an operator should know."""

    def __init__(self, *, verbose: bool = False) -> None:
        self._log: Any = structlog.get_logger("slime_router")
        self._lost = 0
        self._is_missing = False
        self._told: dict[WorkerUrl, _Told] = {}
        self._writers: dict[type[Transition], Callable[[Any, RouterState], None]] = {
            WorkerAdded: self._of_joining,
            WorkerRemoved: self._of_leaving,
            WorkerHealth: self._of_health,
            WorkerPaused: self._of_pause,
            WorkerMismatch: self._of_mismatch,
            VersionSeen: self._of_weights,
            VersionFellBack: self._of_older_weights,
            NewestUnheld: self._of_missing_weights,
            SegmentsGone: self._of_loss,
            CallLost: self._of_lost_call,
        }
        if verbose:
            self._writers |= {
                SlotsTaken: self._of_choice,
                SessionOpened: self._of_session,
                SessionEnded: self._of_session_s_end,
                CallCaptured: self._of_capture,
            }

    @property
    def kinds(self) -> Iterable[type[Transition]]:
        """The kinds of facts that it writes of."""
        return self._writers

    def __call__(self, fact: Transition, state: RouterState, /) -> None:
        """Log ``fact``, if it is worth a line."""
        write = self._writers.get(type(fact))
        if write is not None:
            write(fact, state)

    # -- the fleet -----------------------------------------------------------------------------

    def _of_joining(self, fact: WorkerAdded, _state: RouterState) -> None:
        if fact.worker not in self._told:
            self._told[fact.worker] = _Told()
            self._log.info("worker added", worker=fact.worker, kind=fact.kind.value)

    def _of_leaving(self, fact: WorkerRemoved, _state: RouterState) -> None:
        if self._told.pop(fact.worker, None) is not None:
            self._log.info("worker removed", worker=fact.worker)

    def _of_health(self, fact: WorkerHealth, _state: RouterState) -> None:
        told, condition = self._told.get(fact.worker), fact.health.condition
        if told is None or told.condition is condition:
            return
        told.condition = condition
        level = self._log.warning if condition is Condition.QUARANTINED else self._log.info
        level(_CONDITIONS[condition], worker=fact.worker, after=fact.event.value)

    def _of_pause(self, fact: WorkerPaused, _state: RouterState) -> None:
        self._log.info("worker paused" if fact.paused else "worker goes on", worker=fact.worker)

    def _of_mismatch(self, fact: WorkerMismatch, _state: RouterState) -> None:
        if fact.reason is not None:
            self._log.warning("worker takes no work", worker=fact.worker, reason=fact.reason)

    def _of_weights(self, fact: VersionSeen, state: RouterState) -> None:
        told, worker = self._told.get(fact.worker), state.fleet.workers.get(fact.worker)
        if told is None or worker is None:
            return
        if told.version != fact.version:
            told.version = fact.version
            self._log.info("weights", worker=fact.worker, version=fact.version)
        if told.stale != worker.stale:
            told.stale = worker.stale
            if worker.stale:
                newest = state.versions.newest
                self._log.warning("worker holds old weights", worker=fact.worker, newest=newest)

    def _of_older_weights(self, fact: VersionFellBack, _state: RouterState) -> None:
        self._log.warning(
            "weights started over: an older version counts as newest", version=fact.version
        )

    def _of_missing_weights(self, fact: NewestUnheld, state: RouterState) -> None:
        was_missing, self._is_missing = self._is_missing, fact.since is not None
        if self._is_missing and not was_missing:
            newest = state.versions.newest
            self._log.warning("nobody fit holds the newest weights", version=newest)

    # -- calls ---------------------------------------------------------------------------------

    def _of_choice(self, fact: SlotsTaken, _state: RouterState) -> None:
        self._log.debug("sent", worker=fact.worker, calls=_named(fact.calls))

    def _of_capture(self, fact: CallCaptured, _state: RouterState) -> None:
        self._log.debug(
            "captured",
            call=fact.call,
            prompt_tokens=token_count(fact.prompt_ids) + fact.token_start,
            sampled=token_count(fact.answer_ids),
            outcome=fact.answer.outcome.value,
        )

    def _of_lost_call(self, fact: CallLost, _state: RouterState) -> None:
        level = self._log.warning if fact.sampled else self._log.debug
        level("not captured", call=fact.call, reason=fact.reason)

    # -- what is kept --------------------------------------------------------------------------

    def _of_session(self, fact: SessionOpened, _state: RouterState) -> None:
        self._log.debug("session opened", session=fact.session)

    def _of_session_s_end(self, fact: SessionEnded, _state: RouterState) -> None:
        self._log.debug("session ended", session=fact.session, reason=fact.reason)

    def _of_loss(self, fact: SegmentsGone, state: RouterState) -> None:
        if not fact.unretrieved:
            return
        if self._lost % _WARN_EVERY == 0:
            self._log.warning(
                "captured answers left memory before anyone retrieved them",
                reason=fact.reason,
                so_far=state.counters.answers_lost_unretrieved,
                raise_with=_RAISE_WITH.get(fact.reason),
            )
        self._lost += fact.unretrieved


_NAMED: Final = 16
"""How many calls of one request a line names."""


def _named(calls: tuple[str, ...]) -> list[str]:
    return list(calls[:_NAMED])
