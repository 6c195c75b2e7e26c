"""The worker's Quart-Trio application and the server around it."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response
from quart_trio import QuartTrio

from slime_core.engine import Refusal, Role, Wording
from slime_core.errors import ClientError
from slime_trio.connection_endings import EndingConnection, close_after_unread_bodies
from slime_trio.tokenizer import CheckpointError
from slime_trio.worker import (
    completions,
    control,
    housekeeping,
    information,
    native,
    weights,
)
from slime_trio.worker.handovers import fetch_handovers, serve_handovers
from slime_trio.worker.options import WorkerOptions, options_from
from slime_trio.worker.replies import StreamCut, json_reply, refusal_reply
from slime_trio.worker.service import Worker

__all__ = ["create_worker_app", "run", "serve_worker"]

Handler = Callable[[Worker], Awaitable[Response]]

_BOTH: Final = ("GET", "POST")
_ROUTES: Final[tuple[tuple[str, tuple[str, ...], Handler], ...]] = (
    ("/generate", ("POST", "PUT"), native.generate),
    ("/v1/chat/completions", ("POST",), completions.chat_completions),
    ("/v1/completions", ("POST",), completions.text_completions),
    ("/v1/models", ("GET",), information.models),
    ("/abort_request", ("POST",), control.abort_request),
    ("/pause_generation", ("POST",), control.pause_generation),
    ("/continue_generation", ("POST",), control.continue_generation),
    ("/flush_cache", _BOTH, control.flush_cache),
    ("/update_weight_version", ("POST",), control.update_weight_version),
    ("/update_weights_from_disk", ("POST",), control.update_weights_from_disk),
    ("/update_weights_from_tensor", ("POST",), weights.update_weights_from_tensor),
    ("/update_weights_from_distributed", ("POST",), weights.update_weights_from_distributed),
    ("/update_weights_from_ipc", ("POST",), weights.update_weights_from_ipc),
    ("/begin_weight_update", ("POST",), weights.begin_weight_update),
    ("/end_weight_update", ("POST",), weights.end_weight_update),
    ("/init_weights_update_group", ("POST",), weights.init_weights_update_group),
    ("/destroy_weights_update_group", ("POST",), weights.destroy_weights_update_group),
    ("/get_weights_by_name", _BOTH, weights.get_weights_by_name),
    ("/weights_checker", _BOTH, weights.weights_checker),
    ("/release_memory_occupation", _BOTH, housekeeping.release_memory_occupation),
    ("/resume_memory_occupation", _BOTH, housekeeping.resume_memory_occupation),
    ("/load_lora_adapter", ("POST",), housekeeping.load_lora_adapter),
    ("/unload_lora_adapter", ("POST",), housekeeping.unload_lora_adapter),
    ("/open_session", _BOTH, housekeeping.open_session),
    ("/close_session", _BOTH, housekeeping.close_session),
    ("/slow_down", _BOTH, housekeeping.slow_down),
    ("/set_internal_state", ("POST",), housekeeping.set_internal_state),
    ("/pd_role_switch", ("POST",), housekeeping.pd_role_switch),
    ("/metrics", ("GET",), housekeeping.metrics),
    *(
        (path, _BOTH, housekeeping.said(words))
        for path, words in (
            ("/start_profile", "Start profiling.\n"),
            ("/stop_profile", "Stop profiling. This will take some time.\n"),
            ("/freeze_gc", "Garbage collection frozen.\n"),
            ("/start_expert_distribution_record", "Start recording expert distribution.\n"),
            ("/stop_expert_distribution_record", "Stop recording expert distribution.\n"),
            ("/dump_expert_distribution_record", "Dump expert distribution record.\n"),
        )
    ),
    ("/model_info", ("GET",), information.model_info),
    ("/get_model_info", ("GET",), information.model_info),
    ("/server_info", ("GET",), information.server_info),
    ("/get_server_info", ("GET",), information.server_info),
    ("/v1/loads", ("GET",), information.loads),
    ("/health", ("GET",), information.health),
    ("/health_generate", ("GET",), information.health),
    ("/ready", ("GET",), information.ready),
    ("/ping", ("GET",), information.ping),
    ("/tokenize", ("POST",), information.tokenize),
    ("/v1/tokenize", ("POST",), information.tokenize),
    ("/detokenize", ("POST",), information.detokenize),
    ("/v1/detokenize", ("POST",), information.detokenize),
    ("/slime_worker/records", ("GET", "DELETE"), control.records),
    ("/slime_worker/faults", _BOTH, control.faults),
)
_KEEP_ALIVE_S: Final = 5
"""SGLang closes idle connections after this long, which is why routers must cope with it."""

_BODY_BYTES_MAX: Final = 1 << 30
_DRAIN_S: Final = 1


def create_worker_app(options: WorkerOptions, *, host: str = "127.0.0.1") -> QuartTrio:
    """The application of one worker. Blocks while the model is counted (0.2 s as shipped).

    Its engine starts with the application's lifespan, and with it what a prefill worker gives
    prompts away with, at ``host``. ``app.extensions["slime_worker"]`` is the
    :class:`~.service.Worker`, for tests in the same process. Raises ``CheckpointError``.
    """
    worker = Worker(options)
    app = QuartTrio("slime_trio.worker")
    app.config.update(
        RESPONSE_TIMEOUT=None,
        BODY_TIMEOUT=None,
        MAX_CONTENT_LENGTH=_BODY_BYTES_MAX,
        BACKGROUND_TASK_SHUTDOWN_TIMEOUT=None,
    )
    app.extensions["slime_worker"] = worker
    app.asgi_http_class = EndingConnection
    close_after_unread_bodies(app)
    # A stream that is cut on purpose must not fill the log with tracebacks.
    app.logger.addFilter(_is_no_cut)
    app.before_serving(_starter(app, worker, host))
    for path, methods, handler in _ROUTES:
        app.add_url_rule(path, f"{path}", _view(worker, handler), methods=list(methods))
    app.add_url_rule("/v1/models/<path:name>", "model_card", _named(worker), methods=["GET"])
    app.register_error_handler(404, _not_found)
    app.register_error_handler(405, _not_allowed)
    app.register_error_handler(ClientError, _client_error)
    return app


def _starter(app: QuartTrio, worker: Worker, host: str) -> Callable[[], Awaitable[None]]:
    async def start() -> None:
        app.nursery.start_soon(worker.host.run)
        if worker.options.role is Role.PREFILL:
            await app.nursery.start(serve_handovers, worker, host)
        elif worker.options.role is Role.DECODE:
            app.nursery.start_soon(fetch_handovers, worker)

    return start


def _view(worker: Worker, handler: Handler) -> Callable[[], Awaitable[Response]]:
    async def view() -> Response:
        return await handler(worker)

    return view


def _named(worker: Worker) -> Callable[[str], Awaitable[Response]]:
    async def view(name: str) -> Response:
        return await information.model_card(worker, name)

    return view


async def _not_found(_error: Exception) -> Response:
    return json_reply({"detail": "Not Found"}, 404)


async def _not_allowed(_error: Exception) -> Response:
    return json_reply({"detail": "Method Not Allowed"}, 405)


async def _client_error(error: ClientError) -> Response:
    if isinstance(error, Refusal):
        return refusal_reply(error)
    return refusal_reply(Refusal(error.message, wording=Wording.FRAMEWORK, status=error.status))


def _is_no_cut(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, StreamCut)


async def serve_worker(
    options: WorkerOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    shutdown_trigger: Callable[..., Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves one worker until cancelled or until ``shutdown_trigger`` returns.

    Reports its base URL, with the port it got, through ``task_status``. Raises ``CheckpointError``
    and, for a port that is taken, ``OSError``.
    """
    app = await trio.to_thread.run_sync(partial(create_worker_app, options, host=host))
    config = Config()
    config.bind = [f"{host}:{port}"]
    config.keep_alive_timeout = _KEEP_ALIVE_S
    config.keep_alive_max_requests = 1 << 31
    config.graceful_timeout = _DRAIN_S
    config.accesslog = None
    config.errorlog = None
    async with trio.open_nursery() as nursery:
        binds: list[str] = await nursery.start(_serving(app, config, shutdown_trigger))
        task_status.started(binds[0])


