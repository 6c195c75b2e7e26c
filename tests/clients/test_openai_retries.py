"""What the official OpenAI client asks again by itself is one answer, and is trained once."""

from __future__ import annotations

import itertools
import json
from typing import Any

import openai
import pytest
import trio

from tests.clients.support import ANSWER, QUESTION, needs_the_group, spelled
from tests.server.harness import (
    Arrived,
    Served,
    answer_item,
    fake_worker,
    http_response,
    router_with,
    settled,
    until,
)

needs_the_group()

IDS = spelled(ANSWER)


class Client:
    """The official client, with its second tries, and a count of what it sends."""

    def __init__(self, served: Served, key: str) -> None:
        self._options: dict[str, Any] = {
            "base_url": f"{served.url}/v1",
            "api_key": key,
            "max_retries": 5,
        }
        self.sent = 0

    async def ask(self, *, read_s: float, **more: Any) -> str:
        """The answer to a question, whichever attempt it came to."""

        def count(_request: Any) -> None:
            self.sent += 1

        def use() -> str:
            hooks = {"request": [count]}
            with (
                openai.DefaultHttpxClient(event_hooks=hooks, trust_env=False) as http,
                openai.OpenAI(**self._options, timeout=read_s, http_client=http) as client,
            ):
                said = client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": QUESTION}], **more
                )
                return said.choices[0].message.content or ""

        return await trio.to_thread.run_sync(use)


async def _samples(served: Served, session: str) -> Any:
    await settled(served)
    response = await served.client.post(f"/sessions/{session}/samples", json={})
    assert response.status_code == 200, response.text
    return response.json()


def _trained(sample: Any) -> list[int]:
    behind = sample["tokens"][sample["prompt_length"] :]
    return [token for token, mask in zip(behind, sample["loss_mask"], strict=True) if mask]


def _response() -> bytes:
    end = {"type": "stop", "matched": IDS[-1]}
    return http_response(json.dumps(answer_item(IDS, "", finish=end)).encode())


async def test_a_client_that_waited_too_long_gets_one_answer() -> None:
    """The first attempt is left; what replaces it says so, and it alone is trained."""
    clients: list[Client] = []
    numbers = itertools.count()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        if next(numbers) == 0:
            await until(lambda: clients[0].sent > 1)
        return _response()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        session = (await served.client.post("/sessions")).json()
        clients.append(Client(served, session["session_key"]))
        assert await clients[0].ask(read_s=0.3) == ANSWER
        told = await _samples(served, session["session_id"])
        (sample,) = told["samples"]
        assert _trained(sample) == IDS
        assert told["accounting"]["used"] == len(IDS)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
async def test_an_attempt_that_was_told_to_come_again_leaves_no_trace(status: str) -> None:
    numbers = itertools.count()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        if next(numbers) == 0:
            return http_response(b'{"error": {"message": "Busy."}}', status=status)
        return _response()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        session = (await served.client.post("/sessions")).json()
        client = Client(served, session["session_key"])
        assert await client.ask(read_s=15) == ANSWER
        told = await _samples(served, session["session_id"])
        (sample,) = told["samples"]
        assert _trained(sample) == IDS
        assert "unresolved_retry" not in sample["flags"]


async def test_the_same_question_at_once_under_one_idempotency_key_is_generated_once() -> None:
    release = trio.Event()

    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await release.wait()
        return _response()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        session = (await served.client.post("/sessions")).json()
        client = Client(served, session["session_key"])
        said: list[str] = []

        async def ask() -> None:
            named = {"extra_headers": {"Idempotency-Key": "one question"}}
            said.append(await client.ask(read_s=15, **named))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await until(lambda: client.sent == 2 and worker.arrived)
            release.set()
        assert said == [ANSWER, ANSWER]
        assert len(worker.arrived) == 1
        told = await _samples(served, session["session_id"])
        assert [_trained(sample) for sample in told["samples"]] == [IDS]
