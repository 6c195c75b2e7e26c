"""OpenTelemetry traces, where the extra ``otel`` is installed and an endpoint is named.

A span for every request, by the conventions for HTTP servers and for generative AI, and within it
one for waiting, one for every request to a worker, one for encoding and one for the commit. Spans
hold names and numbers, never what was said. They are sent by OpenTelemetry's own thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from slime_trio.exchange import Headers
from slime_trio.observability.about import About
from slime_trio.observability.counts import GENERATING, kind_of

__all__ = ["OpenTelemetrySpans", "exporting", "traces_url"]

_NAME: Final = "slime-router"
_W3C: Final = TraceContextTextMapPropagator()
_PROPAGATED: Final = (b"traceparent", b"tracestate")
_LAST_MS: Final = 3000
_OPERATIONS: Final = {
    "generate": "text_completion",
    "completions": "text_completion",
    "chat": "chat",
}
"""``gen_ai.operation.name`` by kind of request."""

_Value = str | int | float | bool


def exporting(endpoint: str | None) -> OpenTelemetrySpans:
    """Spans that are sent to an OTLP endpoint over HTTP.

    ``endpoint`` is a base URL, to which ``/v1/traces`` is added, or has a path of its own; without
    it OpenTelemetry's own variables (``OTEL_EXPORTER_OTLP_ENDPOINT`` …) name it.
    """
    exporter = OTLPSpanExporter(endpoint=None if endpoint is None else traces_url(endpoint))
    resource = Resource.create({"service.version": version(_NAME)})
    if resource.attributes.get("service.name", "").startswith("unknown_service"):  # type: ignore[union-attr]
        resource = resource.merge(Resource({"service.name": _NAME}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return OpenTelemetrySpans(provider)


def traces_url(endpoint: str) -> str:
    """Where traces are sent: below the endpoint, unless it has a path of its own."""
    base = endpoint.rstrip("/")
    return base if urlsplit(base).path else f"{base}/v1/traces"


class _Spanned:
    """A span that is open."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def note(self, name: str, value: _Value) -> None:
        """Add an attribute."""
        self._span.set_attribute(name, value)


class _SpannedRequest(_Spanned):
    def __init__(self, span: trace.Span, kind: str, about: About) -> None:
        super().__init__(span)
        self._kind, self._about = kind, about

    def settle(self, status: int, *, ended: bool) -> None:
        """Add what is known at the end."""
        span, about = self._span, self._about
        if status:
            span.set_attribute("http.response.status_code", status)
        if about.code is not None:
            span.set_attribute("error.type", about.code)
        if status >= 500 or not ended:
            span.set_status(Status(StatusCode.ERROR, about.code or "unfinished"))
        for name, value in (("tenant", about.tenant), ("session", about.session)):
            if value:
                span.set_attribute(f"slime.{name}", value)
        if about.calls:
            span.set_attribute("slime.calls", about.calls)
        if self._kind in GENERATING:
            span.set_attributes(_of_generation(self._kind, about))


def _of_generation(kind: str, about: About) -> dict[str, Any]:
    found: dict[str, Any] = {"gen_ai.operation.name": _OPERATIONS[kind]}
    found["gen_ai.provider.name"] = "sglang"
    if about.calls:
        found["gen_ai.response.id"] = about.calls[0]
        found["gen_ai.usage.input_tokens"] = about.input_tokens
        found["gen_ai.usage.output_tokens"] = about.output_tokens
    if about.finish_reasons:
        found["gen_ai.response.finish_reasons"] = _types(about.finish_reasons)
    return found


def _types(reasons: Sequence[bytes]) -> list[str]:
    """The types of finish reasons, which are JSON of a worker's own making."""
    found = []
    for reason in reasons:
        try:
            read = msgspec.json.decode(reason)
        except msgspec.DecodeError:
            read = None
        kind = read.get("type") if isinstance(read, dict) else read
        found.append(kind if isinstance(kind, str) else "unknown")
    return found


class OpenTelemetrySpans:
    """Spans of one provider. ``close`` must be called in the end."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(_NAME, version(_NAME))

    @contextmanager
    def request(self, scope: Any, about: About) -> Iterator[_SpannedRequest]:
        """The span of a request."""
        carrier = {
            key.decode("latin-1"): value.decode("latin-1")
            for key, value in scope["headers"]
            if key in _PROPAGATED
        }
        kind = kind_of(scope["path"])
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "url.scheme": scope.get("scheme", "http"),
            "slime.request": about.request,
        }
        with self._open(
            f"{scope['method']} {kind}", SpanKind.SERVER, attributes, _W3C.extract(carrier)
        ) as span:
            yield _SpannedRequest(span, kind, about)

    @contextmanager
    def child(self, name: str) -> Iterator[_Spanned]:
        """A part of what is being done."""
        with self._open(name, SpanKind.INTERNAL, {}) as span:
            yield _Spanned(span)

    @contextmanager
    def attempt(self, method: str, worker: str) -> Iterator[_Spanned]:
        """A request to a worker."""
        place = urlsplit(worker)
        attributes: dict[str, _Value] = {
            "http.request.method": method,
            "server.address": place.hostname or "",
            "slime.worker": worker,
        }
        if place.port is not None:
            attributes["server.port"] = place.port
        with self._open("worker", SpanKind.CLIENT, attributes) as span:
            yield _Spanned(span)

    @contextmanager
    def _open(
        self, name: str, kind: SpanKind, attributes: dict[str, _Value], context: Any = None
    ) -> Iterator[trace.Span]:
        with self._tracer.start_as_current_span(
            name,
            context=context,
            kind=kind,
            attributes=attributes,
            # An exception's words may quote what a client or a worker said.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def propagated(self, headers: Headers) -> Headers:
        """Header fields for a worker that continue the trace from the span that is open."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        own = [(key.encode(), value.encode("latin-1")) for key, value in carrier.items()]
        return [(key, value) for key, value in headers if key not in _PROPAGATED] + own

    def close(self) -> None:
        """Deliver what is left, for some seconds at most."""
        self._provider.force_flush(_LAST_MS)
        self._provider.shutdown()
