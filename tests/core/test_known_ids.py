"""Lists of ids that were read before: what comes of one does not depend on those before it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from slime_core import known_ids
from slime_core.known_ids import KnownIds
from slime_core.long_lists import MAX_TOKEN_ID, IdList
from slime_core.types import PackedIds, pack_ids


@pytest.fixture
def short_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are long from a few bytes on."""
    monkeypatch.setattr(known_ids, "_BEGINNING", 4)


class _Counting:
    """A decoder that notes how much it is given."""

    def __init__(self) -> None:
        self.read = 0

    def decode(self, data: bytes | Raw, /) -> PackedIds:
        self.read += len(bytes(data))
        return IdList().decode(data)


def _written(ids: list[Any]) -> bytes:
    return json.dumps(ids, separators=(",", ":")).encode()


LONG = [(place * 7919) % 150_000 for place in range(20_000)]
FEW = st.lists(st.integers(0, 3), max_size=6)


def _outcome(decoder: Any, text: bytes) -> Any:
    try:
        return decoder.decode(text)
    except msgspec.DecodeError as error:
        return type(error), str(error)


@pytest.mark.usefixtures("short_beginnings")
@given(st.lists(st.text(alphabet="[],1 20", max_size=14), max_size=8))
@settings(deadline=None)
def test_any_text_is_read_or_refused_as_if_it_were_the_first(texts: list[str]) -> None:
    known = KnownIds(IdList())
    for text in texts:
        for one in (f"[1,2,{text}", f"[1,2,{text}]", text):
            assert _outcome(known, one.encode()) == _outcome(IdList(), one.encode())


@pytest.mark.usefixtures("short_beginnings")
@given(
    st.lists(st.tuples(FEW, st.sampled_from([-1, MAX_TOKEN_ID + 1, 1.5, None, "1"])), max_size=6)
)
@settings(deadline=None)
def test_what_is_no_id_is_named_by_its_place(lists: list[tuple[list[int], Any]]) -> None:
    known = KnownIds(IdList())
    for ids, wrong in lists:
        for one in ([7, 7, *ids, 1], [7, 7, *ids, wrong]):
            assert _outcome(known, _written(one)) == _outcome(IdList(), _written(one))


@pytest.mark.usefixtures("short_beginnings")
@given(st.lists(FEW, max_size=12), st.integers(0, 120))
@settings(deadline=None)
def test_lists_are_read_alike_however_little_is_remembered(lists: list[Any], most: int) -> None:
    known = KnownIds(IdList(), most=most)
    for ids in lists:
        assert known.decode(_written([5, 5, *ids])) == pack_ids([5, 5, *ids])


def test_the_same_list_is_read_once() -> None:
    decoder = _Counting()
    known = KnownIds(decoder)
    text = _written(LONG)
    assert known.decode(text) == known.decode(Raw(bytes(bytearray(text)))) == pack_ids(LONG)
    assert decoder.read == len(text)


def test_of_a_list_that_goes_on_only_the_new_part_is_read() -> None:
    decoder = _Counting()
    known = KnownIds(decoder)
    text, longer = _written(LONG), _written([*LONG, *range(100)])
    known.decode(text)
    assert known.decode(longer) == pack_ids([*LONG, *range(100)])
    assert decoder.read - len(text) < 500


def test_of_a_list_that_departs_midway_only_the_rest_is_read() -> None:
    decoder = _Counting()
    known = KnownIds(decoder)
    other = [*LONG[:15_000], 149_999, *LONG[:100]]
    known.decode(_written(LONG))
    before = decoder.read
    assert known.decode(_written(other)) == pack_ids(other)
    assert decoder.read - before < 1000


def test_no_more_is_remembered_than_may_be() -> None:
    decoder = _Counting()
    size = len(_written(LONG))
    known = KnownIds(decoder, most=size * 3)
    for first in (1, 2, 3):
        known.decode(_written([first, *LONG]))
    read = decoder.read
    known.decode(_written([3, *LONG]))
    assert decoder.read == read
    known.decode(_written([1, *LONG]))
    assert decoder.read > read


def test_a_short_list_is_not_remembered() -> None:
    decoder = _Counting()
    known = KnownIds(decoder)
    known.decode(b"[1,2,3]")
    known.decode(b"[1,2,3]")
    assert decoder.read == 14
