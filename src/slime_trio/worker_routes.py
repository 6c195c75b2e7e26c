"""Registration of workers, in both dialects that trainers and gateways speak.

``/workers`` is that of the SGLang Model Gateway, ``/add_worker``, ``/remove_worker`` and
``/list_workers`` that of older gateways and of slime's own router. Both act on the same fleet, and
a worker's URL is compared and given back exactly as it was registered.

Removing succeeds whenever it can be known what was meant, whether the worker is still there or not:
trainers end a worker's process only after a good answer.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import MethodNotAllowed

from slime_core.access import Role
from slime_core.enlistment import parse_change, parse_enlistment
from slime_core.errors import ClientError
from slime_core.fleet import Worker
from slime_core.strict_json import BAD_JSON
from slime_core.types import WorkerUrl
from slime_trio.auth import current
from slime_trio.quart_listener import body_bytes
from slime_trio.registration import caller, check
from slime_trio.responses import json_response
from slime_trio.router import Router
from slime_trio.tending import add_worker, change_worker, enlist, enlistment_of, remove_worker
from slime_trio.worker_views import worker_entry, worker_list

__all__ = ["add_worker_routes"]

_TRUTHS: Final = {"true": True, "1": True, "false": False, "0": False}
_ON_ONE: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "PUT")


def add_worker_routes(app: QuartTrio, router: Router) -> None:
    """Every path on which workers come and go; ``router`` is the default tenant's."""
    _add_resources(app, router)
    _add_one(app, router)
    _add_queries(app, router)


def _add_resources(app: QuartTrio, router: Router) -> None:
    @app.post("/workers")
    async def register_worker() -> Response:
        given = parse_enlistment(await body_bytes())
        await _permit(router, given.url)
        await enlist(router, given)
        name = router.shared.worker_book.id_of(WorkerUrl(given.url))
        return _accepted(name, "registered", url=given.url, location=f"/workers/{name}")

    @app.get("/workers")
    async def show_workers() -> Response:
        shown = list(router.state.fleet.workers.values())
        model = request.args.get("model")
        if model is not None:
            shown = [one for one in shown if worker_entry(router, one)["model_id"] == model]
        return json_response(worker_list(router, shown))


def _add_one(app: QuartTrio, router: Router) -> None:
    path = "/workers/<path:name>"

    @app.get(path)
    async def show_worker(name: str) -> Response:
        return json_response(worker_entry(router, _find(router, name)))

    @app.route(path, methods=["PUT", "PATCH"])
    async def change_one_worker(name: str) -> Response:
        found = _find(router, name)
        change_worker(router, parse_change(await body_bytes(), enlistment_of(router, found)))
        return _accepted(found.id, "changed", url=found.url, location=f"/workers/{found.id}")

    @app.delete(path)
    async def remove_one_worker(name: str) -> Response:
        url = _url_of(router, name)
        drain = _flag("drain", default=True)
        await _permit_removal(router, url)
        is_known = url in router.state.fleet.workers
        remove_worker(router, url, drain=drain)
        id_or_url = router.shared.worker_book.known_id_of(url) or url
        return _accepted(id_or_url, "removed" if is_known else "not registered", url=url)

    @app.post(path)
    async def no_such_method_of_workers(name: str) -> Response:
        raise MethodNotAllowed(valid_methods=_ON_ONE)


def _add_queries(app: QuartTrio, router: Router) -> None:
    @app.post("/add_worker")
    async def add_by_url() -> Response:
        url = await _named_url()
        await _permit(router, url)
        await add_worker(router, url)
        loads = {worker.url: worker.load for worker in router.state.fleet.listed()}
        return json_response({"status": "success", "worker_urls": loads})

    @app.post("/remove_worker")
    async def remove_by_url() -> Response:
        url = WorkerUrl(await _named_url())
        await _permit_removal(router, url)
        remove_worker(router, url)
        return json_response({"status": "success"})

    @app.get("/list_workers")
    async def list_urls() -> Response:
        return json_response({"urls": [worker.url for worker in router.state.fleet.listed()]})


async def _permit(router: Router, url: str) -> None:
    """Raise ``ClientError`` (400, 403) unless the caller may have this URL contacted.

    A key makes an operator only where there is one: without any, everybody is called that.
    """
    shared = router.shared
    is_admin = shared.keys.that_are.admin and current().role is Role.OPERATOR
    await check(shared, url, caller(request.scope, shared.args, is_admin=is_admin))


async def _permit_removal(router: Router, url: WorkerUrl) -> None:
    """Raise ``ClientError`` (403) unless the caller may end what a worker is there for.

    Who is not the operator may remove what it may register: a worker itself.
    """
    if current().role is not Role.OPERATOR and url in router.state.fleet.workers:
        await _permit(router, url)


def _accepted(name: str, message: str, **more: str) -> Response:
    response = json_response(
        {"status": "accepted", "worker_id": name, **more, "message": message}, 202
    )
    if "location" in more:
        response.headers["location"] = more["location"]
    return response


def _find(router: Router, name: str) -> Worker:
    """The worker of that id or URL, also one that is being removed. Raises ``ClientError``."""
    found = router.state.fleet.workers.get(_url_of(router, name))
    if found is None:
        raise _not_found(name)
    return found


def _url_of(router: Router, name: str) -> WorkerUrl:
    """The URL of a worker that is, or was, known by that id; a URL is its own.

    Raises ``ClientError`` (404) for an id that no worker ever had.
    """
    if "://" in name:
        return WorkerUrl(name)
    url = router.shared.worker_book.url_of(name)
    if url is None:
        raise _not_found(name)
    return url


def _not_found(name: str) -> ClientError:
    return ClientError(
        f"no worker is registered as {name!r}; GET /workers lists them",
        status=404,
        code="WORKER_NOT_FOUND",
    )


def _flag(name: str, *, default: bool) -> bool:
    word = request.args.get(name)
    if word is None:
        return default
    if word.lower() not in _TRUTHS:
        raise ClientError(f"{name} must be true or false", param=name)
    return _TRUTHS[word.lower()]


async def _named_url() -> str:
    """The worker's URL, exactly as given: query or JSON, ``url`` or ``worker_url``."""
    named: Any = request.args.get("url") or request.args.get("worker_url")
    body = await body_bytes()
    if not named and body:
        try:
            given = msgspec.json.decode(body, type=dict[str, Any])
        except BAD_JSON as error:
            raise ClientError(f"the body is not a JSON object: {error}") from None
        named = given.get("url") or given.get("worker_url")
    if not isinstance(named, str) or not named:
        raise ClientError(
            "worker_url is required (use query ?url=… or a JSON body with url)", param="url"
        )
    return named
