"""What a served request brought is let go of at once, and waits for no garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from slime_trio.endpoints import generate
from slime_trio.exchange import Inbound
from tests.server.relay_support import Sink, answering, inbound, relay_router


@contextmanager
def _cycles() -> Iterator[list[str]]:
    """The types of ours that only the collector could free, of what is made meanwhile."""
    found: list[str] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        kinds = {type(one) for one in gc.garbage}
        found += sorted(kind.__name__ for kind in kinds if kind.__module__.startswith("slime_"))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("session", [None, b"s"])
async def test_a_captured_request_leaves_no_cycle_behind(session: bytes | None) -> None:
    headers = [] if session is None else [(b"x-session-id", session)]

    def asked() -> Inbound:
        return inbound("/generate", {"input_ids": [1, 2], "return_logprob": True}, headers)

    async with relay_router(answering) as (router, _):
        await generate(router, asked(), Sink())
        with _cycles() as found:
            await generate(router, asked(), Sink())
            await generate(router, asked(), Sink())
        assert router.state.counters.calls_captured == 3
    assert found == []
