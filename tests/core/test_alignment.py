"""Where tokens lie in the text that was shown, and what the ids hold behind it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.alignment import Place, hidden_endings, tokens_before
from tests.core.capture import EOS, TOY

_VOCABULARY = TOY.vocabulary
_AB, _BC, _ABC = 256, 257, 258
_IDS = st.lists(st.sampled_from([97, 98, _AB, _ABC, 0xC3, 0xA9, EOS, 60, 32]), max_size=8)


def _shown(ids: list[int], *, skip: bool = True) -> str:
    return _VOCABULARY.decode(ids, skip_special=skip)


@pytest.mark.parametrize(
    ("ids", "chars", "place"),
    [
        ([97, 98, 99], 2, Place(2, 2)),
        ([97, _BC], 2, Place(1, 1)),
        ([_ABC], 2, Place(0, 0)),
        ([97, _BC], 3, Place(2, 3)),
        ([97, 0xC3, 0xA9, 98], 1, Place(1, 1)),
        ([97, 0xC3, 0xA9, 98], 2, Place(3, 2)),
        ([], 0, Place(0, 0)),
        ([97, EOS, 98], 2, Place(3, 2)),
        ([97, 0xC3, 98], 2, Place(1, 1)),
    ],
)
def test_tokens_wholly_before_a_place(ids: list[int], chars: int, place: Place) -> None:
    assert tokens_before(ids, _shown(ids), chars, _VOCABULARY) == place


def test_special_tokens_may_have_been_shown() -> None:
    ids = [97, EOS, 98]
    assert tokens_before(ids, _shown(ids, skip=False), 4, _VOCABULARY) == Place(2, 4)


@pytest.mark.parametrize("chars", [2, 3])
def test_a_special_token_that_was_shown_can_be_left_midway(chars: int) -> None:
    ids = [97, EOS, 98]
    assert tokens_before(ids, _shown(ids, skip=False), chars, _VOCABULARY) == Place(1, 1)


def test_a_special_token_that_was_shown_and_ends_the_answer_can_be_left_midway() -> None:
    assert tokens_before([EOS], "<E>", 1, _VOCABULARY) == Place(0, 0)


def test_a_special_token_that_was_not_shown_is_not_taken_for_its_spelling_behind_it() -> None:
    ids = [EOS, *b"<E>", 97]
    assert tokens_before(ids, "<E>a", 3, _VOCABULARY) == Place(4, 3)


def test_an_id_outside_the_vocabulary_claims_nothing() -> None:
    assert tokens_before([9999, 97], "a", 1, _VOCABULARY) == Place(0, 0)


@given(_IDS, st.integers(0, 12), st.booleans())
def test_tokens_before_a_place_spell_the_text_before_it(
    ids: list[int], chars: int, skip: bool
) -> None:
    text = _shown(ids, skip=skip)
    place = tokens_before(ids, text, min(chars, len(text)), _VOCABULARY)
    assert place.chars <= chars
    views = [one for one in (True, False) if _shown(ids, skip=one) == text]
    assert text[: place.chars] in {_shown(ids[: place.tokens], skip=one) for one in views}


@given(st.lists(st.sampled_from([97, 98, _AB, _ABC, 0xC3, 0xA9]), max_size=8))
def test_no_token_is_left_out_that_ends_at_the_place(ids: list[int]) -> None:
    text = _shown(ids)
    for count in range(1, len(ids) + 1):
        part = b"".join(map(_VOCABULARY.bytes_of, ids[:count]))
        whole = b"".join(map(_VOCABULARY.bytes_of, ids))
        if text.encode().startswith(whole):
            try:
                chars = len(part.decode())
            except UnicodeDecodeError:
                continue
            assert tokens_before(ids, text, chars, _VOCABULARY).tokens >= count


@pytest.mark.parametrize(
    ("ids", "text", "matched", "endings"),
    [
        ([97, 98], "ab", None, ()),
        ([97, EOS], "a", EOS, ("<E>",)),
        ([97, EOS], "a<E>", EOS, ()),
        ([97, EOS, EOS], "a", EOS, ("<E><E>",)),
        ([97, 35, 33], "a", "#!", ("#!",)),
        ([97, 35, 268], "a", "#!", ("#!a", "#!")),
        ([97, 98, 99], "ab", None, ("c",)),
        ([97, 98], "ab", "b", ()),
        ([97, 98], "zz", "q", ("q",)),
        ([97, 98], "zz", None, ()),
        ([9999], "", None, ()),
        ([], "", None, ()),
    ],
)
def test_what_the_ids_hold_behind_the_text(
    ids: list[int], text: str, matched: int | str | None, endings: tuple[str, ...]
) -> None:
    assert hidden_endings(ids, text, matched, _VOCABULARY) == endings


@given(_IDS, st.integers(0, 6))
def test_text_and_its_longest_ending_are_all_that_was_sampled(ids: list[int], hide: int) -> None:
    full = _shown(ids, skip=False)
    text = full[: max(0, len(full) - hide)]
    endings = hidden_endings(ids, text, None, _VOCABULARY)
    if text not in (_shown(ids), full):
        assert text + endings[0] in (full, _shown(ids))
