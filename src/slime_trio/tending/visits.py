"""What is done at a worker, chore by chore: ask, then commit what was learnt.

A worker that is gone by the time its answer comes stays gone: transitions say nothing of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
import trio

from slime_core import sglang
from slime_core.decide import health_change
from slime_core.errors import WorkerError
from slime_core.fleet import Loads, Worker, WorkerKind
from slime_core.health import Condition, Event
from slime_core.logprob_kinds import EXPERIMENTS, LogprobKind, experiment, judge, parse_probe
from slime_core.transitions import (
    VersionSeen,
    WorkerFlushed,
    WorkerLoads,
    WorkerLogprobs,
    WorkerMismatch,
    WorkerPaused,
)
from slime_core.types import WorkerUrl, pack_ids
from slime_trio.router import Router
from slime_trio.tending.chores import LOGPROB_TRIES
from slime_trio.tending.diary import Diary
from slime_trio.tending.questions import NoAnswer, Questions
from slime_trio.tokenizer import PROBE_TEXT
from slime_trio.worker_checks import check_plan

__all__ = ["VISITS", "Visitor", "note_health"]

_OTHER_TOKENIZER: Final = "its tokenizer is not the router's: other ids for the same text"
_ROLES: Final = {
    "prefill": WorkerKind.PREFILL,
    "decode": WorkerKind.DECODE,
    "null": WorkerKind.REGULAR,
}
_READY_ENOUGH: Final = 10
"""A worker that is known as paused, and says so often in a row that it takes requests, is not."""

_log: Any = structlog.get_logger("slime_router")


def note_health(router: Router, url: WorkerUrl, event: Event) -> None:
    """Commit what ``event`` does to a worker's health, if anything."""
    worker = router.state.fleet.workers.get(url)
    if worker is None:
        return
    limits = check_plan(router.args, worker).limits
    change = health_change(router.state, url, event, trio.current_time(), limits)
    if change is not None:
        router.commit(change)


