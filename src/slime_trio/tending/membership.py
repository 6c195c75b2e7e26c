"""Workers that come, change and go: what both dialects of registration come down to."""

from __future__ import annotations

from typing import Final

import trio

from slime_core.enlistment import Enlistment
from slime_core.errors import ClientError
from slime_core.fleet import Worker, WorkerKind
from slime_core.health import Event
from slime_core.transitions import WorkerAdded, WorkerRemoved
from slime_core.types import WorkerUrl
from slime_trio.router import Router
from slime_trio.tending.keeper import keeper_of
from slime_trio.tending.visits import note_health
from slime_trio.worker_checks import details_of

__all__ = [
    "WORKERS_MOST",
    "add_configured",
    "add_worker",
    "change_worker",
    "enlist",
    "enlistment_of",
    "remove_worker",
]

_CONTACT_S: Final = 5.0
"""How long a registration waits for first contact. It succeeds all the same, and the worker is
contacted again."""
WORKERS_MOST: Final = 1024
"""How many workers may be registered: whoever can register one could else fill the memory."""


def enlistment_of(router: Router, worker: Worker) -> Enlistment:
    """How a worker was registered."""
    return Enlistment(
        url=worker.url,
        kind=worker.kind,
        bootstrap_port=worker.bootstrap_port,
        api_key=router.shared.worker_book.key_of(worker.url),
        details=details_of(worker),
    )


async def add_worker(router: Router, url: str) -> None:
    """Register a worker by its URL alone, which leaves a known one as it was registered."""
    known = router.state.fleet.workers.get(WorkerUrl(url))
    await enlist(router, Enlistment(url=url) if known is None else enlistment_of(router, known))


async def enlist(router: Router, given: Enlistment) -> None:
    """Register a worker, or a known one anew, and contact it.

    Whatever it did before is forgiven. It is contacted even where it seems well: workers register
    when they start, so what was known of its weights may be over. So may a pause, but only once it
    says that it takes requests: it may as well be the very process that was paused.

    Raises ``ClientError`` (429) where there are too many.
    """
    workers = router.state.fleet.workers
    if given.url not in workers and len(workers) >= WORKERS_MOST:
        raise ClientError(
            f"{WORKERS_MOST} workers are registered: remove those that are gone",
            status=429,
            code="too_many_workers",
            retry_after_s=1.0,
        )
    url = _commit(router, given)
    note_health(router, url, Event.REGISTERED)
    keeper = keeper_of(router)
    keeper.expect_another(url)
    with trio.move_on_after(_CONTACT_S):
        await keeper.contact(url)


def change_worker(router: Router, given: Enlistment) -> None:
    """Change how a known worker is registered."""
    _commit(router, given)


def remove_worker(router: Router, url: WorkerUrl, *, drain: bool = True) -> None:
    """Give a worker no more work, and forget it once its last call has ended.

    Without ``drain`` its calls are aborted: they end at once, with what they have so far. Of a
    worker that is not known nothing needs to be done.
    """
    if url not in router.state.fleet.workers:
        return
    router.commit(WorkerRemoved(worker=url))
    router.pool.forget(url)
    if not drain:
        _abort_calls(router, url)


def _abort_calls(router: Router, url: WorkerUrl) -> None:
    """Have what is in flight at a worker stopped, at both sides where it is one of a pair."""
    shared = router.shared
    for live in shared.dispatcher.live.values():
        if url not in live.workers:
            continue
        live.aborted = True
        given = () if shared.own_ids else (rid for rid in live.rids if live.call not in rid)
        for worker in live.workers:
            router.abort_later(worker, [live.call, *given])


def add_configured(router: Router) -> None:
    """Register the workers that the settings name; they are contacted by whoever tends."""
    args = router.args
    for url in args.worker_urls:
        _commit(router, Enlistment(url=url))
    for prefill in args.prefill:
        _commit(
            router,
            Enlistment(
                url=prefill.url, kind=WorkerKind.PREFILL, bootstrap_port=prefill.bootstrap_port
            ),
        )
    for url in args.decode:
        _commit(router, Enlistment(url=url, kind=WorkerKind.DECODE))


def _commit(router: Router, given: Enlistment) -> WorkerUrl:
    book, url = router.shared.worker_book, WorkerUrl(given.url)
    book.set_key(url, given.api_key)
    router.commit(
        WorkerAdded(
            worker=url,
            id=book.id_of(url),
            kind=given.kind,
            bootstrap_port=given.bootstrap_port,
            extras=given.details.encoded(),
        )
    )
    return url
