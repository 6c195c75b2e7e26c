"""What happens beside the requests: first contact with workers, polls, housekeeping."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final

import httpx
import structlog
import trio

from slime_core import sglang
from slime_core.decide import health_change
from slime_core.errors import WorkerError
from slime_core.fleet import Worker
from slime_core.health import Condition, Event
from slime_core.transitions import VersionSeen, WorkerAdded, WorkerMismatch
from slime_core.types import WorkerUrl, pack_ids
from slime_trio.router import Router
from slime_trio.sessions import expire_sessions, free_ended
from slime_trio.tokenizer import PROBE_TEXT

__all__ = ["ADMIN_CLIENT", "add_worker", "contact", "tend"]

_MISMATCH: Final = "its tokenizer is not the router's: other ids for the same text"

_PROBE_FAILURES: Final = (httpx.HTTPError, httpx.InvalidURL, UnicodeError)
"""What a probe may raise that the worker, or its URL, is to blame for."""
_PROBE_S: Final = 10.0
_RETRY_S: Final = 1.0
ADMIN_CLIENT: Final = "admin_client"
"""The registered component that asks workers about themselves: an ``httpx.AsyncClient``."""

_Probe = Callable[[Router, httpx.AsyncClient, WorkerUrl], Awaitable[None]]

_log: Any = structlog.get_logger("slime_router")


async def tend(router: Router, *, task_status: trio.TaskStatus[None]) -> None:
    """Look after ``router`` until cancelled; everything here belongs to one nursery."""
    async with _admin_client(router) as client, trio.open_nursery() as nursery:
        router.nursery = nursery
        try:
            for url in router.args.worker_urls:
                router.commit(WorkerAdded(worker=WorkerUrl(url)))
            for tenant in router.shared.routers.values():
                nursery.start_soon(_without_end, _keep_house, tenant)
                nursery.start_soon(_without_end, expire_sessions, tenant)
            nursery.start_soon(_without_end, _poll, router, client)
            task_status.started()
            await trio.sleep_forever()
        finally:
            router.nursery = None


@asynccontextmanager
async def _admin_client(router: Router) -> AsyncIterator[httpx.AsyncClient]:
    """The client that probes workers: the registered one, which whoever registered it closes.

    That is how another way to the workers (a proxy, a private authority, a simulated network) is
    given. Where none is registered, or only one that a former run has closed, one is made here.
    """
    registry = router.component_registry
    given = registry.get(ADMIN_CLIENT) if ADMIN_CLIENT in registry else None
    if given is not None and not given.is_closed:
        yield given
        return
    async with httpx.AsyncClient(timeout=_PROBE_S, trust_env=False, verify=_tls()) as client:
        registry.register(ADMIN_CLIENT, client)
        yield client


@cache
def _tls() -> ssl.SSLContext:
    """Which authorities are believed. Reading them all takes 20 ms, so it is done once."""
    return ssl.create_default_context()


async def _without_end(work: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Keep ``work`` going: a bug in it is reported, and must not end the tending in silence."""
    while True:
        try:
            await work(*arguments)
        except Exception:
            _log.exception("internal error", task=work.__name__)
        await trio.sleep(_RETRY_S)


async def _keep_house(router: Router) -> None:
    """Let go of what one commit was not allowed to, a slice at a time."""
    while True:
        await router.housekeeping.wait()
        router.housekeeping = trio.Event()
        while not router.let_go():
            await trio.lowlevel.checkpoint()
        await free_ended(router)


async def _poll(router: Router, client: httpx.AsyncClient) -> None:
    """Contact new workers until they answer; ask the others for their weight version.

    A worker that takes its time delays nobody else: it is let alone until it is done.
    """
    busy: set[WorkerUrl] = set()

    async def visit(probe: _Probe, worker: WorkerUrl) -> None:
        try:
            await probe(router, client, worker)
        finally:
            busy.discard(worker)

    next_round = trio.current_time()
    async with trio.open_nursery() as nursery:
        while True:
            is_round = trio.current_time() >= next_round
            if is_round:
                next_round = trio.current_time() + router.args.poll_interval_s
            for worker in router.state.fleet.listed():
                is_new = worker.health.condition in (Condition.JOINING, Condition.QUARANTINED)
                is_due = _is_due(worker) if is_new else is_round
                if worker.url not in busy and is_due:
                    busy.add(worker.url)
                    nursery.start_soon(visit, contact if is_new else _learn_version, worker.url)
            router.pool.expire()
            await trio.sleep(min(_RETRY_S, router.args.poll_interval_s))


