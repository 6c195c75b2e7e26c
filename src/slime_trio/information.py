"""``GET /get_server_info``: what a worker tells of itself, and what the router does with chats."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

import httpx
import msgspec

from slime_core.errors import ClientError
from slime_trio.pairs import pair_information
from slime_trio.router import Router
from slime_trio.tending import ADMIN_CLIENT
from slime_trio.tokenizer import CheckpointError

__all__ = ["server_info"]

_PATH: Final = "/get_server_info"
_FAILURES: Final = (httpx.HTTPError, msgspec.DecodeError)


async def server_info(router: Router, *, all: bool = True) -> dict[str, Any]:
    """The answer of the first fit worker, or those of all pairs' workers merged, with
    ``slime_router`` added.

    A worker that does not answer leaves its part out; it is left out too without ``all``, as for a
    tenant beside others.
    """
    told = await _workers_info(router) if all else {}
    return {**told, "slime_router": await _own(router)}


async def _workers_info(router: Router) -> dict[str, Any]:
    pairs = await pair_information(router)
    return await _worker_info(router) if pairs is None else pairs


async def _worker_info(router: Router) -> dict[str, Any]:
    fit = next((one for one in router.state.fleet.fit()), None)
    registry = router.component_registry
    if fit is None or ADMIN_CLIENT not in registry:
        return {}
    client: httpx.AsyncClient = registry.get(ADMIN_CLIENT)
    try:
        answer = await client.get(fit.url.rstrip("/") + _PATH)
        return msgspec.json.decode(answer.content, type=dict[str, Any])
    except _FAILURES:
        return {}


async def _own(router: Router) -> dict[str, Any]:
    settings = router.args
    own: dict[str, Any] = {
        "version": version("slime-router"),
        "policy": settings.policy,
        "capture": router.captures,
        "history": settings.history,
        "special_tokens_in_content": settings.special_tokens_in_content,
        "context_length": router.context_length,
    }
    try:
        chatting = await router.chatting()
    except (ClientError, CheckpointError):
        return own
    report = chatting.template.report
    return own | {
        "tool_call_parser": chatting.parsers.tool_calls,
        "reasoning_parser": chatting.parsers.reasoning,
        "chat_template": None if report is None else report.as_json(),
        "warnings": list(chatting.template.warnings),
    }
