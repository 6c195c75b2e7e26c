"""The JSON scanner against the standard library, in pieces and whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.parsing.json_scan import JsonScanner, is_json

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_SPELLINGS = st.builds(
    lambda value, indent, ascii_only: json.dumps(value, indent=indent, ensure_ascii=ascii_only),
    _VALUES,
    st.sampled_from([None, 0, 2]),
    st.booleans(),
)


def _eaten(text: str, *, step: int) -> tuple[int, bool, bool]:
    """How much is eaten in pieces of this size, and whether the value is done or broken."""
    scanner = JsonScanner()
    at = 0
    while at < len(text) and not scanner.done and not scanner.broken:
        at += scanner.feed(text[at : at + step])
    return at, scanner.done, scanner.broken


@given(_SPELLINGS)
def test_what_json_writes_is_json(text: str) -> None:
    assert is_json(text)


@given(st.lists(_VALUES, max_size=2) | st.dictionaries(st.text(), _VALUES, max_size=2), st.text())
def test_a_container_ends_where_it_ends(value: object, rest: str) -> None:
    text = json.dumps(value)
    assert _eaten(text + rest, step=1000) == (len(text), True, False)


@given(st.text(alphabet='{}[]",:\\utrefalsn01-+.eE \n', max_size=40))
def test_it_agrees_with_the_standard_library_on_anything(text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        assert not is_json(text)
    else:
        assert is_json(text)


@given(st.text(alphabet='{}[]",:\\utrefalsn01-+.eE \n', max_size=40), st.integers(1, 5))
def test_the_pieces_do_not_matter(text: str, step: int) -> None:
    assert _eaten(text, step=step) == _eaten(text, step=1000)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('{"a" 1}', 5),
        ('{"a": 01}', 7),
        ('{"a": 1.}', 8),
        ('{"a": tru}', 9),
        ('{"a": "\n"}', 7),
        (r'{"a": "\x"}', 8),
        (r'{"a": "\u12g4"}', 11),
        ("[1,]", 3),
        ("[1}", 2),
        ('{"a": 1,}', 8),
        ("{1: 2}", 1),
        ("NaN", 0),
        ("--1", 1),
    ],
)
def test_it_stops_at_the_first_character_that_no_value_has_there(text: str, good: int) -> None:
    assert _eaten(text, step=1) == (good, False, True)


@pytest.mark.parametrize("text", ["", "  ", "{", '"a', "-", "1.", "1e+", "tru", "1 2", "{} x"])
def test_a_part_and_more_than_one_value_are_no_json(text: str) -> None:
    assert not is_json(text)


def test_depth_costs_no_recursion() -> None:
    assert is_json("[" * 100_000 + "]" * 100_000)


def test_nothing_is_eaten_once_the_value_is_complete() -> None:
    scanner = JsonScanner()
    assert scanner.feed("{}") == 2
    assert scanner.feed("{}") == 0
