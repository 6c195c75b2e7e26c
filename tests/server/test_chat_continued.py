"""Going on with the last message, through the server: where its reasoning ends, and with calls."""

from __future__ import annotations

from typing import Any

from slime_core.types import Encoding
from tests.server.harness import (
    Arrived,
    answer_item,
    fake_worker,
    json_answer,
    router_with,
    tokenizer,
)

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "x"}


def _ids(text: str) -> list[int]:
    return tokenizer().encode(text, encoding=Encoding.RENDERED, first=False)


async def _continued(begun: str, rest: str) -> Any:
    """The message of ``rest``, sampled behind ``begun``, which the limit had cut off."""
    cut = answer_item(_ids(begun), begun, finish={"type": "length", "length": 1})
    answers = [answer_item(_ids(rest), rest), cut]

    def answer(arrived: Arrived) -> Any:
        assert arrived.target == "/generate"
        return answers.pop()

    async with fake_worker(json_answer(answer)) as worker, router_with(worker.url) as served:
        first = await served.client.post(CHAT, json={"model": "m", "messages": [USER]})
        message = first.json()["choices"][0]["message"]
        body = {"model": "m", "messages": [USER, message], "continue_final_message": True}
        second = await served.client.post(CHAT, json=body)
        assert second.status_code == 200, second.text
        assert "x-slime-flags" not in second.headers
        return second.json()["choices"][0]["message"]


async def test_what_follows_a_reasoning_that_has_ended_is_content() -> None:
    message = await _continued("<think>Hm.</think>", "Yes.")
    assert (message["content"], message.get("reasoning_content")) == ("Yes.", None)


async def test_what_follows_a_reasoning_that_was_cut_is_reasoning() -> None:
    message = await _continued("<think>Hm", ", so.</think>Yes.")
    assert (message["content"], message["reasoning_content"]) == ("Yes.", ", so.")


async def test_a_turn_with_calls_is_not_gone_on_with() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = {
        "model": "m",
        "messages": [USER, {"role": "assistant", "content": "a", "tool_calls": [call]}],
        "continue_final_message": True,
    }
    async with router_with() as served:
        answer = await served.client.post(CHAT, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "continue_final_message"
