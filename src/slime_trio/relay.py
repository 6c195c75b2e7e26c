"""The life of a ``/generate`` request: the file to open first.

    parse → look up and open the calls → encode what is new → take a slot → ask the worker
          → check and commit what was sampled → tell the client

Two rules shape the order. A turn is committed before the byte or event that tells the client it
is complete. And whatever ends a request early (the client leaves, the worker breaks off, we are
shut down) runs the ``finally`` blocks, which await nothing: the slot is given back, and calls
still open are kept as far as they came or counted as lost.

Nothing here knows ASGI or sockets of clients; see :mod:`slime_trio.exchange`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import msgspec
import trio

from slime_core import sglang, sse
from slime_core.errors import ClientError, SlimeError, WorkerError, as_sglang
from slime_core.transitions import CallLost, CallOpened, SlotsGiven, SlotsTaken
from slime_core.types import CallId, Encoding, WorkerUrl
from slime_trio.capture import Capture, wish_of
from slime_trio.exchange import ClientGone, Headers, Inbound, Reply, for_client, for_worker
from slime_trio.router import Router
from slime_trio.upstream import Response, UpstreamError

__all__ = ["forward", "generate", "slots"]

_GENERATE: Final = b"/generate"


@contextmanager
def slots(router: Router, calls: list[CallId]) -> Iterator[WorkerUrl]:
    """Occupy a worker with ``calls``; its URL. Given back whatever happens."""
    worker = router.choose_worker().url
    taken = tuple(calls)
    router.commit(SlotsTaken(worker=worker, calls=taken))
    try:
        yield worker
    finally:
        router.commit(SlotsGiven(worker=worker, calls=taken))


async def generate(router: Router, inbound: Inbound, reply: Reply) -> None:
    """Serve ``POST /generate``. Raises ``SlimeError`` before ``reply`` was started."""
    if not router.captures:
        await forward(router, inbound, reply)
        return
    request = sglang.parse_generate(inbound.body)
    if request.opaque:
        await forward(router, inbound, reply, reason="not_capturable")
        return
    await _Generation(router, inbound, reply, request).run()


async def forward(
    router: Router, inbound: Inbound, reply: Reply, *, reason: str | None = None
) -> None:
    """Pass a request and its answer through, byte for byte.

    With ``reason`` it is a generation that cannot be captured: it is counted, and says so.
    """
    call = router.new_call_id()
    if reason is not None:
        router.commit(CallOpened(call=call, parent=None, session=inbound.session))
    try:
        with slots(router, [call]) as worker:
            headers = for_worker(inbound.headers, readable=False)
            async with router.pool.request(
                inbound.method, worker, inbound.target, headers, inbound.body
            ) as response:
                marks = [] if reason is None else [(b"x-slime-captured", b"false")]
                await _pass(response, reply, marks)
    finally:
        if reason is not None:
            router.commit(CallLost(call=call, reason=reason, sampled=True))


async def _pass(response: Response, reply: Reply, marks: Headers) -> None:
    """A worker's answer as it is."""
    await reply.start(response.status, for_client(response.headers, same_body=True) + marks)
    async for data in response.iter_bytes():
        await reply.send(data)


