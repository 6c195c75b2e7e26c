"""What happens beside the requests: contact with workers, health checks, polls, housekeeping.

:func:`tend` runs all of it. :mod:`slime_trio.tending.chores` says what is due when,
:mod:`~slime_trio.tending.visits` what is then asked and committed,
:mod:`~slime_trio.tending.keeper` sees to it, and :mod:`~slime_trio.tending.membership` is how
workers come and go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
import trio

from slime_core.types import WorkerUrl
from slime_trio.router import Router
from slime_trio.sessions import expire_sessions
from slime_trio.shared import Shared
from slime_trio.tending.house import expire_connections, keep_house
from slime_trio.tending.keeper import KEEPERS_KINDS, Keeper, keeper_of
from slime_trio.tending.membership import (
    add_configured,
    add_worker,
    change_worker,
    enlist,
    enlistment_of,
    remove_worker,
)
from slime_trio.tending.questions import ADMIN_CLIENT, NoAnswer, Questions, admin_client

__all__ = [
    "ADMIN_CLIENT",
    "NoAnswer",
    "Questions",
    "add_worker",
    "change_worker",
    "contact",
    "enlist",
    "enlistment_of",
    "poll_now",
    "remove_worker",
    "tend",
]

_RETRY_S: Final = 1.0

_log: Any = structlog.get_logger("slime_router")


async def tend(router: Router, *, task_status: trio.TaskStatus[None]) -> None:
    """Look after ``router`` until cancelled; everything here belongs to one nursery."""
    shared = router.shared
    async with admin_client(router) as client, trio.open_nursery() as nursery:
        keeper = Keeper(router, Questions(shared, client))
        shared.nursery, shared.keeper = nursery, keeper
        shared.observers.append(keeper.observe, of=KEEPERS_KINDS)
        try:
            add_configured(router)
            for tenant in shared.routers.values():
                nursery.start_soon(_without_end, keep_house, tenant)
                nursery.start_soon(_without_end, expire_sessions, tenant)
            nursery.start_soon(_without_end, expire_connections, shared)
            nursery.start_soon(_without_end, keeper.keep)
            task_status.started()
            await trio.sleep_forever()
        finally:
            shared.observers.remove(keeper.observe)
            shared.nursery = shared.keeper = None


async def _without_end(work: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Keep ``work`` going: a bug in it is reported, and must not end the tending in silence."""
    while True:
        try:
            await work(*arguments)
        except Exception:
            _log.exception("internal error", task=work.__name__)
        await trio.sleep(_RETRY_S)


async def contact(router: Router, worker: WorkerUrl) -> None:
    """Contact a worker now: weights, tokenizer, whether it is paused."""
    await keeper_of(router).contact(worker)


async def poll_now(shared: Shared, worker: WorkerUrl | None = None) -> None:
    """Ask ``worker``, or all, which weights they hold, and return when they have told.

    For those who know that weights have changed. A worker that does not answer is asked again as
    usual, and not waited for longer than a poll's patience (:mod:`slime_trio.tending.questions`).
    """
    router = shared.routers[""]
    keeper = keeper_of(router)
    asked = [worker] if worker is not None else [one.url for one in shared.fleet.listed()]
    async with trio.open_nursery() as nursery:
        for url in asked:
            nursery.start_soon(keeper.poll, url)
