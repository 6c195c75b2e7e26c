"""Incremental decoding, compared with decoding all ids at once, prefix by prefix."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_core import detokenize
from slime_core.detokenize import IncrementalDetokenizer
from slime_core.vocabulary import Vocabulary, from_tokenizer_json
from tests.tokenizers import ALL

PIECES = (
    *(b"a", b"b", b"ab", b"aba", b" ", b"\n", b"\xe2", b"\x82", b"\xac", b"\xff", b"\xef"),
    *(b"\xbf", b"\xbd", "é".encode(), "\ufffd".encode(), b"", b" a", b"  "),
)
BYTES = frozenset(place for place, piece in enumerate(PIECES) if len(piece) == 1 and place > 3)
MADE = {
    "bytes": Vocabulary(PIECES, {}),
    # Here 4 … 12 are single bytes, and everything else is whole characters.
    "runs": Vocabulary(PIECES, {}, byte_fallback=BYTES, lead_spaces=1),
    "two spaces": Vocabulary(PIECES, {}, lead_spaces=2),
    "heads": Vocabulary(PIECES, {}, heads={4: b"", 16: b"a", 17: b""}),
}
NAMES = sorted(ALL)


@cache
def real(name: str) -> Vocabulary:
    vocabulary = from_tokenizer_json(json.loads(ALL[name]().to_str()))
    assert vocabulary is not None
    return vocabulary


def split(ids: Sequence[int], cuts: Sequence[int]) -> list[Sequence[int]]:
    places = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    return [ids[a:b] for a, b in pairwise(places)]


def settled(vocabulary: Vocabulary, ids: Sequence[int], *, at_start: bool = True) -> str:
    """The text of these ids without a character at the end that is not complete yet."""
    if not vocabulary.byte_fallback:
        whole = vocabulary.decode_bytes(ids, skip_special=True, at_start=at_start)
        open_bytes = next((size for size in (1, 2, 3) if _is_beginning(whole[-size:])), 0)
        return whole[: len(whole) - open_bytes].decode("utf-8", "replace")
    for cut in range(len(ids), -1, -1):
        data = vocabulary.decode_bytes(ids[cut:], skip_special=True, at_start=False)
        if len(data) > 3 or (cut < len(ids) and _ends_run(vocabulary, ids[cut])):
            break
        if data and _is_beginning(data) and not _broken_run(vocabulary, ids[:cut]):
            return vocabulary.decode(ids[:cut], skip_special=True, at_start=at_start)
    return vocabulary.decode(ids, skip_special=True, at_start=at_start)


def _ends_run(vocabulary: Vocabulary, token: int) -> bool:
    """Whether bytes before this token can no longer become a character.

    A special token is skipped before bytes are put together: it ends nothing.
    """
    if not vocabulary.byte_fallback or token not in vocabulary or vocabulary.is_special(token):
        return False
    return token not in vocabulary.byte_fallback


def _broken_run(vocabulary: Vocabulary, ids: Sequence[int]) -> bool:
    """Whether these ids end in a run of bytes that no further byte can make whole."""
    run: list[int] = []
    for token in reversed(ids):
        if _ends_run(vocabulary, token):
            break
        run.insert(0, token)
    data = vocabulary.decode_bytes(run, skip_special=True, at_start=False)
    return bool(vocabulary.byte_fallback) and not _is_utf8(data)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_beginning(data: bytes) -> bool:
    """Whether these bytes are the beginning of one character and not all of it."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start == 0 and error.reason == "unexpected end of data"
    return False


def expected(
    vocabulary: Vocabulary, ids: Sequence[int], stop: Sequence[str], *, at_start: bool = True
) -> tuple[str, str | None, int | None]:
    """Text, stop string and ids consumed, by looking at the whole text after every token."""
    for count in range(1, len(ids) + 1):
        text = settled(vocabulary, ids[:count], at_start=at_start)
        for string in stop:
            if string in text:
                return text[: text.find(string)], string, count
    text = vocabulary.decode(ids, skip_special=True, at_start=at_start)
    for string in stop:
        if string in text:
            return text[: text.find(string)], string, len(ids)
    return text, None, None


def run(
    vocabulary: Vocabulary,
    pushes: Sequence[Sequence[int]],
    stop: tuple[str, ...] = (),
    *,
    at_start: bool = True,
) -> tuple[str, str | None, int | None]:
    detokenizer = IncrementalDetokenizer(
        vocabulary, skip_special=True, stop=stop, at_start=at_start
    )
    shown = ""
    for ids in pushes:
        shown += detokenizer.push(ids)
        assert detokenizer.text == shown
    shown += detokenizer.finish()
    assert detokenizer.text == shown
    return shown, detokenizer.stopped, detokenizer.stop_at


