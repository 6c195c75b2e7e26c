"""A request the worker refuses, in the three wordings that SGLang has for it.

SGLang 0.5.23 answers 400 in a different shape for each layer that notices: the web framework, the
request manager, or Python itself. A client that reads one of them must read all, so a worker that
stands in for SGLang has to word them alike.
"""

from __future__ import annotations

import enum
from typing import Any

from slime_core.errors import ClientError

__all__ = ["Refusal", "Wording", "framework_error", "manager_error", "plain_error"]


class Wording(enum.Enum):
    """Who noticed, hence how the body looks."""

    FRAMEWORK = "framework"
    """Malformed JSON, a missing body, a wrong type: ``{"object": "error", "message", …}``."""
    MANAGER = "manager"
    """A request that makes no sense: ``{"error": {"message"}}``."""
    PLAIN = "plain"
    """An exception that nobody expected: ``{"error": "<text>"}``."""


class Refusal(ClientError):
    """The client's request cannot be served; ``body`` is the JSON to answer with ``status``."""

    def __init__(self, message: str, *, wording: Wording, status: int = 400) -> None:
        super().__init__(message, status=status)
        self.wording = wording

    @property
    def body(self) -> dict[str, Any]:
        """The JSON, in the words of who noticed."""
        match self.wording:
            case Wording.PLAIN:
                return {"error": self.message}
            case Wording.MANAGER:
                return {"error": {"message": self.message}}
            case Wording.FRAMEWORK:
                return {
                    "object": "error",
                    "message": self.message,
                    "type": "Bad Request" if self.status == 400 else str(self.status),
                    "param": None,
                    "code": self.status,
                }


def framework_error(message: str) -> Refusal:
    """A 400 for a body of the wrong form, worded as the web framework does."""
    return Refusal(message, wording=Wording.FRAMEWORK)


def manager_error(message: str) -> Refusal:
    """A 400 for a request that makes no sense, worded as the request manager does."""
    return Refusal(message, wording=Wording.MANAGER)


def plain_error(message: str) -> Refusal:
    """A 400 for what Python itself stumbles over, worded as an exception."""
    return Refusal(message, wording=Wording.PLAIN)
