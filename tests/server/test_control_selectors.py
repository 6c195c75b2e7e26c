"""Selectors: what they mean, and where they are wrong."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.errors import ClientError
from slime_trio.control.selectors import parse_selector

FACTS = {"engine": "sglang", "rack": "a1", "url": "http://10.0.0.5:30000"}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("engine=sglang", True),
        ("engine==sglang", True),
        ("engine=other", False),
        ("engine!=other", True),
        ("engine!=sglang", False),
        ("rack in (a1, a2)", True),
        ("rack in(b1)", False),
        ("rack notin (a1)", False),
        ("rack notin (b1,b2)", True),
        ("engine=sglang,rack=a1", True),
        ("engine=sglang , rack=b1", False),
        ("missing=x", False),
        ("missing!=x", True),
        ("missing in (x)", False),
        ("missing notin (x)", True),
        ("url=http://10.0.0.5:30000", True),
        ("  rack  =  a1  ", True),
        ("notin=x", False),
        ("in in (x)", False),
    ],
)
def test_a_selector_means_what_it_says(text: str, holds: bool) -> None:
    assert parse_selector(text).matches(FACTS) is holds


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("", 0),
        ("=a", 0),
        ("rack", 4),
        ("rack=", 5),
        ("rack a1", 5),
        ("rack in a1", 8),
        ("rack in (a1", 11),
        ("rack in ()", 9),
        ("rack in (a1,)", 12),
        ("rack=a1,", 8),
        ("rack=a1 engine=b", 8),
        ("rack<a1", 4),
    ],
)
def test_a_wrong_selector_is_refused_with_the_place_of_its_fault(text: str, offset: int) -> None:
    with pytest.raises(ClientError) as refused:
        parse_selector(text)
    error = refused.value
    assert (error.status, error.code, error.param) == (400, "invalid_selector", "selector")
    assert f"offset {offset}:" in error.message


def test_a_selector_has_a_longest_length() -> None:
    with pytest.raises(ClientError):
        parse_selector("a=" + "b" * 5000)


WORDS = st.text(alphabet="abcAB019_.-", min_size=1, max_size=6).map(lambda word: "x" + word)
TERMS = st.tuples(WORDS, st.sampled_from(["=", "!=", "in", "notin"]), st.lists(WORDS, min_size=1))


@given(st.lists(TERMS, min_size=1, max_size=4), st.dictionaries(WORDS, WORDS, max_size=4))
def test_what_is_written_is_what_is_meant(
    terms: list[tuple[str, str, list[str]]], facts: dict[str, str]
) -> None:
    written, expected = [], True
    for key, operator, values in terms:
        many = operator in ("in", "notin")
        chosen = values if many else values[:1]
        right = f" ({', '.join(chosen)})" if many else chosen[0]
        written.append(f"{key} {operator}{right}")
        expected &= (facts.get(key) in chosen) == (operator in ("=", "in"))
    assert parse_selector(",".join(written)).matches(facts) is expected


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ClientError):
        parse_selector(text)
