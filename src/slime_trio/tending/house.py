"""What has to be tidied up beside the workers: each tenant's memory, sessions and connections."""

from __future__ import annotations

from typing import Final

import trio

from slime_trio.router import Router
from slime_trio.sessions import free_ended
from slime_trio.shared import Shared

__all__ = ["expire_connections", "keep_house"]

_EXPIRE_S: Final = 1.0


async def keep_house(router: Router) -> None:
    """Let go of what one commit was not allowed to, a slice at a time."""
    while True:
        await router.housekeeping.wait()
        router.housekeeping = trio.Event()
        while not router.let_go():
            await trio.lowlevel.checkpoint()
        await free_ended(router)


async def expire_connections(shared: Shared) -> None:
    """Close connections to workers that have been idle for too long."""
    while True:
        shared.pool.expire()
        await trio.sleep(_EXPIRE_S)
