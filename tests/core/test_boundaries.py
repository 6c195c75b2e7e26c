"""Cuts in unsampled text: against a naive matcher, and against the library that tokenises."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from slime_core.boundaries import Cut, HardTokens, token_index
from slime_core.types import pack_ids

_CONTENTS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=5, unique=True)
_TEXTS = st.text("ab", max_size=14)
_CONTINUATIONS = [
    "".join(letters) for size in range(5) for letters in itertools.product("abc", repeat=size)
]


def _naive(contents: dict[str, int], text: str) -> list[tuple[int, int, int]]:
    """Leftmost-longest occurrences, one position at a time."""
    found, at = [], 0
    while at < len(text):
        here = [content for content in contents if text.startswith(content, at)]
        if here:
            longest = max(here, key=len)
            found.append((at, at + len(longest), contents[longest]))
            at += len(longest)
        else:
            at += 1
    return found


def _naive_two_passes(
    added: dict[str, int], late: dict[str, int], text: str
) -> list[tuple[int, int, int]]:
    found, begin = [], 0
    for span in [*_naive(added, text), (len(text), len(text), -1)]:
        gap = _naive(late, text[begin : span[0]])
        found += [(begin + start, begin + stop, token_id) for start, stop, token_id in gap]
        found.append(span)
        begin = span[1]
    return found[:-1]


def _numbered(contents: list[str]) -> dict[str, int]:
    return {content: number for number, content in enumerate(contents, 100)}


def _cut(position: int, token_id: int, occurrence: int) -> Cut:
    return Cut(position=position, token_id=token_id, occurrence=occurrence)


def test_a_cut_is_right_after_the_last_hard_token() -> None:
    hard = HardTokens({"<e>": 7}, frozenset({7}))
    assert hard.last_cut("ab<e>cd<e>ef", 0, 12) == _cut(10, 7, 2)


def test_a_cut_may_be_at_the_very_end() -> None:
    assert HardTokens({"<e>": 7}, frozenset({7})).last_cut("ab<e>", 0, 5) == _cut(5, 7, 1)


def test_a_cut_is_never_past_the_end_asked_for() -> None:
    hard = HardTokens({"<e>": 7}, frozenset({7}))
    assert hard.last_cut("ab<e>cd<e>ef", 0, 9) == _cut(5, 7, 1)


def test_a_run_that_begins_inside_a_token_does_not_hold_it() -> None:
    hard = HardTokens({"<e>": 7}, frozenset({7}))
    assert hard.last_cut("<e>cd<e>ef", 1, 10) == _cut(8, 7, 1)


def test_no_hard_token_no_cut() -> None:
    assert HardTokens({"<e>": 7}, frozenset()).last_cut("ab<e>cd", 0, 7) is None


def test_a_longer_token_swallows_the_hard_one() -> None:
    hard = HardTokens({"<e>": 7, "<e>>": 8}, frozenset({7}))
    assert hard.last_cut("<e>a<e>>b", 0, 9) == _cut(3, 7, 1)


def test_a_soft_token_that_overlaps_from_the_left_swallows_the_hard_one() -> None:
    hard = HardTokens({"<e>": 7, "x<": 8}, frozenset({7}))
    assert hard.last_cut("x<e>", 0, 4) is None


def test_a_match_that_could_become_longer_behind_the_end_is_no_cut() -> None:
    hard = HardTokens({"<e>": 7, "<e>>": 8}, frozenset({7}))
    assert hard.last_cut("ab<e>cd", 0, 5) is None


def test_the_text_behind_the_end_decides_nothing() -> None:
    hard = HardTokens({"<e>": 7, "<e>>": 8}, frozenset({7}))
    assert hard.last_cut("ab<e>cd", 0, 5) == hard.last_cut("ab<e>>d", 0, 5)


def test_text_that_rules_the_longer_token_out_makes_the_match_a_cut() -> None:
    hard = HardTokens({"<e>": 7, "<e>>": 8}, frozenset({7}))
    assert hard.last_cut("ab<e>cd", 0, 6) == _cut(5, 7, 1)


def test_a_token_that_could_begin_earlier_and_reach_over_the_match_is_respected() -> None:
    hard = HardTokens({"e": 7, "<e>": 8}, frozenset({7}))
    assert hard.last_cut("e<e", 0, 3) == _cut(1, 7, 1)


def test_the_first_pass_takes_text_from_the_second() -> None:
    hard = HardTokens({"b>": 8}, frozenset({7}), {"<b": 7})
    assert hard.last_cut("<b <b> ", 0, 7) == _cut(2, 7, 1)


def test_a_second_pass_token_that_the_first_pass_could_still_take_is_no_cut() -> None:
    hard = HardTokens({"b>": 8}, frozenset({7}), {"<b": 7})
    assert hard.last_cut("<b", 0, 2) is None


def test_a_hard_id_that_no_token_has_is_refused() -> None:
    with pytest.raises(ValueError, match="9"):
        HardTokens({"<e>": 7}, frozenset({9}))


def test_an_empty_content_is_refused() -> None:
    with pytest.raises(ValueError, match="without content"):
        HardTokens({"": 7}, frozenset({7}))


def test_equal_tables_are_equal() -> None:
    assert HardTokens({"<e>": 7}, frozenset({7})) == HardTokens({"<e>": 7}, frozenset({7}))


@given(contents=_CONTENTS, text=_TEXTS, start=st.integers(0, 14), end=st.integers(0, 14))
def test_a_cut_is_the_last_place_that_every_continuation_keeps(
    contents: list[str], text: str, start: int, end: int
) -> None:
    added = _numbered(contents)
    assume(start <= end <= len(text))
    shared = text[start:end]
    kept = set(_naive(added, shared))
    for continuation in _CONTINUATIONS:
        kept &= set(_naive(added, shared + continuation))
    cut = HardTokens(added, frozenset(added.values())).last_cut(text, start, end)
    if not kept:
        assert cut is None
        return
    _, stop, token_id = max(kept)
    occurrence = sum(1 for span in _naive(added, shared) if span[2] == token_id and span[1] <= stop)
    assert cut == _cut(start + stop, token_id, occurrence)


@given(contents=_CONTENTS, split=st.integers(0, 4), text=_TEXTS, end=st.integers(0, 14))
def test_with_two_passes_every_continuation_keeps_the_cut(
    contents: list[str], split: int, text: str, end: int
) -> None:
    ids = _numbered(contents)
    added = dict(list(ids.items())[:split])
    late = dict(list(ids.items())[split:])
    end = min(end, len(text))
    cut = HardTokens(added, frozenset(ids.values()), late).last_cut(text, 0, end)
    if cut is None:
        return
    for continuation in _CONTINUATIONS:
        spans = _naive_two_passes(added, late, text[:end] + continuation)
        up_to = [span for span in spans if span[2] == cut.token_id and span[1] <= cut.position]
        assert up_to[-1][1] == cut.position
        assert len(up_to) == cut.occurrence


@given(
    contents=_CONTENTS,
    split=st.integers(0, 4),
    text=_TEXTS,
    size=st.integers(1, 6),
)
def test_pieces_join_to_the_text_and_end_at_hard_tokens(
    contents: list[str], split: int, text: str, size: int
) -> None:
    ids = _numbered(contents)
    added, late = dict(list(ids.items())[:split]), dict(list(ids.items())[split:])
    pieces = HardTokens(added, frozenset(ids.values()), late).split(text, size)
    assert "".join(pieces) == text
    ends = {stop for _, stop, _ in _naive_two_passes(added, late, text)}
    positions = list(itertools.accumulate(map(len, pieces)))
    assert set(positions[:-1]) <= ends
    assert all(len(piece) >= size for piece in pieces[:-1])


@settings(max_examples=60, deadline=None)
@given(contents=_CONTENTS, split=st.integers(0, 4), text=st.text("abc", max_size=30))
def test_the_library_finds_what_the_matcher_finds(
    contents: list[str], split: int, text: str
) -> None:
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for position, content in enumerate(contents):
        library.add_tokens([AddedToken(content, normalized=position >= split)])
    decoder = library.get_added_tokens_decoder()
    ids = {token.content: token_id for token_id, token in sorted(decoder.items())}
    added, late = dict(list(ids.items())[:split]), dict(list(ids.items())[split:])
    hard = HardTokens(added, frozenset(ids.values()), late)
    found = library.encode(text).ids
    cut = hard.last_cut(text, 0, len(text))
    spans = _naive_two_passes(added, late, text)
    assert found == [token_id for _, _, token_id in spans]
    if cut is not None:
        index = token_index(found, cut)
        assert index is not None
        assert found[:index] == library.encode(text[: cut.position]).ids
        assert found[index:] == library.encode(text[cut.position :]).ids


def test_the_index_is_behind_the_nth_occurrence() -> None:
    assert token_index([5, 7, 6, 7, 7], _cut(0, 7, 2)) == 4


def test_packed_ids_are_searched_alike() -> None:
    assert token_index(pack_ids([5, 7, 6, 7, 7]), _cut(0, 7, 2)) == 4


def test_ids_that_stand_for_no_text_are_skipped() -> None:
    assert token_index([7, 5, 7], _cut(0, 7, 1), skip=1) == 3


def test_too_few_occurrences_give_nothing() -> None:
    assert token_index([5, 7, 6], _cut(0, 7, 2)) is None


def test_bytes_of_two_neighbours_are_not_taken_for_an_id() -> None:
    # 0x00000700 followed by 0x00000000 holds the bytes of 7 at an odd place.
    assert token_index([0x700, 0, 7], _cut(0, 7, 1)) == 3


@given(ids=st.lists(st.integers(0, 3) | st.sampled_from([256, 65536, 2**24]), max_size=12))
def test_the_index_agrees_with_counting(ids: list[int]) -> None:
    for token_id in set(ids):
        positions = [index + 1 for index, found in enumerate(ids) if found == token_id]
        for occurrence, expected in enumerate(positions, 1):
            assert token_index(ids, _cut(0, token_id, occurrence)) == expected
        assert token_index(ids, _cut(0, token_id, len(positions) + 1)) is None