class Visitor:
    """Visits one worker. ``diary`` is what is remembered of it."""

    def __init__(self, router: Router, questions: Questions, url: WorkerUrl, diary: Diary) -> None:
        self._router = router
        self._ask = questions
        self._url = url
        self._diary = diary

    @property
    def _worker(self) -> Worker | None:
        return self._router.state.fleet.workers.get(self._url)

    async def contact(self) -> None:
        """Which weights, which tokenizer, paused or not; back from quarantine, whether it
        generates."""
        before = self._worker
        if before is None:
            return
        try:
            info = await self._learn_version()
            mismatch = _other_role(before, info) or await self._tokenizer_problem()
            ready = await self._ask.is_ready(self._url)
            is_back = before.health.condition is Condition.QUARANTINED
            if is_back and ready is not False and not await self._generates():
                raise NoAnswer("not healthy", refused=False)
        except NoAnswer as error:
            self._failed(error)
            return
        self._diary.logprob_tries = 0
        worker = self._worker
        if worker is None:
            return
        if worker.mismatch != mismatch:
            self._router.commit(WorkerMismatch(worker=self._url, reason=mismatch))
        self._note_restart()
        self._note_ready(ready)
        note_health(self._router, self._url, Event.PROBE_PASSED)

    async def poll(self) -> None:
        """Which weights it holds."""
        try:
            await self._learn_version()
        except NoAnswer as error:
            _log.debug("poll failed", worker=self._url, error=str(error))
            if error.refused:
                self._failed(error)

    async def check(self) -> None:
        """Whether it generates. A paused worker does not, and is not sick."""
        began = trio.current_time()
        try:
            ready = await self._ask.is_ready(self._url)
            if ready is False or not await self._generates():
                await self._look_closer(began)
                return
        except NoAnswer as error:
            if error.refused:
                self._failed(error)
            else:
                await self._look_closer(began)
            return
        note_health(self._router, self._url, Event.PROBE_PASSED)

    async def resume(self) -> None:
        """Whether it goes on."""
        try:
            self._note_ready(await self._ask.is_ready(self._url))
        except NoAnswer as error:
            if error.refused:
                self._failed(error)

    async def loads(self) -> None:
        """What occupies it."""
        try:
            told = await self._ask.loads(self._url)
        except NoAnswer:
            return
        if told is not None:
            loads = Loads(running=told.running, waiting=told.waiting, token_usage=told.token_usage)
            self._router.commit(WorkerLoads(worker=self._url, loads=loads))

    async def logprobs(self) -> None:
        """What its logprobs are of."""
        self._diary.logprob_tries += 1
        try:
            kind = await self._logprob_kind()
        except NoAnswer as error:
            _log.debug("logprobs not probed", worker=self._url, error=str(error))
            return
        except WorkerError:
            # It tells no logprobs, and will not next time.
            self._diary.logprob_tries = LOGPROB_TRIES
            return
        if kind is not LogprobKind.UNKNOWN:
            self._router.commit(WorkerLogprobs(worker=self._url, kind=kind))

    async def _logprob_kind(self) -> LogprobKind:
        """By the first experiment that tells. Raises ``WorkerError`` if it tells no logprobs."""
        for number in range(EXPERIMENTS):
            seen = []
            for body in experiment(number):
                answer = await self._ask.generated(self._url, body)
                seen.append(parse_probe(answer or b""))
            kind = judge(*seen)
            if kind is not LogprobKind.UNKNOWN:
                return kind
        return LogprobKind.UNKNOWN

    # -- what it is made of --------------------------------------------------------------------

    async def _learn_version(self) -> sglang.ModelInfo | None:
        """Take notice of the weights it says that it holds."""
        versions = self._router.state.versions
        sighting = self._diary.asked_at = versions.sighting
        self._diary.is_doubted = False
        told = await self._ask.model_info(self._url)
        self._diary.tells_nothing = told is None or told.weight_version is None
        if told is None:
            return None
        self._router.shared.parses_reasoning[self._url] = told.reasoning_parser is not None
        version, worker = told.weight_version, self._worker
        if version is None or worker is None:
            return told
        went_back = worker.version is not None and versions.outranks(worker.version, version)
        if worker.version != version or worker.confirmed < sighting:
            self._router.commit(VersionSeen(worker=self._url, version=version, sighting=sighting))
        if went_back:
            # Weights do not age in a running process: this is another one.
            self._router.commit(WorkerFlushed(worker=self._url))
        return told

    async def _tokenizer_problem(self) -> str | None:
        """Why its tokenizer cannot be the router's; ``None`` if it is, or if it will not tell."""
        shared = self._router.shared
        if not shared.captures:
            return None
        told = await self._ask.tokenized(self._url, PROBE_TEXT)
        if told is None:
            _log.warning("tokenizer not compared: the worker does not tell", worker=self._url)
            return None
        if told.ids != pack_ids(shared.tokenizer.ids_of_probe()):
            return _OTHER_TOKENIZER
        if told.max_model_len is not None:
            shared.context_lengths[self._url] = told.max_model_len
        return None

    async def _generates(self) -> bool:
        worker = self._worker
        if worker is None:
            return True
        plan = check_plan(self._router.args, worker)
        if not plan.enabled:
            return True
        return await self._ask.generates(self._url, patience_s=plan.timeout_s)

    async def _look_closer(self, began: float) -> None:
        """A check was in vain: is the worker sick, or only paused by somebody else?"""
        try:
            ready = await self._ask.is_ready(self._url)
            if ready is False and await self._ask.model_info(self._url) is not None:
                self._note_ready(ready)
                return
        except NoAnswer as error:
            self._failed(error)
            return
        if self._router.shared.worker_book.answered_at(self._url) < began:
            note_health(self._router, self._url, Event.PROBE_FAILED)

    def _note_ready(self, ready: bool | None) -> None:
        """It says that it takes requests, or not.

        What the router itself paused is not taken for running before it has said once that it is
        paused: the question may have overtaken the pause. Of what may be another process its word
        is taken at once.
        """
        worker, diary = self._worker, self._diary
        if worker is None:
            return
        if diary.is_new and ready is not False:
            self._note_new(worker)
        if ready is None:
            return
        if not ready:
            diary.said_paused, diary.ready_in_a_row, diary.is_new = True, 0, False
            if not worker.paused:
                self._set_paused(True)
                diary.said_paused = True
            return
        diary.ready_in_a_row += 1
        if self._router.shared.control.pauses.is_released(self._url):
            return  # it gave its memory back: what it were given now would break
        if worker.paused and (diary.said_paused or diary.ready_in_a_row >= _READY_ENOUGH):
            self._set_paused(False)

    def _note_restart(self) -> None:
        """It took no connection for a while, and now it does: it may be another process."""
        if self._diary.refused:
            self._diary.refused, self._diary.is_new = False, True
            self._router.commit(WorkerFlushed(worker=self._url))

    def _note_new(self, worker: Worker) -> None:
        """If it is another process, it was never paused, and has all its memory."""
        self._diary.is_new = False
        self._router.shared.control.forget(self._url)
        if worker.paused:
            self._set_paused(False)

    def _set_paused(self, paused: bool) -> None:
        self._router.commit(WorkerPaused(worker=self._url, paused=paused))

    def _failed(self, error: NoAnswer) -> None:
        event = Event.UNREACHABLE if error.refused else Event.PROBE_FAILED
        note_health(self._router, self._url, event)


def _other_role(worker: Worker, info: sglang.ModelInfo | None) -> str | None:
    """Why it cannot be what it was registered as; older workers do not tell."""
    told = None if info is None else info.disaggregation_mode
    if told is None or told not in _ROLES or _ROLES[told] is worker.kind:
        return None
    return f"it is a {_ROLES[told].value} worker, and was registered as {worker.kind.value}"


VISITS: Final[Mapping[str, Callable[[Visitor], Awaitable[None]]]] = {
    "contact": Visitor.contact,
    "poll": Visitor.poll,
    "check": Visitor.check,
    "resume": Visitor.resume,
    "loads": Visitor.loads,
    "logprobs": Visitor.logprobs,
}
"""What is done for each chore of :data:`slime_trio.tending.chores.DUE`."""
