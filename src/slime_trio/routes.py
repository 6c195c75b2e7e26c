"""Which path does what: routes of a few lines each."""

from __future__ import annotations

import time
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST
from quart import Response, request
from quart_trio import QuartTrio

from slime_core import openai
from slime_core.access import CONTROL_PATHS, Role
from slime_core.errors import ClientError
from slime_trio import retrieval
from slime_trio.auth import add_guard, current
from slime_trio.control.routes import add_control_routes
from slime_trio.endpoints import chat_completions, completions, generate
from slime_trio.exchange import GENERATING_PATHS
from slime_trio.information import server_info
from slime_trio.observability.json_metrics import metrics_json
from slime_trio.observability.prometheus import metrics_text
from slime_trio.openapi import add_openapi
from slime_trio.passthrough import add_pass_through
from slime_trio.quart_listener import body_bytes
from slime_trio.responses import json_bytes, json_response
from slime_trio.router import Router
from slime_trio.session_routes import add_session_routes, relayed_in_session
from slime_trio.worker_routes import add_worker_routes

__all__ = ["CONTROL_PATHS", "GENERATING_PATHS", "add_routes", "json_response"]

_ALL_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def add_routes(app: QuartTrio, router: Router) -> None:
    """Every path of the router; ``router`` is the default tenant's.

    What is a tenant's goes through ``current().router``, the fleet through ``router``.
    """
    add_guard(app, router.shared)
    _add_data_plane(app, router)
    _add_retrieval(app)
    add_session_routes(app, _model_card)
    add_worker_routes(app, router)
    add_control_routes(app, router.shared)
    _add_operations(app, router)
    add_openapi(app, captures=router.captures and router.args.enable_openai_chat_completion)
    add_pass_through(app)


def _add_data_plane(app: QuartTrio, router: Router) -> None:
    @app.route("/generate", methods=["POST", "PUT"])
    async def serve_generate() -> Response:
        return await relayed_in_session(generate)

    if router.captures and router.args.enable_openai_chat_completion:

        @app.post("/v1/chat/completions")
        async def serve_chat() -> Response:
            return await relayed_in_session(chat_completions)

        @app.post("/v1/completions")
        async def serve_completions() -> Response:
            return await relayed_in_session(completions)

        @app.route("/v1/chat/completions/<path:name>", methods=_ALL_METHODS)
        async def stored(name: str) -> Response:
            raise ClientError(
                "this router stores no completions; /trajectories/{id} gives what was captured",
                status=404,
                code="not_stored",
            )

        _add_models(app, router)


def _add_models(app: QuartTrio, router: Router) -> None:
    started = int(time.time())

    @app.get("/v1/models")
    async def models() -> Response:
        return json_bytes(openai.model_list([_model_card(router, started)]))

    @app.get("/v1/models/<path:name>")
    async def model(name: str) -> Response:
        if name != router.shared.served_model:
            raise ClientError(
                f"The model {name!r} does not exist",
                status=404,
                code="model_not_found",
                param="model",
            )
        return json_response(_model_card(router, started))


def _model_card(router: Router, created: int) -> dict[str, Any]:
    return openai.model_card(
        router.shared.served_model, created=created, max_model_len=router.context_length
    )


def _add_retrieval(app: QuartTrio) -> None:
    @app.post("/retrieve_from_text")
    async def retrieve_from_text() -> Response:
        return json_bytes(await retrieval.by_text(current().router, await body_bytes()))

    @app.post("/retrieve_from_messages_template")
    async def retrieve_from_messages_template() -> Response:
        return json_bytes(await retrieval.by_messages(current().router, await body_bytes()))

    @app.get("/trajectories/<path:name>")
    async def trajectory(name: str) -> Response:
        return json_bytes(await retrieval.by_call(current().router, name))


def _add_operations(app: QuartTrio, router: Router) -> None:
    @app.get("/health")
    @app.get("/liveness")
    async def health() -> Response:
        return Response("OK", content_type="text/plain; charset=utf-8")

    @app.get("/readiness")
    async def readiness() -> Response:
        workers = router.state.fleet.listed()
        fit = [worker.kind for worker in workers if worker.is_fit]
        can_generate = set(router.shared.dispatcher.places.kinds(router)) <= set(fit)
        told: dict[str, Any]
        if can_generate and not router.shared.is_stopping:
            told = {"status": "ready", "healthy_workers": len(fit), "total_workers": len(workers)}
            return json_response(told)
        told = {"status": "not ready", "reason": "insufficient healthy workers"}
        if router.shared.is_stopping:
            told["reason"] = "shutting down"
        if not router.shared.keys.configured:
            # Anybody may ask this: where there are keys, not everybody learns where workers are.
            told["workers"] = {worker.url: worker.unfit for worker in workers}
        return json_response(told, 503)

    @app.get("/server_info")
    @app.get("/get_server_info")
    async def info() -> Response:
        access = current()
        return json_response(await server_info(access.router, all=access.role is Role.OPERATOR))

    @app.get("/metrics")
    async def metrics() -> Response:
        access = current()
        everything = access.role is Role.OPERATOR
        if _wants_prometheus():
            text = metrics_text(access.router, all=everything)
            return Response(text, content_type=CONTENT_TYPE_LATEST)
        return json_response(metrics_json(access.router, all=everything))


def _wants_prometheus() -> bool:
    asked = request.args.get("format")
    if asked is not None:
        return asked == "prometheus"
    json = text = 0.0
    for kind, quality in request.accept_mimetypes:
        name = kind.split(";")[0].strip()
        if name == "application/json":
            json = max(json, quality)
        elif name in ("text/plain", "application/openmetrics-text"):
            text = max(text, quality)
    return text > json
