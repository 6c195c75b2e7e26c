"""What is passed through, under the router's own ids: workers never see a client's ``rid``."""

from __future__ import annotations

from collections.abc import Awaitable

from msgspec.structs import replace

from slime_core.sglang import Restorer, rename_request
from slime_trio.exchange import Headers, Inbound, Reply
from slime_trio.offload import off_loop
from slime_trio.relay import forward
from slime_trio.router import Router

__all__ = ["forward_renamed"]


def forward_renamed(
    router: Router, inbound: Inbound, reply: Reply, *, reason: str | None = None
) -> Awaitable[None]:
    """Pass a request through as :func:`slime_trio.relay.forward` does, its ``rid`` replaced and put
    back into the answer where keys are configured. Raises likewise."""
    passing = _forward_renamed if router.shared.own_ids else forward
    return passing(router, inbound, reply, reason=reason)


async def _forward_renamed(
    router: Router, inbound: Inbound, reply: Reply, *, reason: str | None = None
) -> None:
    own, size = router.new_call_id(), len(inbound.body)
    body, names = await off_loop(size, rename_request, inbound.body, own)
    if not names:
        await forward(router, inbound, reply, reason=reason)
        return
    # The answer must come readable, for ids are put back into it.
    headers = [field for field in inbound.headers if field[0] != b"accept-encoding"]
    renamed = replace(
        inbound, body=body, headers=headers, call=own, client_ids=tuple(names.values())
    )
    restoring = _Restoring(reply, Restorer(names))
    await forward(router, renamed, restoring, reason=reason)
    await restoring.close()


class _Restoring:
    """A reply with the client's ids in place of those that the worker knew."""

    def __init__(self, reply: Reply, restorer: Restorer) -> None:
        self._reply = reply
        self._restorer = restorer

    @property
    def started(self) -> bool:
        """Whether the status has been given."""
        return self._reply.started

    async def start(self, status: int, headers: Headers) -> None:
        """Give status and header fields; the length will be another."""
        kept = [field for field in headers if field[0] != b"content-length"]
        await self._reply.start(status, kept)

    async def send(self, data: bytes) -> None:
        """Give a piece of the body. Raises ``ClientGone``."""
        shown = self._restorer.feed(data)
        if shown:
            await self._reply.send(shown)

    async def close(self) -> None:
        """Give what waited for more."""
        rest = self._restorer.close()
        if rest:
            await self._reply.send(rest)
