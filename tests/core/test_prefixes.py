"""Pages of prompts, and who holds them, against lists of whole prompts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from slime_core.prefixes import FIRST_PAGE, PrefixMap, page_digests, page_ends
from slime_core.types import PackedIds, WorkerUrl, pack_ids

A, B, C = WorkerUrl("a"), WorkerUrl("b"), WorkerUrl("c")


def _pages(*ids: int) -> tuple[bytes, ...]:
    return page_digests(pack_ids(ids))


def _prompt(*words: int) -> list[int]:
    """A word stands for half a page, so that pages end inside a pair of words too."""
    return [number for word in words for number in [word] * (FIRST_PAGE // 2)]


# -- pages -----------------------------------------------------------------------------------


def test_a_prompt_shorter_than_a_page_has_none() -> None:
    assert page_digests(pack_ids(range(FIRST_PAGE - 1))) == ()


@given(st.integers(0, 200_000))
def test_pages_cover_a_prompt_but_for_a_sixteenth(tokens: int) -> None:
    ends = page_ends(tokens)
    assert ends == sorted(set(ends))
    last = ends[-1] if ends else 0
    assert last <= tokens < last + max(FIRST_PAGE, last // 16) + 1


def test_a_long_prompt_has_few_pages() -> None:
    assert len(page_ends(100_000)) < 150


@given(st.lists(st.integers(0, 2**32 - 1), max_size=300), st.lists(st.integers(0, 9), max_size=300))
def test_what_follows_a_page_does_not_change_it(start: list[int], rest: list[int]) -> None:
    short, long = _pages(*start), _pages(*start, *rest)
    assert long[: len(short)] == short


@given(st.lists(st.integers(0, 3), min_size=32, max_size=64), st.data())
def test_any_other_id_makes_other_pages_from_there_on(ids: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(ids) - 1))
    other = [*ids[:place], ids[place] + 7, *ids[place + 1 :]]
    ends = page_ends(len(ids))
    same = [one == two for one, two in zip(_pages(*ids), _pages(*other), strict=True)]
    assert same == [end <= place for end in ends]


def test_digits_that_run_together_are_not_taken_for_each_other() -> None:
    # As decimal text both would read 12312312…: a router that joined ids so sent them together.
    ones = _pages(*[1, 23] * FIRST_PAGE)
    others = _pages(*[12, 3] * FIRST_PAGE)
    longer = _pages(*[123] * FIRST_PAGE)
    shorter = _pages(*[12] * FIRST_PAGE)
    assert not {*ones} & {*others}
    assert not {*longer} & {*shorter}
    held = PrefixMap()
    held.note(A, longer)
    assert held.matched(shorter) == {}


# -- who holds what ----------------------------------------------------------------------------


def test_each_worker_holds_what_it_was_sent() -> None:
    held = PrefixMap()
    held.note(A, _pages(*_prompt(1, 1, 2, 2, 3, 3)))
    held.note(B, _pages(*_prompt(1, 1, 9, 9)))
    asked = _pages(*_prompt(1, 1, 2, 2, 4, 4))
    assert held.matched(asked) == {A: 2 * FIRST_PAGE, B: FIRST_PAGE}


def test_a_worker_that_forgot_holds_nothing_until_it_is_sent_again() -> None:
    held, pages = PrefixMap(), _pages(*_prompt(1, 1, 2, 2))
    held.note(A, pages)
    held.note(B, pages)
    held.forget(A)
    assert held.matched(pages) == {B: 2 * FIRST_PAGE}
    held.note(A, pages[:1])
    assert held.matched(pages) == {A: FIRST_PAGE, B: 2 * FIRST_PAGE}


def test_the_beginning_of_what_was_used_last_is_forgotten_last() -> None:
    held = PrefixMap(pages_most=3)
    first, second = _pages(*_prompt(1, 1, 2, 2, 3, 3)), _pages(*_prompt(7, 7))
    held.note(A, first)
    held.note(A, second)
    assert len(held) == 3
    assert held.matched(first) == {A: 2 * FIRST_PAGE}
    assert held.matched(second) == {A: FIRST_PAGE}


def test_looking_is_not_using() -> None:
    held, pages = PrefixMap(), _pages(*_prompt(1, 1))
    held.note(A, pages)
    before = held.facts()
    held.matched(pages)
    assert held.facts() == before


def test_what_prompts_bring_anew_is_a_running_mean() -> None:
    held = PrefixMap()
    for number in range(200):
        held.note(A, _pages(*_prompt(1, 1, *[1000 + number] * 6)))
    assert 3 * FIRST_PAGE - 2 <= held.typical_uncached <= 3 * FIRST_PAGE


class Caches(RuleBasedStateMachine):
    """Every worker's list of prompts since it last forgot."""

    def __init__(self) -> None:
        super().__init__()
        self.held = PrefixMap()
        self.sent: dict[WorkerUrl, list[list[int]]] = {A: [], B: [], C: []}

    @rule(worker=st.sampled_from([A, B, C]), words=st.lists(st.integers(1, 3), max_size=8))
    def send(self, worker: WorkerUrl, words: list[int]) -> None:
        self.held.note(worker, _pages(*_prompt(*words)))
        self.sent[worker].append(_prompt(*words))

    @rule(worker=st.sampled_from([A, B, C]))
    def forget(self, worker: WorkerUrl) -> None:
        self.held.forget(worker)
        self.sent[worker].clear()

    @rule(words=st.lists(st.integers(1, 3), max_size=8))
    def look(self, words: list[int]) -> None:
        asked = _prompt(*words)
        expected = {}
        for worker, prompts in self.sent.items():
            longest = max((_common(asked, prompt) for prompt in prompts), default=0)
            if page_ends(longest):
                expected[worker] = page_ends(longest)[-1]
        assert self.held.matched(_pages(*asked)) == expected


def _common(one: list[int], other: list[int]) -> int:
    """Tokens that both begin with, in whole pages of the shorter."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


TestCaches = Caches.TestCase
TestCaches.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


def test_no_ids_are_no_pages() -> None:
    assert page_digests(PackedIds(b"")) == ()
