"""``GET /get_server_info``: the worker's facts, and what the router found out about chats."""

from __future__ import annotations

import pytest

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
