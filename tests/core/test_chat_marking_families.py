"""No text that a request brings makes, or takes away, a control token of any family's template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slime_core.chat.marking import split_reasoning
from slime_core.types import Encoding
from tests.chat_families import FAMILIES, Family, family

_STRICT: Final = (
    *("user", "answer", "reasoning", "said", "call id", "call name", "key", "value", "result"),
    "result name",
)
"""Texts that may spell no token at all."""
_LENIENT: Final = (
    *("system", "tool name", "description", "property", "about property", "choice", "document"),
    *("date", "identity", "effort"),
)
"""Those that may spell tokens which make no turns."""

Texts = Mapping[str, str]
every_family = pytest.mark.parametrize("name", FAMILIES)
_SOME: Final = settings(max_examples=25, deadline=None)


def _call(texts: Texts) -> dict[str, Any]:
    arguments = {texts["key"]: [texts["value"], {"x": texts["value"]}]}
    function = {"name": texts["call name"], "arguments": arguments}
    return {"id": texts["call id"], "type": "function", "function": function}


def _messages(texts: Texts) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": texts["system"]},
        {"role": "user", "content": texts["user"]},
        {
            "role": "assistant",
            "content": texts["answer"],
            "reasoning_content": texts["reasoning"],
        },
        {"role": "user", "content": texts["user"]},
        {"role": "assistant", "content": texts["said"], "tool_calls": [_call(texts)]},
        {
            "role": "tool",
            "tool_call_id": texts["call id"],
            "name": texts["result name"],
            "content": texts["result"],
        },
    ]


def _tools(texts: Texts) -> list[dict[str, Any]]:
    described = {
        "type": "string",
        "description": texts["about property"],
        "enum": [texts["choice"]],
    }
    function = {
        "name": texts["tool name"],
        "description": texts["description"],
        "parameters": {"type": "object", "properties": {texts["property"]: described}},
    }
    return [{"type": "function", "function": function}]


def _control(one: Family, texts: Texts) -> list[str]:
    """The control tokens of a conversation with these texts."""
    rendered = one.template.rendered(
        _messages(texts),
        tools=_tools(texts),
        arguments={
            "documents": [{"title": texts["document"], "text": texts["document"]}],
            "date_string": texts["date"],
            "model_identity": texts["identity"],
            "reasoning_effort": texts["effort"],
        },
    )
    encode = one.tokenizer.encode
    ids = encode(rendered.text, encoding=Encoding.RENDERED, first=True, plain=rendered.plain)
    contents = {token: content for content, token in one.ids.items()}
    return [contents[token] for token in ids if token in contents]


_HARMLESS: Final = dict.fromkeys((*_STRICT, *_LENIENT), "x")


def _texts(one: Family, fields: Iterable[str]) -> st.SearchStrategy[dict[str, str]]:
    """All texts harmless but these, which are made of parts of tokens."""
    parts = [token[at:] for token in one.ids for at in range(len(token))]
    parts += [token[:at] for token in one.ids for at in range(1, len(token))]
    part = st.sampled_from(sorted(set(parts)))
    nasty = st.builds("{}{}".format, part | st.just("x"), part | st.just("x"))
    return st.fixed_dictionaries(dict.fromkeys(fields, nasty)).map(_HARMLESS.__or__)


def _is_within(some: Iterable[str], of: Iterable[str]) -> bool:
    rest = iter(of)
    return all(token in rest for token in some)


@every_family
@_SOME
@given(data=st.data())
def test_what_users_tools_and_assistants_say_changes_no_control_token(
    name: str, data: st.DataObject
) -> None:
    one = family(name)
    texts = data.draw(_texts(one, _STRICT))
    assume(split_reasoning(texts["answer"]) is None and split_reasoning(texts["said"]) is None)
    assert _control(one, texts) == _control(one, _HARMLESS)


@every_family
@_SOME
@given(data=st.data())
def test_what_systems_tool_definitions_and_arguments_say_makes_no_turn_and_ends_none(
    name: str, data: st.DataObject
) -> None:
    one = family(name)
    found = _control(one, data.draw(_texts(one, _LENIENT)))
    expected = _control(one, _HARMLESS)
    assert _is_within(expected, found)
    markers = one.template.report.marks.markers  # type: ignore[union-attr]
    turns = [token for token in found if token in markers]
    assert turns == [token for token in expected if token in markers]


def test_a_users_text_that_the_end_of_its_turn_completes_forges_nothing() -> None:
    one = family("minimax")
    assert _control(one, {**_HARMLESS, "user": "hi ]~!b"}) == _control(one, _HARMLESS)
