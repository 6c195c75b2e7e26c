"""The control plane over HTTP: a request in, the outcome of all workers out."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from quart import Response, request
from quart_trio import QuartTrio

from slime_core.access import Role
from slime_core.errors import ClientError
from slime_trio.auth import current
from slime_trio.control.merged import merged_loads, merged_metrics
from slime_trio.control.outcomes import Outcome, Target, answer_of, status_of
from slime_trio.control.paths import PATHS, How, Kind, how_of
from slime_trio.control.requests import ControlCall, engine_path
from slime_trio.control.rl_views import rl_worker
from slime_trio.control.role_switch import with_worker_of_body
from slime_trio.control.targets import find_worker, target_of, targets_of
from slime_trio.exchange import GENERATING_PATHS
from slime_trio.quart_listener import body_bytes
from slime_trio.responses import json_response
from slime_trio.shared import Shared

__all__ = ["add_control_routes"]

_PROTOCOL_VERSION: Final = 1
_METHODS: Final = ["GET", "POST", "PUT", "PATCH"]
_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
_Handler = Callable[[], Awaitable[Response]]


def add_control_routes(app: QuartTrio, shared: Shared) -> None:
    """Every control path of SGLang, single workers by id, and the RL interface of the SGLang Model
    Gateway."""
    for path, how in PATHS.items():
        handler = _handler(shared, path, how)
        app.add_url_rule(f"/{path}", f"control {path}", handler, methods=list(how.methods))
    _add_single_workers(app, shared)
    _add_rl(app, shared)


def _handler(shared: Shared, path: str, how: How) -> _Handler:
    async def handle() -> Response:
        call = await _call(path)
        if how.kind is Kind.ABORT:
            return await _abort(shared, call, how)
        if how.kind is Kind.ROLE:
            call = with_worker_of_body(call)
        outcomes = await shared.control.serve(call, how, targets_of(shared, call))
        return _ANSWERS.get(how.kind, _told)(shared, outcomes)

    return handle


async def _call(path: str) -> ControlCall:
    scope: Any = request.scope
    return ControlCall(
        method=request.method,
        path=path,
        query=bytes(scope["query_string"]),
        headers=[(bytes(key).lower(), bytes(value)) for key, value in scope["headers"]],
        body=await body_bytes(),
    )


# -- answers -----------------------------------------------------------------------------------


def _told(_shared: Shared, outcomes: Sequence[Outcome]) -> Response:
    return json_response(answer_of(outcomes), status_of(outcomes))


def _flushed(_shared: Shared, outcomes: Sequence[Outcome]) -> Response:
    answer = answer_of(outcomes)
    words = {200: "success", 207: "partial_success"}
    status = status_of(outcomes)
    answer |= {
        "status": words.get(status, "error"),
        "workers_flushed": answer["succeeded"],
        "total_http_workers": answer["total"],
    }
    return json_response(answer, status)


def _session_opened(_shared: Shared, outcomes: Sequence[Outcome]) -> Response:
    """The worker's own answer, which is the session's id and nothing else."""
    (outcome,) = outcomes
    if not outcome.is_answered:
        return json_response(answer_of(outcomes), 502)
    response = Response(outcome.body, outcome.status, content_type=outcome.content_type)
    response.headers["x-smg-routed-worker-id"] = outcome.target.id
    return response


def _loads(shared: Shared, outcomes: Sequence[Outcome]) -> Response:
    if request.args.get("format") == "prometheus":
        return _metrics(shared, outcomes)
    workers = shared.fleet.workers
    # Who left meanwhile carries nothing, and nobody knows of what kind it was.
    outcomes = [one for one in outcomes if one.target.url in workers]
    merged = merged_loads(
        outcomes,
        {one.target.url: workers[one.target.url].kind.value for one in outcomes},
        waiting=len([one for one in shared.dispatcher.live.values() if not one.workers]),
        timestamp=datetime.datetime.now(datetime.UTC).isoformat(),
    )
    return json_response(merged, status_of(outcomes))


def _metrics(_shared: Shared, outcomes: Sequence[Outcome]) -> Response:
    body = merged_metrics(outcomes)
    return Response(body, status_of(outcomes), content_type=_PROMETHEUS)


def _healthy(shared: Shared, outcomes: Sequence[Outcome]) -> Response:
    """A tenant learns how many are well, and not where they are."""
    answer, status = answer_of(outcomes), status_of(outcomes)
    answer["paused"] = [one.id for one in shared.fleet.listed() if one.paused]
    if shared.keys.configured and current().role is not Role.OPERATOR:
        answer = {key: answer[key] for key in ("success", "total", "succeeded")}
    return json_response(answer, status)


_ANSWERS: Final[dict[Kind, Callable[[Shared, Sequence[Outcome]], Response]]] = {
    Kind.FLUSH: _flushed,
    Kind.OPEN_SESSION: _session_opened,
    Kind.LOADS: _loads,
    Kind.METRICS: _metrics,
    Kind.HEALTH: _healthy,
}


async def _abort(shared: Shared, call: ControlCall, how: How) -> Response:
    """Always 200, as SGLang answers whether or not anything matched.

    A tenant is told the same whatever it named: whose calls there are is not its business.
    """
    access = current()
    if access.role is Role.OPERATOR:
        outcomes = await shared.control.aborting.abort(call, how, None)
        return json_response(answer_of(outcomes))
    await shared.control.aborting.abort(call, how, access.router.tenant)
    return json_response({"success": True, "message": "what it names is being aborted"})


# -- single workers ----------------------------------------------------------------------------


def _add_single_workers(app: QuartTrio, shared: Shared) -> None:
    @app.route("/workers/<name>/engine/<path:path>", methods=_METHODS)
    @app.route("/v1/rl/workers/<name>/engine/<path:path>", methods=_METHODS)
    async def call_one_worker(name: str, path: str) -> Response:
        call = await _call(_told_path(path))
        target = target_of(find_worker(shared.fleet, name))
        (outcome,) = await _serve_named(shared, call, [target])
        shown = outcome.shown() if outcome.is_answered else outcome.shown_failed()
        return json_response(shown, _status_for_client(outcome))


def _add_rl(app: QuartTrio, shared: Shared) -> None:
    @app.get("/v1/rl/workers")
    async def show_rl_workers() -> Response:
        workers = [rl_worker(one, shared.served_model) for one in shared.fleet.listed()]
        total = len(workers)
        return json_response(
            {"protocol_version": _PROTOCOL_VERSION, "workers": workers, "total": total}
        )

    @app.get("/v1/rl/workers/<name>")
    async def show_rl_worker(name: str) -> Response:
        worker = find_worker(shared.fleet, name)
        return json_response(rl_worker(worker, shared.served_model))

    @app.route("/v1/rl/engine/<path:path>", methods=_METHODS)
    async def call_selected_workers(path: str) -> Response:
        call = await _call(_told_path(path))
        if call.selector is None:
            raise ClientError(
                "say which workers are meant, such as ?selector=engine=sglang",
                param="selector",
                code="selector_required",
            )
        return _told(shared, await _serve_named(shared, call, targets_of(shared, call)))


async def _serve_named(
    shared: Shared, call: ControlCall, targets: Sequence[Target]
) -> list[Outcome]:
    return await shared.control.serve(call, how_of(call.path), targets)


def _told_path(path: str) -> str:
    """A worker's path that may be called by its id. Raises :class:`ClientError`."""
    told = engine_path(path)
    if told in GENERATING_PATHS:
        raise ClientError(
            f"/{told} generates: send it to the router itself, with x-smg-target-worker if it has "
            "to be this worker",
            param="path",
            code="generating_path",
        )
    return told


def _status_for_client(outcome: Outcome) -> int:
    """The worker's own status; one that has no body, or leads elsewhere, would say another thing
    here than there."""
    if outcome.succeeded:
        return 200
    return outcome.status if outcome.status >= 400 else 502
