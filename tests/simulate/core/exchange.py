"""One request between the events of an agenda: what ``slime_trio.relay`` is between awaits.

The order of things is the relay's: parse, look up and open, encode, take a slot, ask, commit, tell.
The dialects are the very adapters of the shell, which are pure.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from slime_core import openai, sglang, sse
from slime_core.calls import Calls
from slime_core.errors import ClientError, SlimeError, WorkerError, as_openai, as_sglang
from slime_core.health import Event
from slime_core.placing import NoWorker
from slime_core.transitions import SlotsGiven
from slime_core.types import PackedIds, WorkerUrl
from slime_trio.config import Settings
from slime_trio.dialects import ChatDialect, CompletionsDialect, Dialect, NativeDialect, Serving
from slime_trio.exchange import Inbound
from tests.simulate.core.router import Wishes
from tests.simulate.reading import Reader
from tests.simulate.story import EXCHANGE, Exchange
from tests.simulate.workers.pieces import (
    Answering,
    Cut,
    Data,
    End,
    Head,
    Piece,
    Raw,
    Request,
)

if TYPE_CHECKING:
    from tests.simulate.core.harness import CoreHarness

__all__ = ["CoreExchange"]

_NOT_CAPTURED: Final = sse.comment("x-slime-captured: false")
_MOST_SAMPLES: Final = Settings().max_samples_per_request
_PATIENCE_S: Final = 5.0
"""How long a request waits for a worker that may come, and …"""
_LOOK_S: Final = 0.25
"""… how often it looks."""
_ABORT_PATH: Final = "/abort_request"


class CoreExchange:
    """``ended`` is called once, when the agent has seen the end."""

    def __init__(
        self, harness: CoreHarness, exchange: Exchange, ended: Callable[[Exchange], None]
    ) -> None:
        self._harness = harness
        self._exchange = exchange
        self._conduct = exchange.ask.conduct
        self._reader = Reader(harness.world.story, exchange)
        self._ended = ended
        self._dialect: Dialect | None = None
        self._calls: Calls | None = None
        self._worker: WorkerUrl | None = None
        self._answering: Answering | None = None
        self._inbox: deque[Piece] = deque()
        self._ready_s = 0.0
        self._waits = False
        """The agent will read on after its pause."""
        self._head: Head | None = None
        self._collected = bytearray()
        self._decoder = sse.Decoder()
        self._stream: sglang.StreamAssembler | None = None
        self._begin = b""
        self._refused = False
        self._started = False
        self._closed = False
        """The agent has seen an end."""
        self._settled = False
        """The router is done with it."""
        self._pieces = 0

    # -- the agent's side ----------------------------------------------------------------

    def start(self) -> None:
        """The agent sends its request."""
        harness, conduct = self._harness, self._conduct
        if conduct.leave_after_s is not None:
            harness.after(conduct.delay_s + conduct.leave_after_s, self._leave)
        upload_s = 0.01 * (conduct.upload_pieces - 1)
        harness.after(conduct.delay_s + harness.delay_s + upload_s, self._arrive)

    def _leave(self) -> None:
        if not self._closed:
            self._close(self._reader.left)
            self._harness.after(self._harness.delay_s, self._client_gone)

    def _close(self, how: Callable[[float], None]) -> None:
        if self._closed:
            return
        self._closed = True
        how(self._harness.now)
        self._ended(self._exchange)

    def _tell_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._started = True
        if self._closed:
            return
        told = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers}
        self._reader.head(status, told)
        if self._conduct.leave_after_pieces == 0:
            self._leave()

    def _tell(self, data: bytes) -> None:
        if not data or self._closed:
            return
        self._reader.data(data)
        self._pieces += 1
        pause = self._conduct.read_pause_s
        if pause:
            self._ready_s = self._harness.now + pause
        if self._pieces == self._conduct.leave_after_pieces:
            self._leave()

    def _client_gone(self) -> None:
        """The router notices that nobody takes the answer any more."""
        if self._settled:
            return
        self._settle("client_gone", sampled=self._worker is not None)
        if self._dialect is not None and self._dialect.names_calls and self._calls is not None:
            for call in self._calls.calls:
                self._abort(call)

    def _abort(self, call: str) -> None:
        body = json.dumps({"rid": call}).encode()
        request = Request(method="POST", target=_ABORT_PATH, body=body)
        if self._worker is not None:
            self._harness.send_aside(self._worker, request)

    # -- the router's side: before the worker ---------------------------------------------

    def _arrive(self) -> None:
        if self._closed:
            return
        try:
            wishes = Wishes.of(self._inbound())
            self._dialect = self._parsed()
            self._open(self._dialect, wishes)
        except SlimeError as error:
            self._fail(error)
            return
        if self._conduct.half_close:
            # The shell takes a client that ends its sending side for one that has gone.
            self._client_gone()
            self._close(self._reader.broken)

    def _inbound(self) -> Inbound:
        ask = self._exchange.ask
        return Inbound(
            method="POST",
            path=ask.path,
            target=ask.path.encode(),
            headers=[(key.lower().encode(), value.encode()) for key, value in ask.headers],
            body=ask.raw if ask.raw is not None else json.dumps(ask.body).encode(),
        )

    def _parsed(self) -> Dialect:
        tokens, inbound = self._harness.world.tokens, self._inbound()
        if inbound.path == "/generate":
            request = sglang.parse_generate(inbound.body)
            if request.opaque:
                raise ClientError("this harness captures everything it is sent", status=501)
            return NativeDialect(request, inbound)
        size = tokens.tokenizer.vocab_size
        serving: Serving = {
            "vocabulary": tokens.vocabulary,
            "created": 0,
            "context_length": self._harness.world.knobs.context_length,
            "can_constrain_behind_reasoning": False,
        }
        if inbound.path == "/v1/completions":
            completion = openai.parse_completion(inbound.body, vocabulary_size=size)
            return CompletionsDialect(
                completion,
                inbound,
                **serving,
            )
        chat = openai.parse_chat(inbound.body, vocabulary_size=size)
        return ChatDialect(
            chat,
            inbound,
            ask=None if chat.input_ids is not None else self._harness.router.chat_ask(chat),
            chatting=tokens.chatting,
            **serving,
        )

    def _open(self, dialect: Dialect, wishes: Wishes) -> None:
        router = self._harness.router
        calls = router.calls(self._inbound().session, dialect.parent)
        self._calls = calls
        if dialect.asked.samples > _MOST_SAMPLES:
            raise ClientError("too many samples", param="n", code="integer_above_max_value")
        if dialect.by_text:
            router.tell_all()
        dialect.open(calls)
        prompts = router.encode(calls)
        body = dialect.worker_body(prompts, calls)
        self._place(body, prompts[0], wishes, self._harness.now + _PATIENCE_S)

    def _place(self, body: bytes, prompt: PackedIds, wishes: Wishes, until_s: float) -> None:
        """Take a worker's slot, or wait for one that may come, and send."""
        if self._settled:
            return
        harness, (_, calls) = self._harness, self._begun
        try:
            self._worker = harness.router.take(calls.calls, prompt, wishes)
        except SlimeError as error:
            if isinstance(error, NoWorker) and error.may_come and harness.now < until_s:
                harness.after(_LOOK_S, lambda: self._place(body, prompt, wishes, until_s))
            else:
                self._fail(error)
            return
        headers = ((EXCHANGE, str(self._exchange.number)),)
        request = Request(method="POST", target="/generate", headers=headers, body=body)
        harness.connect(self._worker, request, self)

    # -- the router's side: the worker answers --------------------------------------------

    def connected(self, answering: Answering) -> None:
        """The worker has the request."""
        if self._settled:
            self._harness.hang_up(self._worker, answering)
            return
        self._answering = answering

    def unreachable(self, code: str) -> None:
        """The worker took no connection."""
        if not self._settled:
            self._upstream_failed(code)

    def receive(self, piece: Piece) -> None:
        """A piece of the worker's answer has come to the router."""
        self._inbox.append(piece)
        self._drain()

    def _drain(self) -> None:
        """Handle what has come, as fast as the agent reads."""
        while self._inbox and not self._settled:
            now = self._harness.now
            if self._ready_s > now:
                self._wait(self._ready_s - now)
                return
            try:
                self._handle(self._inbox.popleft())
            except SlimeError as error:
                self._broke(error)

    def _wait(self, pause: float) -> None:
        if self._waits:
            return
        self._waits = True
        stall = self._harness.world.knobs.client_stall_s
        if pause > stall:
            self._harness.after(stall, self._client_gone)
            self._harness.after(stall, lambda: self._close(self._reader.broken))
        else:
            self._harness.after(pause, self._go_on)

    def _go_on(self) -> None:
        self._waits = False
        self._drain()

    def _handle(self, piece: Piece) -> None:
        match piece:
            case Head():
                self._on_head(piece)
            case Data(data):
                self._on_data(data)
            case End():
                self._on_end()
            case Cut() | Raw():
                raise _lost("connection_lost")

    @property
    def _is_stream(self) -> bool:
        return self._stream is not None

    def _on_head(self, head: Head) -> None:
        dialect, calls = self._begun
        self._head = head
        self._note(Event.ANSWERED)
        kind = dict(head.headers).get("content-type", "")
        if head.status != 200:
            calls.end("refused", sampled=False)
            if dialect.verbatim:
                self._tell_head(head.status, _bytes(head.headers) + self._marks())
        elif dialect.streams and kind.startswith("text/event-stream"):
            if dialect.verbatim:
                self._tell_head(200, self._headers())
            self._stream = sglang.StreamAssembler(dialect.asked)
            self._begin = dialect.begin()

    @property
    def _begun(self) -> tuple[Dialect, Calls]:
        assert self._dialect is not None
        assert self._calls is not None
        return self._dialect, self._calls

    def _on_data(self, data: bytes) -> None:
        assert self._head is not None
        if self._head.status != 200 and self._begun[0].verbatim:
            self._tell(data)
        elif self._stream is None:
            self._collected += data
        else:
            shown, error = self._steps(self._decoder.receive(data))
            if shown:
                shown, self._begin = self._begin + shown, b""
                self._tell_stream(shown)
            if error is not None:
                raise error

    def _on_end(self) -> None:
        assert self._head is not None
        dialect, _ = self._begun
        if self._head.status != 200:
            if not dialect.verbatim:
                raise sglang.worker_error(self._head.status, bytes(self._collected))
        elif self._stream is None:
            self._on_whole(bytes(self._collected))
        else:
            self._decoder.close()
            if not self._stream.finished and not self._refused:
                raise WorkerError("the worker's stream ended before its answer was complete")
            self._tell_stream(self._begin + dialect.end())
        self._settle("no_answer", sampled=True)
        self._close(self._reader.end)

    def _on_whole(self, body: bytes) -> None:
        dialect, _ = self._begun
        if dialect.streams and not dialect.verbatim:
            raise WorkerError("The worker gave no stream where one was asked for.")
        late = None if dialect.reads_logprobs else self._harness.router.unread_from
        answers = sglang.parse_answer(body, dialect.asked, unread_from=late)
        dialect.read(answers)
        kept = [self._keep(sample, answer) for sample, answer in enumerate(answers)]
        shown = dialect.whole(body, answers)
        headers = self._headers()
        if not all(kept):
            headers.append((b"x-slime-captured", b"false"))
        self._tell_head(200, headers)
        self._tell(shown)

    def _keep(self, sample: int, answer: sglang.Answer) -> bool:
        dialect, calls = self._begun
        assert self._worker is not None
        kept, shown = dialect.captured(sample, answer)
        aliases = dialect.aliases(sample)
        return calls.keep(sample, kept, self._worker, aliases=aliases, shown=shown)

    # -- streams --------------------------------------------------------------------------

    def _tell_stream(self, shown: bytes) -> None:
        if not self._started:
            self._tell_head(200, self._headers())
        self._tell(shown)

    def _steps(self, events: list[sse.Event]) -> tuple[bytes, SlimeError | None]:
        shown = []
        for event in events:
            try:
                shown.append(self._step(event))
            except SlimeError as error:
                return b"".join(shown), error
        return b"".join(shown), None

    def _step(self, event: sse.Event) -> bytes:
        dialect, _ = self._begun
        assert self._stream is not None
        shown = []
        for step in self._stream.receive(event):
            view, error = self._view(step)
            if step.sample is not None and step.finish_reason is not None:
                answer = self._stream.partial(step.sample)
                assert answer is not None
                if not self._keep(step.sample, answer):
                    shown.append(_NOT_CAPTURED)
            if step.error is not None:
                self._note_refusal()
            if error is not None:
                raise error
            shown.append(view)
            if step.sample is not None and step.finish_reason is not None:
                shown.append(dialect.finish(step.sample))
        return b"".join(shown)

    def _view(self, step: sglang.StreamStep) -> tuple[bytes, SlimeError | None]:
        try:
            return self._begun[0].step(step), None
        except SlimeError as error:
            return b"", error

    def _note_refusal(self) -> None:
        dialect, calls = self._begun
        assert self._stream is not None
        self._refused = True
        if all(self._stream.partial(one) is None for one in range(dialect.asked.samples)):
            calls.end("refused", sampled=False)

    # -- endings --------------------------------------------------------------------------

    def _broke(self, error: SlimeError) -> None:
        """The answer cannot go on."""
        dialect, _ = self._begun
        is_lost = error.code == "connection_lost"
        if is_lost and self._head is None:
            self._note(Event.CALL_FAILED)
        self._settle(error.code if is_lost else "no_answer", sampled=True)
        if self._is_stream and self._started:
            self._tell(dialect.error(error))
            self._close(self._reader.end)
        elif self._started:
            self._close(self._reader.broken)
        else:
            self._answer_error(error)

    def _note(self, event: Event) -> None:
        assert self._worker is not None
        self._harness.router.note_health(self._worker, event)

    def _upstream_failed(self, code: str) -> None:
        self._settle(code, sampled=False, unfit=True)
        self._answer_error(_lost(code))

    def _fail(self, error: SlimeError) -> None:
        """Refused before any worker was asked."""
        if self._calls is not None:
            self._calls.end("refused", sampled=False)
        self._settled = True
        self._answer_error(error)

    def _answer_error(self, error: SlimeError) -> None:
        native = self._exchange.ask.path == "/generate"
        calls = [] if self._calls is None else self._calls.calls
        headers = [(b"content-type", b"application/json")]
        if calls:
            headers.append((b"x-slime-call-id", ",".join(calls).encode()))
        if error.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % error.retry_after_s))
        self._tell_head(error.status, headers)
        self._tell(msgspec.json.encode(as_sglang(error) if native else as_openai(error)))
        self._close(self._reader.end)

    def _settle(self, lost: str, *, sampled: bool, unfit: bool = False) -> None:
        """What the relay's ``finally`` blocks do."""
        if self._settled or self._calls is None:
            return
        self._settled = True
        self._keep_partial()
        self._calls.end(lost, sampled=sampled)
        router = self._harness.router
        if self._worker is not None:
            if unfit:
                router.note_health(self._worker, Event.UNREACHABLE)
            router.commit(SlotsGiven(worker=self._worker, calls=tuple(self._calls.calls)))
        if self._answering is not None:
            self._harness.hang_up(self._worker, self._answering)

    def _keep_partial(self) -> None:
        if self._stream is None:
            return
        dialect, calls = self._begun
        for sample in range(dialect.asked.samples):
            if sample not in calls.in_flight:
                continue
            try:
                answer = self._stream.partial(sample)
                if answer is not None and answer.ids:
                    self._keep(sample, answer)
            except WorkerError:
                continue

    def _headers(self) -> list[tuple[bytes, bytes]]:
        dialect, _ = self._begun
        assert self._head is not None
        own = _bytes(self._head.headers) if dialect.verbatim else dialect.headers()
        return own + self._marks()

    def _marks(self) -> list[tuple[bytes, bytes]]:
        _, calls = self._begun
        marks = [(b"x-slime-call-id", ",".join(calls.calls).encode())]
        if calls.flags:
            marks.append((b"x-slime-flags", ",".join(calls.flags).encode()))
        return marks


def _lost(code: str) -> WorkerError:
    return WorkerError("the worker's connection failed", status=502, code=code)


def _bytes(headers: tuple[tuple[str, str], ...]) -> list[tuple[bytes, bytes]]:
    return [(key.encode(), value.encode()) for key, value in headers]
