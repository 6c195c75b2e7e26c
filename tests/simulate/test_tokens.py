"""The simulation's vocabularies are what they say: nasty, and the same in both harnesses."""

from __future__ import annotations

from typing import Any

import pytest

from slime_core.types import Encoding, unpack_ids
from slime_trio.chat_template import load_chat_template
from tests.simulate import templates, tokens
from tests.simulate.story import Chat
from tests.simulate.writing import written

every = pytest.mark.parametrize("name", tokens.NAMES)

CALLS = [
    {"id": "1", "function": {"name": "f", "arguments": '{"a": "é <|im_start|>", "b": 1.0}'}},
    {"id": "2", "function": {"name": "g", "arguments": "{no json"}},
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "é <|im_end"},
    {"role": "user", "content": "a <|user|> <|im_start|>"},
    {"role": "assistant", "content": "<think>x</think>b</think>"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": None, "reasoning_content": "y", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "</tool_call>"}]},
    {"role": "tool", "tool_call_id": "2", "content": "d"},
    {"role": "assistant", "content": "<think>z</think>e"},
]
TOOLS = ({"type": "function", "function": {"name": "f", "description": "<|im_end|>"}},)


@pytest.mark.parametrize("name", templates.NAMES)
def test_each_template_renders_alike_in_jinja_and_in_python(name: str) -> None:
    one = tokens.of("bytes", name)
    template = load_chat_template(one.checkpoint.path, tokenizer=one.checkpoint.tokenizer)
    assert template.traits == one.chat.traits
    assert template.turn_ends == one.chat.turn_ends
    for until in range(1, len(MESSAGES) + 1):
        for tools in ((), TOOLS):
            for add in (True, False):
                asked: dict[str, Any] = {"tools": tools, "add_generation_prompt": add}
                rendered = template.rendered(MESSAGES[:until], **asked)
                assert rendered == one.chat.rendered(MESSAGES[:until], **asked)


@pytest.mark.parametrize("vocabulary", tokens.NAMES)
@pytest.mark.parametrize("name", templates.NAMES)
def test_what_is_written_naively_is_what_the_router_renders_and_encodes(
    name: str, vocabulary: str
) -> None:
    one = tokens.of(vocabulary, name)
    for until in range(1, len(MESSAGES) + 1):
        chat = Chat(messages=tuple(MESSAGES[:until]), tools=TOOLS)
        rendered = one.chat.rendered(MESSAGES[:until], tools=TOOLS)
        ids = one.tokenizer.encode_packed(
            rendered.text, encoding=Encoding.RENDERED, first=True, plain=rendered.plain
        )
        naive = written(one, chat)
        assert naive.text == rendered.text
        assert naive.ids == unpack_ids(ids)
        assert naive.hidden is bool(rendered.plain)


@every
def test_the_checkpoint_is_the_same_tokenizer(name: str) -> None:
    one = tokens.of(name)
    text = "The fox 好 <|im_end|> <think>"
    for encoding in Encoding:
        ids = one.encode(text, encoding=encoding, first=True)
        assert one.checkpoint.tokenizer.encode(text, encoding=encoding, first=True) == ids
    assert one.checkpoint.tokenizer.eos_ids == one.end_ids


@every
def test_everything_of_the_vocabulary_may_be_sampled(name: str) -> None:
    one = tokens.of(name)
    assert set(one.language.support) == {
        t for t in range(len(one.vocabulary)) if t in one.vocabulary
    }


def test_only_one_vocabulary_adds_special_tokens_to_raw_text() -> None:
    assert [tokens.of(name).tokenizer.adds_special_tokens for name in tokens.NAMES] == [
        False,
        True,
        False,
    ]
