"""The Quart-Trio application: settings in, an ASGI application out.

``hypercorn -k trio 'slime_trio.app:create_app()'`` serves it, configured by ``SLIME_ROUTER_*``
variables; ``slime-router serve`` does the same with flags.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any, Final

import structlog
import trio
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from slime_core.errors import ClientError, SlimeError
from slime_trio.config import ConfigurationError, Settings, from_arguments
from slime_trio.connection_endings import close_after_unread_bodies, refuse_two_framings
from slime_trio.error_answers import error_answer, told_as
from slime_trio.loading import read_checkpoint
from slime_trio.memory import keep_freed_memory
from slime_trio.middleware import load_middleware, wrap
from slime_trio.observability.logs import FactLog, configure_logging
from slime_trio.observability.spans import NO_SPANS, Spans
from slime_trio.observability.watch import Watched
from slime_trio.one_process import claim_process
from slime_trio.quart_listener import MAX_JSON_DEPTH, RelayConnection
from slime_trio.request_id import RequestIds
from slime_trio.responses import json_bytes
from slime_trio.router import Router
from slime_trio.routes import add_routes
from slime_trio.tending import tend
from slime_trio.tokenizer import Checkpoint, CheckpointError
from slime_trio.trace import TraceError, TraceRecorder

__all__ = ["create_app", "create_router"]

_MEBIBYTE: Final = 2**20
_SWITCH_S: Final = 0.001
_GARBAGE: Final = (10_000, 10, 10)
"""When the garbage collector looks: with Python's own 700 objects, dozens of requests in flight
set it off again and again, for nearly a fifth of what a small request costs. The second generation
(100,000 objects) still takes less than 5 ms."""
_OTEL_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_log: Any = structlog.get_logger("slime_router")


def create_router(settings: Settings, *, checkpoint: Checkpoint | None = None) -> Router:
    """A router as configured; ``checkpoint`` may have been read already.

    Raises :class:`ConfigurationError`.
    """
    router = Router(settings, checkpoint=checkpoint or read_checkpoint(settings))
    router.shared.spans = _spans(settings)
    router.observers.append(FactLog(verbose=settings.verbose))
    if settings.record_trace is not None:
        router.observers.append(_recorder(settings, settings.record_trace))
    return router


def _spans(settings: Settings) -> Spans:
    """Tracing, if an endpoint is named: by the setting, or by OpenTelemetry's own variables."""
    if settings.otlp_endpoint is None and not any(map(os.environ.get, _OTEL_ENDPOINTS)):
        return NO_SPANS
    try:
        from slime_trio.observability.tracing import exporting
    except ImportError as error:
        words = "tracing needs OpenTelemetry: pip install 'slime-router[otel]'"
        if settings.otlp_endpoint is None:
            # The variables may be meant for all programs of a machine.
            _log.warning(words)
            return NO_SPANS
        raise ConfigurationError(f"--otlp-endpoint: {words}") from error
    return exporting(settings.otlp_endpoint)


def _recorder(settings: Settings, path: str) -> TraceRecorder:
    if not settings.capture:
        raise ConfigurationError("--record-trace records captured calls, and --capture is off")
    try:
        return TraceRecorder(path)
    except TraceError as error:
        raise ConfigurationError(f"--record-trace: {error}") from error


def create_app(
    settings: Settings | None = None,
    *,
    router: Router | None = None,
    checkpoint: Checkpoint | None = None,
) -> QuartTrio:
    """The application; ``app.extensions["slime_router"]`` is its router.

    Without ``settings`` they come from the environment. ``router`` may be given ready-made, or
    the ``checkpoint`` that its router is to have. Raises :class:`ConfigurationError` where it
    cannot start as configured.
    """
    settings = settings or (router.args if router is not None else from_arguments())
    configure_logging(verbose=settings.verbose, format=settings.log_format)
    middleware = load_middleware(settings.slime_router_middleware_paths)
    router = router or create_router(settings, checkpoint=checkpoint)
    app = QuartTrio("slime_router", static_folder=None)
    app.asgi_http_class = RelayConnection
    # A generation takes as long as it takes; the relay bounds what a client may stall.
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["BODY_TIMEOUT"] = None
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_mb * _MEBIBYTE
    app.config["BACKGROUND_TASK_SHUTDOWN_TIMEOUT"] = None
    app.extensions["slime_router"] = router
    app.config[MAX_JSON_DEPTH] = settings.max_json_depth
    close_after_unread_bodies(app, is_stopping=lambda: router.shared.is_stopping)
    refuse_two_framings(app)
    add_routes(app, router)
    _add_error_handlers(app, settings)
    _add_serving(app, router)
    wrapped = wrap(app.asgi_app, middleware, router)
    # From the router's own source of ids, so that a simulated run is the same each time.
    watched = Watched(wrapped, router.shared)
    app.asgi_app = RequestIds(watched, lambda: f"req_{router.new_call_id()}")  # type: ignore[method-assign]
    return app


