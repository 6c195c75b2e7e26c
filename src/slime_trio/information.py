"""``GET /get_server_info``: what workers tell of themselves, and all that the router does.

The worker's own facts stay where SGLang's users look for them, at the top; the router's are under
``slime_router``. Of settings everything is told but secrets.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

import httpx
import msgspec

from slime_core.errors import ClientError
from slime_trio.config import OPTIONS
from slime_trio.pairs.information import pair_information
from slime_trio.router import Router
from slime_trio.tending import ADMIN_CLIENT
from slime_trio.tokenizer import CheckpointError
from slime_trio.worker_views import worker_entry

__all__ = ["server_info"]

_PATH: Final = "/get_server_info"
_FAILURES: Final = (httpx.HTTPError, msgspec.DecodeError)
_SHOWN: Final = tuple(option.name for option in OPTIONS if not option.secret)
_LIMITS: Final = (
    *("max_concurrent_requests", "queue_size", "queue_timeout_s", "request_timeout_s"),
    *("max_attempts", "max_body_mb", "max_answer_mb", "max_samples_per_request"),
    *("max_connections", "max_connections_per_peer", "max_header_kb", "max_json_depth"),
)


async def server_info(router: Router, *, all: bool = True) -> dict[str, Any]:
    """The answer of the first fit worker, or of all workers of pairs, merged; and ``slime_router``.

    A worker that does not answer leaves its part out; it is left out too without ``all``, as for a
    tenant beside others, who is told of no worker and of no setting.
    """
    told: Mapping[str, Any] = {}
    if all:
        pairs = await pair_information(router)
        told = await _worker_info(router) if pairs is None else pairs
    own = await _of_chats(router) | _of_tenants(router)
    if all:
        own |= _of_process(router)
    return {**told, "slime_router": own}


async def _worker_info(router: Router) -> dict[str, Any]:
    fit = next((one for one in router.state.fleet.fit()), None)
    registry = router.component_registry
    if fit is None or ADMIN_CLIENT not in registry:
        return {}
    client: httpx.AsyncClient = registry.get(ADMIN_CLIENT)
    headers = router.shared.worker_headers(fit.url, readable=True)
    try:
        answer = await client.get(fit.url.rstrip("/") + _PATH, headers=headers)
        return msgspec.json.decode(answer.content, type=dict[str, Any])
    except _FAILURES:
        return {}


def _of_tenants(router: Router) -> dict[str, Any]:
    """What every tenant may know."""
    settings, versions = router.args, router.shared.versions
    return {
        "version": version("slime-router"),
        "capture": router.captures,
        "history": settings.history,
        "special_tokens_in_content": settings.special_tokens_in_content,
        "context_length": router.context_length,
        "policy": settings.policy,
        "weights": {"newest": versions.newest, "epoch": versions.epoch},
        "limits": {name: getattr(settings, name) for name in _LIMITS},
    }


def _of_process(router: Router) -> dict[str, Any]:
    """What is the operator's to know."""
    shared, settings = router.shared, router.args
    room, versions = shared.dispatcher.room, shared.versions
    return {
        "workers": [worker_entry(router, worker) for worker in shared.fleet.listed()],
        "weights": {
            "newest": versions.newest,
            "epoch": versions.epoch,
            "nobody_fit_holds_the_newest": versions.unheld_since is not None,
            "max_staleness": versions.max_staleness,
            "fall_backs": shared.counts.fall_backs,
        },
        "queue": {"running": room.running, "waiting": room.waiting_count},
        "tenants": len(shared.routers),
        "keys": {"configured": shared.keys.configured, "admin": shared.keys.has_admin},
        "listener": {
            "host": settings.host,
            "port": settings.port,
            "tls": settings.tls_cert is not None,
        },
        "settings": {name: getattr(settings, name) for name in _SHOWN},
    }


async def _of_chats(router: Router) -> dict[str, Any]:
    try:
        chatting = await router.chatting()
    except (ClientError, CheckpointError):
        return {}
    report = chatting.template.report
    return {
        "tool_call_parser": chatting.parsers.tool_calls,
        "reasoning_parser": chatting.parsers.reasoning,
        "chat_template": None if report is None else report.as_json(),
        "warnings": list(chatting.template.warnings),
    }
