"""What a session's key opens: generation in its session, as OpenAI's parameters give it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import httpx
import pytest
import trio

from tests.listeners import BOTH_LISTENERS
from tests.server.harness import (
    Arrived,
    Events,
    FakeWorker,
    Served,
    answer_item,
    embedded_worker,
    events_of,
    fake_worker,
    http_response,
    router_with,
    scripted,
    until,
)
from tests.server.key_support import bearer, open_session

# Both: generations in sessions find theirs past the application, or through it.
pytestmark = BOTH_LISTENERS

_PROMPT: Final[dict[str, Any]] = {"input_ids": [5, 6, 7]}
_CHAT: Final = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
_LEAKS: Final = ("output_ids", "logprob", "routed_experts", "token_ids", "weight_version")


async def _answer(arrived: Arrived, stream: trio.SocketStream) -> bytes | None:
    body = arrived.json
    extras = {"routed_experts": "AAAA", "rid": body["rid"]}
    if not body.get("stream"):
        return http_response(json.dumps(answer_item([9, 2], "ab", **extras)).encode())
    events = Events(stream)
    await events.begin()
    await events.event(answer_item([9], "a", finished=False, **extras))
    await events.event(answer_item([9, 2], "ab", **extras))
    await events.end()
    return None


@dataclass(frozen=True, slots=True)
class _Agent:
    """A router with an agent's session."""

    served: Served
    worker: FakeWorker
    session: str
    key: dict[str, str]

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.served.client.post(path, json=body, headers=self.key)


@asynccontextmanager
async def _agent() -> AsyncIterator[_Agent]:
    async with fake_worker(_answer) as worker, router_with(worker.url) as served:
        session, key = await open_session(served.client, {})
        yield _Agent(served, worker, session, bearer(key))


async def test_an_answer_shows_text_and_no_tokens_and_is_captured_whole() -> None:
    async with _agent() as agent:
        response = await agent.post("/generate", **_PROMPT)
        assert response.json()["text"] == "ab"
        assert not [word for word in _LEAKS if word in response.text]
        shown = await agent.served.trajectory(response.headers["x-slime-call-id"])
        assert shown["tokens"] == [5, 6, 7, 9, 2]
        assert shown["rollout_logp"][-2:] == [-0.25, -0.5]


async def test_a_stream_shows_text_and_no_tokens_and_is_captured_whole() -> None:
    async with _agent() as agent:
        response = await agent.post("/generate", **_PROMPT, stream=True)
        *events, done = events_of(response.text)
        assert ([one["text"] for one in events], done) == (["a", "ab"], "[DONE]")
        assert not [word for word in _LEAKS if word in response.text]
        shown = await agent.served.trajectory(response.headers["x-slime-call-id"])
        assert shown["tokens"] == [5, 6, 7, 9, 2]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_is_not_told_which_worker_and_weights_answered(stream: bool) -> None:
    async with _agent() as agent:
        for path, body in (("/generate", _PROMPT), ("/v1/chat/completions", _CHAT)):
            response = await agent.post(path, **body, stream=stream)
            assert response.status_code == 200
            assert not {"x-slime-worker", "x-slime-weight-version"} & response.headers.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-smg-target-worker", "http://10.0.0.1:1"),
        ("x-slime-version-policy", "min-version:99"),
        ("x-slime-priority", "highest"),
    ],
)
async def test_an_agent_chooses_no_worker_no_weights_and_no_turn(name: str, value: str) -> None:
    async with _agent() as agent:
        headers = agent.key | {name: value}
        response = await agent.served.client.post("/generate", json=_PROMPT, headers=headers)
        assert response.status_code == 200


@pytest.mark.parametrize("prefix", ["", "/sessions/{session}"])
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/generate", _PROMPT | {"return_logprob": True}, "return_logprob"),
        ("/generate", _PROMPT | {"return_hidden_states": True}, "return_hidden_states"),
        ("/v1/chat/completions", _CHAT | {"return_token_ids": True}, "return_token_ids"),
        ("/v1/chat/completions", _CHAT | {"return_meta_info": True}, "return_meta_info"),
        ("/v1/chat/completions", _CHAT | {"session_params": {"id": "w"}}, "session_params"),
        (
            "/v1/completions",
            {"model": "m", "prompt": "a", "return_token_ids": True},
            "return_token_ids",
        ),
    ],
)
async def test_what_is_not_shown_is_refused_by_name_before_a_worker_is_asked(
    path: str, body: dict[str, Any], param: str, prefix: str
) -> None:
    async with _agent() as agent:
        response = await agent.post(prefix.format(session=agent.session) + path, **body)
        told = response.json()["error"]
        assert (response.status_code, told["code"]) == (403, "session_key_forbids")
        assert told["param"] == param
        assert not agent.worker.arrived


