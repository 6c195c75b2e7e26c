"""The one table in which everything that can go wrong with a worker's connection has its name."""

from __future__ import annotations

from typing import Final, Literal

from slime_core.errors import WorkerError
from slime_trio.byte_stream import STREAM_FAILURES

__all__ = ["FAILURES", "STREAM_FAILURES", "FailureCode", "UpstreamError"]

FailureCode = Literal[
    "connect_failed",
    "connect_timeout",
    "worker_timeout",
    "connection_lost",
    "bad_response_framing",
    "response_too_large",
]

FAILURES: Final[dict[FailureCode, tuple[int, str]]] = {
    "connect_failed": (502, "the worker could not be reached"),
    "connect_timeout": (504, "the worker did not accept a connection in time"),
    "worker_timeout": (504, "the worker did not answer in time"),
    "connection_lost": (502, "the worker closed the connection before its answer was complete"),
    "bad_response_framing": (502, "the worker's answer is not well-formed HTTP"),
    "response_too_large": (502, "the worker's answer is larger than the router accepts"),
}
"""Code → (HTTP status, words for a client). The words name no address: clients see them.

``STREAM_FAILURES`` mean ``connect_failed`` while connecting, afterwards ``connection_lost``.
"""


class UpstreamError(WorkerError):
    """A failed exchange with one worker.

    ``code`` is a :data:`FailureCode`; ``worker_url`` says which worker, for logs, and is in no
    message. ``first_byte_sent`` is true once a byte of the answer had arrived: from then on the
    worker has certainly begun, and the same request must not be sent to another one unasked.
    """

    def __init__(
        self, code: FailureCode, *, worker_url: str, first_byte_sent: bool = False
    ) -> None:
        status, message = FAILURES[code]
        super().__init__(message, status=status, code=code, first_byte_sent=first_byte_sent)
        self.worker_url = worker_url
