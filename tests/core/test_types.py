"""Packing of ids and logprobs: nothing is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slime_core.types import pack_ids, pack_logprobs, token_count, unpack_ids, unpack_logprobs


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_ids_come_back(ids: list[int]) -> None:
    packed = pack_ids(ids)
    assert unpack_ids(packed) == ids
    assert token_count(packed) == len(ids)


@pytest.mark.parametrize("bad", [-1, 2**32])
def test_an_id_out_of_range_is_refused(bad: int) -> None:
    with pytest.raises(OverflowError):
        pack_ids([bad])


@given(st.lists(st.floats(allow_nan=False)))
def test_logprobs_come_back_bit_for_bit(logprobs: list[float]) -> None:
    packed = pack_logprobs(logprobs)
    assert list(map(float.hex, unpack_logprobs(packed, len(logprobs)))) == list(
        map(float.hex, logprobs)
    )


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_logprobs_of_an_engine_take_four_bytes(logprobs: list[float]) -> None:
    assert len(pack_logprobs(logprobs)) == 4 * len(logprobs)


def test_one_logprob_of_more_digits_widens_all() -> None:
    assert len(pack_logprobs([-0.5, -0.1])) == 16
