"""The life of a request: the file to open first.

    parse → look up and open the calls → encode what is new → have a worker answer
          → check and commit what was sampled → tell the client

Two rules shape the order. A turn is committed before the byte or event that tells the client it
is complete. And whatever ends a request early (the client leaves, the worker breaks off, we are
shut down) runs the ``finally`` blocks, which await nothing: calls still open are kept as far as
they came or counted as lost.

Nothing here knows ASGI or sockets of clients (:mod:`slime_trio.exchange`), the words of a dialect
(:mod:`slime_trio.dialects`), nor which worker answers, after what waiting and how many tries
(:mod:`slime_trio.dispatch.dispatcher`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Final

import trio
from msgspec.structs import replace

from slime_core import sglang, unread
from slime_core.calls import wish_of
from slime_core.errors import ClientError, SlimeError, WorkerError
from slime_core.types import WorkerUrl
from slime_trio.attempts import may_be_retried
from slime_trio.capture import capture_of
from slime_trio.dialects import Dialect
from slime_trio.dispatch.dispatcher import Answered, Asking, StoppedError, Wish
from slime_trio.dispatch.wish import terms_of
from slime_trio.exchange import ClientGone, Headers, Inbound, Reply, for_client
from slime_trio.offload import LIFTED, LOGPROBS_COST, is_short, off_loop
from slime_trio.passing import aborted_answer, forward, pass_answer
from slime_trio.router import Router
from slime_trio.streaming import StreamRelay
from slime_trio.upstream import GivenAnswer, UpstreamError, WorkerAnswer

__all__ = ["CALLS_NAMED", "forward", "relay"]

_GENERATE: Final = b"/generate"
CALLS_NAMED: Final = 128
"""How many call ids a header field may hold; clients refuse long ones. Beyond that the answers'
own ids (``meta_info.id``) name the calls."""


def relay(router: Router, inbound: Inbound, reply: Reply, dialect: Dialect) -> Awaitable[None]:
    """Serve a captured request. Raises ``SlimeError``, after ``reply`` was started only where the
    answer breaks off.

    What may be retried outlives its client (:mod:`slime_trio.attempts`); all else is done here.
    """
    if router.nursery is None or not may_be_retried(inbound):
        return _Exchange(router, inbound, reply, dialect).run()

    def make(recording: Reply, flags: tuple[str, ...]) -> _Exchange:
        return _Exchange(router, inbound, recording, dialect, flags)

    return router.attempts.serve(router.nursery, inbound, reply, make)


class _Exchange:
    """One request, its calls, and what has come of them."""

    def __init__(
        self,
        router: Router,
        inbound: Inbound,
        reply: Reply,
        dialect: Dialect,
        flags: tuple[str, ...] = (),
    ) -> None:
        self._router = router
        self._inbound = inbound
        self._reply = reply
        self._dialect = dialect
        self._capture = capture_of(router, wish_of(router.state, inbound.session, dialect.parent))
        if flags:
            self._capture.add_flags(flags)
        self._terms = terms_of(inbound)
        self._samples = dialect.asked.samples
        self._aliases: list[tuple[str, ...]] = []
        self._asking: Asking | None = None  # while it is under way
        self._may_have_sampled = False
        self._stream: StreamRelay | None = None
        self._aborted = 0
        self._has_nothing = False
        self.failed = False

    @property
    def is_settled(self) -> bool:
        """Whether all its calls were opened and have ended."""
        return len(self._capture.calls) == self._samples and not self._capture.in_flight

    @property
    def sampled(self) -> tuple[str, ...]:
        """Its calls, from when a worker may have sampled for them."""
        asking = self._asking
        may_have = self._may_have_sampled if asking is None else asking.may_have_sampled
        return tuple(self._capture.calls) if may_have and not self._has_nothing else ()

    async def run(self) -> None:
        """Generate and reply. Raises ``SlimeError`` likewise; what goes wrong with a stream that
        had begun is said in it, once all is settled."""
        capture, dialect, router = self._capture, self._dialect, self._router
        self._check_size()
        try:
            if router.state.forest.unread:
                await router.settle()
            if dialect.by_text:
                await router.tell_all()
            await dialect.prepare(capture)
            dialect.open(capture)
            if capture.unencoded:
                await capture.encode()
            size = sum(map(len, capture.prompts))
            if is_short(size):
                body = dialect.worker_body(capture.prompts, capture)
            else:
                body = await off_loop(size, dialect.worker_body, capture.prompts, capture)
            await self._ask(self._wish(), body)
        except SlimeError as error:
            error.calls = tuple(capture.calls)
            if self._stream is None or not self._reply.started:
                raise
            self.failed = True
            await self._reply.send(dialect.error(error))
        finally:
            if capture.in_flight:
                capture.end("refused", sampled=False)

    def _check_size(self) -> None:
        """Every sample is a call of its own, so their number must have a bound."""
        most = self._router.shared.args.max_samples_per_request
        if self._samples > most:
            raise ClientError(
                f"{self._samples} samples were asked for; this router takes {most} in one request "
                "(--max-samples-per-request)",
                param="n",
                code="integer_above_max_value",
            )

    def _wish(self) -> Wish:
        """What is wanted of the fleet, for these calls."""
        dialect, calls = self._dialect, tuple(self._capture.calls)
        aliases = self._aliases = list(map(dialect.aliases, range(self._samples)))
        rids: tuple[tuple[str, ...], ...] = tuple(zip(calls, strict=True))
        # Workers do not know what an agent calls its requests: an abort by that would end others'.
        if any(aliases) and not self._inbound.is_agents:
            rids = tuple([(call, *names) for call, names in zip(calls, aliases, strict=True)])
        return replace(
            self._terms,
            calls=calls,
            rids=rids,
            told=calls if dialect.names_calls else (),
            prompt=self._capture.prompts[0],
            aborted=self._aborted_in_queue,
        )

    def _aborted_in_queue(self) -> GivenAnswer:
        dialect, calls = self._dialect, self._capture.calls
        ids = list[str](calls)
        if dialect.verbatim:  # by the client's own names, if it gave any
            ids = [(*names, call)[0] for names, call in zip(self._aliases, calls, strict=True)]
        return aborted_answer(ids, array=dialect.asked.array, stream=dialect.streams)

    async def _ask(self, wish: Wish, body: bytes) -> None:
        """Ask, and settle what is still open if the asking ends in any other way than well."""
        dispatcher = self._router.shared.dispatcher
        asking = self._asking = dispatcher.ask(
            self._router, wish, "POST", _GENERATE, self._headers_for, body
        )
        lost = "no_answer"
        try:
            await asking.run(self._take)
        except (ClientGone, trio.Cancelled):
            lost = "client_gone"
            raise
        except (UpstreamError, StoppedError) as error:
            lost = error.code
            raise
        finally:
            if not asking.tries:
                lost = "refused"
            if self._capture.in_flight:
                self._keep_partial(asking.worker)
                self._capture.end(lost, sampled=asking.may_have_sampled)
            # It knows this object, too. Left so, all that the request brought and was given would
            # stay until the garbage collector comes by.
            self._asking, self._may_have_sampled = None, asking.may_have_sampled

    def _headers_for(self, worker: WorkerUrl) -> Headers:
        headers = self._inbound.headers
        return self._router.shared.worker_headers(worker, headers, readable=True)

    async def _take(self, answered: Answered) -> None:
        """Take the answer, in one of its three forms."""
        try:
            if answered.response.status != 200:
                await self._refuse(answered)
            elif self._dialect.streams and _is_stream(answered.response):
                await self._relay_stream(answered)
            else:
                await self._relay_whole(answered)
        finally:
            answered.is_aborted = self._aborted == self._samples

    async def _refuse(self, answered: Answered) -> None:
        """The worker did not generate: its words, as they are or in the client's dialect."""
        self._lose_unsampled()
        response = answered.response
        if self._dialect.verbatim:
            await pass_answer(response, self._reply, self._marks(answered))
            return
        body = await response.read(max_bytes=self._max_answer)
        raise sglang.worker_error(response.status, body, param=self._dialect.prompt_param)

    @property
    def _max_answer(self) -> int:
        return self._router.shared.args.max_answer_mb * 2**20

    def _marks(self, answered: Answered, version: str | None = None) -> Headers:
        """What every answer tells of its capture and, but to agents, of where it comes from."""
        capture = self._capture
        marks = []
        if len(capture.calls) <= CALLS_NAMED:
            marks.append((b"x-slime-call-id", ",".join(capture.calls).encode()))
        if capture.flags:
            marks.append((b"x-slime-flags", ",".join(capture.flags).encode()))
        if not self._inbound.is_agents:
            marks += answered.marks(version)
        return marks

    def _headers(
        self, answered: Answered, *, same_body: bool, version: str | None = None
    ) -> Headers:
        if self._dialect.verbatim:
            headers = for_client(answered.response.headers, same_body=same_body)
        else:
            headers = self._dialect.headers()
        headers += self._marks(answered, version)
        return headers

    async def _relay_whole(self, answered: Answered) -> None:
        dialect, worker = self._dialect, answered.worker
        if dialect.streams and not dialect.verbatim:
            raise WorkerError("The worker gave no stream where one was asked for.")
        body = await answered.response.read(max_bytes=self._max_answer)
        size = self._costs(len(body))
        is_small = is_short(size)
        answers = self._read(body) if is_small else await off_loop(size, self._read, body)
        is_kept = True
        for sample, answer in enumerate(answers):
            is_kept = self._keep(sample, answer, worker) and is_kept
        if is_small:
            shown = dialect.whole(body, answers)
        else:
            shown = await off_loop(size, dialect.whole, body, answers)
        version = answers[-1].weight_version
        headers = self._headers(answered, same_body=shown is body, version=version)
        if not is_kept:
            headers.append((b"x-slime-captured", b"false"))
        if shown is not body:
            headers.append((b"content-length", b"%d" % len(shown)))
        try:
            await self._reply.start(200, headers)
            await self._reply.send(shown)
        finally:
            if self._router.state.forest.unread:
                self._router.settle_soon()

    def _read(self, body: bytes) -> Sequence[sglang.Answer]:
        """Whole answers, and what the dialect makes of them; touches nothing shared."""
        unread_from = None if self._dialect.reads_logprobs else unread.UNREAD_FROM
        answers = sglang.parse_answer(body, self._dialect.asked, unread_from=unread_from)
        self._dialect.read(answers)
        return answers

    def _costs(self, size: int) -> int:
        """How much of plain JSON takes as long to read as a whole answer of ``size`` bytes."""
        if self._dialect.verbatim:  # its client is shown the long lists as they are
            return size // LIFTED
        return size * LOGPROBS_COST if self._dialect.reads_logprobs else size

    def _keep(self, sample: int, answer: sglang.Answer, worker: WorkerUrl) -> bool:
        reason = answer.finish_reason
        # With a status it is no abort that anybody asked for, but a refusal of this very request.
        if reason is not None and reason.type == "abort" and reason.status_code is None:
            self._aborted += 1
        captured, shown = self._dialect.captured(sample, answer)
        aliases = self._aliases[sample]
        return self._capture.keep(sample, captured, worker, aliases=aliases, shown=shown)

    async def _relay_stream(self, answered: Answered) -> None:
        """Relay a stream, which keeps its samples as they end."""
        self._stream = StreamRelay(
            self._dialect,
            self._reply,
            self._headers(answered, same_body=False),
            keep=lambda sample, answer: self._keep(sample, answer, answered.worker),
            refused=self._note_refusal,
        )
        await self._stream.run(answered.response)

    def _note_refusal(self) -> None:
        """The worker itself ended the stream with an error; before any token nothing is lost."""
        assert self._stream is not None
        self.failed = True
        if all(self._stream.partial(one) is None for one in range(self._samples)):
            self._lose_unsampled()

    def _lose_unsampled(self) -> None:
        self.failed = self._has_nothing = True
        self._capture.end("refused", sampled=False)

    def _keep_partial(self, worker: WorkerUrl) -> None:
        """Keep what a broken-off stream brought: explicitly partial."""
        if self._stream is None:
            return
        for sample in sorted(self._capture.in_flight):
            # What broke the stream off may be what cannot be read now either: such a call is lost.
            with suppress(WorkerError):
                answer = self._stream.partial(sample)
                if answer is not None and answer.ids:
                    self._keep(sample, answer, worker)


def _is_stream(response: WorkerAnswer) -> bool:
    return (response.header(b"content-type") or b"").startswith(b"text/event-stream")
