"""What can go wrong with a pair, by the side that failed."""

from __future__ import annotations

from typing import Final, Literal, cast

from slime_core.disaggregation import Abort
from slime_core.errors import SlimeError, WorkerError
from slime_core.sglang import worker_error
from slime_trio.upstream import FailureCode, UpstreamError

__all__ = [
    "PairError",
    "Side",
    "failure_worded_as_abort",
    "is_retryable",
    "refusal",
    "timeout",
    "transport_failure",
]

Side = Literal["prefill", "decode"]
"""Which of the two workers."""

_CODES: Final[dict[Side, dict[str, str]]] = {
    "prefill": {
        "connect_failed": "prefill_unreachable",
        "connect_timeout": "prefill_unreachable",
        "connection_lost": "prefill_connection_lost",
        "worker_timeout": "prefill_timeout",
        "bad_response_framing": "prefill_bad_answer",
        "response_too_large": "prefill_bad_answer",
        "": "prefill_error",
    },
    "decode": {
        "connect_failed": "decode_unreachable",
        "connect_timeout": "decode_unreachable",
        "connection_lost": "decode_connection_lost",
        "worker_timeout": "decode_timeout",
        "bad_response_framing": "decode_bad_answer",
        "response_too_large": "decode_bad_answer",
        "": "decode_error",
    },
}
"""What the connection met, or ``""`` for what the worker said itself -> the error's code."""
_RETRYABLE: Final = (408, 429)


class PairError(UpstreamError):
    """One worker of a pair failed, and the other was stopped.

    ``code`` names the side: ``prefill_unreachable``, ``prefill_connection_lost``,
    ``prefill_timeout``, ``prefill_bad_answer``, ``prefill_error`` (it answered with an error), and
    the same for ``decode``; or ``pd_timeout``, for which neither is to blame. ``status`` is what
    the side answered with, 502 or 504 where it did not answer. ``worker_url`` is the worker that
    failed. ``cause`` is what the connection met; ``None``: the worker said so itself.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int,
        worker_url: str,
        cause: FailureCode | None = None,
        first_byte_sent: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        # Not UpstreamError's own: its table words the failures of a lone worker.
        WorkerError.__init__(
            self,
            message,
            status=status,
            code=code,
            first_byte_sent=first_byte_sent,
            retry_after_s=retry_after_s,
        )
        self.worker_url = worker_url
        self.cause = cause


def is_retryable(status: int) -> bool:
    """Whether another pair might do better where a worker answered with this status."""
    return status >= 500 or status in _RETRYABLE


def transport_failure(side: Side, error: UpstreamError) -> PairError:
    """A connection of one side failed."""
    cause = cast("FailureCode", error.code)
    return PairError(
        _CODES[side][cause],
        f"The {side} side: {error.message}",
        status=error.status,
        worker_url=error.worker_url,
        cause=cause,
        first_byte_sent=error.first_byte_sent,
    )


def refusal(side: Side, worker_url: str, status: int, body: bytes) -> PairError:
    """One side answered with an error; its words are passed on."""
    said: SlimeError = worker_error(status, body)
    return PairError(
        _CODES[side][""],
        f"The {side} worker: {said.message}",
        status=status,
        worker_url=worker_url,
        retry_after_s=said.retry_after_s,
    )


def failure_worded_as_abort(side: Side, worker_url: str, abort: Abort) -> PairError:
    """One side's stream tells of a failure (a transfer, an exhausted cache) as a finish reason."""
    return PairError(
        _CODES[side][""],
        f"The {side} worker: {abort.message}",
        status=abort.status or 500,
        worker_url=worker_url,
    )


def timeout(worker_url: str) -> PairError:
    """Both took too long together (``--pd-timeout-s``)."""
    return PairError(
        "pd_timeout",
        "The pair of workers did not complete the answer in time.",
        status=504,
        worker_url=worker_url,
        first_byte_sent=True,
    )
