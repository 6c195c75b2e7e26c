"""The cache of passages against one that is kept by brute force."""

from __future__ import annotations

from collections import Counter
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slime_core.simulation.prefix_cache import Passage, PassageCache


def _way(passage: Passage | None) -> list[Passage]:
    """From the beginning of the text."""
    way: list[Passage] = []
    while passage is not None:
        way.insert(0, passage)
        passage = passage.parent
    return way


class _Naive:
    """Every passage's length held and last use, noted on the whole way at each use."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: dict[Passage, int] = {}
        self.used: dict[Passage, int] = {}
        self.wanted: Counter[Passage] = Counter()
        self.clock = 0

    def _use(self, way: list[Passage]) -> None:
        self.clock += 1
        for one in way:
            self.used[one] = self.clock

    def kept_for_sure(self) -> set[Passage]:
        return {one for tip, count in self.wanted.items() if count for one in _way(tip)}

    def size(self) -> int:
        sure = self.kept_for_sure()
        return sum(tokens for one, tokens in self.held.items() if one not in sure)

    def match(self, passage: Passage) -> int:
        way = [one for one in _way(passage) if one in self.held]
        self._use(way)
        return sum(self.held[one] for one in way)

    def add(self, passage: Passage, tokens: int) -> None:
        way = _way(passage)
        for one in way[:-1]:
            self.held[one] = one.tokens
        self.held[passage] = max(tokens, self.held.get(passage, 0))
        self._use(way)
        self.drop()

    def drop(self) -> None:
        while self.size() > self.capacity:
            sure, parents = self.kept_for_sure(), {one.parent for one in self.held}
            leaves = [one for one in self.held if one not in parents and one not in sure]
            oldest = min(leaves, key=lambda one: self.used[one])
            del self.held[oldest]


class _Machine(RuleBasedStateMachine):
    """Rules act on texts chosen among those that exist so far."""

    def __init__(self) -> None:
        super().__init__()
        self.passages: list[Passage] = []

    @initialize(capacity=st.integers(0, 30))
    def begin(self, capacity: int) -> None:
        self.cache, self.naive = PassageCache(capacity), _Naive(capacity)
        self.say(None, 3)

    def say(self, parent: Passage | None, tokens: int) -> None:
        self.passages.append(Passage(len(self.passages), parent, tokens))

    def _pick(self, place: int) -> Passage:
        return self.passages[place % len(self.passages)]

    @rule(place=st.integers(-1, 30), tokens=st.integers(1, 8))
    def grow(self, place: int, tokens: int) -> None:
        self.say(None if place < 0 else self._pick(place), tokens)

    @rule(place=st.integers(0, 30))
    def match(self, place: int) -> None:
        assert self.cache.match(self._pick(place)) == self.naive.match(self._pick(place))

    @rule(place=st.integers(0, 30), part=st.integers(0, 8))
    def add(self, place: int, part: int) -> None:
        passage = self._pick(place)
        tokens = min(part, passage.tokens)
        self.cache.add(passage, tokens)
        self.naive.add(passage, tokens)

    @rule(place=st.integers(0, 30))
    def add_whole(self, place: int) -> None:
        passage = self._pick(place)
        self.cache.add(passage)
        self.naive.add(passage, passage.tokens)

    @rule(place=st.integers(0, 30))
    def want(self, place: int) -> None:
        passage = self._pick(place)
        self.cache.want(passage)
        self.naive.wanted[passage] += 1
        self.naive.add(passage, passage.tokens)

    @precondition(lambda self: self.naive.wanted.total())
    @rule(place=st.integers(0, 30))
    def release(self, place: int) -> None:
        wanted = sorted(self.naive.wanted.elements(), key=lambda one: one.number)
        passage = wanted[place % len(wanted)]
        self.cache.release(passage)
        self.naive.wanted[passage] -= 1
        self.naive.drop()

    @precondition(lambda self: not self.naive.wanted.total())
    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.naive.held.clear()

    @invariant()
    def sizes_agree(self) -> None:
        if self.passages:
            assert self.cache.size == self.naive.size() <= self.cache.capacity


TestPassageCache: Final = _Machine.TestCase
TestPassageCache.settings = settings(max_examples=200, stateful_step_count=30)


@given(st.integers(1, 50), st.integers(0, 50))
def test_an_answer_without_its_last_token_is_held_so_far(tokens: int, more: int) -> None:
    prompt = Passage(1, None, 10)
    answer = Passage(2, prompt, tokens)
    turn = Passage(3, answer, more + 1)
    cache = PassageCache(1000)
    cache.add(answer, tokens - 1)
    assert cache.match(turn) == 10 + tokens - 1
    cache.add(turn)
    assert cache.match(turn) == turn.end == cache.size


def test_the_least_recently_used_leaf_goes_first_and_its_root_stays() -> None:
    root = Passage(1, None, 4)
    one, two, three = (Passage(number, root, 3) for number in (2, 3, 4))
    cache = PassageCache(10)
    cache.add(one)
    cache.add(two)
    cache.match(one)
    cache.add(three)
    assert [cache.match(leaf) for leaf in (one, two, three)] == [7, 4, 7]


def test_nothing_is_held_where_nothing_fits() -> None:
    cache = PassageCache(0)
    cache.add(Passage(1, None, 5))
    assert (cache.match(Passage(2, None, 5)), cache.match(None), cache.size) == (0, 0, 0)


def test_a_text_of_many_turns_needs_no_stack() -> None:
    text = None
    for number in range(5000):
        text = Passage(number, text, 1)
    assert text is not None
    cache = PassageCache(10_000)
    cache.want(text)
    assert (cache.match(text), cache.size) == (5000, 0)
    cache.release(text)
    assert cache.size == 5000
