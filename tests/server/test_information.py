"""``GET /get_server_info``: the worker's facts, and what the router found out about chats."""

from __future__ import annotations

import pytest

from slime_core.engine import Role
from tests.server.harness import embedded_worker, router_with


@pytest.mark.parametrize("path", ["/get_server_info", "/server_info"])
async def test_the_worker_s_facts_are_passed_on(path: str) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        told = (await served.client.get(path)).json()
    assert {"version", "slime_router"} <= told.keys()


async def test_the_template_s_report_is_served() -> None:
    async with router_with() as served:
        told = (await served.client.get("/get_server_info")).json()["slime_router"]
    assert told["chat_template"]["changes"]
    assert told["tool_call_parser"] == "qwen25"
    assert told["reasoning_parser"] == "qwen3"


async def test_settings_of_chats_are_served() -> None:
    async with router_with(history="template", special_tokens_in_content="control") as served:
        told = (await served.client.get("/get_server_info")).json()["slime_router"]
    assert (told["history"], told["special_tokens_in_content"]) == ("template", "control")


async def test_a_router_that_captures_nothing_tells_so() -> None:
    async with router_with(capture=False) as served:
        told = (await served.client.get("/get_server_info")).json()["slime_router"]
    assert told["capture"] is False
    assert "chat_template" not in told


async def test_the_fleet_is_told_worker_by_worker() -> None:
    async with (
        embedded_worker(weight_version="7") as worker,
        router_with(worker.url, "http://127.0.0.1:9") as served,
    ):
        told = (await served.client.get("/get_server_info")).json()["slime_router"]
        listed = (await served.client.get("/workers")).json()
    here, nowhere = told["workers"]
    assert told["workers"] == listed["workers"]
    assert (here["url"], here["health"]["condition"], here["reason"]) == (worker.url, "ready", None)
    assert (here["weight_version"], here["stale"], here["load"]) == ("7", False, 0)
    assert nowhere["reason"] is not None
    assert told["weights"]["newest"] == "7"
    assert told["queue"] == {"running": 0, "waiting": 0}


async def test_pairs_are_told_side_by_side() -> None:
    async with (
        embedded_worker(role=Role.PREFILL, bootstrap_port=0) as prefill,
        embedded_worker(role=Role.DECODE) as decode,
        router_with() as served,
    ):
        for worker, kind in ((prefill, "prefill"), (decode, "decode")):
            body = {"url": worker.url, "worker_type": kind}
            await served.client.post("/workers", json=body)
        told = (await served.client.get("/get_server_info")).json()
    assert (len(told["prefill"]), len(told["decode"])) == (1, 1)
    assert {one["worker_type"] for one in told["slime_router"]["workers"]} == {"prefill", "decode"}


async def test_every_setting_is_told_but_secrets() -> None:
    secrets = {"worker_api_key": "worker-key-word", "admin_key": "admin-key-word"}
    async with router_with(
        worker_api_key="worker-key-word", admin_key="admin-key-word", queue_size=17
    ) as served:
        admin = {"authorization": "Bearer admin-key-word"}
        response = await served.client.get("/get_server_info", headers=admin)
    told = response.json()["slime_router"]
    assert told["settings"]["queue_size"] == told["limits"]["queue_size"] == 17
    assert not secrets.keys() & told["settings"].keys()
    assert [word for word in secrets.values() if word in response.text] == []
    assert told["keys"] == {"configured": True, "admin": True}


async def test_a_tenant_is_told_of_no_worker_and_no_setting() -> None:
    async with (
        embedded_worker() as worker,
        router_with(admin_key="admin-key-word", api_key=("tenant-key-word",)) as served,
    ):
        admin = {"authorization": "Bearer admin-key-word"}
        await served.client.post("/add_worker", params={"url": worker.url}, headers=admin)
        tenant = {"authorization": "Bearer tenant-key-word"}
        response = await served.client.get("/get_server_info", headers=tenant)
    assert worker.url not in response.text
    assert set(response.json()) == {"slime_router"}
    assert not {"workers", "settings", "queue", "tenants"} & response.json()["slime_router"].keys()
