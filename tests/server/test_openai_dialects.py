"""The OpenAI dialects on the wire: streams and retrieval tell what whole answers tell."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from tests.server.harness import (
    Arrived,
    Events,
    answer_item,
    events_of,
    fake_worker,
    http_response,
    json_answer,
    router_with,
)

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}], "n": 2}
TEXTS = {"model": "m", "prompt": ["x", "y"], "n": 2}


def _samples(count: int) -> list[dict[str, Any]]:
    """Two samples for each prompt, of which only the second finds the prompt cached."""
    return [
        answer_item(
            [65] * (place + 1),
            "a" * (place + 1),
            cached_tokens=(place % 2) * (place + 1),
            reasoning_tokens=place,
        )
        for place in range(count)
    ]


async def _two_per_prompt(arrived: Arrived, stream: trio.SocketStream) -> bytes | None:
    nested = isinstance(arrived.json["input_ids"][0], list)
    items = _samples(2 * (len(arrived.json["input_ids"]) if nested else 1))
    if not arrived.json["stream"]:
        return http_response(json.dumps(items).encode())
    events = Events(stream)
    await events.begin()
    for index, item in enumerate(items):
        await events.event({**item, "index": index})
    await events.end()
    return None


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/chat/completions", CHAT, (2, 1, 3)),
        ("/v1/completions", TEXTS, (2 + 4, 6, 10)),
    ],
)
async def test_streamed_usage_is_that_of_the_whole_answer(
    path: str, body: dict[str, Any], told: tuple[int, int, int]
) -> None:
    async with fake_worker(_two_per_prompt) as worker, router_with(worker.url) as served:
        whole = (await served.client.post(path, json=body)).json()["usage"]
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        streamed = events_of((await served.client.post(path, json=asked)).text)
    assert (
        whole["prompt_tokens_details"]["cached_tokens"],
        whole["completion_tokens_details"]["reasoning_tokens"],
        whole["completion_tokens"],
    ) == told
    assert streamed[-2]["usage"] == whole


_CALL = {"id": "c", "function": {"name": "f", "arguments": '{"b": 1, "a": [null]}'}}
_USER = {"role": "user", "content": "x"}
_DONE = {"role": "assistant", "content": "done"}


@pytest.mark.parametrize(
    "messages",
    [
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}],
            }
        ],
        [_USER, {"role": "assistant", "content": None, "refusal": "no", "audio": None}, _USER],
        [{"role": "developer", "content": "Be brief."}, _USER],
        [{"role": "system", "content": "One."}, {"role": "system", "content": "Two."}, _USER],
        [_USER, _DONE, {"role": "system", "content": "Now."}, _USER],
        [_USER, {"role": "assistant", "tool_calls": [_CALL], "index": None}, _USER],
        [_USER, {**_DONE, "tool_calls": [], "reasoning_content": "Hm."}, _USER],
        [
            _USER,
            {"role": "assistant", "tool_calls": [{**_CALL, "index": None, "type": "function"}]},
            {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "2"}]},
        ],
    ],
)
async def test_messages_are_retrieved_as_they_were_generated_from(
    messages: list[dict[str, Any]],
) -> None:
    function = {"strict": None, "name": "f", "parameters": {"properties": {"a": None}}}
    tools = [{"function": function, "type": "function", "cache_control": {}}]
    body = {"messages": messages, "tools": tools}
    answer = json_answer(answer_item([65], "a"))
    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        asked = await served.client.post("/v1/chat/completions", json={"model": "m", **body})
        assert asked.status_code == 200, asked.text
        (arrived,) = worker.arrived
        said = asked.json()["choices"][0]["message"]
        whole = {**body, "messages": [*messages, said]}
        found = await served.client.post("/retrieve_from_messages_template", json=whole)
    assert found.status_code == 200, found.text
    ids = [*arrived.json["input_ids"], 65]
    assert found.json()["tokens"][: len(ids)] == ids
    assert found.json()["loss_mask"][: len(ids)] == [0] * (len(ids) - 1) + [1]
