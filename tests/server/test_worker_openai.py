"""The OpenAI endpoints of the embedded worker, some of them through the official client."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
import trio
from openai.types.chat import ChatCompletionMessageParam

from slime_trio.worker import SHIPPED_CHECKPOINT, load_model
from tests.server.worker_support import PROMPT, events_of, running_worker

MESSAGES = [{"role": "user", "content": "Hello!"}]
CHAT = {"messages": MESSAGES, "max_tokens": 12, "seed": 3}
IDS = load_model(SHIPPED_CHECKPOINT).encode(PROMPT, add_special_tokens=False)


async def chat(client: httpx.AsyncClient, **body: Any) -> Any:
    response = await client.post("/v1/chat/completions", json=CHAT | body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_chat_is_the_generation_of_its_rendered_prompt() -> None:
    async with running_worker() as client:
        answer = await chat(client, logprobs=True, return_meta_info=True, return_token_ids=True)
        (record,) = (await client.get("/slime_worker/records")).json()["records"]
        by_ids = await chat(client, input_ids=IDS)
    choice = answer["choices"][0]
    assert record["prompt_ids"] == choice["prompt_token_ids"] == IDS
    assert record["output_ids"] == choice["response_token_ids"]
    assert record["text"] == choice["message"]["content"]
    logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert logprobs == record["logprobs"]
    assert answer["id"] == record["rid"] == choice["meta_info"]["id"]
    assert answer["metadata"]["weight_version"] == "default"
    assert by_ids["choices"][0]["message"] == choice["message"]


async def test_a_chat_stream_adds_up_to_the_answer_without_streaming() -> None:
    body = CHAT | {"stream": True, "logprobs": True, "stream_options": {"include_usage": True}}
    async with running_worker() as client:
        whole = await chat(client, logprobs=True)
        chunks = await events_of(client, "/v1/chat/completions", body)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0]["role"] == "assistant"
    assert all("reasoning_content" in delta for delta in deltas)
    content = "".join(delta["content"] or "" for delta in deltas)
    assert content == whole["choices"][0]["message"]["content"]
    entries = [
        entry
        for chunk in chunks[:-1]
        for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert entries == whole["choices"][0]["logprobs"]["content"]
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


async def test_several_choices_are_numbered() -> None:
    async with running_worker() as client:
        answer = await chat(client, n=3)
        chunks = await events_of(client, "/v1/chat/completions", CHAT | {"n": 3, "stream": True})
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == len(IDS)
    assert {chunk["choices"][0]["index"] for chunk in chunks} == {0, 1, 2}


async def test_ids_are_in_the_extension_if_asked_for() -> None:
    async with running_worker() as client:
        answer = await chat(
            client, return_input_ids_in_sglext=True, return_output_ids_in_sglext=True
        )
        (record,) = (await client.get("/slime_worker/records")).json()["records"]
    assert answer["sglext"] == {"input_ids": IDS, "output_ids": record["output_ids"]}


async def test_tools_show_special_tokens() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    async with running_worker() as client:
        body = {"tools": [tool], "ignore_eos": True, "no_stop_trim": True, "max_tokens": 60}
        answer = await chat(client, **body)
    assert "<|im_end|>" in answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": "x"},
        {"input_ids": ["x"]},
        {"temperature": -1},
        {"top_logprobs": 2},
        {"stream": True, "return_meta_info": True},
        {"messages": [{"role": "nobody", "content": "x"}]},
        {"stream": True, "max_tokens": 10**6},
        {"continue_final_message": True},
    ],
)
async def test_bad_chat_requests_are_a_real_400_also_for_streams(body: dict[str, Any]) -> None:
    async with running_worker() as client:
        response = await client.post("/v1/chat/completions", json=CHAT | body)
    assert response.status_code == 400
    assert response.json()["object"] == "error"


async def test_only_json_is_accepted() -> None:
    async with running_worker() as client:
        response = await client.post("/v1/chat/completions", content=b"{}")
    assert response.status_code == 400


async def test_text_completions_take_text_ids_and_batches() -> None:
    async with running_worker() as client:

        async def complete(**body: Any) -> Any:
            response = await client.post("/v1/completions", json={"seed": 4} | body)
            assert response.status_code == 200, response.text
            return response.json()

        by_text = await complete(prompt=PROMPT, logprobs=1, return_token_ids=True)
        by_ids = await complete(prompt=IDS, logprobs=1, return_token_ids=True)
        batch = await complete(prompt=["a", "b"], n=2)
    assert by_text["choices"] == by_ids["choices"]
    choice = by_text["choices"][0]
    assert len(choice["token_ids"]) == len(choice["logprobs"]["tokens"]) <= 16
    assert choice["prompt_token_ids"] == IDS
    assert [choice["index"] for choice in batch["choices"]] == [0, 1, 2, 3]


async def test_a_text_stream_tells_prompt_ids_once_and_token_ids_as_deltas() -> None:
    body = {"prompt": PROMPT, "seed": 4, "return_token_ids": True}
    async with running_worker() as client:
        whole = (await client.post("/v1/completions", json=body)).json()["choices"][0]
        chunks = await events_of(client, "/v1/completions", body | {"stream": True})
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert [i for choice in choices for i in choice["token_ids"]] == whole["token_ids"]
    assert [c.get("prompt_token_ids") for c in choices] == [IDS] + [None] * (len(choices) - 1)


async def test_the_official_client_understands_both_forms() -> None:
    def talk(url: str) -> tuple[str | None, str]:
        with openai.OpenAI(base_url=url, api_key="none") as sdk:
            messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello!"}]
            whole = sdk.chat.completions.create(
                model="default", messages=messages, seed=3, max_tokens=12
            )
            with sdk.chat.completions.create(
                model="default", messages=messages, seed=3, max_tokens=12, stream=True
            ) as stream:
                pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        return whole.choices[0].message.content, "".join(pieces)

    async with running_worker() as client:
        # In a thread: the asynchronous client leaves generators to the garbage collector.
        whole, streamed = await trio.to_thread.run_sync(
            talk, f"{str(client.base_url).rstrip('/')}/v1"
        )
    assert whole == streamed != ""
