"""Aborts of tenants: by whatever name, they reach the tenant's own calls."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from tests.server.harness import Arrived, until
from tests.server.key_support import ADMIN, ONE, OTHER, keyed_router

_IDS = [5, 6, 7]


async def _never(arrived: Arrived, stream: trio.SocketStream) -> bytes:
    await trio.sleep_forever()
    raise AssertionError


@pytest.mark.parametrize("asked", ["same", "abort_all", "call", "prefix"])
async def test_no_abort_of_one_tenant_reaches_anothers_call(asked: str) -> None:
    async with keyed_router(_never) as keyed, trio.open_nursery() as nursery:
        for key in (ONE, OTHER):
            nursery.start_soon(partial(keyed.generate, key, input_ids=_IDS, rid="same"))
        await until(lambda: len(keyed.worker.arrived) == 2)
        live = keyed.served.router.shared.dispatcher.live.values()
        calls = {one.tenant: one.call for one in live}
        theirs = calls["tenant-1"]
        body = {
            "same": {"rid": "same"},
            "abort_all": {"abort_all": True},
            "call": {"rid": theirs},
            "prefix": {"rid": theirs[:8]},
        }[asked]
        told = await keyed.client.post("/abort_request", json=body, headers=OTHER)
        nobodys = {"rid": "f" * 32}
        same = await keyed.client.post("/abort_request", json=nobodys, headers=OTHER)
        assert (told.status_code, told.content) == (200, same.content)
        own = [calls["tenant-2"]] if asked in ("same", "abort_all") else []
        assert keyed.worker.aborted == own
        nursery.cancel_scope.cancel()


async def test_the_operator_aborts_everybodys_calls() -> None:
    async with keyed_router(_never) as keyed, trio.open_nursery() as nursery:
        for key in (ONE, OTHER):
            nursery.start_soon(partial(keyed.generate, key, input_ids=_IDS, rid="same"))
        await until(lambda: len(keyed.worker.arrived) == 2)
        sent = {one.json["rid"] for one in keyed.worker.arrived}
        await keyed.client.post("/abort_request", json={"rid": "same"}, headers=ADMIN)
        assert set(keyed.worker.aborted) == sent
        nursery.cancel_scope.cancel()


async def test_what_is_passed_through_is_aborted_by_the_id_that_its_worker_knows() -> None:
    async with keyed_router(_never) as keyed, trio.open_nursery() as nursery:
        post = partial(keyed.client.post, "/v1/messages", headers=ONE)
        nursery.start_soon(partial(post, json={"rid": "mine"}))
        await until(lambda: keyed.worker.arrived)
        await keyed.client.post("/abort_request", json={"rid": "mine"}, headers=OTHER)
        assert not keyed.worker.aborted
        await keyed.client.post("/abort_request", json={"rid": "mine"}, headers=ONE)
        assert keyed.worker.aborted == [keyed.worker.arrived[0].json["rid"]]
        nursery.cancel_scope.cancel()
