"""What is not the router's own goes to a worker, if it means one thing only and manages nothing.

Method, query, body and fields are the client's, but for the fields of one connection and the
router's keys; the path is its normal form (:mod:`slime_trio.passthrough_paths`). What a worker
answers comes back as it is, redirects too: nobody here follows them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import Map, Rule

from slime_core.access import CONTROL_PATHS, Role
from slime_core.errors import ClientError
from slime_trio.auth import current
from slime_trio.exchange import GENERATING_PATHS
from slime_trio.passthrough_paths import NormalPath, normal_path
from slime_trio.quart_listener import pass_as, relayed, written_path
from slime_trio.renaming import forward_renamed
from slime_trio.session_routes import relayed_in_session

__all__ = ["add_pass_through"]

_ENDPOINT: Final = "pass_through"
_ALL_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_OWN_TREES: Final = frozenset({"sessions", "trajectories", "workers"})
"""First segments under which everything is the router's, also what is not there."""


def add_pass_through(app: QuartTrio) -> None:
    """Pass on every path for which ``app`` has no route; to be called when it has all others."""
    own = _OwnPaths(app)

    @app.route("/", defaults={"path": ""}, methods=_ALL_METHODS)
    @app.route("/<path:path>", methods=_ALL_METHODS)
    async def pass_through(path: str) -> Response:
        return await _passed_through(own, path)


async def _passed_through(own: _OwnPaths, path: str) -> Response:
    scope: Any = request.scope
    normal = normal_path(written_path(scope))
    _refuse_own(own, path, normal)
    refuse_strangers(current().role, path)
    pass_as(scope, normal.raw, "/" + normal.readings[0])
    router = current().router
    generates = request.method == "POST" and not GENERATING_PATHS.isdisjoint(normal.readings)
    if generates:
        reason = "not_capturable" if router.captures else None
        return await relayed_in_session(partial(forward_renamed, reason=reason))
    return await relayed(partial(forward_renamed, router), stall_s=router.args.client_stall_s)


def _refuse_own(own: _OwnPaths, path: str, normal: NormalPath) -> None:
    """Raise what a path deserves that is the router's in one reading or the other."""
    methods = own.methods("/" + path)
    if methods:
        raise MethodNotAllowed(valid_methods=methods)
    for reading in normal.readings:
        if own.methods("/" + reading):
            raise ClientError(
                f"there is nothing at /{path}; did you mean /{reading}?",
                status=404,
                code="unknown_path",
            )
    first = {reading.partition("/")[0] for reading in normal.readings}
    if not first.isdisjoint(CONTROL_PATHS):
        raise ClientError(
            f"/{path} changes a worker and is not passed through: it would reach one of the "
            "workers by chance; call each worker itself",
            status=501,
            code="control_path",
        )
    if not first.isdisjoint(_OWN_TREES):
        raise ClientError(f"there is nothing at /{path}", status=404, code="unknown_path")


def refuse_strangers(role: Role, path: str) -> None:
    """Raise for callers who may ask for what is the router's own at the most: an agent where chats
    are not served here, and whoever asks for what is open to all and is not there."""
    if role is Role.SESSION:
        raise ClientError(
            "a session key opens what is captured, and nothing of this is",
            status=403,
            code="session_key_forbids",
        )
    if role is Role.NOBODY:
        raise ClientError(f"there is nothing at /{path}", status=404, code="unknown_path")


class _OwnPaths:
    """The routes of an application, without the one that takes what is left over."""

    def __init__(self, app: QuartTrio) -> None:
        self._app = app
        self._map: Map | None = None

    def methods(self, path: str) -> list[str]:
        """The methods of a path that is the router's own; none of another."""
        if self._map is None:
            rules = self._app.url_map.iter_rules()
            self._map = Map(
                _copies(rule for rule in rules if rule.endpoint != _ENDPOINT),
                merge_slashes=False,
                strict_slashes=True,
            )
        try:
            self._map.bind("router").match(path, method="--")
        except MethodNotAllowed as error:
            return sorted(error.valid_methods or ())
        except HTTPException:
            pass
        return []


def _copies(rules: Iterable[Rule]) -> list[Rule]:
    return [Rule(rule.rule, methods=rule.methods, endpoint=rule.endpoint) for rule in rules]
