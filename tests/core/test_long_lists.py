"""Long lists in slices: read and written as one call to a JSON library would do it."""

from __future__ import annotations

import json
from array import array
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from slime_core import long_lists
from slime_core.long_lists import (
    MAX_TOKEN_ID,
    IdList,
    SlicedList,
    encode_flags,
    encode_ids,
    encode_numbers,
    encode_runs,
    slices,
)
from slime_core.types import pack_ids, unpack_ids

IDS = st.integers(min_value=0, max_value=MAX_TOKEN_ID)
MANY = 100_000


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices so short that a small example has many."""
    monkeypatch.setattr(long_lists, "_SLICE_BYTES", 7)
    monkeypatch.setattr(long_lists, "_SLICE_NUMBERS", 3)


def _spaced(values: list[Any], space: str) -> bytes:
    words = (f"{space}{json.dumps(value)}{space}" for value in values)
    return f"{space}[{','.join(words) or space}]{space}".encode()


class _Counting:
    """A decoder that counts how often it is asked."""

    def __init__(self, shape: Any) -> None:
        self._decoder = msgspec.json.Decoder(shape)
        self.asked = 0

    def decode(self, data: Any) -> Any:
        self.asked += 1
        return self._decoder.decode(data)


# -- reading ids -------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_slices")
@given(st.lists(IDS), st.sampled_from(["", " ", "\n\t\r  "]))
@settings(deadline=None)
def test_ids_are_read_as_plain_json_reads_them(ids: list[int], space: str) -> None:
    assert unpack_ids(IdList().decode(_spaced(ids, space))) == ids


@pytest.mark.usefixtures("short_slices")
@given(st.lists(IDS, max_size=30), st.data())
@settings(deadline=None)
def test_what_is_no_id_is_named_by_its_place(ids: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(ids)))
    wrong: Any = data.draw(
        st.sampled_from([-1, MAX_TOKEN_ID + 1, 1.5, "1", "1,2", None, True, [1], {}])
    )
    body = json.dumps([*ids[:place], wrong, *ids[place:]]).encode()
    with pytest.raises(msgspec.ValidationError) as caught:
        IdList().decode(body)
    assert str(caught.value).endswith(f"`$[{place}]`")


@pytest.mark.parametrize("place", [0, 40_000, MANY - 1])
def test_a_wrong_id_far_into_a_long_list_is_named_by_its_place(place: int) -> None:
    ids: list[Any] = [7] * MANY
    ids[place] = "seven"
    with pytest.raises(msgspec.ValidationError, match=rf"got `str` - at `\$\[{place}\]`"):
        IdList().decode(json.dumps(ids).encode())


@pytest.mark.parametrize(
    "body", [b'"1,2"', b'"12"', b'""', b"152", b"11", b"{}", b'{"1":2}', b"null", b"true", b"1.5"]
)
def test_what_is_no_array_is_no_list_of_ids(body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError, match="Expected `array`"):
        IdList().decode(body)


@pytest.mark.parametrize("body", [b"", b" ", b"[", b"]", b"[1", b"1]", b"[1,]", b"[,1]", b"[1 2]"])
def test_what_is_no_json_is_refused_as_such(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        IdList().decode(body)


@pytest.mark.usefixtures("short_slices")
@given(st.text(alphabet='[]{},12" \x0b', max_size=40))
@settings(deadline=None)
def test_slicing_never_makes_ids_of_what_plain_json_refuses(words: str) -> None:
    plain = msgspec.json.Decoder(list[int])
    try:
        expected = plain.decode(words)
    except msgspec.DecodeError as error:
        with pytest.raises(type(error)):
            IdList().decode(words.encode())
    else:
        assert unpack_ids(IdList().decode(words.encode())) == expected


def test_a_hundred_thousand_ids_come_back() -> None:
    ids = [(place * 7919) % 200_000 for place in range(MANY)]
    assert IdList().decode(Raw(json.dumps(ids).encode())) == pack_ids(ids)


# -- slices ------------------------------------------------------------------------------------


def test_a_slice_is_about_as_long_as_it_may_be() -> None:
    body = json.dumps(list(range(MANY))).encode()
    lengths = [len(piece) for piece in slices(bytearray(body), b",")]
    assert max(lengths) < 17 * 1024
    assert len(lengths) == -(-len(body) // (16 * 1024))


@pytest.mark.parametrize("body", [b"[]", b" [ ] ", b"[1]", b"[[]]"])
def test_a_short_list_is_one_slice(body: bytes) -> None:
    (piece,) = slices(bytearray(body), b",")
    assert json.loads(bytes(piece)) == json.loads(body)


@pytest.mark.usefixtures("short_slices")
@given(st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=4)))
@settings(deadline=None)
def test_the_slices_of_nested_lists_are_whole_elements(rows: list[list[int]]) -> None:
    body = json.dumps(rows).encode()
    assert [
        row for piece in slices(bytearray(body), b"],") for row in json.loads(bytes(piece))
    ] == rows


# -- sliced lists ------------------------------------------------------------------------------

Row = tuple[float, int, str | None]


@pytest.mark.usefixtures("short_slices")
@given(
    st.lists(
        st.tuples(
            st.floats(-1e9, 0),
            IDS,
            st.one_of(st.none(), st.text(), st.sampled_from(["],", "[1],", '"],["', "\\"])),
        )
    )
)
@settings(deadline=None)
def test_rows_are_read_as_plain_json_reads_them_whatever_text_they_hold(rows: list[Row]) -> None:
    read = SlicedList(msgspec.json.Decoder(list[Row]), end=b"],")
    assert read.decode(json.dumps(rows).encode()) == rows


@pytest.mark.usefixtures("short_slices")
@given(st.lists(st.recursive(st.integers(0, 99), st.lists, max_leaves=9), max_size=20))
@settings(deadline=None)
def test_deeper_nesting_is_read_as_plain_json_reads_it(rows: list[Any]) -> None:
    body = json.dumps(rows).encode()
    for end in (b",", b"],"):
        assert SlicedList(msgspec.json.Decoder(list[Any]), end).decode(body) == rows


@pytest.mark.usefixtures("short_slices")
@pytest.mark.parametrize("body", [b'"1,2,3,4,5,6,7,8"', b'{"1":2,"3":4,"5":6}', b"123456789"])
def test_what_is_no_array_is_no_list(body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError, match="Expected `array`"):
        SlicedList(msgspec.json.Decoder(list[int])).decode(body)


@pytest.mark.usefixtures("short_slices")
@given(st.integers(0, 30))
@settings(deadline=None)
def test_a_wrong_row_is_named_by_its_place(place: int) -> None:
    rows: list[Any] = [[-0.5, 1, None]] * 31
    rows[place] = [-0.5, "x", None]
    with pytest.raises(msgspec.ValidationError) as caught:
        SlicedList(msgspec.json.Decoder(list[Row]), b"],").decode(json.dumps(rows).encode())
    assert str(caught.value).endswith(f"`$[{place}][1]`")


def test_rows_without_text_are_read_in_slices() -> None:
    decoder: Any = _Counting(list[Row])
    rows = [(-0.5, place, None) for place in range(MANY)]
    assert SlicedList(decoder, b"],").decode(json.dumps(rows).encode()) == rows
    assert decoder.asked > 10


def test_rows_with_text_are_read_in_one_go() -> None:
    decoder: Any = _Counting(list[Row])
    rows = [(-0.5, place, "],[") for place in range(20_000)]
    assert SlicedList(decoder, b"],").decode(json.dumps(rows).encode()) == rows
    assert decoder.asked == 1


# -- writing -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_slices")
@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
@settings(deadline=None)
def test_ids_are_written_as_plain_json(ids: list[int]) -> None:
    assert encode_ids(pack_ids(ids)) == json.dumps(ids, separators=(",", ":")).encode()


@pytest.mark.usefixtures("short_slices")
@pytest.mark.parametrize("kind", ["B", "i", "q", "d"])
@given(st.lists(st.integers(0, 127), max_size=20))
@settings(deadline=None)
def test_numbers_are_written_as_plain_json(kind: str, values: list[int]) -> None:
    column = array(kind, values)
    assert encode_numbers(column) == json.dumps(column.tolist(), separators=(",", ":")).encode()


@pytest.mark.usefixtures("short_slices")
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20))
@settings(deadline=None)
def test_every_float_survives_being_written(values: list[float]) -> None:
    assert json.loads(encode_numbers(array("d", values))) == values


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, MANY])
def test_a_list_of_any_length_is_written_whole(count: int) -> None:
    ids = list(range(count))
    assert json.loads(encode_ids(pack_ids(ids))) == ids
    assert json.loads(encode_numbers(array("q", ids))) == ids


# -- columns that are made of runs -------------------------------------------------------------


@given(st.lists(st.integers(0, 1)))
def test_flags_are_written_as_plain_json_writes_them(flags: list[int]) -> None:
    assert encode_flags(bytes(flags)) == msgspec.json.encode(flags)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(-3, 12))))
def test_runs_are_written_as_plain_json_writes_their_elements(
    runs: list[tuple[int, int, int]],
) -> None:
    values, told = list[int](), list[tuple[int, int, bytes]]()
    for gap, length, value in runs:
        values += [-1] * gap
        told.append((len(values), len(values) + length, b"%d" % value))
        values += [value] * length
    values += [-1, -1]
    assert encode_runs(len(values), told, b"-1") == msgspec.json.encode(values)


def test_a_run_may_bring_its_elements_one_by_one() -> None:
    assert encode_runs(4, [(1, 3, b"[0.5,0.25]")], b"0.0") == b"[0.0,0.5,0.25,0.0]"


def test_no_runs_at_all_are_an_empty_list() -> None:
    assert encode_runs(0, [], b"-1") == b"[]"