made_ids = st.lists(st.integers(0, len(PIECES) + 1), max_size=25)
cuts = st.lists(st.integers(0, 1000), max_size=8)
stops = st.lists(st.text("ab €é\n\ufffd", min_size=1, max_size=5), max_size=3).map(tuple)


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=500)
@given(ids=made_ids, cuts=cuts, stop=stops, at_start=st.booleans())
def test_awkward_ids_in_any_pieces_give_the_text_and_the_stop_of_the_whole(
    name: str, ids: list[int], cuts: list[int], stop: tuple[str, ...], at_start: bool
) -> None:
    vocabulary = MADE[name]
    assert run(vocabulary, split(ids, cuts), stop, at_start=at_start) == expected(
        vocabulary, ids, stop, at_start=at_start
    )


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=300)
@given(ids=made_ids, stop=stops)
def test_all_at_once_is_one_by_one(name: str, ids: list[int], stop: tuple[str, ...]) -> None:
    vocabulary = MADE[name]
    assert run(vocabulary, [ids], stop) == run(vocabulary, [[token] for token in ids], stop)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(data=st.data(), cuts=cuts)
def test_real_vocabularies_give_the_text_of_the_whole_and_stop_inside_it(
    name: str, data: st.DataObject, cuts: list[int]
) -> None:
    vocabulary = real(name)
    some_id = st.one_of(st.integers(0, len(vocabulary)), st.integers(0, 300))
    text_ids = st.text(max_size=10).map(lambda text: ALL[name]().encode(text).ids)
    chunks = data.draw(st.lists(st.one_of(st.lists(some_id, max_size=4), text_ids), max_size=5))
    ids = [token for chunk in chunks for token in chunk]
    text = vocabulary.decode(ids, skip_special=True)
    places = st.tuples(st.integers(0, len(text)), st.integers(1, 8))
    cut_out = places.map(lambda place: text[place[0] : place[0] + place[1]] or "x")
    stop = tuple(data.draw(st.lists(cut_out, max_size=2)))
    assert run(vocabulary, split(ids, cuts), stop) == expected(vocabulary, ids, stop)


def test_bytes_on_both_sides_of_a_skipped_special_token_are_one_character() -> None:
    vocabulary = real("metaspace_bpe")
    names = ("<0xC3>", "<unk>", "<0xA9>")
    first, unknown, last = (ALL["metaspace_bpe"]().get_vocab()[name] for name in names)
    ids = [first, unknown, last]
    assert run(vocabulary, [[token] for token in ids]) == ("é", None, None)
    assert run(vocabulary, [[first, unknown], [311]], ("\ufffd",)) == ("", "\ufffd", 3)


@settings(max_examples=500)
@given(
    ids=st.lists(st.integers(0, 3), max_size=25),
    cuts=cuts,
    stop=st.lists(st.text("ab", min_size=2, max_size=6), min_size=1, max_size=2).map(tuple),
)
def test_stop_strings_that_overlap_themselves_are_found(
    ids: list[int], cuts: list[int], stop: tuple[str, ...]
) -> None:
    vocabulary = MADE["bytes"]
    assert run(vocabulary, split(ids, cuts), stop) == expected(vocabulary, ids, stop)


@pytest.mark.parametrize(
    ("text", "stop", "before"), [("aaab", "aab", "a"), ("aabaaabaaaa", "aabaaaa", "aaba")]
)
def test_a_match_may_begin_inside_one_that_failed(text: str, stop: str, before: str) -> None:
    detokenizer = detokenizer_of(b"a", b"b", stop=(stop,))
    assert detokenizer.push(["ab".index(char) for char in text]) == before
    assert detokenizer.stopped == stop


@given(ids=made_ids, stop=stops)
@settings(max_examples=300)
def test_no_more_is_held_back_than_a_stop_string_and_a_character_need(
    ids: list[int], stop: tuple[str, ...]
) -> None:
    vocabulary = MADE["bytes"]
    detokenizer = IncrementalDetokenizer(vocabulary, skip_special=True, stop=stop)
    for count, token in enumerate(ids, 1):
        detokenizer.push([token])
        if detokenizer.stopped is not None:
            break
        text = settled(vocabulary, ids[:count])
        held = next(
            size
            for size in range(len(text), -1, -1)
            if size == 0 or any(s.startswith(text[-size:]) and len(s) > size for s in stop)
        )
        assert detokenizer.text == text[: len(text) - held]


def detokenizer_of(*pieces: bytes, stop: tuple[str, ...] = ()) -> IncrementalDetokenizer:
    return IncrementalDetokenizer(Vocabulary(pieces, {}), skip_special=True, stop=stop)


def test_a_stop_string_may_span_tokens_and_end_inside_one() -> None:
    detokenizer = detokenizer_of(b"one EN", b"D", b" of it", stop=("END o",))
    assert detokenizer.push([0]) == "one "
    assert detokenizer.push([1]) == ""
    assert detokenizer.push([2]) == ""
    assert (detokenizer.stopped, detokenizer.stop_at, detokenizer.text) == ("END o", 3, "one ")


def test_a_character_that_begins_inside_a_token_does_not_count_before_it_is_over() -> None:
    detokenizer = detokenizer_of(b"a", b" \xe2\x9c", stop=("a \ufffd",))
    assert detokenizer.push([0, 1]) == ""
    assert detokenizer.push([0]) == ""
    assert (detokenizer.stopped, detokenizer.stop_at) == ("a \ufffd", 3)


