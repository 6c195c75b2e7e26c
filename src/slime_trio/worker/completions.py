"""``/v1/chat/completions`` and ``/v1/completions`` over HTTP."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from quart import Response, request

from slime_core import sse
from slime_core.engine import Abort, Refusal, Wording, framework_error
from slime_core.engine.openai_dialect import (
    chat_answer,
    chat_body,
    completion_answer,
    completion_body,
    completion_choice,
    logprob_content,
    usage,
)
from slime_core.errors import ClientError
from slime_trio.worker.native import body_of_request, faulty_reply
from slime_trio.worker.replies import StreamCut, event, json_reply, refusal_reply, stream_reply
from slime_trio.worker.service import Chunk, Planned, Worker

__all__ = ["chat_completions", "text_completions"]

Body = Mapping[str, Any]


async def chat_completions(worker: Worker) -> Response:
    faulty = await faulty_reply(worker)
    if faulty is not None:
        return faulty
    try:
        body = await _body()
        planned = worker.plan(worker.parse(chat_body(body, await _prompt_ids(worker, body))))
        if planned.call.stream:
            return stream_reply(lambda: _chat_events(worker, planned, body))
        answers = await worker.answers(planned)
    except ClientError as error:
        return _refused(error)
    return json_reply(
        chat_answer(
            body,
            answers,
            model=_model(body),
            created=int(time.time()),
            bytes_of=worker.model.vocabulary.bytes_of,
        )
    )


async def text_completions(worker: Worker) -> Response:
    faulty = await faulty_reply(worker)
    if faulty is not None:
        return faulty
    try:
        body = await _body()
        planned = worker.plan(worker.parse(completion_body(body)))
        if planned.call.stream:
            return stream_reply(lambda: _text_events(worker, planned, body))
        answers = await worker.answers(planned)
    except ClientError as error:
        return _refused(error)
    return json_reply(
        completion_answer(
            body, answers, model=_model(body), created=int(time.time()), n=planned.call.n
        )
    )


async def _body() -> Body:
    if request.mimetype != "application/json":
        raise framework_error("Unsupported Media Type: Only 'application/json' is allowed")
    body = await body_of_request()
    if not isinstance(body, Mapping):
        raise framework_error("the body must be a JSON object")
    return body


def _refused(error: ClientError) -> Response:
    """These endpoints word every refusal alike."""
    if isinstance(error, Refusal) and error.status >= 500:
        return refusal_reply(error)
    refusal = Refusal(error.message, wording=Wording.FRAMEWORK, status=error.status)
    return json_reply(refusal.body | {"type": "BadRequestError"}, error.status)


def _model(body: Body) -> str:
    return str(body.get("model") or "default")


async def _prompt_ids(worker: Worker, body: Body) -> list[int]:
    """The ids the request brings, or its messages rendered and encoded."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise framework_error("messages must be a list with at least one message")
    if body.get("continue_final_message"):
        raise framework_error("continue_final_message is not supported by this worker")
    ids = body.get("input_ids")
    if ids is not None:
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise framework_error("input_ids must be a list of integers")
        return ids
    rendered = (await worker.template()).render(
        messages,
        tools=body.get("tools"),
        add_generation_prompt=True,
        chat_template_kwargs=body.get("chat_template_kwargs"),
    )
    return worker.model.encode(rendered, add_special_tokens=False)


@dataclass(slots=True)
class _Stream:
    """The frame that all events of one stream share, and the last answer of each sample."""

    worker: Worker
    planned: Planned
    body: Body
    kind: str
    created: int = field(default_factory=lambda: int(time.time()))
    last: dict[int, dict[str, Any]] = field(default_factory=dict)
    told: dict[int, int] = field(default_factory=dict)

    def event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        frame = {
            "id": self.planned.generations[0].rid,
            "object": self.kind,
            "created": self.created,
            "model": _model(self.body),
            "choices": choices,
        }
        return event(frame | more)

    def usage_event(self) -> bytes | None:
        options = self.body.get("stream_options")
        if not (isinstance(options, Mapping) and options.get("include_usage")):
            return None
        answers = [self.last[index] for index in sorted(self.last)]
        return self.event([], usage=usage(answers, self.planned.call.n))


Shape = Callable[[_Stream, Chunk], list[bytes]]


async def _events(stream: _Stream, shape: Shape) -> AsyncGenerator[bytes, None]:
    """Deltas of all samples, the usage if asked for, and the end mark."""
    cut, sent = stream.worker.faults.number("cut-stream"), 0
    async with aclosing(stream.worker.chunks(stream.planned, incremental=True)) as chunks:
        async for chunk in chunks:
            stream.last[chunk.index] = chunk.answer
            if isinstance(chunk.finish, Abort) and chunk.finish.status is not None:
                message, code = chunk.finish.message, chunk.finish.status
                yield event({"error": {"message": message, "type": str(code), "code": code}})
                continue
            for data in shape(stream, chunk):
                if cut is not None and sent >= cut:
                    raise StreamCut
                sent += 1
                yield data
    last = stream.usage_event()
    if last is not None:
        yield last
    yield sse.DONE


def _chat_events(worker: Worker, planned: Planned, body: Body) -> AsyncGenerator[bytes, None]:
    return _events(_Stream(worker, planned, body, "chat.completion.chunk"), _chat_shape)


def _text_events(worker: Worker, planned: Planned, body: Body) -> AsyncGenerator[bytes, None]:
    return _events(_Stream(worker, planned, body, "text_completion"), _text_shape)


def _chat_shape(stream: _Stream, chunk: Chunk) -> list[bytes]:
    index, answer = chunk.index, chunk.answer
    meta = answer["meta_info"]
    events = []
    if index not in stream.told:
        stream.told[index] = 0
        first = {"role": "assistant", "content": "", "reasoning_content": None, "tool_calls": None}
        events.append(stream.event([_chat_delta(index, first)]))
    if answer["text"] or meta.get("output_token_logprobs"):
        delta = {"content": answer["text"], "reasoning_content": None, "tool_calls": None}
        choice = _chat_delta(index, delta)
        if "output_token_logprobs" in meta:
            bytes_of = stream.worker.model.vocabulary.bytes_of
            choice["logprobs"] = {"content": logprob_content(meta, 0, bytes_of)}
        events.append(stream.event([choice]))
    finish = meta["finish_reason"]
    if finish is not None:
        last = _chat_delta(index, {"content": None, "reasoning_content": None, "tool_calls": None})
        last |= {"finish_reason": finish["type"], "matched_stop": finish.get("matched")}
        events.append(stream.event([last]))
    return events


def _chat_delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": index,
        "delta": delta,
        "logprobs": None,
        "finish_reason": None,
        "matched_stop": None,
    }


def _text_shape(stream: _Stream, chunk: Chunk) -> list[bytes]:
    n = stream.planned.call.n
    choice = completion_choice(stream.body, chunk.index, chunk.answer, n=n)
    if chunk.index in stream.told:
        choice.pop("prompt_token_ids", None)
    stream.told[chunk.index] = 0
    return [stream.event([choice])]
