"""What a worker says when it refuses, in one form.

SGLang 0.5.23 words errors in three ways, by where they arise: ``{"error": "text"}``,
``{"error": {"message": …}}`` and, flat, ``{"object": "error", "message": …}``; its framework adds
``{"detail": …}`` for unknown paths. OpenAI clients break on all but their own form, so for them
every one is read here and worded anew. On native paths status and body pass through untouched.
"""

from __future__ import annotations

import re
from typing import Any, Final, TypeVar

import msgspec

from slime_core.errors import ClientError, SlimeError, WorkerError
from slime_core.strict_json import Decodes, FieldTypeError, decode_typed

__all__ = [
    "abort_error",
    "error_of",
    "overflow_message",
    "passed_error",
    "read_json",
    "worker_error",
]

T = TypeVar("T")

_ANY: Final = msgspec.json.Decoder(Any)
_WORDS_MAX: Final = 2000

# The wordings of a prompt that is too long, all of which name the limit. More digits than these are
# none, and too many are a number that Python refuses to read.
_OVERFLOW: Final = re.compile(
    r"context length(?: of|:)? ?\(?(?P<limit>[0-9]{1,18})(?![0-9])", re.IGNORECASE
)


def worker_error(status: int, body: bytes, *, param: str | None = None) -> SlimeError:
    """The error behind a worker's answer with a status other than 200.

    A 400 is the client's doing: :class:`ClientError`, whose ``param`` is the given one, since
    workers do not name fields. All else is a :class:`WorkerError`: 429 and 5xx keep their status,
    and what cannot be a client's doing (a refused key, an unknown path, a redirect) is a 502.
    """
    return error_of(status, _message(body) or f"The worker answered with status {status}.", param)


def passed_error(status: int, body: bytes) -> SlimeError:
    """The error behind an answer that is passed on and not in OpenAI's words; its status stays."""
    words = _message(body) or f"The worker answered with status {status}."
    if status < 500:
        return ClientError(words, status=status, code="worker_error")
    return WorkerError(words, status=status, code="worker_error")


def abort_error(message: str | None, status: int | None, *, param: str | None = None) -> SlimeError:
    """The error behind a finish reason ``abort``: with a status as above, else a 503.

    Without a status the generation was cut by a pause or a weight update and may be tried again.
    """
    if status is not None:
        return error_of(status, message or "The worker aborted the generation.", param)
    return WorkerError(
        "The generation was aborted before it was complete; please try again.",
        status=503,
        code="generation_aborted",
        retry_after_s=1.0,
    )


def error_of(status: int, message: str, param: str | None = None) -> SlimeError:
    """The error for a worker's status and words."""
    if status in {400, 413, 422}:
        limit = _OVERFLOW.search(message)
        if limit is not None:
            return ClientError(
                overflow_message(int(limit["limit"])) + f" {message}",
                code="context_length_exceeded",
                param=param,
            )
        return ClientError(message, status=400, param=param)
    if status == 429:
        return WorkerError(message, status=429, code="rate_limit_exceeded", retry_after_s=1.0)
    if status == 503:
        return WorkerError(message, status=503, code="worker_unavailable", retry_after_s=1.0)
    if 500 <= status <= 599:
        return WorkerError(message, status=status, code="worker_error")
    return WorkerError(f"The worker answered with status {status}: {message}")


def overflow_message(limit: int) -> str:
    """The words by which clients recognise a full context.

    They match text: some the sentence (LiteLLM, OpenHands), some the code (LangChain), which SDKs
    do not always repeat from the error's other fields.
    """
    return f"This model's maximum context length is {limit} tokens. Code: context_length_exceeded."


def read_json(decoder: Decodes[T], data: bytes | msgspec.Raw, what: str) -> T:
    """A worker's JSON by type. Raises :class:`WorkerError`, which names ``what`` was wrong."""
    try:
        return decode_typed(decoder, data)
    except FieldTypeError as error:
        raise WorkerError(
            f"The worker's answer cannot be read: {what}{error.path}: {error.message}."
        ) from None


def _message(body: bytes) -> str:
    """The words in any of the forms; of a body in no form its beginning; else nothing."""
    try:
        answer = decode_typed(_ANY, body)
    except FieldTypeError:
        return body[:_WORDS_MAX].decode("utf-8", "replace").strip()
    if isinstance(answer, dict):
        error = answer.get("error")
        inner = error.get("message") if isinstance(error, dict) else error
        for words in (inner, answer.get("message"), answer.get("detail")):
            if isinstance(words, str) and words:
                return words[:_WORDS_MAX]
    return answer[:_WORDS_MAX] if isinstance(answer, str) else ""
