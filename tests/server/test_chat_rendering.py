"""Where chats are rendered: long ones beside the event loop, which they would hold up."""

from __future__ import annotations

import threading

import pytest

from slime_core.chat.plans import ChatPlan
from tests.server.harness import embedded_worker, router_with


@pytest.mark.parametrize(("size", "beside"), [(10, False), (50_000, True)], ids=["short", "long"])
async def test_long_chats_are_rendered_beside_the_event_loop(
    size: int, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []
    render = ChatPlan.render

    def noted(plan: ChatPlan) -> None:
        threads.append(threading.current_thread() is not threading.main_thread())
        render(plan)

    monkeypatch.setattr(ChatPlan, "render", noted)
    messages = [{"role": "user", "content": "a " * (size // 2)}]
    async with embedded_worker() as worker, router_with(worker.url) as served:
        body = {"model": "m", "messages": messages, "max_tokens": 1}
        await served.client.post("/v1/chat/completions", json=body)
    assert threads[0] is beside
