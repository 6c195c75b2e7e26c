"""Every answer has one ``x-request-id``, and errors say whether to come again."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import trio

from slime_core.errors import ClientError, SlimeError, WorkerError
from slime_trio.request_id import RequestIds
from tests.server.harness import (
    Arrived,
    answer_item,
    embedded_worker,
    fake_worker,
    http_response,
    router_with,
)

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
MADE = re.compile(r"req_[0-9a-f]{32}")


def _ids(response: Any) -> list[str]:
    return [value for name, value in response.headers.multi_items() if name == "x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/generate", {"text": "x", "sampling_params": {"max_new_tokens": 2}}, 200),
        ("POST", "/generate", {"text": "x", "stream": True}, 200),
        ("POST", "/v1/chat/completions", CHAT, 200),
        ("POST", "/v1/chat/completions", {**CHAT, "stream": True}, 200),
        ("POST", "/v1/chat/completions", {"model": "m"}, 400),
        ("POST", "/v1/completions", {"model": "m", "prompt": "x"}, 200),
        ("GET", "/v1/chat/completions", None, 405),
        ("GET", "/v1/models/nobody/knows", None, 404),
        ("GET", "/health", None, 200),
        ("GET", "/get_model_info", None, 200),
        ("POST", "/pause_generation", {}, None),
        ("GET", "/nowhere", None, 404),
    ],
)
async def test_every_answer_has_one(
    method: str, path: str, body: dict[str, Any] | None, status: int | None
) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.client.request(method, path, json=body)
        assert status in (None, response.status_code)
        (only,) = _ids(response)
        assert MADE.fullmatch(only)


async def test_no_two_answers_have_the_same() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        seen = [_ids(await served.client.get("/health"))[0] for _ in range(3)]
        assert len(set(seen)) == 3


@pytest.mark.parametrize("own", ["x", "my request, no. 7", "~" * 128])
async def test_a_clients_own_is_kept(own: str) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.client.get("/health", headers={"x-request-id": own})
        assert _ids(response) == [own]


@pytest.mark.parametrize("own", [b"", b"~" * 129, "é".encode(), b"a\tb"])
async def test_one_that_is_not_usable_is_replaced(own: bytes) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.client.get("/health", headers={b"x-request-id": own})
        (only,) = _ids(response)
        assert MADE.fullmatch(only)


async def test_the_worker_is_told_it_and_its_own_is_not_passed_on() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        body = json.dumps(answer_item([5], "a")).encode()
        return http_response(body, more="x-request-id: theirs\r\n")

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.client.post(
            "/generate", json={"text": "x"}, headers={"x-request-id": "mine"}
        )
        assert _ids(response) == ["mine"]
        (arrived,) = worker.arrived
        assert arrived.headers["x-request-id"] == "mine"


async def test_what_is_no_request_passes_untouched() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    scope = {"type": "lifespan"}
    await RequestIds(app, lambda: "id")(scope, None, None)
    assert seen == [scope]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ClientError("sealed", status=409, code="sealed"), False),
        (ClientError("gone", status=410, code="gone"), False),
        (ClientError("no", status=400), None),
        (ClientError("never", status=501), False),
        (ClientError("later", status=503, retry_after_s=1.0), None),
        (WorkerError("busy", status=503, retry_after_s=1.0), None),
        (WorkerError("bad"), None),
    ],
)
def test_what_is_final_says_so_where_the_status_does_not(
    error: SlimeError, told: bool | None
) -> None:
    assert error.should_retry is told


async def test_a_final_error_is_not_to_be_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sealed(*_: object) -> bytes:
        raise ClientError("sealed", status=409, code="sealed")

    monkeypatch.setattr("slime_trio.retrieval.by_text", sealed)
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.client.post("/retrieve_from_text", json={})
        assert (response.status_code, response.headers["x-should-retry"]) == (409, "false")
