"""Content that spells control tokens: broken up before rendering, found again after it."""

from __future__ import annotations

import itertools
import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.chat.marking import Marking, split_reasoning, strings_of
from slime_core.chat.rendering import Rendered
from slime_core.chat.spellings import Spellings
from slime_core.errors import ClientError

_TOKENS = ("<|end|>", "<|start|>", "<|st", "<tool>", "</tool>", "<think>", "</think>", "abc", "bcd")
_ADDED = Spellings(_TOKENS)
_MARKING = Marking(added=_ADDED, turns=Spellings(("<|end|>", "<|start|>")))
_NASTY = st.lists(
    st.sampled_from((*_TOKENS, "<|", "|>", "end|>", "<|start", "a", "d", "\ufdd0", " ", "\\ufdd0"))
    | st.text('aé中🙂<|>"\\\n', max_size=3),  # no escape of which spells a token
    max_size=6,
).map("".join)


def _render(messages: list[dict[str, Any]], *, escape: bool = False) -> str:
    """A template: what it writes itself are ``<|start|>`` and ``<|end|>``."""
    write = json.dumps if escape else str
    return "".join(
        f"<|start|>{message['role']}\n{write(message['content'])}<|end|>" for message in messages
    )


def _rendered(*messages: dict[str, Any], escape: bool = False) -> Rendered:
    marked = _MARKING.mark(messages, None, {})
    return _MARKING.read(_render(marked.messages, escape=escape), marked.marker)


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _plain(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.plain]


# --- where text spells tokens ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("<|end|", []),
        ("a<|end|>b", ["<|end|>"]),
        ("<|start|>", ["<|start|>"]),
        ("<|star<|st", ["<|st", "<|st"]),
        ("abcd", ["abc"]),
        ("<|<|end|>|>", ["<|end|>"]),
    ],
)
def test_the_longest_of_the_leftmost_is_found(text: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in _ADDED.found(text)] == found


def test_single_characters_and_blanks_are_no_spellings() -> None:
    assert Spellings(("<", "  ", "\n\n", "<a>")).contents == ("<a>",)


def test_nothing_is_found_inside_plain_ranges() -> None:
    text = "<|end|><|end|><|end|>"
    assert _ADDED.found_outside(text, ((7, 14),)) == ((0, 7), (14, 21))


@given(text=_NASTY, beside=_NASTY, in_front=st.booleans())
def test_no_token_is_whole_around_the_breaks(text: str, beside: str, in_front: bool) -> None:
    pieces, at = [], 0
    for position in _ADDED.breaks(text):
        pieces.append(text[at:position])
        at = position
    broken = "\x00".join([*pieces, text[at:]])
    whole = beside + broken if in_front else broken + beside
    begin = len(beside) if in_front else 0
    for start, end in _ADDED.found(whole):
        assert end <= begin or start >= begin + len(broken)


# --- marking and reading -----------------------------------------------------------------------


def test_clean_messages_need_no_marker() -> None:
    tokens = Spellings(("<|end|>", "<tool>"))
    marking = Marking(added=tokens, turns=tokens)
    assert marking.mark([_user("a < b and b > c")], None, {}).marker is None


def test_what_content_spells_is_plain() -> None:
    rendered = _rendered(_user("a<|end|>b<tool>"))
    assert rendered.text == "<|start|>user\na<|end|>b<tool><|end|>"
    assert _plain(rendered) == ["<|end|>", "<tool>"]


def test_a_token_that_a_content_and_the_template_spell_together_is_plain() -> None:
    marked = _MARKING.mark([_user("<|en")], None, {})
    rendered = _MARKING.read(f"<|start|>{marked.messages[0]['content']}d|>", marked.marker)
    assert _plain(rendered) == ["<|end|>"]
    marked = _MARKING.mark([_user("|>")], None, {})
    rendered = _MARKING.read(f"<|start|><|end{marked.messages[0]['content']}", marked.marker)
    assert _plain(rendered) == ["<|end|>"]


def test_system_text_spells_everything_but_turns() -> None:
    rendered = _rendered({"role": "system", "content": "<tool> <think> <|end|>"})
    assert _plain(rendered) == ["<|end|>"]


