"""Who is at fault: the client, a worker, or we.

A proxy has three parties, and every error this package raises on purpose names one of them:

* :class:`ClientError` — the request cannot be served as it stands (4xx);
* :class:`WorkerError` — a worker broke its promise (5xx); ``first_byte_sent`` tells whether an
  answer had already begun, which decides if anything else may still be tried;
* :class:`InvariantError` — our own bug. It is never shown to a client in words.

Any other exception that leaves ``slime_core`` is a bug by definition.

The same error is worded in the dialect that the client speaks: OpenAI's object with its four keys
(OpenAI API reference, "Error codes"; the SDK builds its exception from it), or SGLang's
``{"error": {"message"}}`` as its native API answers (SGLang 0.5.23, ``http_server.py``).
"""

from __future__ import annotations

from typing import Any, Final

__all__ = [
    "ClientError",
    "InvariantError",
    "SlimeError",
    "WorkerError",
    "as_openai",
    "as_sglang",
]


_REPEATED: Final = frozenset({408, 409, 410})
"""Besides those that SDKs repeat: 410, which belongs to what is final for good."""


class SlimeError(Exception):
    """An error with a party at fault, an HTTP status and words for a client.

    ``status`` is the HTTP status to answer with; ``code`` a stable machine-readable word;
    ``param`` the path of the field at fault (``messages[1].content``) or ``None``;
    ``retry_after_s`` how long a client should wait before it tries again, if it should; ``calls``
    the ids of the calls that it ended, by which what was captured of them can be asked for.
    :attr:`should_retry` overrides what clients conclude from the status.
    """

    status: int = 500
    code: str = "internal_error"
    calls: tuple[str, ...] = ()

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        if type(self) is SlimeError:
            raise TypeError("raise one of its families, which name the party at fault")
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if status is not None:
            self.status = status
        if code is not None:
            self.code = code

    @property
    def should_retry(self) -> bool | None:
        """Whether to send the same request again (``x-should-retry``), where the status misleads.

        SDKs repeat 408, 409 and all from 500 on by themselves. ``None``: the status says it.
        """
        return None

    @property
    def kind(self) -> str:
        """OpenAI's ``type`` for this status."""
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"


class ClientError(SlimeError):
    """The client's request is at fault; the same request will fail again."""

    status = 400
    code = "invalid_value"

    @property
    def should_retry(self) -> bool | None:
        """False beside a status that would be repeated: it is final all the same."""
        is_final = self.status in _REPEATED or self.status >= 500
        return False if is_final and self.retry_after_s is None else None


class WorkerError(SlimeError):
    """A worker refused, broke off, or answered what it must not."""

    status = 502
    code = "bad_worker_answer"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        first_byte_sent: bool = False,
    ) -> None:
        super().__init__(
            message, status=status, code=code, param=param, retry_after_s=retry_after_s
        )
        self.first_byte_sent = first_byte_sent


class InvariantError(SlimeError):
    """A rule that always holds does not: a bug in this program."""


def as_openai(error: SlimeError) -> dict[str, Any]:
    """The body an OpenAI client expects: all four keys, ``code`` a string or ``None``."""
    message = "internal error" if isinstance(error, InvariantError) else error.message
    return {
        "error": {
            "message": message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }


def as_sglang(error: SlimeError) -> dict[str, Any]:
    """The body of SGLang's native API; the OpenAI keys ride along for those who look."""
    return as_openai(error)
