"""The simulation's vocabularies are what they say: nasty, and the same in both harnesses."""

from __future__ import annotations

import pytest

from slime_core.types import Encoding
from slime_trio.chat_template import load_chat_template
from tests.simulate import tokens

every = pytest.mark.parametrize("name", tokens.NAMES)

MESSAGES = [
    {"role": "system", "content": "é <|im_end"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "<think>x</think>b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "<think>y</think>d"},
]


@every
@pytest.mark.parametrize("until", range(1, len(MESSAGES) + 1))
def test_the_template_renders_what_render_says(name: str, until: int) -> None:
    one = tokens.of(name)
    template = load_chat_template(one.checkpoint.path, tokenizer=one.checkpoint.tokenizer)
    for add in (True, False):
        rendered = template.render(MESSAGES[:until], tools=None, add_generation_prompt=add)
        assert rendered == one.render(MESSAGES[:until], add_generation_prompt=add)


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
