"""What is known of the request that a task works for: the thread between log lines and spans.

The listener opens an :class:`About` for each request; every task that the request starts inherits
it. Others add what they learn. It holds names and numbers only: no key and no text.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from slime_core.errors import SlimeError
from slime_core.state import RouterState
from slime_core.transitions import CallCaptured, CallOpened, Transition
from slime_core.types import ID_BYTES

__all__ = ["ABOUT", "REQUEST_FACTS", "About", "note_refusal", "note_request"]

_NAMED: Final = 16
"""How many calls and reasons of one request are kept."""


class About:
    """One request, as far as it is known by now."""

    __slots__ = (
        "calls",
        "code",
        "finish_reasons",
        "input_tokens",
        "output_tokens",
        "request",
        "session",
        "tenant",
    )

    def __init__(self, request: str) -> None:
        self.request: Final = request
        """Its ``x-request-id``."""
        self.tenant = ""
        self.session: str | None = None
        self.calls: list[str] = []
        """The calls that it opened; of very many only the first."""
        self.input_tokens = 0
        self.output_tokens = 0
        self.finish_reasons: list[bytes] = []
        """As the workers worded them, in JSON."""
        self.code: str | None = None
        """The code of the error that it was answered with."""


ABOUT: Final[ContextVar[About | None]] = ContextVar("slime_router.about", default=None)
"""The request that the running task works for; ``None`` beside the requests."""


REQUEST_FACTS: Final = (CallOpened, CallCaptured)
"""What :func:`note_request` is to be told of."""


def note_request(fact: Transition, state: RouterState, /) -> None:
    """An observer: what a committed transition tells of the request that caused it."""
    about = ABOUT.get()
    if about is None:
        return
    if isinstance(fact, CallOpened):
        about.tenant, about.session = state.tenant, fact.session
        if len(about.calls) < _NAMED:
            about.calls.append(fact.call)
    elif isinstance(fact, CallCaptured):
        about.input_tokens += len(fact.prompt_ids) // ID_BYTES + fact.token_start
        about.output_tokens += len(fact.answer_ids) // ID_BYTES
        if len(about.finish_reasons) < _NAMED:
            about.finish_reasons.append(fact.answer.finish_reason)


def note_refusal(error: SlimeError) -> None:
    """The request was answered with this error."""
    about = ABOUT.get()
    if about is not None:
        about.code = error.code