def _serving(
    app: QuartTrio, config: Config, shutdown_trigger: Callable[..., Awaitable[None]] | None
) -> Callable[..., Awaitable[Any]]:
    async def serving(*, task_status: trio.TaskStatus[list[str]]) -> None:
        # The ASGI types of the two packages are spelt differently and mean the same.
        application: Any = app
        await serve(application, config, shutdown_trigger=shutdown_trigger, task_status=task_status)

    return serving


def run(args: argparse.Namespace) -> int:
    """``slime-router worker``: serves until interrupted. The exit status."""
    status = 0
    try:
        trio.run(_main, options_from(args), args.host, args.port)
    except* (CheckpointError, OSError) as errors:
        print(f"slime-router worker: {_innermost(errors)}", file=sys.stderr)
        status = 2
    except* KeyboardInterrupt:
        status = 130
    return status


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _main(options: WorkerOptions, host: str, port: int) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

        async def stopped(*_: Any) -> None:
            await anext(signals)

        async with trio.open_nursery() as nursery:

            async def serving(*, task_status: trio.TaskStatus[str]) -> None:
                await serve_worker(
                    options,
                    host=host,
                    port=port,
                    shutdown_trigger=stopped,
                    task_status=task_status,
                )

            url = await nursery.start(serving)
            print(f"worker ready at {url}", flush=True)
