"""Completions are not stored: whoever asks for one is told so, and no worker is."""

from __future__ import annotations

import pytest

from tests.server.harness import router_with


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_stored_completion_is_not_found(method: str) -> None:
    async with router_with() as served:
        answer = await served.client.request(method, "/v1/chat/completions/chatcmpl-1")
    assert answer.status_code == 404
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
