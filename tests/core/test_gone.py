"""The bounded memory of what is gone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slime_core.gone import UNKNOWN, GoneMemory
from slime_core.types import CallId


def test_a_call_is_remembered_with_its_reason() -> None:
    memory = GoneMemory()
    memory.note_call(CallId("1"), "evicted")
    assert memory.call(CallId("1")) == "evicted"


def test_what_was_never_there_is_unknown() -> None:
    assert GoneMemory().call(CallId("1")) == UNKNOWN


def test_the_oldest_calls_are_forgotten_first() -> None:
    memory = GoneMemory(limit=2)
    for call in ("1", "2", "1", "3"):
        memory.note_call(CallId(call), "evicted")
    assert [memory.call(CallId(call)) for call in "123"] == ["evicted", UNKNOWN, "evicted"]


def test_a_text_beyond_what_is_known_is_remembered() -> None:
    memory = GoneMemory()
    memory.note_text("abc", "evicted")
    assert memory.beyond("abcd", 2) == "evicted"
    assert memory.beyond("abc", 0) == "evicted"


def test_a_text_within_what_is_known_does_not_matter() -> None:
    memory = GoneMemory()
    memory.note_text("abc", "evicted")
    assert memory.beyond("abcd", 3) is None


def test_another_text_of_the_same_length_is_not_meant() -> None:
    memory = GoneMemory()
    memory.note_text("abc", "evicted")
    assert memory.beyond("abd", 0) is None


def test_the_longest_text_says_the_reason() -> None:
    memory = GoneMemory()
    memory.note_text("abc", "evicted")
    memory.note_text("abcd", "collected")
    assert memory.beyond("abcde", 0) == "collected"


def test_lone_surrogates_can_be_remembered() -> None:
    memory = GoneMemory()
    memory.note_text("a\ud800", "evicted")
    assert memory.beyond("a\ud800b", 0) == "evicted"


@given(st.lists(st.text("ab", max_size=4)), st.text("ab", max_size=6), st.integers(0, 6))
def test_texts_are_remembered_as_a_plain_list_would(
    noted: list[str], asked: str, known: int
) -> None:
    memory, plain = GoneMemory(limit=3), list[str]()
    for text in noted:
        memory.note_text(text, f"reason {text}")
        plain = [*(one for one in plain if one != text), text][-3:]
    lost = [one for one in plain if asked.startswith(one) and known < len(one)]
    expected = f"reason {max(lost, key=len)}" if lost else None
    assert memory.beyond(asked, known) == expected
