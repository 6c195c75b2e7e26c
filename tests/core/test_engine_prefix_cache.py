"""The prefix cache against a plain list of sequences."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slime_core.engine.prefix_cache import PrefixCache

SEQUENCES = st.lists(st.lists(st.sampled_from([0, 1, 255, 256, 70000]), max_size=6), max_size=12)


def shared(one: list[int], other: list[int]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


@given(SEQUENCES, st.lists(st.sampled_from([0, 1, 255, 256, 70000]), max_size=6))
def test_a_match_is_the_longest_prefix_shared_with_any_sequence(
    sequences: list[list[int]], query: list[int]
) -> None:
    cache = PrefixCache(10_000)
    for sequence in sequences:
        cache.add(sequence)
    assert cache.match(query) == max((shared(query, s) for s in sequences), default=0)


@given(SEQUENCES)
def test_the_size_counts_every_distinct_prefix_once(sequences: list[list[int]]) -> None:
    cache = PrefixCache(10_000)
    for sequence in sequences:
        cache.add(sequence)
    prefixes = {tuple(s[:end]) for s in sequences for end in range(1, len(s) + 1)}
    assert cache.size == len(prefixes)


@given(SEQUENCES, st.integers(0, 8))
def test_the_capacity_is_never_exceeded(sequences: list[list[int]], capacity: int) -> None:
    cache = PrefixCache(capacity)
    for sequence in sequences:
        cache.add(sequence)
        assert 0 <= cache.size <= capacity


def test_what_was_used_least_recently_goes_first() -> None:
    cache = PrefixCache(6)
    cache.add([1, 2, 3])
    cache.add([7, 8, 9])
    assert cache.match([1, 2, 3]) == 3
    cache.add([4, 5, 6])
    assert [cache.match(s) for s in ([1, 2, 3], [7, 8, 9], [4, 5, 6])] == [3, 0, 3]


def test_clearing_forgets_everything() -> None:
    cache = PrefixCache(6)
    cache.add([1, 2, 3])
    cache.clear()
    assert (cache.match([1, 2, 3]), cache.size) == (0, 0)
