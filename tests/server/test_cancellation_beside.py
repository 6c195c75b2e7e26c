"""What runs beside the generating requests, cancelled at every step: retrieval, tending, aborts."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from slime_core.transitions import WorkerRemoved
from slime_core.types import WorkerUrl
from slime_trio import retrieval
from slime_trio.endpoints import chat_completions, generate
from slime_trio.exchange import ClientGone
from slime_trio.router import Router
from slime_trio.tending import add_worker, tend
from tests.server.harness import answer_item, tokenizer
from tests.server.relay_support import (
    STREAM_HEAD,
    AtStep,
    Journal,
    Sink,
    answering,
    assert_at_rest,
    event_chunk,
    inbound,
    relay_router,
    sweep,
)
from tests.server.upstream_support import URL, Peer

OTHER = WorkerUrl("http://other:30000")
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


async def _victim(instrument: AtStep, scope: trio.CancelScope, work: Callable[[], Any]) -> None:
    """Do ``work`` in a task of its own, of which the steps are counted."""

    async def victim() -> None:
        instrument.task = trio.lowlevel.current_task()
        with scope:
            await work()

    with instrument.watching():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(victim)


# -- retrieval ---------------------------------------------------------------------------------


async def _by_text(router: Router) -> bytes:
    return await retrieval.by_text(router, b'{"text":"Helloab and more"}')


async def _by_name(router: Router) -> bytes:
    return await retrieval.by_text(router, b'{"text":"Helloab","id":"%032x"}' % 0)


async def _by_call(router: Router) -> bytes:
    return await retrieval.by_call(router, f"{0:032x}")


async def _by_call_of_ids(router: Router) -> bytes:
    return await retrieval.by_call(router, f"{2:032x}")


async def _by_messages(router: Router) -> bytes:
    said = tokenizer().vocabulary.decode([5, 6], skip_special=False, at_start=False)
    answered = {"role": "assistant", "content": said}
    body = {"messages": [*CHAT["messages"], answered, {"role": "user", "content": "y"}]}
    return await retrieval.by_messages(router, json.dumps(body).encode())


RETRIEVALS = [_by_text, _by_name, _by_call, _by_call_of_ids, _by_messages]


@asynccontextmanager
async def _captured() -> AsyncIterator[tuple[Router, Journal]]:
    """A router that has captured a text, a chat, and ids whose text nobody has told yet."""
    async with relay_router(answering) as (router, journal):
        await generate(router, inbound("/generate", {"text": "Hello"}), Sink())
        await chat_completions(router, inbound("/v1/chat/completions", CHAT), Sink())
        await generate(router, inbound("/generate", {"input_ids": [40, 41]}), Sink())
        yield router, journal


async def _retrieval_cancelled(
    retrieve: Callable[[Router], Awaitable[bytes]], expected: bytes, at: int
) -> AtStep:
    async with _captured() as (router, journal):
        scope = trio.CancelScope()
        instrument = AtStep(at, scope.cancel)
        await _victim(instrument, scope, functools.partial(retrieve, router))
        assert_at_rest(router, [journal])
        assert await retrieve(router) == expected
        assert_at_rest(router, [journal])
        return instrument


async def _retrieved(retrieve: Callable[[Router], Awaitable[bytes]]) -> bytes:
    async with _captured() as (router, _):
        return await retrieve(router)


@pytest.mark.parametrize("retrieve", RETRIEVALS)
@pytest.mark.parametrize("in_threads", [False, True])
def test_a_retrieval_cancelled_at_any_step_changes_nothing_for_the_next(
    retrieve: Callable[[Router], Awaitable[bytes]],
    in_threads: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if in_threads:
        for limit in (
            "offload.INLINE_BYTES",
            "tokenizer.INLINE_CHARS",
            "router._TELL_INLINE_BYTES",
        ):
            monkeypatch.setattr(f"slime_trio.{limit}", 0)
    expected = trio.run(_retrieved, retrieve)
    assert sweep(functools.partial(_retrieval_cancelled, retrieve, expected)) >= 1 + in_threads


# -- first contact -----------------------------------------------------------------------------


@asynccontextmanager
async def _probing(router: Router, *, fails: bool = False) -> AsyncIterator[None]:
    """Workers tell what they should, after a while."""

    async def told(request: httpx.Request) -> httpx.Response:
        await trio.sleep(0.01)
        if fails:
            raise httpx.ConnectError("nobody there")
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"tokens": router.tokenizer.ids_of_probe()})
        return httpx.Response(200, json={"model_path": "m", "weight_version": "7"})

    async with httpx.AsyncClient(transport=httpx.MockTransport(told)) as client:
        router.component_registry.register("admin_client", client)
        yield


async def _contact_cancelled(at: int) -> AtStep:
    async with relay_router(answering) as (router, journal), _probing(router):
        scope = trio.CancelScope()
        instrument = AtStep(at, scope.cancel)
        await _victim(instrument, scope, functools.partial(add_worker, router, OTHER))
        assert_at_rest(router, [journal])
        added = router.state.fleet.workers.get(OTHER)
        if scope.cancelled_caught and added is not None:
            assert added.unfit == "not contacted yet"
            assert [worker.url for worker in router.state.fleet.fit()] == [URL]
        await add_worker(router, OTHER)
        known = router.state.fleet.workers[OTHER]
        assert (known.unfit, known.version) == (None, "7")
        assert_at_rest(router, [journal])
        return instrument


def test_a_worker_whose_first_contact_was_cancelled_gets_no_work_before_another() -> None:
    assert sweep(_contact_cancelled) >= 2


async def _removed_while_contacted(fails: bool, at: int) -> AtStep:
    async with relay_router(answering) as (router, journal), _probing(router, fails=fails):
        was_known = False

        def remove() -> None:
            nonlocal was_known
            was_known = OTHER in router.state.fleet.workers
            router.commit(WorkerRemoved(worker=OTHER))

        instrument = AtStep(at, remove)
        work = functools.partial(add_worker, router, OTHER)
        await _victim(instrument, trio.CancelScope(), work)
        assert (OTHER in router.state.fleet.workers) != was_known
        assert_at_rest(router, [journal])
        return instrument


@pytest.mark.parametrize("fails", [False, True])
def test_a_worker_removed_while_it_is_contacted_stays_removed(fails: bool) -> None:
    assert sweep(functools.partial(_removed_while_contacted, fails)) >= 2 - fails


# -- tending -----------------------------------------------------------------------------------

TENDING = ("tend", "_without_end", "visit", "_abort")


async def _tending_cancelled(at: int) -> AtStep:
    """Tending ends at its step ``at`` while requests run, one of which leaves and is aborted."""
    async with relay_router(answering, poll_interval_s=0.02) as (router, journal):
        scope = trio.CancelScope()
        instrument = AtStep(at, scope.cancel, named=TENDING)

        async def tending() -> None:
            with scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(tend, router)

        async def leaving() -> None:
            body = {"text": "Hello", "stream": True}
            with pytest.raises(ClientGone):
                await generate(router, inbound("/generate", body), Sink(leaves_after=1))

        sinks = [Sink(), Sink()]
        async with _probing(router):
            with instrument.watching():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(tending)
                    nursery.start_soon(leaving)
                    for sink in sinks:
                        body = {"text": "Hello", "stream": True}
                        nursery.start_soon(generate, router, inbound("/generate", body), sink)
                    await trio.sleep(0.1)  # longer than the requests take
                    scope.cancel()
        assert all(b"".join(sink.got).endswith(b"[DONE]\n\n") for sink in sinks)
        assert router.nursery is None
        assert_at_rest(router, [journal])
        return instrument


def test_requests_do_not_need_those_who_tend() -> None:
    assert sweep(_tending_cancelled) > 20


# -- aborts ------------------------------------------------------------------------------------


async def _abort_cancelled(hangs: bool, at: int) -> AtStep:
    aborted: list[str] = []

    async def script(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            if request[0].startswith(b"POST /abort_request "):
                aborted.append(json.loads(request[1])["rid"])
                if hangs:
                    await trio.sleep_forever()
                await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                continue
            await peer.send(STREAM_HEAD)
            await peer.send(event_chunk(answer_item([5], "a", finished=False)))
            await peer.request()

    async with relay_router(script) as (router, journal):
        tending = router.nursery
        assert tending is not None
        instrument = AtStep(at, tending.cancel_scope.cancel, named=("Router._abort",))
        with instrument.watching():
            body = {"text": "Hello", "stream": True}
            with pytest.raises(ClientGone):
                await generate(router, inbound("/generate", body), Sink(leaves_after=0))
            begun = trio.current_time()
            while tending.child_tasks:  # noqa: ASYNC110 - they tell nobody
                await trio.sleep(0.1)
        assert trio.current_time() - begun < 6
        if not instrument.has_acted:
            assert aborted == [f"{0:032x}"]
        assert_at_rest(router, [journal])
        return instrument


@pytest.mark.parametrize("hangs", [False, True])
def test_an_abort_cancelled_at_any_step_holds_no_connection(hangs: bool) -> None:
    assert sweep(functools.partial(_abort_cancelled, hangs)) > 2
