"""How an error is told to a client: its status, its header fields, its words.

In the dialect of the request's path; a traceback goes to the log and never to a client.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
import structlog

from slime_core.errors import InvariantError, SlimeError, as_openai, as_sglang
from slime_trio.exchange import Headers
from slime_trio.observability.about import note_refusal
from slime_trio.relay import CALLS_NAMED

__all__ = ["ErrorAnswer", "error_answer", "told_as"]

_OPENAI_PATHS: Final = "/v1/"

_log: Any = structlog.get_logger("slime_router")


class ErrorAnswer(NamedTuple):
    """An answer that tells of an error; ``headers`` without those of the body, which is JSON."""

    status: int
    headers: Headers
    body: bytes


def told_as(error: Exception, path: str) -> SlimeError:
    """``error`` as a client may hear of it. What nobody expected is logged, with all there is."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, SlimeError) or isinstance(error, InvariantError):
        _log.error("internal error", path=path, exc_info=error)
    return error if isinstance(error, SlimeError) else InvariantError("internal error")


def error_answer(error: SlimeError, path: str) -> ErrorAnswer:
    """The answer to a request for ``path``; the request's books are told of it."""
    note_refusal(error)
    told = as_openai(error) if path.startswith(_OPENAI_PATHS) else as_sglang(error)
    headers: Headers = []
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if 0 < len(error.calls) <= CALLS_NAMED:
        headers.append((b"x-slime-call-id", ",".join(error.calls).encode()))
    if error.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(error.retry_after_s))))
        headers.append((b"retry-after-ms", b"%d" % round(error.retry_after_s * 1000)))
    return ErrorAnswer(error.status, headers, msgspec.json.encode(told))