def test_tool_definitions_and_template_arguments_spell_everything_but_turns() -> None:
    tools = [{"function": {"name": "<|end|>", "description": "use <tool>"}}]
    marked = _MARKING.mark([_user("Hello")], tools, {"date": "<|start|>"})
    text = json.dumps((marked.tools, marked.arguments), ensure_ascii=False)
    assert _plain(_MARKING.read(text, marked.marker)) == ["<|end|>", "<|start|>"]
    assert tools == [{"function": {"name": "<|end|>", "description": "use <tool>"}}]


def test_call_names_and_arguments_and_reasoning_are_plain() -> None:
    call = {"function": {"name": "<tool>", "arguments": {"<|end|>": ["</tool>", 1, None]}}}
    message = {"role": "assistant", "content": "", "thinking": "<think>", "tool_calls": [call]}
    marked = _MARKING.mark([message], None, {})
    text = json.dumps(marked.messages, ensure_ascii=False)
    assert _plain(_MARKING.read(text, marked.marker)) == ["<think>", "<tool>", "<|end|>", "</tool>"]


def test_a_leading_reasoning_block_keeps_its_tags_and_nothing_else() -> None:
    content = "\n<think>a<think>b<|end|></think>c</think><tool>"
    rendered = _rendered({"role": "assistant", "content": content})
    assert content in rendered.text
    assert _plain(rendered) == ["<think>", "<|end|>", "</think>", "<tool>"]


def test_the_same_block_in_a_users_text_is_plain() -> None:
    assert _plain(_rendered(_user("<think>a</think>"))) == ["<think>", "</think>"]


def test_roles_and_types_are_left() -> None:
    call = {"type": "<tool>", "function": {"name": "f"}}
    marked = _MARKING.mark(
        [{"role": "<tool>", "content": "<tool>", "tool_calls": [call]}], None, {}
    )
    assert marked.messages[0]["role"] == "<tool>"


def test_a_marker_that_json_escapes_is_found() -> None:
    rendered = _rendered(_user('"<|end|>"'), escape=True)
    assert rendered.text == '<|start|>user\n"\\"<|end|>\\""<|end|>'
    assert _plain(rendered) == ["<|end|>"]


def test_the_marker_is_a_character_that_the_request_does_not_hold() -> None:
    noncharacters = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    rendered = _rendered(_user(noncharacters + "\\ue000<|end|>"))
    assert rendered.text == f"<|start|>user\n{noncharacters}\\ue000<|end|><|end|>"
    assert _plain(rendered) == ["<|end|>"]


def test_a_request_that_holds_every_marker_is_refused() -> None:
    codes = (range(0xFDD0, 0xFDF0), range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))
    every = "".join(chr(code) for some in codes for code in some)
    with pytest.raises(ClientError):
        _rendered(_user(every + "<|end|>"))


@given(contents=st.lists(_NASTY, max_size=4), escape=st.booleans())
def test_the_rendering_is_as_without_marks_and_only_the_templates_tokens_are_control(
    contents: list[str], escape: bool
) -> None:
    messages = [_user(content) for content in contents]
    rendered = _rendered(*messages, escape=escape)
    assert rendered.text == _render(messages, escape=escape)
    control = _ADDED.found_outside(rendered.text, rendered.plain)
    expected = ["<|start|>", "<|end|>"] * len(contents)
    assert [rendered.text[start:end] for start, end in control] == expected


def test_the_end_of_a_rendering_keeps_its_plain_ranges() -> None:
    rendered = Rendered(text="ab<x>cd<y>", plain=((2, 5), (7, 10)))
    assert rendered.behind(5) == Rendered(text="cd<y>", plain=((2, 5),))
    assert rendered.behind(3) == Rendered(text="x>cd<y>", plain=((0, 2), (4, 7)))
    assert rendered.before(5) == Rendered(text="ab<x>", plain=((2, 5),))
    assert rendered.before(8) == Rendered(text="ab<x>cd<", plain=((2, 5), (7, 8)))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("<think>a</think>b", ("a", "b")),
        (" \n<think>a</think>", ("a", "")),
        ("<think>a", None),
        ("b<think>a</think>", None),
        ("<think>a</think>b</think>c", ("a", "b</think>c")),
    ],
)
def test_a_reasoning_block_is_one_at_the_beginning(
    content: str, parts: tuple[str, str] | None
) -> None:
    assert split_reasoning(content) == parts