class _Generation:
    """One request whose calls are captured."""

    def __init__(
        self, router: Router, inbound: Inbound, reply: Reply, request: sglang.GenerateRequest
    ) -> None:
        self._router = router
        self._inbound = inbound
        self._reply = reply
        self._request = request
        self._capture = Capture(router, wish_of(router, inbound.session, _parent(request, inbound)))
        self._stream: sglang.StreamAssembler | None = None

    async def run(self) -> None:
        capture = self._capture
        try:
            body = await self._prepare()
            with slots(self._router, capture.calls) as worker:
                await self._ask_and_settle(worker, body)
        finally:
            capture.end("refused", sampled=False)

    async def _ask_and_settle(self, worker: WorkerUrl, body: bytes) -> None:
        """Ask, and settle what is still open if the asking ends in any other way than well."""
        try:
            await self._ask(worker, body)
        except UpstreamError as error:
            self._keep_partial(worker)
            self._capture.end(error.code, sampled=not error.code.startswith("connect"))
            raise
        except (ClientGone, trio.Cancelled):
            self._keep_partial(worker)
            self._capture.end("client_gone", sampled=True)
            self._abort(worker)
            raise
        finally:
            self._keep_partial(worker)
            self._capture.end("no_answer", sampled=True)

    def _abort(self, worker: WorkerUrl) -> None:
        """Tell the worker at once; it would notice the closed connection only after a while.

        Not by a client's own id: workers match by prefix, which could end others' calls too.
        """
        if not self._request.client_rids and self._request.n == 1:
            self._router.abort_later(worker, self._capture.calls)

    async def _prepare(self) -> bytes:
        """Open the calls and make the worker's request."""
        request, capture = self._request, self._capture
        by_text = isinstance(request.prompts[0], sglang.TextPrompt)
        if by_text:
            await self._router.tell_all()
        for prompt in request.prompts:
            match prompt:
                case sglang.TextPrompt(text=text):
                    capture.open_text(text, Encoding.RAW, request.n)
                case sglang.IdsPrompt(ids=ids):
                    capture.open_ids(ids, request.n)
                case sglang.EmbedsPrompt():
                    raise ClientError("a batch cannot mix embeddings", param="input_embeds")
        whole = await capture.encode()
        rids: str | list[str] = list(capture.calls[:: request.n])
        return sglang.encode_generate(
            request,
            input_ids=whole if by_text else None,
            rids=rids if request.batch else rids[0],
        )

    async def _ask(self, worker: WorkerUrl, body: bytes) -> None:
        headers = for_worker(self._inbound.headers, readable=True)
        async with self._router.pool.request("POST", worker, _GENERATE, headers, body) as response:
            kind = response.header(b"content-type") or b""
            if response.status != 200:
                self._capture.end("refused", sampled=False)
                await _pass(response, self._reply, self._marks())
            elif self._request.stream and kind.startswith(b"text/event-stream"):
                await self._relay_stream(response, worker)
            else:
                await self._relay_whole(response, worker)

    def _marks(self) -> Headers:
        """What every answer tells of its capture."""
        capture = self._capture
        marks = [(b"x-slime-call-id", ",".join(capture.calls).encode())]
        if capture.flags:
            marks.append((b"x-slime-flags", ",".join(capture.flags).encode()))
        return marks

    async def _relay_whole(self, response: Response, worker: WorkerUrl) -> None:
        body = await response.read(max_bytes=self._router.args.max_answer_mb * 2**20)
        answers = sglang.parse_answer(body, self._request)
        kept = [self._capture.keep(sample, answer, worker) for sample, answer in enumerate(answers)]
        shown = sglang.strip_logprobs(body, self._request)
        headers = for_client(response.headers, same_body=shown is body) + self._marks()
        if not all(kept):
            headers.append((b"x-slime-captured", b"false"))
        await self._reply.start(200, headers)
        await self._reply.send(shown)

    async def _relay_stream(self, response: Response, worker: WorkerUrl) -> None:
        headers = for_client(response.headers, same_body=False) + self._marks()
        await self._reply.start(200, headers)
        decoder = sse.Decoder()
        self._stream = sglang.StreamAssembler(self._request)
        try:
            async for data in response.iter_bytes():
                events = decoder.receive(data)
                shown = b"".join(self._step(event, worker) for event in events)
                if shown:
                    await self._reply.send(shown)
            decoder.close()
            if not (self._stream.finished or self._stream.done):
                raise WorkerError("the worker's stream ended before its answer was complete")
        except SlimeError as error:
            await self._reply.send(sse.encode(msgspec.json.encode(as_sglang(error))))

    def _step(self, event: sse.Event, worker: WorkerUrl) -> bytes:
        """The client's view of an event; what the event completes is committed first."""
        assert self._stream is not None
        shown = []
        for step in self._stream.receive(event):
            if step.sample is not None and step.finish_reason is not None:
                answer = self._stream.partial(step.sample)
                assert answer is not None
                self._capture.keep(step.sample, answer, worker)
            shown.append(step.raw)
        return b"".join(shown)

    def _keep_partial(self, worker: WorkerUrl) -> None:
        """Keep what a broken-off stream brought: explicitly partial."""
        if self._stream is None:
            return
        for sample in range(self._request.samples):
            answer = self._stream.partial(sample)
            if self._capture.is_open(sample) and answer is not None and answer.ids:
                self._capture.keep(sample, answer, worker)


def _parent(request: sglang.GenerateRequest, inbound: Inbound) -> str | None:
    """The call that the client says it extends: ``parent_id`` or ``x-slime-parent-id``."""
    raw = dict(request.fields).get("parent_id")
    if raw is None:
        return inbound.header(b"x-slime-parent-id")
    try:
        return msgspec.json.decode(raw, type=str | None)
    except msgspec.ValidationError:
        raise ClientError("parent_id must be a string", param="parent_id") from None
