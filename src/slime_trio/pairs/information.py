"""``/get_server_info`` of pairs: every worker of both kinds is asked."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import trio

from slime_core.disaggregation import merge_server_info
from slime_core.errors import WorkerError
from slime_core.fleet import Worker, WorkerKind
from slime_core.types import WorkerUrl
from slime_trio.router import Router

__all__ = ["pair_information"]

_PATH: Final = b"/get_server_info"
_ANSWER_S: Final = 5.0
_MOST: Final = 16 * 2**20


async def pair_information(router: Router) -> dict[str, Any] | None:
    """What the workers of pairs tell, merged; ``None`` where there are none.

    A worker that does not answer in time is left out.
    """
    sides = {
        kind: [worker for worker in router.state.fleet.listed() if worker.kind is kind]
        for kind in (WorkerKind.PREFILL, WorkerKind.DECODE)
    }
    if not any(sides.values()):
        return None
    told: dict[WorkerUrl, bytes] = {}
    async with trio.open_nursery() as nursery:
        for worker in (*sides[WorkerKind.PREFILL], *sides[WorkerKind.DECODE]):
            nursery.start_soon(_ask, router, worker, told)
    prefill, decode = (
        [told[worker.url] for worker in workers if worker.url in told] for workers in sides.values()
    )
    return merge_server_info(prefill, decode)


async def _ask(router: Router, worker: Worker, told: dict[WorkerUrl, bytes]) -> None:
    headers = router.shared.worker_headers(worker.url, readable=True)
    with trio.move_on_after(_ANSWER_S), suppress(WorkerError):
        async with router.pool.request("GET", worker.url, _PATH, headers) as response:
            body = await response.read(max_bytes=_MOST)
            if response.status == 200:
                told[worker.url] = body
