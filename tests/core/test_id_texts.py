"""Ids written out of memory are written as if for the first time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core import id_texts
from slime_core.id_texts import CHUNK_BYTES, IdTexts
from slime_core.long_lists import encode_ids
from slime_core.types import ID_BYTES, pack_ids

_CHUNK = CHUNK_BYTES // ID_BYTES


def _prompt(chunks: Sequence[int], rest: int) -> bytes:
    """Chunks told apart by their number, and ``rest`` more ids."""
    ids = [number * 1000 + place for number in chunks for place in range(_CHUNK)]
    return pack_ids([*ids, *range(rest)])


@given(
    prompts=st.lists(
        st.tuples(st.lists(st.integers(0, 3), max_size=4), st.sampled_from([0, 1, _CHUNK - 1])),
        max_size=12,
    ),
    most=st.sampled_from([0, 10_000, 2**20]),
)
def test_every_prompt_is_written_as_if_for_the_first_time(
    prompts: list[tuple[list[int], int]], most: int
) -> None:
    texts = IdTexts(most)
    for chunks, rest in prompts:
        packed = _prompt(chunks, rest)
        assert texts.encode(packed) == encode_ids(packed)


def test_what_a_prompt_began_with_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[int]()

    def counted(packed: bytes) -> bytes:
        written.append(len(packed) // ID_BYTES)
        return encode_ids(packed)

    monkeypatch.setattr(id_texts, "encode_ids", counted)
    texts = IdTexts()
    texts.encode(_prompt([1, 2], 5))
    texts.encode(_prompt([1, 2, 3], 7))
    assert written == [_CHUNK, _CHUNK, 5, _CHUNK, 7]


def test_what_is_used_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = IdTexts(60_000)
    texts.encode(_prompt([0], 0))
    for number in range(1, 100):
        texts.encode(_prompt([0, number], 0))
    monkeypatch.delattr(id_texts, "encode_ids")
    texts.encode(_prompt([0], 0))


def test_what_is_remembered_is_bounded() -> None:
    texts = IdTexts(60_000)
    for number in range(100):
        texts.encode(_prompt([number], 0))
        assert texts.held <= 60_000 + 2 * 3 * CHUNK_BYTES
