"""What clients do to messages, and what is the same conversation nevertheless."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.chat.canonical import Conversation, canonical_arguments, conversation, is_mended

USER = {"role": "user", "content": "What is the weather in Zürich?"}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"unit":"C",  "city":"Zürich", "n":1.0}'},
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "12"}


def _told(*messages: dict[str, Any], **more: Any) -> Conversation:
    return conversation(messages, **more)


def _called(**changed: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [CALL], **changed}


def _with_arguments(arguments: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return _called(tool_calls=[{**CALL, "function": function}])


SAME = {
    "content empty": _called(content=""),
    "content absent": {"role": "assistant", "tool_calls": [CALL]},
    "null keys": _called(refusal=None, audio=None, function_call=None),
    "unknown keys": _called(provider_specific_fields={"a": 1}),
    "call id changed": _called(tool_calls=[{**CALL, "id": "other"}]),
    "call id lost": _called(tool_calls=[{"function": CALL["function"]}]),
    "arguments dumped anew": _with_arguments('{"unit": "C", "city": "Z\\u00fcrich", "n": 1}'),
    "arguments in other order": _with_arguments('{"n":1.0,"city":"Zürich","unit":"C"}'),
    "arguments as object": _with_arguments({"unit": "C", "city": "Zürich", "n": 1}),
    "reasoning dropped": _called(reasoning_content="Let me see."),
}
OTHER = {
    "another name": _called(
        tool_calls=[{**CALL, "function": {**CALL["function"], "name": "weathers"}}]  # type: ignore[dict-item]
    ),
    "another value": _with_arguments('{"unit":"C","city":"Zürich","n":2}'),
    "truth for one": _with_arguments('{"unit":"C","city":"Zürich","n":true}'),
    "text for a number": _with_arguments('{"unit":"C","city":"Zürich","n":"1"}'),
    "a call more": _called(tool_calls=[CALL, CALL]),
    "content": _called(content="Let me look."),
    "broken arguments": _with_arguments('{"unit":"C"'),
}


@pytest.mark.parametrize("spelling", SAME.values(), ids=SAME.keys())
def test_a_spelling_of_the_same_turn_has_the_same_chain(spelling: dict[str, Any]) -> None:
    assert _told(USER, _called()).chains == _told(USER, spelling).chains


@pytest.mark.parametrize("turn", OTHER.values(), ids=OTHER.keys())
def test_another_turn_has_another_chain(turn: dict[str, Any]) -> None:
    assert _told(USER, _called()).chains[1] != _told(USER, turn).chains[1]


def test_parts_are_one_text() -> None:
    parts = [
        {"type": "text", "text": "What is the weather"},
        {"type": "text", "text": " in Zürich?"},
    ]
    assert _told(USER).strict == _told({"role": "user", "content": parts}).strict


def test_a_developer_is_the_system() -> None:
    system, developer = ({"role": role, "content": "x"} for role in ("system", "developer"))
    assert _told(system).chains == _told(developer).chains


def test_inline_thinking_is_reasoning() -> None:
    inline = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}
    apart = {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    assert _told(inline).chains == _told(apart).chains
    assert _told(inline).reasonings == _told(apart).reasonings


def test_blanks_around_an_answer_are_the_same_turn_and_another_spelling() -> None:
    turn, stripped = ({"role": "assistant", "content": text} for text in (" yes \n", "yes"))
    assert _told(turn).chains == _told(stripped).chains
    assert _told(turn).strict != _told(stripped).strict


def test_blanks_around_a_question_are_another_conversation() -> None:
    assert _told(USER).chains != _told({"role": "user", "content": USER["content"] + " "}).chains


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"arguments": {"enable_thinking": False}},
        {"mode": "control"},
    ],
    ids=["tools", "template arguments", "mode"],
)
def test_what_it_is_rendered_with_is_part_of_a_conversation(more: dict[str, Any]) -> None:
    assert _told(USER).chains != _told(USER, **more).chains


def test_results_that_changed_places_are_another_conversation() -> None:
    both = _called(tool_calls=[CALL, {**CALL, "id": "call_2"}])
    first = {**RESULT, "content": "a"}
    second = {**RESULT, "tool_call_id": "call_2", "content": "b"}
    swapped = [{**first, "content": "b"}, {**second, "content": "a"}]
    assert _told(both, first, second).chains != _told(both, second, first).chains
    assert _told(both, first, second).chains != _told(both, *swapped).chains


def test_results_without_ids_answer_in_their_order() -> None:
    both = _called(tool_calls=[CALL, {**CALL, "id": "call_2"}])
    named = [{**RESULT, "tool_call_id": f"call_{n}", "content": str(n)} for n in (1, 2)]
    nameless = [{"role": "tool", "content": str(n)} for n in (1, 2)]
    assert _told(both, *named).chains == _told(both, *nameless).chains


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES), st.booleans())
def test_any_dump_of_arguments_is_the_same(value: dict[str, Any], ascii_only: bool) -> None:
    dumped = json.dumps(value, ensure_ascii=ascii_only, indent=1, sort_keys=True)
    assert canonical_arguments(dumped) == canonical_arguments(value)


@pytest.mark.parametrize(
    "text",
    ["{", "[" * 100_000, '{"a":NaN}', '{"a":1e999}', "9" * 5000],
    ids=["broken", "deep", "NaN", "too large", "long"],
)
def test_what_has_no_value_is_compared_as_text(text: str) -> None:
    assert canonical_arguments(text) == text
    assert canonical_arguments(text + " ") == text + " "


@pytest.mark.parametrize(
    ("spelling", "other"),
    [
        ('{"a":1,"a":2}', '{"a":2}'),
        ('{"a":9007199254740993}', '{"a":9007199254740992}'),
        ('{"a":1e3}', '{"a":1000}'),
    ],
    ids=["the last of two keys", "an integer beyond a double", "an exponent"],
)
def test_arguments_are_what_every_client_reads_in_them(spelling: str, other: str) -> None:
    assert canonical_arguments(spelling) == canonical_arguments(other)


def test_a_refusal_is_the_content_that_it_says() -> None:
    said = [
        {"role": "assistant", "content": [{"type": "refusal", "refusal": text, "text": None}]}
        for text in ("A", "B")
    ]
    assert _told(said[0]).chains != _told(said[1]).chains


@pytest.mark.parametrize("given", ["{}", '{"unit":"C"}', ""], ids=["left out", "mended", "empty"])
def test_arguments_that_were_no_json_may_come_back_mended(given: str) -> None:
    kept = _with_arguments('{"unit":"C"')
    assert is_mended(kept, _with_arguments(given))
    assert not is_mended(_with_arguments('{"unit":"F"}'), _with_arguments('{"unit":"C"}'))
    assert not is_mended(kept, {**_with_arguments(given), "content": "more"})


def test_what_a_client_wrote_is_compared_with_its_reasoning() -> None:
    turn = {"role": "assistant", "content": "b"}
    thought = {**turn, "reasoning_content": "a"}
    assert _told(turn).chains == _told(thought).chains
    assert _told(turn).strict != _told(thought).strict


@pytest.mark.parametrize("empty", [None, "", "  ", "{}", {}])
def test_no_arguments_are_an_empty_object(empty: Any) -> None:
    assert canonical_arguments(empty) == "{}"