def test_a_beginning_that_comes_to_nothing_is_shown_after_all() -> None:
    detokenizer = detokenizer_of(b"one EN", b"TER", stop=("END",))
    assert [detokenizer.push([0]), detokenizer.push([1])] == ["one ", "ENTER"]
    assert detokenizer.stopped is None


def test_of_two_strings_in_one_token_the_first_in_the_list_matches() -> None:
    detokenizer = detokenizer_of(b"xAyBz", stop=("B", "A"))
    assert detokenizer.push([0]) == "xAy"
    assert (detokenizer.stopped, detokenizer.stop_at) == ("B", 1)


def test_a_string_completed_by_an_earlier_token_matches_whatever_its_place_in_the_list() -> None:
    detokenizer = detokenizer_of(b"xA", b"yB", stop=("B", "A"))
    assert detokenizer.push([0, 1]) == "x"
    assert (detokenizer.stopped, detokenizer.stop_at) == ("A", 1)


def test_the_text_ends_before_the_first_of_several_occurrences() -> None:
    detokenizer = detokenizer_of(b"-aXbXc", stop=("X",))
    assert detokenizer.push([0]) == "-a"


def test_nothing_counts_after_a_stop() -> None:
    detokenizer = detokenizer_of(b"aX", b"b", stop=("X",))
    detokenizer.push([0, 1])
    assert [detokenizer.push([1, 1]), detokenizer.finish()] == ["", ""]
    assert (detokenizer.text, detokenizer.stop_at) == ("a", 1)


def test_ids_that_are_not_shown_count_as_consumed() -> None:
    detokenizer = detokenizer_of(b"a", b"X", stop=("X",))
    detokenizer.push([7, 0, 7, 7, 1, 7])
    assert detokenizer.stop_at == 5


def test_a_cut_off_character_waits_and_is_replaced_at_the_end() -> None:
    detokenizer = detokenizer_of(b"a\xe2", b"\x82", b"\xac")
    assert [detokenizer.push([0]), detokenizer.push([1])] == ["a", ""]
    assert detokenizer.push([2]) == "€"
    assert detokenizer.push([0]) == "a"
    assert detokenizer.finish() == "\ufffd"


def test_a_run_of_bytes_is_shown_when_it_is_over() -> None:
    vocabulary = Vocabulary([b"a", b"\n", b"\xff"], {}, byte_fallback=frozenset({1, 2}))
    whole = IncrementalDetokenizer(vocabulary, skip_special=True)
    assert [whole.push([0, 1]), whole.push([1]), whole.push([0])] == ["a", "", "\n\na"]
    broken = IncrementalDetokenizer(vocabulary, skip_special=True)
    assert [broken.push([0, 1]), broken.push([2]), broken.finish()] == ["a", "", "\ufffd\ufffd"]


def test_a_stop_string_inside_a_run_of_bytes_stops_at_its_own_token() -> None:
    vocabulary = Vocabulary([b"a", b"\n", b"\xff"], {}, byte_fallback=frozenset({1, 2}))
    detokenizer = IncrementalDetokenizer(vocabulary, skip_special=True, stop=("\n",))
    assert detokenizer.push([0, 1, 2]) == "a"
    assert (detokenizer.stopped, detokenizer.stop_at) == ("\n", 2)


def test_special_tokens_are_shown_when_asked_for() -> None:
    vocabulary = real("byte_level_bpe")
    (end,) = [i for i, token in vocabulary.added.items() if token.content == "<|im_end|>"]
    assert IncrementalDetokenizer(vocabulary, skip_special=False).push([end]) == "<|im_end|>"
    assert IncrementalDetokenizer(vocabulary, skip_special=True).push([end]) == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        detokenizer_of(b"a", stop=("x", ""))


def lines_run(work: Callable[[], None]) -> int:
    """How many lines of the detokenizer ``work`` runs through."""
    count = 0

    def local(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        return local if frame.f_code.co_filename == detokenize.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("fallback", [False, True])
def test_the_cost_is_linear_even_where_everything_nearly_matches(
    fallback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stop string that twice as many tokens keep almost completing: comparing it anew for every
    # token, or reading the text anew, would be four times the work where all is twice as long.
    vocabulary = Vocabulary(
        [b"a", b"b"], {}, byte_fallback=frozenset({0}) if fallback else frozenset()
    )
    searched = 0
    search = detokenize._Pattern.search

    def counting(pattern: Any, text: str, state: int) -> Any:
        nonlocal searched
        searched += len(text)
        return search(pattern, text, state)

    monkeypatch.setattr(detokenize._Pattern, "search", counting)

    def work(size: int) -> None:
        stop = ("a" * size + "bb",)
        detokenizer = IncrementalDetokenizer(vocabulary, skip_special=True, stop=stop)
        for _ in range(2 * size + 1):
            detokenizer.push([0])
        detokenizer.push([1])
        assert detokenizer.push([1]) == ""
        assert (detokenizer.text, detokenizer.stop_at) == ("a" * (size + 1), 2 * size + 3)

    short, long = (lines_run(partial(work, size)) for size in (1000, 2000))
    assert long < 2.1 * short
    assert searched == 2 * 1000 + 3 + 2 * 2000 + 3
