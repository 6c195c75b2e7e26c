"""Generating calls as every listener has them served: in the session that they belong to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final

from msgspec.structs import replace

from slime_trio import sessions
from slime_trio.auth import Access
from slime_trio.endpoints import chat_completions, completions, generate
from slime_trio.exchange import Inbound, Reply
from slime_trio.router import Router

__all__ = ["ENDPOINTS", "Endpoint", "serve_in_session"]

Endpoint = Callable[[Router, Inbound, Reply], Awaitable[None]]

ENDPOINTS: Final[Mapping[str, Endpoint]] = MappingProxyType(
    {
        "generate": generate,
        "v1/chat/completions": chat_completions,
        "v1/completions": completions,
    }
)
"""What is captured, by its path; below ``/sessions/{id}/`` too."""


def serve_in_session(
    access: Access,
    endpoint: Endpoint,
    inbound: Inbound,
    reply: Reply,
    *,
    session: str | None = None,
    path: str | None = None,
) -> Awaitable[None]:
    """Have ``endpoint`` serve a request in its session, which must take calls. Raises what it does.

    ``session`` is that of its path, if it has one; then ``path`` is the rest, as which it is
    served. No coroutine of its own where there is no session: all that waits in the endpoint would
    have one more to go through.
    """
    router = access.router
    inbound = sessions.entered(router, inbound, path=session, key=access.session)
    if path is not None:
        _, mark, query = inbound.target.partition(b"?")
        inbound = replace(inbound, path=path, target=path.encode() + mark + query)
    if inbound.session is None:
        return endpoint(router, inbound, reply)
    return _serve_using(router, endpoint, inbound, reply)


async def _serve_using(router: Router, endpoint: Endpoint, inbound: Inbound, reply: Reply) -> None:
    with sessions.used(router, inbound.session):
        await endpoint(router, inbound, reply)