async def test_experts_are_captured_for_the_trainer_and_not_shown() -> None:
    async with _agent() as agent:
        body = _PROMPT | {"return_routed_experts": True}
        response = await agent.post("/generate", **body)
        assert agent.worker.arrived[0].json["return_routed_experts"] is True
        assert "AAAA" not in response.text
        shown = await agent.served.trajectory(response.headers["x-slime-call-id"])
        assert shown["extras"]["routed_experts"] == "AAAA"


async def test_what_is_not_captured_is_not_generated_for_an_agent() -> None:
    async with _agent() as agent:
        for path, body in (
            ("/generate", {"text": "a", "image_data": "x"}),
            ("/v1/messages", {}),
            ("/v1/responses", {}),
            ("/api/generate", {}),
        ):
            response = await agent.post(path, **body)
            assert (response.status_code, path) == (403, path)
        assert not agent.worker.arrived


async def test_openais_logprobs_are_given_without_ids() -> None:
    async with embedded_worker(script=scripted("Hi.")) as worker, router_with(worker.url) as served:
        _, key = await open_session(served.client, {})
        body = _CHAT | {"logprobs": True, "top_logprobs": 2, "max_tokens": 3}
        response = await served.client.post("/v1/chat/completions", json=body, headers=bearer(key))
        (choice,) = response.json()["choices"]
        first = choice["logprobs"]["content"][0]
        assert set(first) == {"token", "logprob", "bytes", "top_logprobs"}
        assert set(choice) == {"index", "message", "finish_reason", "logprobs"}


async def test_an_agents_own_id_does_not_reach_a_worker() -> None:
    async with _agent() as agent:
        response = await agent.post("/generate", **_PROMPT, rid="mine")
        assert response.json()["meta_info"]["id"] == "mine"
        assert agent.worker.arrived[0].json["rid"] == response.headers["x-slime-call-id"]


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
async def test_a_call_of_another_session_is_as_unknown_to_an_agent_as_nobodys(path: str) -> None:
    async with _agent() as agent:
        _, other = await open_session(agent.served.client, {})
        said = await agent.served.client.post("/generate", json=_PROMPT, headers=bearer(other))
        theirs = said.headers["x-slime-call-id"]
        body = _PROMPT if path == "/generate" else _CHAT
        told = []
        for parent in (theirs, "f" * 32):
            headers = agent.key | {"x-slime-parent-id": parent}
            response = await agent.served.client.post(path, json=body, headers=headers)
            told.append((response.status_code, response.json()["error"]))
        assert told[0] == told[1]
        assert (told[0][0], told[0][1]["param"]) == (404, "parent_id")


async def test_an_agent_may_name_a_call_of_its_own_session() -> None:
    async with _agent() as agent:
        said = await agent.post("/generate", **_PROMPT)
        call = said.headers["x-slime-call-id"]
        again = await agent.post("/generate", **_PROMPT, parent_id=call)
        assert again.status_code == 200


async def test_a_trainer_in_a_sessions_path_is_shown_everything() -> None:
    async with _agent() as agent:
        response = await agent.served.client.post(
            f"/sessions/{agent.session}/generate", json=_PROMPT | {"return_logprob": True}
        )
        assert response.json()["output_ids"] == [9, 2]
        assert response.json()["meta_info"]["routed_experts"] == "AAAA"


async def test_what_an_agent_calls_its_request_aborts_nothing() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        _, key = await open_session(served.client, {})
        async with trio.open_nursery() as nursery:
            post = partial(served.client.post, "/generate", json=_PROMPT | {"rid": "0"})
            nursery.start_soon(partial(post, headers=bearer(key)))
            await until(lambda: worker.arrived)
            (live,) = served.router.shared.dispatcher.live.values()
            assert live.rids == (live.call,)
            nursery.cancel_scope.cancel()


async def test_nothing_is_passed_through_for_an_agent_where_chats_are_not_served() -> None:
    settings: dict[str, Any] = {"enable_openai_chat_completion": False}
    async with fake_worker(_answer) as worker, router_with(worker.url, **settings) as served:
        _, key = await open_session(served.client, {})
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/models"):
            response = await served.client.post(path, json=_CHAT, headers=bearer(key))
            assert (response.status_code, path) == (403, path)
        assert not worker.arrived
