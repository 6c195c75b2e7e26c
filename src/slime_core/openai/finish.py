"""Why an answer ended, in OpenAI's words."""

from __future__ import annotations

from slime_core.errors import WorkerError
from slime_core.sglang import FinishReason, abort_error

__all__ = ["finish_word"]


def finish_word(reason: FinishReason | None) -> str:
    """A worker's finish reason in OpenAI's words. Raises for an abort and for none at all."""
    if reason is None:
        raise WorkerError("The worker gave no finish reason.")
    if reason.type == "abort":
        raise abort_error(reason.message, reason.status_code)
    if reason.type not in {"stop", "length"}:
        raise WorkerError(f"The worker gave an unknown finish reason, {reason.type!r}.")
    return reason.type
