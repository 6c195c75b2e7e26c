"""Traces: a span for every request with its parts, the client's trace continued, nothing said."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from slime_trio import app as application
from slime_trio.app import create_router
from slime_trio.config import ConfigurationError, Settings
from slime_trio.observability.spans import NO_SPANS
from slime_trio.observability.tracing import OpenTelemetrySpans, exporting, traces_url
from tests.server.harness import (
    Served,
    answer_item,
    embedded_worker,
    fake_worker,
    json_answer,
    router_with,
    settled,
)

PARAMS = {"max_new_tokens": 4, "ignore_eos": True}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Traced:
    """What a router exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.spans = OpenTelemetrySpans(provider)

    def on(self, served: Served) -> None:
        """Trace ``served`` from now on."""
        served.router.shared.spans = self.spans

    @property
    def finished(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.finished if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span


@pytest.fixture
def traced() -> Iterator[Traced]:
    found = Traced()
    yield found
    found.spans.close()


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


async def test_a_generation_is_a_span_with_its_parts_below_it(traced: Traced) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        traced.on(served)
        await served.generate(text="Hello", sampling_params=PARAMS)
        await settled(served)
    request = traced.one("POST generate")
    assert request.kind is SpanKind.SERVER
    for name in ("slime.encode", "slime.wait", "worker", "slime.commit"):
        part = traced.one(name)
        assert part.context.trace_id == request.context.trace_id
        assert parent_of(part) is not None
    assert traced.one("worker").kind is SpanKind.CLIENT


async def test_a_span_tells_what_the_conventions_name(traced: Traced) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        traced.on(served)
        response = await served.client.post(
            "/generate",
            json={"text": "Hello", "sampling_params": PARAMS},
            headers={"x-session-id": "rollout-1", "x-request-id": "mine"},
        )
    told = attributes(traced.one("POST generate"))
    (record,) = worker.records
    assert told["http.request.method"] == "POST"
    assert told["http.response.status_code"] == 200
    assert told["url.path"] == "/generate"
    assert told["gen_ai.operation.name"] == "text_completion"
    assert told["gen_ai.usage.input_tokens"] == len(record.prompt_ids)
    assert told["gen_ai.usage.output_tokens"] == 4
    assert told["gen_ai.response.finish_reasons"] == ("length",)
    assert told["gen_ai.response.id"] == response.headers["x-slime-call-id"]
    assert (told["slime.session"], told["slime.request"]) == ("rollout-1", "mine")


async def test_the_client_s_trace_goes_on_and_reaches_the_worker(traced: Traced) -> None:
    answer = json_answer(answer_item([5], "a"))
    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        traced.on(served)
        await served.client.post(
            "/generate",
            json={"text": "Hello"},
            headers={"traceparent": PARENT, "tracestate": "vendor=1"},
        )
        (arrived,) = [one for one in worker.arrived if one.target == "/generate"]
    request, exchange = traced.one("POST generate"), traced.one("worker")
    assert f"{request.context.trace_id:032x}" == TRACE
    assert arrived.headers["traceparent"] == f"00-{TRACE}-{exchange.context.span_id:016x}-01"
    assert arrived.headers["tracestate"] == "vendor=1"


async def test_without_tracing_a_client_s_trace_passes_as_it_came() -> None:
    answer = json_answer(answer_item([5], "a"))
    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        assert served.router.shared.spans is NO_SPANS
        await served.client.post(
            "/generate", json={"text": "Hello"}, headers={"traceparent": PARENT}
        )
        (arrived,) = [one for one in worker.arrived if one.target == "/generate"]
        assert arrived.headers["traceparent"] == PARENT


async def test_a_refusal_is_told_by_its_code(traced: Traced) -> None:
    async with router_with() as served:
        traced.on(served)
        await served.client.post("/generate", content=b"{")
    span = traced.one("POST generate")
    told = attributes(span)
    assert told["http.response.status_code"] == 400
    assert told["error.type"]
    assert span.status.status_code is StatusCode.UNSET


async def test_a_failure_of_the_worker_is_an_error(traced: Traced) -> None:
    async with fake_worker(json_answer({"odd": True})) as worker, router_with(worker.url) as served:
        traced.on(served)
        response = await served.client.post("/generate", json={"text": "Hello"})
        assert response.status_code >= 500
    assert traced.one("POST generate").status.status_code is StatusCode.ERROR


async def test_no_span_holds_what_was_said(traced: Traced) -> None:
    item = answer_item([5], "AnswerWord")
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        traced.on(served)
        await served.generate(text="PromptWord")
        await served.client.post(
            "/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "PromptWord"}]},
        )
        await served.generate(text="PromptWord", sampling_params={"n": "PromptWord"})
    exported = "".join(span.to_json() for span in traced.finished)
    assert "POST generate" in exported
    assert "PromptWord" not in exported
    assert "AnswerWord" not in exported


async def test_every_request_of_a_batch_of_clients_has_a_trace_of_its_own(traced: Traced) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        traced.on(served)
        for _ in range(3):
            await served.generate(text="Hello", sampling_params=PARAMS)
    requests = traced.named("POST generate")
    assert len({span.context.trace_id for span in requests}) == 3
    for exchange in traced.named("worker"):
        assert exchange.context.trace_id in {span.context.trace_id for span in requests}


def test_without_the_extra_the_flag_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "slime_trio.observability.tracing", None)
    settings = Settings(capture=False, otlp_endpoint="http://127.0.0.1:4318")
    with pytest.raises(ConfigurationError, match=r"slime-router\[otel\]"):
        create_router(settings)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    router = create_router(replace(settings, otlp_endpoint=None))
    assert router.shared.spans is NO_SPANS


@pytest.mark.parametrize("by_variable", [True, False])
def test_an_endpoint_switches_tracing_on(
    monkeypatch: pytest.MonkeyPatch, by_variable: bool
) -> None:
    endpoint = "http://127.0.0.1:9"
    if by_variable:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    settings = Settings(capture=False, otlp_endpoint=None if by_variable else endpoint)
    spans = application.create_router(settings).shared.spans
    assert isinstance(spans, OpenTelemetrySpans)
    spans.close()
    spans.close()


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("https://collector/otlp/v1/traces", "https://collector/otlp/v1/traces"),
    ],
)
def test_an_endpoint_is_a_base_or_has_its_own_path(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


def test_attributes_are_json() -> None:
    found = Traced()
    with found.spans.child("part") as span:
        span.note("slime.count", 3)
    (only,) = found.finished
    assert json.loads(only.to_json())["attributes"] == {"slime.count": 3}
    found.spans.close()


def test_spans_reach_a_collector_over_http() -> None:
    arrived: list[tuple[str, str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            arrived.append((self.path, self.headers["content-type"], body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        spans = exporting(f"http://127.0.0.1:{server.server_port}")
        with spans.child("slime.encode"):
            pass
        spans.close()
        server.shutdown()
        thread.join()
    ((path, kind, body),) = arrived
    assert (path, kind) == ("/v1/traces", "application/x-protobuf")
    assert b"slime.encode" in body
    assert b"slime-router" in body
