"""Whole answers: the chat completion object and the list of models.

The specification requires ``logprobs`` in a choice and ``refusal`` in a message, null allowed; the
keys are not optional, and strict clients check them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict, Unpack

import msgspec

from slime_core.errors import InvariantError
from slime_core.openai.chat import ChatRequest
from slime_core.openai.logprobs import ShownToken, chat_entry
from slime_core.openai.reader import AnswerReader
from slime_core.sglang import Answer
from slime_core.types import PackedIds, unpack_ids, unpack_logprobs
from slime_core.vocabulary import Vocabulary

__all__ = [
    "Named",
    "chat_logprobs",
    "completion",
    "message_of",
    "meta_info",
    "model_card",
    "model_list",
    "usage",
]


class Named(TypedDict):
    """What every object and chunk of an answer begins with, and what reads its tokens."""

    id: str
    created: int
    model: str
    vocabulary: Vocabulary


def completion(
    chat: ChatRequest,
    *,
    answers: Sequence[Answer],
    readers: Sequence[AnswerReader],
    prompt_ids: PackedIds | None = None,
    prompt_tokens: int,
    cached_tokens: int = 0,
    **named: Unpack[Named],
) -> bytes:
    """The ``chat.completion`` object as JSON; ``answers`` in the order of the choices.

    ``readers`` have read them, each its own. ``prompt_ids`` is needed where the client asked to see
    them. Raises :class:`WorkerError` (or the error a worker reported) for an answer that was
    aborted: no client knows such a finish reason.
    """
    if not len(answers) == len(readers) == chat.n:
        raise InvariantError(f"{len(answers)} answers for {chat.n} choices")
    value: dict[str, Any] = {
        "id": named["id"],
        "object": "chat.completion",
        "created": named["created"],
        "model": named["model"],
        "choices": [
            _choice(chat, index, answer, reader, prompt_ids)
            for index, (answer, reader) in enumerate(zip(answers, readers, strict=True))
        ],
        "usage": usage(
            prompt_tokens,
            sum(answer.completion_tokens for answer in answers),
            cached_tokens,
            sum(answer.reasoning_tokens for answer in answers),
        ),
    }
    if chat.metadata is not None:
        value["metadata"] = chat.metadata
    return msgspec.json.encode(value)


def usage(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int, reasoning_tokens: int = 0
) -> dict[str, Any]:
    """The ``usage`` object. A prompt counts once, however many choices it has."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def chat_logprobs(tokens: Iterable[ShownToken]) -> dict[str, Any]:
    """A choice's ``logprobs``."""
    return {"content": [chat_entry(token) for token in tokens], "refusal": None}


def model_card(id: str, *, created: int, max_model_len: int | None = None) -> dict[str, Any]:
    """One entry of ``GET /v1/models``; ``max_model_len`` as SGLang adds it, in tokens."""
    card: dict[str, Any] = {
        "id": id,
        "object": "model",
        "created": created,
        "owned_by": "slime-router",
    }
    return card if max_model_len is None else {**card, "max_model_len": max_model_len}


def model_list(cards: Sequence[dict[str, Any]]) -> bytes:
    """The answer of ``GET /v1/models``."""
    return msgspec.json.encode({"object": "list", "data": cards})


def _choice(
    chat: ChatRequest,
    index: int,
    answer: Answer,
    reader: AnswerReader,
    prompt_ids: PackedIds | None,
) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "message": message_of(reader),
        "finish_reason": reader.finish_word,
        "logprobs": chat_logprobs(reader.shown_tokens) if chat.logprobs else None,
    }
    if chat.common.return_prompt_token_ids and prompt_ids is not None:
        choice["prompt_token_ids"] = unpack_ids(prompt_ids)
    if chat.common.return_token_ids:
        choice["response_token_ids"] = unpack_ids(answer.ids)
    if chat.return_meta_info:
        choice["meta_info"] = meta_info(answer, logprobs=chat.logprobs)
    return choice


def message_of(reader: AnswerReader) -> dict[str, Any]:
    """The message that ``reader`` has read, in OpenAI's form.

    ``content`` is null only beside tool calls; other keys are there only where they apply.
    """
    told = reader.message
    content = told.content if told.content is not None or told.tool_calls else ""
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if told.reasoning is not None:
        message["reasoning_content"] = told.reasoning
    if told.tool_calls:
        message["tool_calls"] = [
            {
                "id": id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for id, call in zip(reader.call_ids, told.tool_calls, strict=True)
        ]
    return message


def meta_info(answer: Answer, *, logprobs: bool) -> dict[str, Any]:
    """SGLang's ``meta_info`` under ``return_meta_info``, from what is kept of the answer."""
    reason = answer.finish_reason
    meta: dict[str, Any] = {
        "id": answer.id,
        "finish_reason": None if reason is None else {"type": reason.type},
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "cached_tokens": answer.cached_tokens,
        "weight_version": answer.weight_version,
        "weight_versions": [
            {"version": span.version, "start": span.start, "end": span.end}
            for span in answer.versions
        ],
    }
    if reason is not None and reason.matched is not None:
        meta["finish_reason"]["matched"] = reason.matched
    if logprobs and answer.logprobs:
        ids = unpack_ids(answer.ids)
        known = unpack_logprobs(answer.logprobs, len(ids))
        meta["output_token_logprobs"] = [
            [logprob, token, None] for logprob, token in zip(known, ids, strict=True)
        ]
    return meta | {name: msgspec.Raw(raw) for name, raw in answer.extras.items()}
