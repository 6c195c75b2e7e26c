"""One request served by two workers: both are sent the same body, the decode worker answers.

The caller's task is the decode leg: it reads the answer, and everything it waits for it waits for
in :meth:`PairExchange._while_well`, which gives up when the prefill leg fails or time is over. The
prefill leg (:mod:`~slime_trio.pairs.prefill_leg`) is a task in a nursery that the exchange opens
when it is entered and closes when it is left, whatever ends it; nothing outlives the block. The
exceptions that leave it are those of the caller or of a leg, never groups.

Who wins
    Until the answer has begun, a leg's failure is raised, and its refusal of the request (4xx) or
    its abort is given as the answer of both. "Begun" means: the head of a whole answer, the first
    event of a stream, since a worker sends the head of a stream before it knows anything.
    After that the prefill leg can only do harm where it is still needed: where answers are merged,
    and in streams of a batch, whose later elements may still wait for their prompts.

The loser is stopped twice over: its connection is closed, and it is told by ``/abort_request``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, TypeVar

import trio

from slime_core import sse
from slime_core.disaggregation import (
    Abort,
    Endings,
    PairRequest,
    StreamMerger,
    draw_rooms,
    endings,
    merge_answers,
    read_pair_request,
)
from slime_core.types import CallId, WorkerUrl
from slime_trio.exchange import Headers
from slime_trio.offload import off_loop
from slime_trio.pairs.errors import (
    PairError,
    failure_worded_as_abort,
    is_retryable,
    refusal,
    timeout,
    transport_failure,
)
from slime_trio.pairs.prefill_leg import PrefillLeg
from slime_trio.pairs.response import Flowing, given
from slime_trio.pairs.workers import Addressed, PrefillWorker
from slime_trio.router import Router
from slime_trio.upstream import Exchange, GivenAnswer, Response, UpstreamError, parse_origin

__all__ = ["PairExchange"]

T = TypeVar("T")

_LINGER_S: Final = 5.0
"""How long a prefill worker may take to end its own answer when decode's is complete."""
_CULPRIT_S: Final = 0.2
"""How long to look for a lost connection behind a worker's own error: when one side dies, the other
says that the transfer failed, and which of the two is heard first is chance."""
_MOST_OF_A_REFUSAL: Final = 2**20
_ABORT: Final = b'"abort"'


def _is_failure(abort: Abort) -> bool:
    return abort.status is not None and is_retryable(abort.status)


class _Instead(Exception):
    """The prefill leg's answer is the answer."""

    def __init__(self, answer: GivenAnswer) -> None:
        self.answer = answer


