"""Paths that look like OpenAI's or our own, and lead nowhere."""

from __future__ import annotations

import pytest

from tests.listeners import BOTH_LISTENERS
from tests.server.harness import embedded_worker, router_with

# Both: a path is read by the table of hot paths, or by the application's routes.
pytestmark = BOTH_LISTENERS


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_stored_completion_is_not_found(method: str) -> None:
    async with router_with() as served:
        answer = await served.client.request(method, "/v1/chat/completions/chatcmpl-1")
    assert answer.status_code == 404
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/v1//chat/completions", "/generate/"])
async def test_a_near_miss_of_an_own_path_is_not_passed_through(path: str) -> None:
    async with router_with() as served:
        answer = await served.client.post(path, json={})
    assert answer.status_code == 404
    assert "did you mean" in answer.text


async def test_a_refusal_that_is_passed_on_is_in_openai_s_words() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        answer = await served.client.get("/v1/nothing")
    assert answer.status_code == 404
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
