"""The paths of sessions, and the way of every request into the session it belongs to."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import MethodNotAllowed

from slime_core import openai
from slime_core.errors import ClientError
from slime_core.sessions import require_known
from slime_trio import retrieval, samples, sessions
from slime_trio.auth import current
from slime_trio.in_session import ENDPOINTS, Endpoint, serve_in_session
from slime_trio.quart_listener import body_bytes, relayed
from slime_trio.responses import json_bytes
from slime_trio.router import Router

__all__ = ["add_session_routes", "relayed_in_session"]

ModelCard = Callable[[Router, int], dict[str, Any]]

_ALL_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_DIGITS: Final = 18
_MODELS: Final = "v1/models"
_RETRIEVALS: Final[dict[str, Callable[[Router, bytes], Awaitable[bytes]]]] = {
    "retrieve_from_text": retrieval.by_text,
    "retrieve_from_messages_template": retrieval.by_messages,
}


async def relayed_in_session(
    endpoint: Endpoint, session: str | None = None, path: str | None = None
) -> Response:
    """Have ``endpoint`` serve this request, in the session it belongs to.

    ``session`` is that of its path, if it has one, and ``path`` what it is served as then.
    """
    access = current()
    serve = partial(serve_in_session, access, endpoint, session=session, path=path)
    return await relayed(serve, stall_s=access.router.args.client_stall_s)


def add_session_routes(app: QuartTrio, model_card: ModelCard) -> None:
    """``/sessions`` and everything below it; ``model_card`` describes the model."""
    _add_life(app)

    @app.route("/sessions/<session>/<path:path>", methods=_ALL_METHODS)
    async def within_session(session: str, path: str) -> Response:
        router = current().router
        router.require_capture()
        _require_path(router, path)
        if path in ENDPOINTS:
            return await relayed_in_session(ENDPOINTS[path], session, f"/{path}")
        require_known(router.state, session)
        if path == _MODELS:
            card = model_card(router, int(time.time()))
            return json_bytes(openai.model_list([card]))
        return json_bytes(await _RETRIEVALS[path](router, await body_bytes()))

    @app.route("/sessions/<session>", methods=_ALL_METHODS)
    @app.route("/sessions", methods=_ALL_METHODS)
    async def no_such_method(session: str | None = None) -> Response:
        raise MethodNotAllowed(["GET", "POST"] if session is None else ["DELETE", "GET"])


def _add_life(app: QuartTrio) -> None:
    @app.post("/sessions")
    async def open_session() -> Response:
        return json_bytes(sessions.create(current().router, await body_bytes()))

    @app.get("/sessions")
    async def list_sessions() -> Response:
        limit, after = _whole_number("limit", 100), _whole_number("after", 0)
        return json_bytes(sessions.listed(current().router, limit=limit, after=after))

    @app.get("/sessions/<session>")
    async def show_session(session: str) -> Response:
        router = current().router
        with sessions.used(router, session):
            return json_bytes(await samples.describe(router, session))

    @app.delete("/sessions/<session>")
    async def delete_session(session: str) -> Response:
        await sessions.delete(current().router, session)
        return Response(b"", 204)

    @app.post("/sessions/<session>/seal")
    async def seal_session(session: str) -> Response:
        return json_bytes(sessions.seal(current().router, session))

    @app.post("/sessions/<session>/samples")
    async def collect_samples(session: str) -> Response:
        router = current().router
        body, accept = await body_bytes(), request.headers.get("accept", "")
        with sessions.used(router, session):
            kind, found = await samples.collect_samples(router, session, body, accept=accept)
        return Response(found, 200, content_type=kind)


def _whole_number(name: str, default: int) -> int:
    """A whole number of the query. Raises ``ClientError``."""
    given = request.args.get(name)
    if given is None:
        return default
    if not given.isascii() or not given.isdigit() or len(given) > _DIGITS:
        raise ClientError(f"{name} must be a whole number", param=name)
    return int(given)


def _require_path(router: Router, path: str) -> None:
    """What can be asked for below a session: a list, so that no agent reaches past it."""
    chats = router.args.enable_openai_chat_completion
    served = {"generate", _MODELS, *_RETRIEVALS} | (set(ENDPOINTS) if chats else set())
    if path in ("seal", "samples"):
        raise MethodNotAllowed(["POST"])
    if path not in served:
        raise ClientError(
            f"/{path} cannot be asked for in a session", status=404, code="unknown_path"
        )
    method = "GET" if path == _MODELS else "POST"
    if request.method != method:
        raise MethodNotAllowed([method])
