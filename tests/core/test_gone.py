"""The bounded memory of what is gone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slime_core.gone import UNKNOWN, GoneMemory, GoneWays
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


def test_a_text_is_found_within_longer_ones_and_in_itself() -> None:
    memory = GoneWays[str]()
    memory.note("abc", "evicted")
    assert memory.within("abcd") == {3: "evicted"}
    assert memory.within("abc") == {3: "evicted"}


def test_a_shorter_text_does_not_hold_it() -> None:
    memory = GoneWays[str]()
    memory.note("abc", "evicted")
    assert memory.within("ab") == {}


def test_another_text_of_the_same_length_is_not_meant() -> None:
    memory = GoneWays[str]()
    memory.note("abc", "evicted")
    assert memory.within("abd") == {}


def test_another_text_with_the_same_ending_is_not_meant() -> None:
    memory = GoneWays[str]()
    memory.note("x" + "the same ending", "evicted")
    assert memory.within("y" + "the same ending") == {}


def test_every_text_within_is_found_with_its_own_reason() -> None:
    memory = GoneWays[str]()
    memory.note("abc", "evicted")
    memory.note("abcd", "collected")
    assert memory.within("abcde") == {3: "evicted", 4: "collected"}


def test_lone_surrogates_can_be_remembered() -> None:
    memory = GoneWays[str]()
    memory.note("a\ud800", "evicted")
    assert memory.within("a\ud800b") == {2: "evicted"}


@given(st.lists(st.text("ab", max_size=4)), st.text("ab", max_size=6), st.integers(-1, 6))
def test_texts_are_remembered_as_a_plain_list_would(
    noted: list[str], asked: str, after: int
) -> None:
    memory, plain = GoneWays[str](limit=3), list[str]()
    for text in noted:
        memory.note(text, f"reason {text}")
        plain = [*(one for one in plain if one != text), text][-3:]
    lost = {
        len(one): f"reason {one}" for one in plain if asked.startswith(one) and after < len(one)
    }
    assert memory.within(asked, after) == lost


def test_packed_ids_are_remembered_like_texts() -> None:
    memory = GoneWays[bytes]()
    memory.note(bytes(8), "evicted")
    assert memory.within(bytes(12)) == {8: "evicted"}
