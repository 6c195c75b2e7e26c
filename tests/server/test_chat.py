"""``POST /v1/chat/completions`` on the wire: what the SDK does not show."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.server.harness import (
    Arrived,
    Events,
    answer_item,
    embedded_worker,
    encode,
    events_of,
    fake_worker,
    json_answer,
    raw_client,
    router_with,
    scripted,
    settled,
    template,
    until,
)

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "x"}]


def _chat(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": MESSAGES, **more}


async def test_the_worker_gets_the_rendered_conversation_as_ids() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        await served.client.post(PATH, json=_chat())
        (arrived,) = worker.arrived
        rendered = template().render(MESSAGES, add_generation_prompt=True)
        assert arrived.target == "/generate"
        assert arrived.json["input_ids"] == encode(rendered)


async def test_spellings_of_one_conversation_share_one_prompt() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        for content in ("x", [{"type": "text", "text": "x"}]):
            messages = [{"role": "user", "content": content, "name": None}]
            assert (await served.client.post(PATH, json=_chat(messages=messages))).is_success
        one, two = (arrived.json["input_ids"] for arrived in worker.arrived)
        assert one == two


async def test_the_first_chunk_of_every_choice_comes_in_order_with_its_role_once() -> None:
    async with (
        embedded_worker(script=scripted("One.", "Two.")) as worker,
        router_with(worker.url) as served,
    ):
        response = await served.client.post(PATH, json=_chat(stream=True, n=2))
        chunks = [one for one in events_of(response.text) if one != "[DONE]"]
        deltas = [(c["index"], c["delta"]) for one in chunks for c in one["choices"]]
        roles = [index for index, delta in deltas if "role" in delta]
        assert roles == [0, 1]
        assert response.text.rstrip().endswith("data: [DONE]")


async def test_usage_comes_only_when_asked_for() -> None:
    async with (
        embedded_worker(script=scripted("One.", "Two.")) as worker,
        router_with(worker.url) as served,
    ):
        plain = await served.client.post(PATH, json=_chat(stream=True))
        assert "usage" not in plain.text
        asked = _chat(stream=True, stream_options={"include_usage": True})
        with_it = await served.client.post(PATH, json=asked)
        *_, last, done = events_of(with_it.text)
        assert (done, last["choices"]) == ("[DONE]", [])
        assert last["usage"]["total_tokens"] > 0


async def test_an_abort_without_a_token_is_a_503_and_no_clean_answer() -> None:
    item = answer_item([], "", finish={"type": "abort", "message": "paused"})
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        response = await served.client.post(PATH, json=_chat())
        assert response.status_code == 503
        assert response.headers["retry-after"]
        await settled(served)
        (segment,) = served.router.state.forest.calls.values()
        assert segment.answer is not None
        assert segment.answer.outcome.value == "aborted"


async def test_a_character_in_pieces_is_shown_whole() -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        events = Events(stream)
        await events.begin()
        ids = encode("🙂")
        assert len(ids) > 1
        for end in range(1, len(ids)):
            await events.event(answer_item(ids[:end], "", finished=False))
        await events.event(answer_item(ids, "🙂"))
        await events.end()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.client.post(PATH, json=_chat(stream=True))
        assert "\ufffd" not in response.text
        assert "\\ufffd" not in response.text
        text = "".join(
            choice["delta"].get("content") or ""
            for one in events_of(response.text)
            if one != "[DONE]"
            for choice in one.get("choices", ())
        )
        assert text == "🙂"
        await settled(served)


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_goes_leaves_nothing_taken(begun: bool) -> None:
    async def answer(arrived: Arrived, stream: trio.SocketStream) -> None:
        if begun:
            events = Events(stream)
            await events.begin()
            await events.event(answer_item(encode("well"), "well", finished=False))
        await trio.sleep_forever()

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        async with raw_client(served) as client:
            await client.post(PATH, _chat(stream=True))
            await until(lambda: worker.arrived)
            if begun:
                await client.until(b"well", step=4096)
        await settled(served)
        await until(lambda: worker.aborted)
        assert len(served.router.state.forest.calls) == int(begun)


async def test_a_chat_and_its_rendered_text_share_one_forest() -> None:
    async with (
        embedded_worker(script=scripted("fine")) as worker,
        router_with(worker.url) as served,
    ):
        await served.client.post(PATH, json=_chat())
        text = template().render(MESSAGES, add_generation_prompt=True) + "fine"
        (record,) = worker.records
        found = await served.retrieve(text)
        assert found["tokens"] == list(record.prompt_ids) + list(record.output_ids)


async def test_an_unknown_call_to_extend_is_refused() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.client.post(
            PATH, json=_chat(), headers={"x-slime-parent-id": "nobody"}
        )
        assert (response.status_code, response.json()["error"]["param"]) == (404, "parent_id")
        await settled(served)


async def test_the_openai_paths_can_be_switched_off() -> None:
    async with (
        fake_worker(json_answer({"from": "worker"})) as worker,
        router_with(worker.url, enable_openai_chat_completion=False) as served,
    ):
        response = await served.client.post(PATH, json=_chat())
        assert response.json() == {"from": "worker"}
        assert response.headers["x-slime-captured"] == "false"