def _add_serving(app: QuartTrio, router: Router) -> None:
    """Tend the router while the application is served."""

    @app.before_serving
    async def start() -> None:
        claim_process()
        # Python's own threads (decoding a long prompt, say) hand the interpreter over this often;
        # the default of 5 ms is as long as the event loop may ever be held up.
        sys.setswitchinterval(_SWITCH_S)
        keep_freed_memory()
        _settle_garbage()
        await app.nursery.start(_finish, router)
        await app.nursery.start(router.pool.watch.run)
        await app.nursery.start(router.pool.readers.run)
        await app.nursery.start(tend, router)
        await app.nursery.start(router.shared.control.run)
        if router.captures:
            app.nursery.start_soon(_load_template, router)


async def _finish(router: Router, *, task_status: trio.TaskStatus[None]) -> None:
    """Close connections and trace files, and deliver the last spans, when the serving ends, in
    whichever way: ``after_serving`` is skipped where the server is cancelled."""
    try:
        task_status.started()
        await trio.sleep_forever()
    finally:
        # Whoever is cancelled a moment later than this must not set out without connections.
        router.shared.dispatcher.refuse_all()
        router.pool.close()
        for observer in router.observers:
            if isinstance(observer, TraceRecorder):
                observer.close()
        router.shared.spans.close()


async def _load_template(router: Router) -> None:
    """Load the chat template beside the listener, so that the first chat need not wait."""
    try:
        template = (await router.chatting()).template
    except CheckpointError as error:
        _log.warning("chat is not available", reason=str(error))
        return
    _settle_garbage()
    if template.report is not None:
        rows = (f"  {name}: {value}" for name, value in template.report.table())
        _log.info("\n".join(("chat template", *rows)))
    for warning in template.warnings:
        _log.warning("chat template", finding=warning)


def _settle_garbage() -> None:
    """Take what was made while starting (modules, tables) out of the garbage collector's sight.

    It stays for the life of the process, and looking through it takes the collector 20 to 50 ms, in
    which no request moves. So it does not look even once: a few hundred objects that nobody needs
    any more stay as well.
    """
    gc.freeze()
    gc.set_threshold(*_GARBAGE)


def _add_error_handlers(app: QuartTrio, settings: Settings) -> None:
    """Every error in the dialect of its path; a traceback goes to the log, never to a client."""

    @app.errorhandler(SlimeError)
    async def known(error: SlimeError) -> Response:
        return _error_response(told_as(error, request.path))

    @app.errorhandler(RequestEntityTooLarge)
    async def too_large(error: RequestEntityTooLarge) -> Response:
        return _error_response(
            ClientError(
                f"the body is over {settings.max_body_mb} MiB (--max-body-mb)",
                status=413,
                code="body_too_large",
            )
        )

    @app.errorhandler(HTTPException)
    async def other(error: HTTPException) -> Response:
        status = error.code or 500
        response = _error_response(
            ClientError(
                str(error.description), status=status, code=error.name.lower().replace(" ", "_")
            )
        )
        allowed = getattr(error, "valid_methods", None)
        if allowed:
            response.headers["allow"] = ", ".join(sorted(allowed))
        return response

    @app.errorhandler(Exception)
    async def bug(error: Exception) -> Response:
        return _error_response(told_as(error, request.path))


def _error_response(error: SlimeError) -> Response:
    status, headers, body = error_answer(error, request.path)
    response = json_bytes(body, status)
    for key, value in headers:
        response.headers[key.decode()] = value.decode()
    return response
