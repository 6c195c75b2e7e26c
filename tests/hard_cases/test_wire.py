"""Requests as real clients and hostile ones send them."""

from __future__ import annotations

from typing import Any

import pytest

from slime_core.types import Encoding
from tests.chat_families import family
from tests.hard_cases.rows import row
from tests.hard_cases.serving import CHAT, Agent, Model, agent_of, user

ASK = [user("Well?")]
MODEL = family("qwen3")

DEVIATIONS: dict[str, dict[str, Any]] = {
    "no tools": {"tools": []},
    "no tools and a choice": {"tools": [], "tool_choice": "none"},
    "nulls": dict.fromkeys(("tools", "tool_choice", "stop", "n", "seed", "logprobs", "user")),
    "a null usage": {"stream": True, "stream_options": None},
    "usage": {"stream": True, "stream_options": {"include_usage": True}},
    "usage, no stream": {"stream": False, "stream_options": None},
    "64000 tokens": {"max_tokens": 64_000},
    "unknown fields": {"provider": {"order": ["a"]}, "transforms": []},
    "parallel calls without tools": {"parallel_tool_calls": True},
    "kept elsewhere": {"store": True, "metadata": {"a": "b"}, "service_tier": "auto"},
}


@row(43)
async def test_small_deviations_of_real_clients_change_nothing(small: Agent) -> None:
    plain = await small.say(ASK, "It is.")
    for name, more in DEVIATIONS.items():
        turn = await small.say(ASK, "It is.", **more)
        assert turn.prompt == plain.prompt, name
        assert turn.message["content"] == "It is.", name


@row(35)
async def test_images_are_refused_by_name(small: Agent) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content = [{"type": "text", "text": "What is it?"}, image]
    body = small.body([{"role": "user", "content": content}])
    response = await small.served.client.post(CHAT, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages[0].content[1]")
    assert not small.worker.arrived


@row(37)
@pytest.mark.parametrize("limit", [None, 64_000], ids=["none", "huge"])
async def test_a_limit_is_what_the_context_leaves(limit: int | None) -> None:
    context = 200
    async with agent_of(Model.of(MODEL, MODEL.tokenizer), context_length=context) as agent:
        turn = await agent.say(ASK, "It is.", max_tokens=limit)
        told = turn.asked["sampling_params"]["max_new_tokens"]
        assert told is None if limit is None else told <= context - len(turn.prompt)


@row(37)
async def test_a_prompt_beyond_the_context_is_told_as_clients_look_for_it() -> None:
    async with agent_of(Model.of(MODEL, MODEL.tokenizer), context_length=200) as agent:
        body = agent.body([user("word " * 500)])
        response = await agent.served.client.post(CHAT, json=body)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
        assert "maximum context length is" in error["message"]
        assert not agent.worker.arrived


@row(39)
@pytest.mark.parametrize(
    "content",
    [b'"\\ud800"', b'"\\udc00\\ud800"', b"NaN", b"-Infinity", b'"\xff"', b"[" * 100_000],
    ids=["half", "swapped halves", "NaN", "infinite", "no UTF-8", "deep"],
)
async def test_hostile_content_is_the_clients_error(small: Agent, content: bytes) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":' + content + b"}]}"
    response = await small.served.client.post(CHAT, content=body)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert not small.worker.arrived


@row(39)
async def test_a_key_that_comes_twice_has_one_reading(small: Agent) -> None:
    small.script.append(small.model.text("It is."))
    twice = b'{"model":"m","messages":[{"role":"user","content":"Never"}],"messages":' + (
        b'[{"role":"user","content":"Never","content":"Well?"}]}'
    )
    response = await small.served.client.post(CHAT, content=twice)
    assert response.status_code == 200
    (arrived,) = small.worker.arrived
    assert arrived.json["input_ids"] == small.model.encode(small.model.render(ASK))


@row(39)
async def test_a_huge_integer_in_arguments_is_kept_as_it_is(small: Agent) -> None:
    digits = "9" * 5000
    function = {"name": "f", "arguments": '{"n":' + digits + "}"}
    call = {"id": "c", "type": "function", "function": function}
    told = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "1"},
    ]
    turn = await small.say(told, "Yes.")
    assert digits in small.model.decode(turn.prompt)


@row(36)
async def test_a_tokenizer_that_begins_raw_text_adds_nothing_to_a_chat() -> None:
    from tokenizers import Tokenizer as RawTokenizer
    from tokenizers.processors import TemplateProcessing

    from slime_trio.tokenizer import Tokenizer

    chosen = family("llama3_1")
    begin = "<|begin_of_text|>"
    raw = RawTokenizer.from_str(chosen.raw.to_str())
    raw.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, chosen.ids[begin])]
    )
    tokenizer = Tokenizer(raw.to_str().encode(), eos_ids=chosen.eos_ids)
    assert tokenizer.encode("x", encoding=Encoding.RAW, first=True)[0] == chosen.ids[begin]
    async with agent_of(Model.of(chosen, tokenizer)) as agent:
        first = await agent.say(ASK, "It is.")
        second = await agent.say([*ASK, first.message, user("Sure?")], "Yes.")
        assert second.prompt[: len(first.held)] == first.held
        assert agent.model.controls(second.prompt).count(begin) == 1
