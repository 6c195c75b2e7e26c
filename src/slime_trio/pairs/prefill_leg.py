"""The prefill worker's side of an exchange: a task that reads its answer to the end.

Read it must be, whatever becomes of it: a worker whose answer nobody reads takes its client for
gone and aborts, and with it goes the prompt that the decode worker waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from slime_core import sse
from slime_core.disaggregation import Abort, StreamMerger, endings
from slime_core.errors import WorkerError
from slime_trio.pairs.errors import (
    failure_worded_as_abort,
    is_retryable,
    refusal,
    transport_failure,
)
from slime_trio.pairs.response import given
from slime_trio.upstream import Exchange, GivenAnswer, Response, UpstreamError

__all__ = ["PrefillLeg"]

_MOST_OF_A_REFUSAL: Final = 2**20


class PrefillLeg:
    """What is known of the prefill worker's answer. :meth:`run` raises nothing but cancellation.

    ``failed`` is called once, when this side's failure is known; ``aborted`` with the ids of
    samples that were aborted there, whose decode side waits in vain.
    """

    def __init__(
        self,
        merger: StreamMerger,
        *,
        failed: Callable[[], None],
        aborted: Callable[[tuple[str, ...]], None],
        max_bytes: int,
    ) -> None:
        self.failure: WorkerError | None = None
        self.answer: GivenAnswer | None = None
        """A refusal or an abort that can stand for the answer of both."""
        self.has_ended = False
        self.scope = trio.CancelScope()
        """Cancelled, the leg ends at once and has neither failed nor answered."""
        self.news = trio.Event()
        """Set at the next change; then there is a new one."""
        self._merger = merger
        self._failed = failed
        self._aborted = aborted
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._samples = 0
        self._aborts: list[Abort] = []

    @property
    def body(self) -> bytes:
        """All that was read."""
        return b"".join(self._pieces)

    async def run(self, exchange: Exchange) -> None:
        """Send the request, and read the answer to its end."""
        with self.scope:
            try:
                await self._ask(exchange)
            except UpstreamError as error:
                self.failure = transport_failure("prefill", error)
            except WorkerError as error:
                self.failure = error
        self.has_ended = True
        self._merger.prefill_ended()
        self._tell()
        if self.failure is not None or self.answer is not None:
            self._failed()

    async def _ask(self, exchange: Exchange) -> None:
        async with exchange as response:
            if response.status == 200:
                await self._read(response)
                self._conclude(response)
            else:
                await self._refused(response)

    async def _read(self, response: Response) -> None:
        is_stream = (response.header(b"content-type") or b"").startswith(b"text/event-stream")
        decoder = sse.Decoder()
        size = 0
        async for data in response.iter_bytes():
            self._pieces.append(data)
            size += len(data)
            if size > self._max_bytes:
                raise UpstreamError(
                    "response_too_large", worker_url=response.worker_url, first_byte_sent=True
                )
            if is_stream:
                self._take(decoder.receive(data))
        if is_stream:
            decoder.close()
        else:
            self._note(self.body)

    def _take(self, events: list[sse.Event]) -> None:
        for event in events:
            self._merger.prefill(event)
            if b"finish_reason" in event.data:
                self._note(event.data)
        if events:
            self._tell()

    def _note(self, answer: bytes) -> None:
        """How samples ended. That some were aborted here must reach the decode side at once."""
        found = endings(answer)
        self._samples += found.samples
        self._aborts += found.aborts
        ids = tuple(abort.id for abort in found.aborts if abort.id is not None)
        if ids:
            self._aborted(ids)

    def _conclude(self, response: Response) -> None:
        failed = next((abort for abort in self._aborts if abort.status is not None), None)
        if failed is not None:
            self.failure = failure_worded_as_abort("prefill", response.worker_url, failed)
        elif self._aborts and len(self._aborts) == self._samples:
            self.answer = given(response, self.body)

    async def _refused(self, response: Response) -> None:
        body = await response.read(max_bytes=_MOST_OF_A_REFUSAL)
        if is_retryable(response.status):
            self.failure = refusal("prefill", response.worker_url, response.status, body)
        else:
            self.answer = given(response, body)

    def _tell(self) -> None:
        self.news.set()
        self.news = trio.Event()