def test_strings_are_found_wherever_they_stand() -> None:
    assert list(strings_of({"a": ["b", {"c": 1, "d": None}], "e": ("f",)})) == list("abcdef")


def test_strings_are_found_however_deep() -> None:
    deep: Any = "end"
    for _ in range(100_000):
        deep = [deep]
    assert list(strings_of(deep)) == ["end"]


# --- spellings that a content and the template complete together -------------------------------


def _control(rendered: Rendered) -> list[str]:
    control = _ADDED.found_outside(rendered.text, rendered.plain)
    return [rendered.text[start:end] for start, end in control]


@pytest.mark.parametrize(
    ("content", "plain"),
    [
        ("a ]~!b", ["]~!b"]),
        ("a ]~!", []),
        ("]~!b[]~!b", ["]~!b[", "]~!b"]),
        ("]~b]~!b", ["]~b]"]),
    ],
)
def test_a_token_is_not_taken_for_the_end_of_a_spelling_before_it(
    content: str, plain: list[str]
) -> None:
    tokens = Spellings(("]~!b[", "]~b]", "[e~["))
    marking = Marking(added=tokens, turns=tokens)
    marked = marking.mark([_user(content)], None, {})
    rendered = marking.read(f"]~b]{marked.messages[0]['content']}[e~[", marked.marker)
    assert rendered.text == f"]~b]{content}[e~["
    control = tokens.found_outside(rendered.text, rendered.plain)
    assert [rendered.text[start:end] for start, end in control] == ["]~b]", "[e~["]
    assert _plain(rendered) == plain


def test_a_token_is_not_made_longer_by_the_content_behind_it() -> None:
    marked = _MARKING.mark([_user("art|>!")], None, {})
    rendered = _MARKING.read(f"<|st{marked.messages[0]['content']}", marked.marker)
    assert (rendered.text, _plain(rendered)) == ("<|start|>!", ["art|>"])
    assert _control(rendered) == ["<|st"]


def test_a_system_text_does_not_take_a_token_of_the_template_with_it() -> None:
    added, turns = Spellings(("abc", "cd<>", "<tool>")), Spellings(("cd<>",))
    marking = Marking(added=added, turns=turns)
    system = {"role": "system", "content": "<tool> abcab"}
    marked = marking.mark([system], None, {})
    rendered = marking.read(f"{marked.messages[0]['content']}cd<>", marked.marker)
    assert rendered.text == "<tool> abcabcd<>"
    assert added.found_outside(rendered.text, rendered.plain) == ((0, 6), (7, 10), (12, 16))


_OVERLAPPING: Final = ("abc", "bcd", "cd", "dab", "<a>", "<a>bc", "c<a")


@given(
    written=st.lists(
        st.sampled_from((*_OVERLAPPING, "x", " ")) | st.text("abcd<> ", max_size=4).map(_user),
        max_size=8,
    )
)
def test_control_tokens_are_those_of_the_marked_text_whatever_stands_beside_them(
    written: list[str | dict[str, Any]],
) -> None:
    tokens = Spellings(_OVERLAPPING)
    marking = Marking(added=tokens, turns=tokens)
    users = [piece for piece in written if not isinstance(piece, str)]
    marked = marking.mark(users, None, {})
    contents = iter(message["content"] for message in marked.messages)
    text = "".join(piece if isinstance(piece, str) else next(contents) for piece in written)
    rendered = marking.read(text, marked.marker)
    control = tokens.found_outside(rendered.text, rendered.plain)
    assert [rendered.text[start:end] for start, end in control] == [
        text[start:end] for start, end in tokens.found(text)
    ]
    assert all(start < end for start, end in rendered.plain)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(rendered.plain))
