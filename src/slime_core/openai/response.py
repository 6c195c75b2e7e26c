"""Whole answers: the chat completion object and the list of models.

The specification requires ``logprobs`` in a choice and ``refusal`` in a message, null allowed; the
keys are not optional, and strict clients check them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from slime_core.errors import InvariantError, WorkerError
from slime_core.openai.chat import ChatRequest
from slime_core.openai.logprobs import ShownToken, TokenBook, answer_logprobs, chat_entry
from slime_core.sglang import Answer, FinishReason, abort_error
from slime_core.types import PackedIds, unpack_ids, unpack_logprobs

__all__ = [
    "chat_logprobs",
    "completion",
    "finish_word",
    "model_card",
    "model_list",
    "shown_text",
    "usage",
]


def completion(
    chat: ChatRequest,
    *,
    id: str,
    created: int,
    model: str,
    answers: Sequence[Answer],
    vocabulary: TokenBook,
    prompt_ids: PackedIds | None = None,
    prompt_tokens: int,
    cached_tokens: int = 0,
) -> bytes:
    """The ``chat.completion`` object as JSON; ``answers`` in the order of the choices.

    ``created`` is in Unix seconds. ``prompt_ids`` is needed where the client asked to see them.
    Raises :class:`WorkerError` (or the error a worker reported) for an answer that was aborted:
    no client knows such a finish reason.
    """
    if len(answers) != chat.n:
        raise InvariantError(f"{len(answers)} answers for {chat.n} choices")
    value: dict[str, Any] = {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            _choice(chat, index, answer, vocabulary, prompt_ids)
            for index, answer in enumerate(answers)
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


def finish_word(reason: FinishReason | None) -> str:
    """A worker's finish reason in OpenAI's words. Raises for an abort and for none at all."""
    if reason is None:
        raise WorkerError("The worker gave no finish reason.")
    if reason.type == "abort":
        raise abort_error(reason.message, reason.status_code)
    if reason.type not in {"stop", "length"}:
        raise WorkerError(f"The worker gave an unknown finish reason, {reason.type!r}.")
    return reason.type


def shown_text(answer: Answer) -> str:
    """The text of an answer. Raises :class:`WorkerError` where the worker gave none."""
    if answer.text is None:
        raise WorkerError("The worker gave no text; is it running without a tokenizer?")
    return answer.text


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
    vocabulary: TokenBook,
    prompt_ids: PackedIds | None,
) -> dict[str, Any]:
    reason = finish_word(answer.finish_reason)
    choice: dict[str, Any] = {
        "index": index,
        "message": {"role": "assistant", "content": shown_text(answer), "refusal": None},
        "finish_reason": reason,
        "logprobs": None,
    }
    if chat.logprobs:
        skip = chat.common.skip_special_tokens
        tokens = answer_logprobs(answer, vocabulary, top=chat.top_logprobs, skip_special=skip)
        choice["logprobs"] = chat_logprobs(tokens)
    if chat.common.return_prompt_token_ids and prompt_ids is not None:
        choice["prompt_token_ids"] = unpack_ids(prompt_ids)
    if chat.common.return_token_ids:
        choice["response_token_ids"] = unpack_ids(answer.ids)
    if chat.return_meta_info:
        choice["meta_info"] = _meta_info(answer, logprobs=chat.logprobs)
    return choice


def _meta_info(answer: Answer, *, logprobs: bool) -> dict[str, Any]:
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
