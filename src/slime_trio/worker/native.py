"""``/generate``: SGLang's own dialect over HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
import trio
from quart import Response, request

from slime_core import sse
from slime_core.engine import Refusal, Wording, framework_error
from slime_trio.worker.replies import StreamCut, event, json_reply, refusal_reply, stream_reply
from slime_trio.worker.service import Planned, Worker

__all__ = ["body_of_request", "faulty_reply", "generate"]


async def body_of_request() -> Any:
    """The request's JSON. Raises ``Refusal`` for a missing or malformed body."""
    raw = await request.get_data()
    if not raw:
        raise framework_error("the request has no body")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise framework_error(f"the body is not JSON: {error}") from None


async def generate(worker: Worker) -> Response:
    """``POST /generate`` and ``PUT /generate``."""
    faulty = await faulty_reply(worker)
    if faulty is not None:
        return faulty
    stream = False
    try:
        call = worker.parse(await body_of_request())
        stream = call.stream
        planned = worker.plan(call)
        if stream:
            return stream_reply(lambda: _events(worker, planned))
        answers = await worker.answers(planned)
    except Refusal as refusal:
        # A stream's headers are out before SGLang's manager looks at the request.
        if stream and refusal.wording is Wording.MANAGER:
            return _refused_stream(refusal)
        return refusal_reply(refusal)
    value = answers if call.many else answers[0]
    if worker.faults.active("truncate-json"):
        whole = msgspec.json.encode(value)
        return Response(whole[: len(whole) // 2], 200, content_type="application/json")
    return json_reply(value)


async def _events(worker: Worker, planned: Planned) -> AsyncGenerator[bytes, None]:
    incremental = worker.options.incremental_streaming_output
    cut, sent = worker.faults.number("cut-stream"), 0
    async with aclosing(worker.chunks(planned, incremental=incremental)) as chunks:
        async for chunk in chunks:
            if cut is not None and sent >= cut:
                raise StreamCut
            sent += 1
            answer = chunk.answer | ({"index": chunk.index} if planned.call.many else {})
            broken = worker.faults.active("truncate-json") and chunk.finish is not None
            yield _half_event(answer) if broken else event(answer)
    yield sse.DONE


def _half_event(value: Any) -> bytes:
    whole = msgspec.json.encode(value)
    return sse.encode(whole[: len(whole) // 2])


def _refused_stream(refusal: Refusal) -> Response:
    async def events() -> AsyncGenerator[bytes, None]:
        yield event(
            {
                "error": {
                    "message": refusal.message,
                    "type": "invalid_request_error",
                    "code": refusal.status,
                    "retryable": False,
                }
            }
        )
        yield sse.DONE

    return stream_reply(events)


async def faulty_reply(worker: Worker) -> Response | None:
    """The answer of a worker that misbehaves before it begins, if it does."""
    faults = worker.faults
    if worker.released:
        return refusal_reply(_broken("the worker is without its memory", 500))
    if faults.active("hang"):
        await trio.sleep_forever()
    if faults.active("refuse"):
        return refusal_reply(_broken("the worker refuses on purpose", 503))
    if faults.take_failure():
        return refusal_reply(_broken("the worker fails on purpose", 500))
    if faults.active("garbage"):
        return Response(b"\x00\xffthis is {not json", 200, content_type="application/json")
    return None


def _broken(message: str, status: int) -> Refusal:
    return Refusal(message, wording=Wording.FRAMEWORK, status=status)
