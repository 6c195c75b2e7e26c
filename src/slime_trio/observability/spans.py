"""Spans as the rest of the router sees them; switched off, they cost a call of a function.

:mod:`slime_trio.observability.tracing` makes real ones, where OpenTelemetry is installed and asked
for; nothing else knows of it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

from slime_trio.exchange import Headers
from slime_trio.observability.about import About

__all__ = ["NO_SPAN", "NO_SPANS", "RequestSpan", "Span", "Spans"]


class Span(Protocol):
    """Something that took time."""

    def note(self, name: str, value: str | int | float | bool) -> None:
        """Add what is known of it, under a name of OpenTelemetry's conventions."""


class RequestSpan(Span, Protocol):
    """The whole of a client's request."""

    def settle(self, status: int, *, ended: bool) -> None:
        """Tell how it was answered; ``ended``: with a whole answer."""


class Spans(Protocol):
    """Where spans are opened. A span opened within another is its child, also in child tasks."""

    def request(self, scope: Any, about: About) -> AbstractContextManager[RequestSpan]:
        """The span of a request: of an ASGI scope, continuing the client's trace."""

    def child(self, name: str) -> AbstractContextManager[Span]:
        """A part of what is being done."""

    def attempt(self, method: str, worker: str) -> AbstractContextManager[Span]:
        """A request to a worker."""

    def propagated(self, headers: Headers) -> Headers:
        """Header fields for a worker that continue the trace from the span that is open."""

    def close(self) -> None:
        """Deliver what is left. Blocks for some seconds at most; safe to repeat."""


class _NoSpan:
    def note(self, name: str, value: str | int | float | bool) -> None: ...

    def settle(self, status: int, *, ended: bool) -> None: ...


NO_SPAN: Final[RequestSpan] = _NoSpan()
"""A span where tracing is off."""

_OPEN: Final = nullcontext(NO_SPAN)


class _NoSpans:
    """Tracing is off: a client's ``traceparent`` passes on to the worker as it came."""

    def request(self, scope: Any, about: About) -> AbstractContextManager[RequestSpan]:
        return _OPEN

    def child(self, name: str) -> AbstractContextManager[Span]:
        return _OPEN

    def attempt(self, method: str, worker: str) -> AbstractContextManager[Span]:
        return _OPEN

    def propagated(self, headers: Headers) -> Headers:
        return headers

    def close(self) -> None: ...


NO_SPANS: Final[Spans] = _NoSpans()
"""Tracing that is off."""
