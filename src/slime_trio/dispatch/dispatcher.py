"""A request's way to a worker and back, as far as the fleet is concerned.

    its turn → the gate → a worker, or a pair → sent → the first byte of an answer
      ↑                                           │
      └── another worker, after a while ──────────┘ the connection failed, or the worker is busy

Until a worker's answer begins, the request may be sent to another worker instead
(:mod:`slime_core.second_tries`), each of which gets its chance once; from then on the answer is the
caller's (:class:`Answered`). Slots, the place in the queue and the gate are given back by
``finally`` blocks that await nothing. A worker that is given up on is told to abort.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final

import trio

from slime_core.errors import WorkerError
from slime_core.health import READY, Event
from slime_core.mass_aborts import Emptied
from slime_core.placing import health_change
from slime_core.second_tries import delay_s, is_busy
from slime_core.types import CallId, WorkerUrl
from slime_trio.dispatch.asking import Answered, Asking, Request, Take, UnwantedError
from slime_trio.dispatch.drain import Drain
from slime_trio.dispatch.entry import (
    Entry,
    Live,
    StoppedError,
    deadline_exceeded,
    shutting_down,
)
from slime_trio.dispatch.place import Places
from slime_trio.dispatch.room import WaitingRoom
from slime_trio.dispatch.wish import Wish
from slime_trio.exchange import ClientGone, Headers
from slime_trio.observability.spans import NO_SPAN, NO_SPANS, Span
from slime_trio.upstream import UpstreamError, WorkerAnswer
from slime_trio.worker_checks import check_plan

if TYPE_CHECKING:
    from slime_trio.router import Router
    from slime_trio.shared import Shared

__all__ = ["Answered", "Asking", "Dispatcher", "Live", "StoppedError", "Wish"]

_NO_CONNECTION: Final = frozenset({"connect_failed", "connect_timeout"})
_ANSWERED: Final = ("answered", "last")
_NO_ANSWER: Final = frozenset({"connection_lost", "worker_timeout", "bad_response_framing"})


class Dispatcher:
    """The process's way to its workers."""

    def __init__(self, shared: Shared) -> None:
        self._shared: Final = shared
        self.places: Final = Places(shared.args)
        self._drain: Final = Drain(
            shared,
            is_needed=lambda: self.room.waiting_count > 0,
            drain=self._abort_all_meant,
            let_in=lambda: self.room.let_in(),
        )
        self.room: Final = WaitingRoom(shared, self.places, self._drain.kept_free)
        self.live: Final[dict[CallId, Live]] = {}
        """Every generating call from its admission to its end."""
        self._askings: Final[dict[Asking, None]] = {}

    # -- what others do ------------------------------------------------------------------------

    def abort_waiting(self, which: Callable[[Live], bool]) -> int:
        """End what waits: requests of whose calls every one is meant; how many calls those are.

        They are answered as a worker answers that aborts a request in its own queue.
        """
        count = 0
        for entry in self.room.waiting:
            if entry.lives and all(map(which, entry.lives)):
                self._abort(entry)
                count += len(entry.lives)
        return count

    def _abort(self, entry: Entry) -> None:
        for live in entry.lives:
            live.aborted = True
        self._shared.counts.drained += len(entry.lives)
        entry.abort()
        self.room.withdraw(entry)

    def _abort_all_meant(self, emptied: Emptied) -> None:
        for entry in self.room.waiting:
            if entry.arrived <= emptied.since and entry.router.tenant in emptied.tenants:
                self._abort(entry)

    def refuse_all(self) -> None:
        """The router is being stopped: nothing new begins, and whoever waits need not."""
        self._shared.is_stopping = True
        for entry in self.room.waiting:
            entry.refuse(shutting_down())
            self.room.withdraw(entry)

    def stop_all(self) -> int:
        """The router's time is over: whatever is in flight ends as far as it came; how many."""
        for asking in list(self._askings):
            asking.stop(shutting_down())
        return len(self._askings)

    # -- one request ---------------------------------------------------------------------------

    def ask(
        self,
        router: Router,
        wish: Wish,
        method: str,
        target: bytes,
        headers_for: Callable[[WorkerUrl], Headers],
        body: bytes,
    ) -> Asking:
        """A request to the fleet, which begins with :meth:`Asking.run`."""
        lives: tuple[Live, ...] = ()
        if wish.generates:
            session, tenant = wish.session, router.tenant
            named = zip(wish.calls, wish.rids, strict=True)
            lives = tuple([Live(call, names, session, tenant) for call, names in named])
        request = Request(method, target, headers_for, body)
        return Asking(Entry(router, wish, lives), request, self._run)

    async def _run(self, asking: Asking, take: Take) -> None:
        if self._shared.is_stopping:
            raise shutting_down()
        with asking.scope:
            try:
                self._begin(asking)
                while not await self._attempt(asking, take):
                    if not asking.entry.is_aborted:
                        await self._back_off(asking)
                return
            except (ClientGone, trio.Cancelled):
                self._give_up(asking)
                raise
            finally:
                self._end(asking)
        raise asking.stopped or deadline_exceeded()

    def _begin(self, asking: Asking) -> None:
        self._askings[asking] = None
        entry = asking.entry
        for live in entry.lives:
            self.live[live.call] = live
        self.room.enter(entry)

    async def _attempt(self, asking: Asking, take: Take) -> bool:
        """Wait for its turn and send it; whether an answer was taken. Else it is tried again."""
        entry, spans = asking.entry, self._shared.spans
        if entry.is_settled and spans is NO_SPANS:
            self.room.check(entry)  # as most are: whoever waits has more frames to go through
        else:
            with spans.child("slime.wait"):
                await self.room.wait(entry)
        if entry.is_aborted:
            self._drain.ended(asking)
            self.room.give_back(entry)
            await take(_aborted(entry))
            return True
        if spans is NO_SPANS:
            return await self._try(asking, take, NO_SPAN)
        with spans.attempt(asking.request.method, entry.urls[-1]) as span:
            return await self._try(asking, take, span)

    async def _try(self, asking: Asking, take: Take, span: Span) -> bool:
        """Send it and have the answer taken; whether that was to be had here.

        Leaving the exchange closes the connection, or gives it back where the answer was read to
        its end.
        """
        self.note_sent(asking)
        span.note("slime.attempt", asking.tries)
        was_sampled, asking.may_have_sampled = asking.may_have_sampled, True
        try:
            exchange = self.exchange(asking)
            response = await exchange.__aenter__()
        except UnwantedError:
            asking.may_have_sampled = was_sampled
            return False
        except UpstreamError as error:
            if _cause(error) in _NO_CONNECTION:
                asking.may_have_sampled = was_sampled
            if self.is_over(asking, error):
                raise
            return False
        try:
            span.note("http.response.status_code", response.status)
            answered = self.answer(asking, response)
            if answered is not None:
                asking.answered = answered
                await take(answered)
                asking.is_complete = True
        except BaseException:
            await exchange.__aexit__(*sys.exc_info())
            raise
        await exchange.__aexit__(None, None, None)
        return answered is not None

    def exchange(self, asking: Asking) -> AbstractAsyncContextManager[WorkerAnswer]:
        """What is between it and its workers, not begun."""
        router, request, workers = asking.entry.router, asking.request, asking.entry.workers
        method, target, body = request.method, request.target, request.body
        spans, headers_for = self._shared.spans, request.headers_for
        if spans is not NO_SPANS:

            def headers_for(url: WorkerUrl) -> Headers:
                return spans.propagated(request.headers_for(url))

        if len(workers) == 1:
            url = workers[0].url
            return self._shared.pool.request(
                method, url, target, headers_for(url), body, before_send=asking.check_wanted
            )
        # Imported here because pairs are built on routers, and routers on this.
        from slime_trio import pairs

        prefill, decode = workers
        return pairs.exchange(router, prefill, decode, method, target, headers_for, body)

    def is_over(self, asking: Asking, error: UpstreamError) -> bool:
        """It was sent in vain: whether that is the end of it. Otherwise it has left its worker."""
        entry, failed = asking.entry, WorkerUrl(error.worker_url)
        self._note_failure(entry, failed, error)
        goes_on = self._is_tried_elsewhere(asking, failed, error)
        self._shared.counts.attempts.add((_cause(error) or "failed", _word(goes_on)))
        if goes_on:
            self._leave_worker(asking, failed, tell=_cause(error) not in _NO_CONNECTION)
        return not goes_on

    def answer(self, asking: Asking, response: WorkerAnswer) -> Answered | None:
        """The answer, which has begun; ``None`` if it is to be tried elsewhere instead."""
        entry = asking.entry
        worker = entry.workers[-1]
        for url in entry.urls:
            self._note_answer(entry, url)
        if not is_busy(response.status):
            self._shared.counts.attempts[_ANSWERED] += 1
        elif self._goes_on(asking, worker.url, response.status):
            self._leave_worker(asking, worker.url, tell=response.status in (502, 504))
            return None
        # Where workers have no ids they have their URLs for them, which are nobody's business.
        name = worker.id if worker.id != worker.url else str(worker.number)
        return Answered(response, worker.url, name=name, version=worker.version)

    def _goes_on(self, asking: Asking, worker: WorkerUrl, status: int) -> bool:
        """Whether another worker is tried instead of one that is busy."""
        goes_on = self._is_tried_elsewhere(asking, worker, None)
        self._shared.counts.attempts.add((f"status_{status}", _word(goes_on)))
        return goes_on

    def note_sent(self, asking: Asking) -> None:
        """It goes to its workers now, once more."""
        entry = asking.entry
        asking.tries += 1
        asking.worker = entry.urls[-1]
        if entry.ticket is not None:
            self._drain.sent(asking)
            if asking.tries == 1:
                now = trio.current_time() if entry.has_waited else entry.arrived
                self._shared.counts.waits.observe(now - entry.arrived)
                limit_s = self._shared.args.request_timeout_s
                if limit_s:
                    asking.scope.deadline = min(asking.scope.deadline, now + limit_s)

    def _is_tried_elsewhere(
        self, asking: Asking, failed: WorkerUrl, error: UpstreamError | None
    ) -> bool:
        if error is not None and (error.first_byte_sent or not _is_passing(error)):
            return False
        if asking.entry.is_aborted:
            return True  # that is, nowhere: it ends as one that waits for another worker does
        if asking.tries >= self._shared.args.max_attempts or self._shared.is_stopping:
            return False
        return self.room.may_try_again(asking.entry, failed)

    def _leave_worker(self, asking: Asking, failed: WorkerUrl, *, tell: bool) -> None:
        if tell:
            self._give_up(asking)
        self._drain.ended(asking)
        self.room.step_back(asking.entry, failed)
        if asking.entry.is_aborted:
            self._abort(asking.entry)

    async def _back_off(self, asking: Asking) -> None:
        """Wait a little, unless it is aborted or refused meanwhile, and stand in line again."""
        entry, shared = asking.entry, self._shared
        delay = delay_s(asking.tries, shared.args.retry_backoff_s, shared.chance())
        with trio.move_on_after(delay):
            await entry.until_settled()
        self.room.again(entry)

    def _give_up(self, asking: Asking) -> None:
        """Have its worker stop, without waiting for it; both of a pair do that themselves."""
        entry = asking.entry
        if len(entry.workers) == 1 and entry.wish.told:
            entry.router.abort_later(entry.urls[0], [CallId(rid) for rid in entry.wish.told])

    def _end(self, asking: Asking) -> None:
        """Give everything back; awaits nothing."""
        entry = asking.entry
        self._askings.pop(asking, None)
        for live in entry.lives:
            self.live.pop(live.call, None)
        self._drain.ended(asking)
        self.room.leave(entry)

    # -- what is learnt of workers -------------------------------------------------------------

    def _note_answer(self, entry: Entry, url: WorkerUrl) -> None:
        if entry.wish.generates:
            self._shared.worker_book.note_answer(url, trio.current_time())
        self._note(entry.router, url, Event.ANSWERED)

    def _note_failure(self, entry: Entry, url: WorkerUrl, error: UpstreamError) -> None:
        cause = _cause(error)
        if cause in _NO_CONNECTION:
            self._note(entry.router, url, Event.UNREACHABLE)
        elif cause in _NO_ANSWER and not error.first_byte_sent:
            self._note(entry.router, url, Event.CALL_FAILED)

    def _note(self, router: Router, url: WorkerUrl, event: Event) -> None:
        worker = router.state.fleet.workers.get(url)
        if worker is None or (worker.health is READY and event is Event.ANSWERED):
            return  # what works has answered: by far the most, and nothing new
        limits = check_plan(self._shared.args, worker).limits
        change = health_change(router.state, url, event, trio.current_time(), limits)
        if change is not None:
            router.commit(change)


def _aborted(entry: Entry) -> Answered:
    """The answer to what was aborted while it waited. Raises ``SlimeError`` where it is one."""
    if entry.wish.aborted is None:
        raise WorkerError(
            "the generation was aborted before it began", status=503, code="generation_aborted"
        )
    return Answered(entry.wish.aborted(), WorkerUrl(""))


def _word(goes_on: bool) -> str:
    return "another" if goes_on else "last"


def _cause(error: UpstreamError) -> str:
    """What the connection met; of a pair, that of the side that failed; "" if none did."""
    cause = getattr(error, "cause", error.code)
    return cause or ""


def _is_passing(error: UpstreamError) -> bool:
    """Whether another worker might do better."""
    cause = _cause(error)
    return (
        cause in _NO_CONNECTION
        or cause == "connection_lost"
        or (not cause and is_busy(error.status))
    )