def _is_due(worker: Worker) -> bool:
    """Whether a worker's quarantine, if it is in any, is over."""
    until = worker.health.until
    return until is None or trio.current_time() >= until


def _note(router: Router, worker: WorkerUrl, event: Event) -> None:
    now, limits = trio.current_time(), router.shared.health_limits
    change = health_change(router.state, worker, event, now, limits)
    if change is not None:
        router.commit(change)


async def add_worker(router: Router, url: str) -> None:
    """Register a worker and make first contact; one that does not answer is tried again."""
    worker = WorkerUrl(url)
    known = router.state.fleet.workers.get(worker)
    router.commit(WorkerAdded(worker=worker))
    if known is not None and known.is_fit:
        return
    _note(router, worker, Event.REGISTERED)
    await contact(router, router.component_registry.get(ADMIN_CLIENT), worker)


async def contact(router: Router, client: httpx.AsyncClient, worker: WorkerUrl) -> None:
    """First contact: which weights, and whether its tokenizer is ours."""
    try:
        await _ask_version(router, client, worker)
        mismatch = await _tokenizer_problem(router, client, worker)
    except _PROBE_FAILURES:
        _note(router, worker, Event.UNREACHABLE)
        return
    known = router.state.fleet.workers.get(worker)
    if known is not None and known.mismatch != mismatch:
        router.commit(WorkerMismatch(worker=worker, reason=mismatch))
    _note(router, worker, Event.PROBE_PASSED)


async def _learn_version(router: Router, client: httpx.AsyncClient, worker: WorkerUrl) -> None:
    try:
        await _ask_version(router, client, worker)
    except _PROBE_FAILURES as error:
        _log.debug("poll failed", worker=worker, error=type(error).__name__)


async def _ask_version(router: Router, client: httpx.AsyncClient, worker: WorkerUrl) -> None:
    """Take notice of the weights a worker says it holds. Raises ``httpx.HTTPError``."""
    sighting = router.state.versions.sighting
    for path in ("/model_info", "/get_model_info"):
        answer = await client.get(worker.rstrip("/") + path)
        if answer.status_code != 200:
            continue
        try:
            told = sglang.parse_model_info(answer.content)
        except WorkerError:
            continue
        router.parses_reasoning[worker] = told.reasoning_parser is not None
        version = told.weight_version
        known = router.state.fleet.workers.get(worker)
        if version is None or known is None:
            return
        if known.version != version or known.confirmed < sighting:
            router.commit(VersionSeen(worker=worker, version=version, sighting=sighting))
        return


async def _tokenizer_problem(
    router: Router, client: httpx.AsyncClient, worker: WorkerUrl
) -> str | None:
    """Why this worker's tokenizer cannot be ours; ``None`` if it is, or if it will not tell."""
    if not router.captures:
        return None
    body = sglang.encode_tokenize(PROBE_TEXT, add_special_tokens=True)
    answer = await client.post(
        worker.rstrip("/") + "/tokenize", content=body, headers={"content-type": "application/json"}
    )
    try:
        told = sglang.parse_tokenize(answer.content) if answer.status_code == 200 else None
    except WorkerError:
        told = None
    if told is None:
        _log.warning("tokenizer not compared: the worker does not tell", worker=worker)
        return None
    if told.max_model_len is not None:
        known = router.told_context_length
        router.told_context_length = min(told.max_model_len, known or told.max_model_len)
    return None if told.ids == pack_ids(router.tokenizer.ids_of_probe()) else _MISMATCH
