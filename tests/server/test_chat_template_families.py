"""Families of models: their templates, marked and bridged, against their vocabularies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core.chat.marking import split_reasoning
from slime_core.errors import ClientError
from slime_core.types import Encoding
from tests.chat_families import FAMILIES, Family, family

Messages = list[dict[str, Any]]

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks a word up.",
            "parameters": {"type": "object", "properties": {"key": {"type": "string"}}},
        },
    }
]
_THOUGHT = {"reasoning_content": "Hm, let me see."}


def _user(content: str = "Hello") -> dict[str, Any]:
    return {"role": "user", "content": content}


def _answer(content: str = "Hi there.", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def _calls(*numbers: int, content: str = "", **fields: Any) -> dict[str, Any]:
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": "look_up", "arguments": f'{{"key": "word {number}"}}'},
        }
        for number in numbers
    ]
    return _answer(content, tool_calls=calls, **fields)


def _result(number: int, content: str = "found") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": content}


_GROWING: dict[str, tuple[Messages, Messages]] = {
    "assistant → user": ([_user(), _answer()], [_user("More")]),
    "assistant after system → user": (
        [{"role": "system", "content": "Be brief."}, _user(), _answer()],
        [_user("More")],
    ),
    "assistant with reasoning → user": ([_user(), _answer(**_THOUGHT)], [_user("More")]),
    "calls → tool": ([_user(), _calls(1)], [_result(1)]),
    "calls with reasoning → tool": ([_user(), _calls(1, **_THOUGHT)], [_result(1)]),
    "calls with text → tool": ([_user(), _calls(1, content="Let me see.")], [_result(1)]),
    "calls with both → tool": (
        [_user(), _calls(1, content="Let me see.", **_THOUGHT)],
        [_result(1)],
    ),
    "second calls → tool": ([_user(), _calls(1), _result(1), _calls(2)], [_result(2)]),
    "calls in a second round → tool": (
        [_user(), _calls(1), _result(1), _answer(), _user(), _calls(2)],
        [_result(2)],
    ),
    "assistant after tool → user": ([_user(), _calls(1), _result(1), _answer()], [_user("More")]),
    "calls → tool and user": ([_user(), _calls(1)], [_result(1), _user("Now?")]),
    "assistant → examples": ([_user(), _answer()], [_user(), _answer("Example"), _user("Now?")]),
    "long loop → tool": (
        [_user(), *(m for n in range(12) for m in (_calls(n), _result(n))), _calls(12)],
        [_result(12)],
    ),
    "two calls → two tools": ([_user(), _calls(1, 2)], [_result(1), _result(2)]),
}
_REFUSED = {
    ("llama3_1", "two calls → two tools"): "the template raises",
    ("gpt_oss", "two calls → two tools"): "the template drops the second",
}
_CASES = [(name, case) for name in FAMILIES for case in _GROWING]
every_family = pytest.mark.parametrize("name", FAMILIES)


def _ids(one: Family, text: str, plain: Any = (), *, first: bool = True) -> list[int]:
    return one.tokenizer.encode(text, encoding=Encoding.RENDERED, first=first, plain=plain)


def _control(one: Family, ids: list[int]) -> list[int]:
    added = set(one.ids.values())
    return [token for token in ids if token in added]


# --- bridging ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tools", [None, _TOOLS], ids=["without tools", "with tools"])
@pytest.mark.parametrize(("name", "case"), _CASES)
def test_the_bridge_gives_the_ids_at_the_end_of_the_full_rendering(
    name: str, case: str, tools: Any
) -> None:
    one = family(name)
    history, appended = _GROWING[case]
    delta = one.template.delta(history, appended, tools=tools)
    if (name, case) in _REFUSED:
        assert delta is None
        return
    assert delta is not None
    whole = one.template.rendered([*history, *appended], tools=tools)
    bridged = [one.ids[delta.close]] if delta.close else []
    bridged += _ids(one, delta.text, delta.plain, first=False)
    assert _ids(one, whole.text)[-len(bridged) :] == bridged


@pytest.mark.parametrize(
    ("name", "close", "opener"),
    [
        ("qwen3", "<|im_end|>", None),
        ("llama3_1", "<|eot_id|>", None),
        ("deepseek_v3", "<｜end▁of▁sentence｜>", None),
        ("glm4_5", "", "<|user|>"),
        ("gpt_oss", "<|end|>", None),
        ("kimi_k2", "<|im_end|>", None),
        ("mistral", "</s>", None),
        ("minimax", "[e~[", None),
    ],
)
def test_each_family_closes_its_turns(name: str, close: str, opener: str | None) -> None:
    delta = family(name).template.delta([_user(), _answer()], [_user("More")])
    assert delta is not None
    assert (delta.close, delta.opener) == (close, opener)


def test_a_turn_of_calls_in_gpt_oss_ends_with_its_own_token() -> None:
    delta = family("gpt_oss").template.delta([_user(), _calls(1)], [_result(1)])
    assert delta is not None
    assert delta.close == "<|call|>"
    assert delta.text.startswith("<|start|>functions.look_up to=assistant")


def test_the_ends_of_turns_are_known_by_id() -> None:
    one = family("gpt_oss")
    ends = ("<|end|>", "<|return|>", "<|call|>", "<|endoftext|>")
    assert one.template.turn_ends == {one.ids[end] for end in ends}


def test_a_switch_of_the_template_reaches_the_delta() -> None:
    delta = family("glm4_5").template.delta(
        [_user(), _answer()], [_user("More")], arguments={"enable_thinking": False}
    )
    assert delta is not None
    assert delta.text == "<|user|>\nMore/nothink<|assistant|>\n<think></think>"


def test_ids_of_calls_are_made_to_fit_a_template_that_counts_their_letters() -> None:
    delta = family("mistral").template.delta([_user(), _calls(1)], [_result(1)])
    assert delta is not None
    (found,) = [part for part in delta.text.split('"') if len(part) == 9 and part.isalnum()]
    assert found in family("mistral").template.render([_user(), _calls(1), _result(1)]).split('"')


# --- content that spells control tokens --------------------------------------------------------

_SPELLINGS = st.sampled_from(
    [
        *("<|im_end|>\n<|im_start|>system\n", "<|eot_id|>", "<｜User｜>", "<|user|>", "<|call|>"),
        *("<|start|>", "[INST]", "</s>", "]~b]", "[e~[\n", "<|im_middle|>", "</think>"),
        *("<think>", "<tool_call>", "</tool_call>", "<|im_end", "|>", "<", "<tool_response>"),
        *("{", "}", '"', "\\", "\n", "  ", "{{ x }}", "{% if %}", "é", "🙂", "\ufdd0", "a b"),
    ]
)
_TEXT = st.lists(_SPELLINGS | st.text(max_size=3), max_size=5).map("".join)
_STEPS = st.sampled_from(("ask", "ask and answer", "loop"))
_MODERATE = settings(max_examples=15, deadline=None)


@st.composite
def _conversations(draw: st.DrawFn) -> Messages:
    """Conversations that every family takes, ending where an answer is due."""
    messages = [{"role": "system", "content": draw(_TEXT)}] if draw(st.booleans()) else []
    for step in draw(st.lists(_STEPS, min_size=1, max_size=3)):
        messages.append(_user(draw(_TEXT)))
        if step == "loop":
            messages += [_calls(1, content=draw(_TEXT)), _result(1, draw(_TEXT))]
        if step != "ask":
            messages.append(_answer(draw(_TEXT)))
    return [*messages, _user(draw(_TEXT))]


def _harmless(messages: Messages) -> Messages:
    """The same conversation with other words."""
    return [{**message, "content": _other(message)} for message in messages]


def _other(message: dict[str, Any]) -> str:
    content: str = message["content"]
    block = split_reasoning(content) if message["role"] == "assistant" else None
    if block is None:
        return _word(content)
    return f"<think>{_word(block[0])}</think>{_word(block[1])}"


def _word(content: str) -> str:
    """A word in place of others; blanks, which templates tell from nothing, as they are."""
    return "x" if content.strip() else content


@every_family
@_MODERATE
@given(messages=_conversations())
def test_no_content_makes_a_control_token_and_none_of_it_is_lost(
    name: str, messages: Messages
) -> None:
    one = family(name)
    told = [message for message in messages if message["role"] != "system"]
    rendered = one.template.rendered(told)
    ids = _ids(one, rendered.text, rendered.plain)
    harmless = _ids(one, one.template.render(_harmless(told)))
    assert _control(one, ids) == _control(one, harmless)
    assert one.tokenizer.vocabulary.decode(ids, skip_special=False) == rendered.text


@every_family
@_MODERATE
@given(content=_TEXT)
def test_a_system_text_makes_no_turn(name: str, content: str) -> None:
    one = family(name)
    told = [{"role": "system", "content": f"a{content}b"}, _user()]
    rendered = one.template.rendered(told)
    markers = {one.ids[text] for text in one.template.report.marks.markers}  # type: ignore[union-attr]
    found = [token for token in _ids(one, rendered.text, rendered.plain) if token in markers]
    harmless = _ids(one, one.template.render(_harmless(told)))
    assert found == [token for token in harmless if token in markers]


@every_family
@_MODERATE
@given(messages=_conversations(), cut=st.integers(0, 8))
def test_whatever_is_said_the_bridge_proves_it_or_refuses(
    name: str, messages: Messages, cut: int
) -> None:
    one = family(name)
    held = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    if not held:
        return
    at = held[cut % len(held)] + 1
    delta = one.template.delta(messages[:at], messages[at:])
    whole = one.template.rendered(messages)
    if delta is None:
        return
    assert whole.text.endswith(delta.text)
    rest = _ids(one, delta.text, delta.plain, first=False)
    assert _ids(one, whole.text, whole.plain)[-len(rest) :] == rest


@every_family
def test_every_family_is_bridged_whatever_is_said(name: str) -> None:
    content = "<|im_end|>\n<|im_start|>system\n</think>{{ x }}  "
    delta = family(name).template.delta([_user(content), _answer(content)], [_user(content)])
    assert delta is not None


def test_in_control_mode_text_may_be_control() -> None:
    one = family("qwen3")
    template = type(one.template).of_source(
        one.source,
        named=one.named,
        added=one.ids,
        end_of_text=one.ends,
        special_tokens="control",
    )
    rendered = template.rendered([_user("<|im_end|>")])
    assert rendered.plain == ()
    assert rendered.text == one.template.render([_user("<|im_end|>")])


# --- reasoning that stands in the content ------------------------------------------------------


def test_inline_reasoning_goes_where_the_template_reads_it() -> None:
    template = family("qwen3").template
    inline = template.rendered([_user(), _answer("<think>\nHm.\n</think>\n\nHi")])
    field = template.rendered([_user(), _answer("Hi", reasoning_content="Hm.")])
    assert inline == field
    assert inline.plain == ()


def test_inline_reasoning_keeps_its_tags_where_the_template_reads_none() -> None:
    one = family("qwen2_5")
    rendered = one.template.rendered([_user(), _answer("<think>Hm.</think>Hi <think>")])
    assert [rendered.text[a:b] for a, b in rendered.plain] == ["<think>"]


def test_a_template_that_cuts_inline_reasoning_out_still_does() -> None:
    rendered = family("deepseek_v3").template.render([_user(), _answer("<think>Hm.</think>Hi")])
    assert "Hm." not in rendered


def test_text_beside_a_call_joins_the_reasoning_where_both_are_refused() -> None:
    told = [_user(), _calls(1, content="Let me see.", **_THOUGHT), _result(1)]
    rendered = family("gpt_oss").template.render(told)
    assert "<|channel|>analysis<|message|>Hm, let me see.\n\nLet me see.<|end|>" in rendered


@pytest.mark.parametrize(
    ("name", "arguments", "begins"),
    [
        ("qwen3", {}, False),
        ("qwen3", {"enable_thinking": False}, False),
        ("deepseek_v3", {}, True),
        ("deepseek_v3_1", {}, False),
        ("deepseek_v3_1", {"thinking": True}, True),
        ("kimi_k2", {}, True),
        ("kimi_k2", {"thinking": False}, False),
        ("minimax", {}, True),
        ("gpt_oss", {}, False),
    ],
)
def test_a_prompt_that_begins_reasoning_says_so(
    name: str, arguments: dict[str, Any], begins: bool
) -> None:
    template = family(name).template
    prompt = template.rendered([_user("<think>")], arguments=arguments).text
    assert template.starts_in_reasoning(prompt) is begins


# --- going on with the last message ------------------------------------------------------------


@every_family
def test_the_last_message_is_left_open(name: str) -> None:
    template = family(name).template
    rendered = template.rendered([_user(), _answer("Once upon")], continue_final=True)
    assert rendered.text.endswith("Once upon")
    assert template.render([_user(), _answer("Once upon")], add_generation_prompt=False).startswith(
        rendered.text
    )


def test_blanks_at_the_end_of_what_is_continued_stay() -> None:
    rendered = family("qwen3").template.rendered([_user(), _answer("a \n")], continue_final=True)
    assert rendered.text.endswith("</think>\n\na \n")


def test_what_is_continued_spells_no_control_token() -> None:
    rendered = family("qwen3").template.rendered([_user(), _answer("a<|im_")], continue_final=True)
    assert rendered.text.endswith("a<|im_")
    rendered = family("qwen3").template.rendered(
        [_user(), _answer("<|im_end|>")], continue_final=True
    )
    assert [rendered.text[a:b] for a, b in rendered.plain] == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("llama3_1", [_user(), _answer("  indented")]),
        ("qwen3", [_user()]),
        ("qwen3", [_user(), _calls(1)]),
    ],
)
def test_what_cannot_be_continued_is_refused_by_name(name: str, messages: Messages) -> None:
    with pytest.raises(ClientError) as caught:
        family(name).template.rendered(messages, continue_final=True)
    assert caught.value.param == "continue_final_message"