class PairExchange:
    """A generating request for a pair: an async context manager that is entered once.

    ``headers_for`` gives the fields for one worker. Entering gives a response and raises
    ``ClientError`` for a body that is no JSON object and :class:`PairError` for a leg that failed.
    """

    def __init__(
        self,
        router: Router,
        prefill: PrefillWorker,
        decode: Addressed,
        method: str,
        target: bytes,
        headers_for: Callable[[WorkerUrl], Headers],
        body: bytes,
    ) -> None:
        self._router = router
        self._workers = (prefill, decode)
        self._method = method
        self._target = target
        self._headers_for = headers_for
        self._body = body
        self._rooms: tuple[int, ...] = ()
        self._deadline = math.inf
        self._waiting: trio.CancelScope | None = None
        self._has_begun = False
        self._is_complete = False
        """Decode's answer, or the one that stands for it, is there to its end."""
        self._is_aborted = False
        """Decode's answer seems to speak of an abort: prefill's will not come by itself."""
        self._stopped: list[WorkerUrl] = []
        self._first = b""
        self._events: deque[sse.Event] = deque()
        self._decoder = sse.Decoder()
        self._leg: Exchange | None = None
        """The decode worker's exchange, once it was entered."""
        self._response: Response
        self._request: PairRequest
        self._merger: StreamMerger
        self._prefill: PrefillLeg
        self._nursery: trio.Nursery
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery]

    # -- entering ------------------------------------------------------------------------------

    async def __aenter__(self) -> GivenAnswer | Flowing:
        path = self._target.partition(b"?")[0].decode("latin-1")
        body = self._body
        self._request = await off_loop(len(body), read_pair_request, path, body)
        wanted = self._request.wanted
        self._merger = StreamMerger(wanted)
        self._prefill = PrefillLeg(
            self._merger,
            failed=self._prefill_failed,
            aborted=self._prefill_aborted,
            max_bytes=self._max_answer,
        )
        self._nursery_manager = trio.open_nursery()
        self._nursery = await self._nursery_manager.__aenter__()
        try:
            return await self._begin()
        except _Instead as instead:
            self._has_begun = True
            return instead.answer
        except BaseException as error:
            await self._leave(error)
            raise

    @property
    def _max_answer(self) -> int:
        return self._router.args.max_answer_mb * 2**20

    async def _begin(self) -> GivenAnswer | Flowing:
        limit = self._router.args.pd_timeout_s
        self._deadline = trio.current_time() + limit if limit else math.inf
        body = await self._addressed()
        prefill, decode = self._workers
        self._nursery.start_soon(self._prefill.run, self._sent_to(prefill, body))
        leg = self._sent_to(decode, body)
        response = self._response = await self._while_well(leg.__aenter__)
        self._leg = leg
        if response.status != 200:
            return await self._refused(response)
        if self._request.stream:
            await self._begin_stream(response)
        elif self._request.wanted.anything:
            return await self._merged_whole(response)
        self._has_begun = True
        same = not self._request.wanted.anything
        return Flowing(response, self._receive if same else self._receive_merged, same_body=same)

    async def _addressed(self) -> bytes:
        """The body for both, with rooms that no other pair uses now."""
        prefill, taken = self._workers[0], self._router.shared.rooms
        self._rooms = draw_rooms(self._request.rooms, self._router.shared.chance, taken)
        taken.update(self._rooms)
        host = parse_origin(prefill.url).host
        return await off_loop(
            len(self._body), self._request.addressed, host, prefill.bootstrap_port, self._rooms
        )

    def _sent_to(self, worker: Addressed, body: bytes) -> Exchange:
        headers = self._headers_for(worker.url)
        if self._request.wanted.anything:
            headers = [(name, value) for name, value in headers if name != b"accept-encoding"]
        return self._router.pool.request(self._method, worker.url, self._target, headers, body)

    async def _refused(self, response: Response) -> GivenAnswer:
        """The decode worker refuses: raised where another might not, else its own words."""
        body = await self._while_well(lambda: response.read(max_bytes=_MOST_OF_A_REFUSAL))
        if is_retryable(response.status):
            said = refusal("decode", response.worker_url, response.status, body)
            raise await self._lost_behind(said) or said
        self._has_begun = self._is_complete = True
        self._stop(self._workers[0].url)
        self._prefill.scope.cancel()
        return given(response, body)

    async def _begin_stream(self, response: Response) -> None:
        """Read up to the first event, lest the answer begin with a failure that is worded as one:
        until then another pair may be tried."""
        decoder, events = sse.Decoder(), list[sse.Event]()
        while not events:
            data = await self._while_well(response.receive_some)
            self._first += data
            if not data:
                return
            events = decoder.receive(data)
        failed = next(filter(_is_failure, endings(events[0].data).aborts), None)
        if failed is not None and self._request.prompts is None:
            said = failure_worded_as_abort("decode", response.worker_url, failed)
            raise await self._lost_behind(said) or said

    async def _lost_behind(self, said: PairError) -> PairError | None:
        """The prefill side's lost connection, if that is why the decode worker failed."""
        if said.status >= 500:
            with trio.move_on_after(_CULPRIT_S):
                while not self._prefill.has_ended:
                    await self._prefill.news.wait()
        failure = self._prefill.failure
        if isinstance(failure, PairError) and failure.cause is not None:
            return failure
        return None

    async def _merged_whole(self, response: Response) -> GivenAnswer:
        """Both answers, read to their end, as one."""
        body = await self._while_well(lambda: response.read(max_bytes=self._max_answer))
        ended = endings(body) if _ABORT in body else Endings(samples=0, aborts=())
        self._is_aborted = bool(ended.aborts)
        if len(ended.aborts) == ended.samples and ended.aborts:
            self._has_begun = self._is_complete = True
            return given(response, body)
        # What nobody fetches any more would keep the prefill worker from answering.
        self._abort(self._workers[0].url, [one.id for one in ended.aborts if one.id is not None])
        while not self._prefill.has_ended:
            await self._while_well(self._prefill.news.wait)
        theirs = self._prefill.body
        whole = await off_loop(
            len(body) + len(theirs), merge_answers, body, theirs, self._request.wanted
        )
        self._has_begun = self._is_complete = True
        return given(response, whole)

    # -- the answer ----------------------------------------------------------------------------

    async def _receive(self) -> bytes:
        """The next bytes of the decode worker's answer, as they came."""
        data, self._first = self._first, b""
        data = data or await self._while_well(self._response.receive_some)
        self._is_complete = not data
        self._is_aborted |= _ABORT in data
        return data

    async def _receive_merged(self) -> bytes:
        """The next events, each with prefill's part in it."""
        while True:
            shown = self._mergeable()
            if shown:
                return shown
            if self._events:
                await self._while_well(self._prefill.news.wait)
                continue
            data = await self._receive()
            if not data:
                self._decoder.close()
                return b""
            self._events += self._decoder.receive(data)

    def _mergeable(self) -> bytes:
        """As many of the waiting events as prefill's part is there for."""
        pieces: list[bytes] = []
        while self._events:
            piece = self._merger.merged(self._events[0])
            if piece is None:
                break
            self._events.popleft()
            pieces.append(piece)
        return b"".join(pieces)

    # -- what may come in between --------------------------------------------------------------

    async def _while_well(self, step: Callable[[], Awaitable[T]]) -> T:
        """``step``, unless the prefill leg fails or the time is over."""
        if not self._has_failed:
            with trio.CancelScope(deadline=self._deadline) as self._waiting:
                try:
                    return await step()
                except UpstreamError as error:
                    failure = transport_failure("decode", error)
                    # The head of a stream says nothing yet.
                    failure.first_byte_sent &= self._has_begun or not self._request.stream
                    raise failure from error
                finally:
                    self._waiting = None
        raise self._verdict()

    @property
    def _has_failed(self) -> bool:
        """Whether the prefill leg ended in a way that matters."""
        leg = self._prefill
        if leg.failure is None and leg.answer is None:
            return False
        needed = self._request.wanted.anything
        needed |= self._request.stream and self._request.prompts is not None
        return needed or not self._has_begun

    def _verdict(self) -> Exception:
        """Why a step was given up."""
        leg = self._prefill
        if not self._has_failed:
            return timeout(self._workers[1].url)
        if leg.answer is not None:
            if not self._has_begun:
                return _Instead(leg.answer)
            said = leg.answer
            return PairError(
                "prefill_error",
                "The prefill worker ended before its part of the answer was there.",
                status=said.status if said.status >= 400 else 502,
                worker_url=said.worker_url,
                first_byte_sent=True,
            )
        assert leg.failure is not None
        leg.failure.first_byte_sent = self._has_begun
        return leg.failure

    def _prefill_failed(self) -> None:
        """Called by the prefill leg, in its task."""
        failure = self._prefill.failure
        if isinstance(failure, PairError) and failure.cause is None and failure.status >= 500:
            self._nursery.start_soon(self._give_up_soon)
        else:
            self._give_up()

    async def _give_up_soon(self) -> None:
        """If the decode side's connection is lost, that is what is raised."""
        await trio.sleep(_CULPRIT_S)
        self._give_up()

    def _give_up(self) -> None:
        if self._has_failed and not self._is_complete:
            self._stop(self._workers[1].url)
            if self._waiting is not None:
                self._waiting.cancel()

    def _prefill_aborted(self, ids: tuple[str, ...]) -> None:
        """Some samples will get no prompt: the decode worker must not wait for it."""
        self._abort(self._workers[1].url, ids)

    def _stop(self, worker: WorkerUrl) -> None:
        """Tell a worker, once, to abort what it does for this request; nobody waits for it."""
        if worker not in self._stopped:
            self._stopped.append(worker)
            self._abort(worker, self._request.rids)

    def _abort(self, worker: WorkerUrl, rids: Sequence[str]) -> None:
        self._router.abort_later(worker, [CallId(name) for name in rids])

    # -- leaving -------------------------------------------------------------------------------

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._leave(error)

    async def _leave(self, error: BaseException | None) -> None:
        prefill, decode = self._workers
        try:
            if self._leg is not None:
                leg, self._leg = self._leg, None
                await leg.__aexit__(None if error is None else type(error), error, None)
            if error is None and self._is_complete and not self._is_aborted:
                await self._await_prefill()
        finally:
            if not self._is_complete:
                self._stop(decode.url)
            if not self._prefill.has_ended:
                self._stop(prefill.url)
            self._router.shared.rooms.difference_update(self._rooms)
            self._nursery.cancel_scope.cancel()
            await self._close_nursery()

    async def _await_prefill(self) -> None:
        """The prefill leg's own end, which comes before decode's unless something is wrong."""
        with trio.move_on_after(_LINGER_S) as patience:
            patience.deadline = min(patience.deadline, self._deadline)
            while not self._prefill.has_ended:
                await self._prefill.news.wait()

    async def _close_nursery(self) -> None:
        try:
            await self._nursery_manager.__aexit__(None, None, None)
        except* trio.Cancelled:
            # Of a cancellation from outside, which the caller meets by itself, and ungrouped.
            pass
