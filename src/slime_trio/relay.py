"""The life of a request: the file to open first.

    parse → look up and open the calls → encode what is new → take a slot → ask the worker
          → check and commit what was sampled → tell the client

Two rules shape the order. A turn is committed before the byte or event that tells the client it
is complete. And whatever ends a request early (the client leaves, the worker breaks off, we are
shut down) runs the ``finally`` blocks, which await nothing: the slot is given back, and calls
still open are kept as far as they came or counted as lost.

Nothing here knows ASGI or sockets of clients (:mod:`slime_trio.exchange`), nor the words of a
dialect (:mod:`slime_trio.dialects`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import trio

from slime_core import sglang, sse
from slime_core.calls import wish_of
from slime_core.decide import health_change
from slime_core.errors import ClientError, SlimeError, WorkerError
from slime_core.health import Event
from slime_core.transitions import CallLost, CallOpened, SlotsGiven, SlotsTaken
from slime_core.types import CallId, WorkerUrl
from slime_trio.attempts import may_be_retried
from slime_trio.capture import Capture
from slime_trio.dialects import Dialect
from slime_trio.exchange import ClientGone, Headers, Inbound, Reply, for_client
from slime_trio.offload import off_loop
from slime_trio.router import Router
from slime_trio.upstream import Response, UpstreamError

__all__ = ["CALLS_NAMED", "forward", "relay", "slots"]

_OPENAI_PATHS: Final = "/v1/"
_MOST_OF_A_REFUSAL: Final = 2**20
_GENERATE: Final = b"/generate"
CALLS_NAMED: Final = 128
"""How many call ids a header field may hold; clients refuse long ones. Beyond that the answers'
own ids (``meta_info.id``) name the calls."""
_NOT_CAPTURED: Final = sse.comment("x-slime-captured: false")
"""In a stream the head is gone by the time it is known: a comment, which clients skip, says it."""


@contextmanager
def slots(
    router: Router, calls: list[CallId], *, session: str | None = None
) -> Iterator[WorkerUrl]:
    """Occupy a worker with ``calls``; its URL. Given back whatever happens.

    A worker that takes no connection gets no more work until it answers again: failing at once, it
    would look like the least busy of all.
    """
    worker = router.choose_worker(session).url
    taken = tuple(calls)
    router.commit(SlotsTaken(worker=worker, calls=taken, key=session))
    try:
        yield worker
    except UpstreamError as error:
        if _is_unreachable(error):
            _note_unreachable(router, worker)
        raise
    finally:
        router.commit(SlotsGiven(worker=worker, calls=taken))


def _note_unreachable(router: Router, worker: WorkerUrl) -> None:
    now, limits = trio.current_time(), router.shared.health_limits
    change = health_change(router.state, worker, Event.UNREACHABLE, now, limits)
    if change is not None:
        router.commit(change)


def _is_unreachable(error: UpstreamError) -> bool:
    return error.code in ("connect_failed", "connect_timeout")


async def forward(
    router: Router, inbound: Inbound, reply: Reply, *, reason: str | None = None
) -> None:
    """Pass a request and its answer through, byte for byte; under ``/v1/`` a refusal in OpenAI's
    words, for which its clients look.

    With ``reason`` it is a generation that cannot be captured: it is counted, and says so.
    """
    call = router.new_call_id()
    generated = False
    if reason is not None:
        router.commit(CallOpened(call=call, parent=None, session=inbound.session))
    try:
        with slots(router, [call], session=inbound.session) as worker:
            headers = router.shared.worker_headers(worker, inbound.headers)
            async with router.pool.request(
                inbound.method, worker, inbound.target, headers, inbound.body
            ) as response:
                generated = response.status == 200
                marks = [] if reason is None else [(b"x-slime-captured", b"false")]
                if response.status >= 400 and inbound.path.startswith(_OPENAI_PATHS):
                    body = await response.read(max_bytes=_MOST_OF_A_REFUSAL)
                    raise sglang.passed_error(response.status, body)
                await _pass(response, reply, marks)
    finally:
        if reason is not None:
            router.commit(CallLost(call=call, reason=reason, sampled=generated))


async def _pass(response: Response, reply: Reply, marks: Headers) -> None:
    """A worker's answer as it is."""
    await reply.start(response.status, for_client(response.headers, same_body=True) + marks)
    async for data in response.iter_bytes():
        await reply.send(data)


