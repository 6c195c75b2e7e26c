"""A worker that is removed at any step of a request: the books stay right, nothing stays open."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import trio

from slime_core.errors import InvariantError, WorkerError
from slime_core.transitions import WorkerRemoved
from slime_core.types import WorkerUrl
from slime_trio.endpoints import chat_completions, completions, generate
from slime_trio.relay import forward
from tests.fleet_support import joined
from tests.server.relay_support import (
    AtStep,
    Link,
    Sink,
    all_in_threads,
    answering,
    assert_at_rest,
    inbound,
    relay_router,
    sweep,
)
from tests.server.upstream_support import URL

OTHER = "http://other:30000"
REQUESTS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "native": (generate, "/generate", {"text": "Hello"}),
    "chat": (
        chat_completions,
        "/v1/chat/completions",
        {"model": "m", "messages": [{"role": "user", "content": "x"}], "n": 2},
    ),
    "text": (completions, "/v1/completions", {"model": "m", "prompt": ["a", "b"]}),
    "passed through": (forward, "/other", {}),
}


async def _removed(
    kind: str, stream: bool, link: Link, again: int | None, others: tuple[str, ...], at: int
) -> AtStep:
    """Remove the worker at step ``at`` of a request, and add it again ``again`` steps later."""
    serve, path, body = REQUESTS[kind]
    request = inbound(path, body | {"stream": stream})
    async with relay_router(answering, URL, *others, link=link) as (router, journal):
        await serve(router, request, Sink())  # leaves an idle connection behind

        def remove() -> None:
            for url in (URL, *others):
                router.commit(WorkerRemoved(worker=WorkerUrl(url)))
                router.pool.forget(url)

        def add() -> None:
            router.commit(*joined(URL))

        removal = AtStep(at, remove)
        addition = AtStep(at + again if again else 10**9, add)
        sink = Sink()
        failures: list[int] = []

        async def victim() -> None:
            removal.task = addition.task = trio.lowlevel.current_task()
            try:
                await serve(router, request, sink)
            except InvariantError:
                raise
            except WorkerError as error:
                failures.append(error.status)

        with removal.watching(), addition.watching():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(victim)
        assert_at_rest(router, [journal])
        # Whoever had its slot when the worker was removed is still served to the end.
        assert failures == ([] if sink.status == 200 else [503])
        if removal.has_acted and not addition.has_acted:
            assert not router.state.fleet.listed()
            assert router.pool.stats().idle == 0
        for url in (URL, *others):
            router.commit(*joined(url))
        await serve(router, request, Sink())
        assert_at_rest(router, [journal])
        return removal


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", REQUESTS)
def test_a_worker_removed_at_any_step_ends_its_calls_in_order(kind: str, stream: bool) -> None:
    run = functools.partial(_removed, kind, stream, Link.MEMORY, None, ())
    assert sweep(run) > 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("again", [1, 2, 5])
def test_a_worker_removed_and_added_again_meanwhile_starts_without_load(
    again: int, stream: bool
) -> None:
    run = functools.partial(_removed, "chat", stream, Link.MEMORY, again, ())
    assert sweep(run) > 4


@pytest.mark.parametrize("kind", ["native", "text"])
def test_a_worker_may_go_while_every_byte_waits_for_its_reader(kind: str) -> None:
    run = functools.partial(_removed, kind, True, Link.LOCKSTEP, None, ())
    assert sweep(run) > 5


def test_a_whole_fleet_may_go() -> None:
    run = functools.partial(_removed, "native", True, Link.MEMORY, None, (OTHER,))
    assert sweep(run) > 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_may_go_while_work_is_done_in_threads(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_in_threads(monkeypatch)
    run = functools.partial(_removed, "native", stream, Link.MEMORY, None, ())
    assert sweep(run) > 5
