"""Joined generations cancelled at every step: no slot stays taken, no call stays open."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from slime_core.errors import InvariantError, SlimeError
from slime_trio.endpoints import chat_completions, generate
from slime_trio.exchange import ClientGone, Inbound
from slime_trio.router import Router
from tests.server.relay_support import (
    AtStep,
    Link,
    Sink,
    answering,
    assert_at_rest,
    inbound,
    leak_slots,
    relay_router,
    sweep,
)

Serve = Callable[[Router, Inbound, Any], Awaitable[None]]

DIALECTS: dict[str, tuple[Serve, dict[str, Any]]] = {
    "/generate": (generate, {"text": "Hello"}),
    "/v1/chat/completions": (
        chat_completions,
        {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    ),
}
GENERATION = ("Attempts._run",)

every_dialect = pytest.mark.parametrize("path", DIALECTS)
whole_and_streamed = pytest.mark.parametrize("stream", [False, True])


async def _ask(router: Router, request: Inbound, sink: Sink) -> None:
    """A request whose named errors are its own affair."""
    try:
        await DIALECTS[request.path][0](router, request, sink)
    except InvariantError:
        raise
    except (SlimeError, ClientGone):
        pass


async def _at_rest(router: Router) -> None:
    assert router.nursery is not None
    while router.nursery.child_tasks:  # noqa: ASYNC110 - they tell nobody
        await trio.sleep(0.1)
    assert_at_rest(router)


def _keyed(path: str, stream: bool) -> Inbound:
    return inbound(path, DIALECTS[path][1] | {"stream": stream}, [(b"idempotency-key", b"k")])


async def _one_reader_cancelled(
    path: str, stream: bool, others: int, link: Link, at: int
) -> AtStep:
    """Cancel one of several clients of a generation at its step ``at``."""
    request = _keyed(path, stream)
    async with relay_router(answering, link=link) as (router, journal):
        scope = trio.CancelScope()
        instrument = AtStep(at, scope.cancel)
        sinks = [Sink(pause_s=0.015 * place) for place in range(others)]

        async def victim() -> None:
            instrument.task = trio.lowlevel.current_task()
            with scope:
                await _ask(router, request, Sink())

        with instrument.watching():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(victim)
                for sink in sinks:
                    nursery.start_soon(_ask, router, request, sink)
        await _at_rest(router)
        assert_at_rest(router, [journal])
        again = Sink()
        await _ask(router, request, again)
        assert all(b"".join(sink.got) == b"".join(again.got) != b"" for sink in sinks)
        assert again.status == 200
        await _at_rest(router)
        return instrument


@every_dialect
@whole_and_streamed
@pytest.mark.parametrize("others", [0, 1, 2])
def test_a_client_cancelled_at_any_step_disturbs_no_other(
    path: str, stream: bool, others: int
) -> None:
    run = functools.partial(_one_reader_cancelled, path, stream, others, Link.MEMORY)
    assert sweep(run) > 3


@every_dialect
@whole_and_streamed
def test_so_does_one_whose_every_byte_waits_for_its_reader(path: str, stream: bool) -> None:
    assert sweep(functools.partial(_one_reader_cancelled, path, stream, 1, Link.LOCKSTEP)) > 3


async def _generation_cancelled(path: str, stream: bool, readers: int, at: int) -> AtStep:
    """Have the router's nursery cancelled at the generation's step ``at``, as when it stops."""
    request = _keyed(path, stream)
    async with relay_router(answering) as (router, journal):
        assert router.nursery is not None
        instrument = AtStep(at, router.nursery.cancel_scope.cancel, named=GENERATION)
        sinks = [Sink() for _ in range(readers)]
        with instrument.watching(), trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for sink in sinks:
                    nursery.start_soon(_ask, router, request, sink)
        await trio.testing.wait_all_tasks_blocked()
        assert_at_rest(router, [journal])
        return instrument


@every_dialect
@whole_and_streamed
@pytest.mark.parametrize("readers", [1, 2])
def test_a_router_that_stops_at_any_step_leaves_no_client_waiting(
    path: str, stream: bool, readers: int
) -> None:
    assert sweep(functools.partial(_generation_cancelled, path, stream, readers)) > 3


async def _all_leave(path: str, stream: bool, at: int) -> AtStep:
    """Have all clients leave at the generation's step ``at``, and one come back at once."""
    request = _keyed(path, stream)
    async with relay_router(answering) as (router, journal):
        scope = trio.CancelScope()
        instrument = AtStep(at, scope.cancel, named=GENERATION)
        again = Sink()
        with instrument.watching():
            with scope:
                async with trio.open_nursery() as nursery:
                    for _ in range(2):
                        nursery.start_soon(_ask, router, request, Sink())
            await _ask(router, request, again)
        assert again.status == 200
        await _at_rest(router)
        assert_at_rest(router, [journal])
        return instrument


@every_dialect
@whole_and_streamed
def test_a_client_that_comes_back_is_answered_whatever_became_of_its_first_attempt(
    path: str, stream: bool
) -> None:
    assert sweep(functools.partial(_all_leave, path, stream)) > 3


def test_a_slot_given_back_only_when_all_went_well_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leak_slots(monkeypatch)
    with pytest.raises((AssertionError, ExceptionGroup)):
        sweep(functools.partial(_one_reader_cancelled, "/generate", True, 0, Link.MEMORY))