async def relay(router: Router, inbound: Inbound, reply: Reply, dialect: Dialect) -> None:
    """Serve a captured request. Raises ``SlimeError``, after ``reply`` was started only where the
    answer breaks off.

    What may be retried outlives its client (:mod:`slime_trio.attempts`); all else is done here.
    """
    if router.nursery is None or not may_be_retried(inbound):
        await _Exchange(router, inbound, reply, dialect).run()
        return

    def make(recording: Reply, flags: tuple[str, ...]) -> _Exchange:
        return _Exchange(router, inbound, recording, dialect, flags)

    await router.attempts.serve(router.nursery, inbound, reply, make)


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
        self._capture = Capture(router, wish_of(router.state, inbound.session, dialect.parent))
        self._capture.add_flags(flags)
        self._stream: sglang.StreamAssembler | None = None
        self._refused = False
        self._asked = False
        self.failed = False

    @property
    def is_settled(self) -> bool:
        """Whether all its calls were opened and have ended."""
        opened = len(self._capture.calls)
        if opened != self._dialect.asked.samples:
            return False
        return not any(map(self._capture.is_open, range(opened)))

    @property
    def sampled(self) -> tuple[str, ...]:
        """Its calls, from when a worker may have sampled for them."""
        return tuple(self._capture.calls) if self._asked else ()

    async def run(self) -> None:
        """Generate and reply. Raises ``SlimeError`` likewise."""
        capture = self._capture
        self._check_size()
        try:
            if self._dialect.by_text:
                await self._router.tell_all()
            await self._dialect.prepare(capture)
            self._dialect.open(capture)
            prompts = await capture.encode()
            size = sum(map(len, prompts))
            body = await off_loop(size, self._dialect.worker_body, prompts, capture)
            with slots(self._router, capture.calls, session=self._inbound.session) as worker:
                await self._ask_and_settle(worker, body)
        except SlimeError as error:
            error.calls = tuple(capture.calls)
            raise
        finally:
            capture.end("refused", sampled=False)

    def _check_size(self) -> None:
        """Every sample is a call of its own, so their number must have a bound."""
        samples, most = self._dialect.asked.samples, self._router.args.max_samples_per_request
        if samples > most:
            raise ClientError(
                f"{samples} samples were asked for; this router takes {most} in one request "
                "(--max-samples-per-request)",
                param="n",
                code="integer_above_max_value",
            )

    async def _ask_and_settle(self, worker: WorkerUrl, body: bytes) -> None:
        """Ask, and settle what is still open if the asking ends in any other way than well."""
        lost, sampled = "no_answer", True
        try:
            await self._ask(worker, body)
        except UpstreamError as error:
            lost, sampled = error.code, not _is_unreachable(error)
            self._asked = self._asked and sampled
            raise
        except (ClientGone, trio.Cancelled):
            lost = "client_gone"
            if self._dialect.names_calls:
                # It would notice the closed connection too, but only after a while.
                self._router.abort_later(worker, self._capture.calls)
            raise
        finally:
            self._keep_partial(worker)
            self._capture.end(lost, sampled=sampled)

    async def _ask(self, worker: WorkerUrl, body: bytes) -> None:
        shared = self._router.shared
        headers = shared.worker_headers(worker, self._inbound.headers, readable=True)
        self._asked = True
        async with self._router.pool.request("POST", worker, _GENERATE, headers, body) as response:
            kind = response.header(b"content-type") or b""
            if response.status != 200:
                await self._refuse(response)
            elif self._dialect.streams and kind.startswith(b"text/event-stream"):
                await self._relay_stream(response, worker)
            else:
                await self._relay_whole(response, worker)

    async def _refuse(self, response: Response) -> None:
        """The worker did not generate: its words, as they are or in the client's dialect."""
        self._lose_unsampled()
        if self._dialect.verbatim:
            await _pass(response, self._reply, self._marks())
            return
        body = await response.read(max_bytes=self._max_answer)
        raise sglang.worker_error(response.status, body, param=self._dialect.prompt_param)

    @property
    def _max_answer(self) -> int:
        return self._router.args.max_answer_mb * 2**20

    def _marks(self) -> Headers:
        """What every answer tells of its capture."""
        capture = self._capture
        marks = []
        if len(capture.calls) <= CALLS_NAMED:
            marks.append((b"x-slime-call-id", ",".join(capture.calls).encode()))
        if capture.flags:
            marks.append((b"x-slime-flags", ",".join(capture.flags).encode()))
        return marks

    def _headers(self, response: Response, *, same_body: bool) -> Headers:
        own = self._dialect.headers()
        if self._dialect.verbatim:
            own = for_client(response.headers, same_body=same_body)
        return own + self._marks()

    async def _relay_whole(self, response: Response, worker: WorkerUrl) -> None:
        if self._dialect.streams and not self._dialect.verbatim:
            raise WorkerError("The worker gave no stream where one was asked for.")
        body = await response.read(max_bytes=self._max_answer)
        answers = await off_loop(len(body), sglang.parse_answer, body, self._dialect.asked)
        await off_loop(len(body), self._dialect.read, answers)
        kept = [self._keep(sample, answer, worker) for sample, answer in enumerate(answers)]
        shown = await off_loop(len(body), self._dialect.whole, body, answers)
        headers = self._headers(response, same_body=shown is body)
        if not all(kept):
            headers.append((b"x-slime-captured", b"false"))
        if shown is not body:
            headers.append((b"content-length", b"%d" % len(shown)))
        await self._reply.start(200, headers)
        await self._reply.send(shown)

    def _keep(self, sample: int, answer: sglang.Answer, worker: WorkerUrl) -> bool:
        captured, shown = self._dialect.captured(sample, answer)
        aliases = self._dialect.aliases(sample)
        return self._capture.keep(sample, captured, worker, aliases=aliases, shown=shown)

    async def _relay_stream(self, response: Response, worker: WorkerUrl) -> None:
        """Relay events as they come. Until the head is out, an error keeps its own status."""
        headers = self._headers(response, same_body=False)
        if self._dialect.verbatim:
            await self._reply.start(200, headers)
        try:
            decoder = sse.Decoder()
            self._stream = sglang.StreamAssembler(self._dialect.asked)
            begin = self._dialect.begin()
            async for data in response.iter_bytes():
                shown, error = self._steps(decoder.receive(data), worker)
                if shown:
                    shown, begin = begin + shown, b""
                    await self._send(headers, shown)
                if error is not None:
                    raise error
            decoder.close()
            if not self._stream.finished and not self._refused:
                raise WorkerError("the worker's stream ended before its answer was complete")
            await self._send(headers, begin + self._dialect.end())
        except SlimeError as error:
            if not self._reply.started:
                raise
            self.failed = True
            await self._reply.send(self._dialect.error(error))

    async def _send(self, headers: Headers, data: bytes) -> None:
        if not self._reply.started:
            await self._reply.start(200, headers)
        await self._reply.send(data)

    def _steps(self, events: list[sse.Event], worker: WorkerUrl) -> tuple[bytes, SlimeError | None]:
        """The client's view of events that came together, up to one that cannot be shown."""
        shown = []
        for event in events:
            try:
                shown.append(self._step(event, worker))
            except SlimeError as error:
                return b"".join(shown), error
        return b"".join(shown), None

    def _step(self, event: sse.Event, worker: WorkerUrl) -> bytes:
        """The client's view of an event; what the event completes is committed first."""
        assert self._stream is not None
        shown = []
        for step in self._stream.receive(event):
            # Read before it is kept: what is kept of a chat's answer is what its client is shown.
            view, error = self._view(step)
            if step.sample is not None and step.finish_reason is not None:
                answer = self._stream.partial(step.sample)
                assert answer is not None
                if not self._keep(step.sample, answer, worker):
                    shown.append(_NOT_CAPTURED)
            if step.error is not None:
                self._note_refusal()
            if error is not None:
                raise error
            shown.append(view)
            if step.sample is not None and step.finish_reason is not None:
                shown.append(self._dialect.finish(step.sample))
        return b"".join(shown)

    def _view(self, step: sglang.StreamStep) -> tuple[bytes, SlimeError | None]:
        try:
            return self._dialect.step(step), None
        except SlimeError as error:
            return b"", error

    def _note_refusal(self) -> None:
        """The worker itself ended the stream with an error; before any token nothing is lost."""
        assert self._stream is not None
        self._refused = self.failed = True
        if all(self._stream.partial(one) is None for one in range(self._dialect.asked.samples)):
            self._lose_unsampled()

    def _lose_unsampled(self) -> None:
        self.failed, self._asked = True, False
        self._capture.end("refused", sampled=False)

    def _keep_partial(self, worker: WorkerUrl) -> None:
        """Keep what a broken-off stream brought: explicitly partial."""
        if self._stream is None:
            return
        for sample in range(self._dialect.asked.samples):
            if not self._capture.is_open(sample):
                continue
            # What broke the stream off may be what cannot be read now either: such a call is lost.
            with suppress(WorkerError):
                answer = self._stream.partial(sample)
                if answer is not None and answer.ids:
                    self._keep(sample, answer, worker)
