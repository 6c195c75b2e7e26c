"""The checkpoint that travels with the package: loads offline, and renders prefix-stable chats."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer

from slime_core.errors import ClientError
from slime_trio.chat_template import ChatTemplate, load_chat_template
from slime_trio.worker import SHIPPED_CHECKPOINT, load_model

CORPUS = SHIPPED_CHECKPOINT.parent / "corpus.txt"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"q": "é<"}'}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": " Be brief.\n"},
    {"role": "user", "content": "  你好 🙂 \n\n"},
    {"role": "assistant", "content": " hm ", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "one", "tool_call_id": "1"},
    {"role": "tool", "content": "two", "tool_call_id": "1"},
    {"role": "assistant", "content": "done", "reasoning_content": "so\n"},
    {"role": "user", "content": "<think> thanks"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return load_chat_template(SHIPPED_CHECKPOINT)


def test_transformers_and_the_plain_library_give_the_same_ids() -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(SHIPPED_CHECKPOINT, local_files_only=True)
    plain = Tokenizer.from_file(str(SHIPPED_CHECKPOINT / "tokenizer.json"))
    text = CORPUS.read_text(encoding="utf-8") + "ﬁ \t\r\n 1234 👩‍👩‍👧‍👦 e\u0301 \x00"
    ids = plain.encode(text).ids
    assert loaded(text)["input_ids"] == ids
    assert plain.decode(ids, skip_special_tokens=False) == text
    assert loaded.eos_token == "<|im_end|>"
    assert load_model(SHIPPED_CHECKPOINT).end_ids == {loaded.eos_token_id}


def test_every_id_of_the_vocabulary_has_bytes() -> None:
    model = load_model(SHIPPED_CHECKPOINT)
    assert len(model.vocabulary) == model.tokenizer.get_vocab_size() > 2000
    assert model.language.support == tuple(range(len(model.vocabulary)))


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_longer_conversation_begins_with_the_shorter_one(
    template: ChatTemplate, tools: Any
) -> None:
    earlier = ""
    for count in range(1, len(CONVERSATION) + 1):
        shown = CONVERSATION[:count]
        plain = template.render(shown, tools=tools, add_generation_prompt=False)
        assert plain.startswith(earlier)
        earlier = template.render(shown, tools=tools)
        assert earlier == plain + "<|im_start|>assistant\n"
        is_answered = count < len(CONVERSATION) and CONVERSATION[count]["role"] == "assistant"
        earlier = earlier if is_answered else plain


def test_content_is_rendered_exactly_as_it_came(template: ChatTemplate) -> None:
    rendered = template.render(CONVERSATION)
    for message in CONVERSATION:
        assert message["content"] in rendered
    assert "<|im_start|>user\n  你好 🙂 \n\n<|im_end|>\n" in rendered
    assert "<think>so\n</think>done<|im_end|>" in rendered


def test_a_role_the_template_does_not_know_is_refused(template: ChatTemplate) -> None:
    with pytest.raises(ClientError, match="role"):
        template.render([{"role": "nobody", "content": "x"}])
