"""Which leaf goes first: against a plain sort, and without growing by its history."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slime_core.purse import Purse
from slime_core.segments import Segment
from tests.core.capture import Driver


def _leaves(count: int) -> list[Segment]:
    driver = Driver()
    for number in range(count):
        driver.say(str(number), "x", [97])
    return list(driver.state.forest.calls.values())


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["use", "leave", "enter"]))))
def test_the_least_recently_used_member_is_first(acts: list[tuple[int, str]]) -> None:
    leaves = _leaves(5)
    members = set(range(5))
    purse = Purse(lambda one: leaves.index(one) in members)
    for leaf in leaves:
        purse.file(leaf)
    for clock, (which, act) in enumerate(acts, 1000):
        leaf = leaves[which]
        if act == "use":
            leaf.used = clock
        elif act == "leave":
            members.discard(which)
        else:
            members.add(which)
        if which in members:
            purse.file(leaf)
        purse.settle()
        kept = [leaves[one] for one in sorted(members)]
        assert purse.first() is min(kept, key=lambda one: (one.used, one.number), default=None)


def test_a_leaf_used_a_million_times_is_kept_a_few_times() -> None:
    (leaf,) = _leaves(1)
    purse = Purse(lambda _: True)
    for clock in range(10_000):
        leaf.used = clock
        purse.file(leaf)
        purse.settle()
    assert len(purse._heap) <= 2 * 1 + 64


def test_an_empty_purse_has_no_first() -> None:
    assert Purse(lambda _: True).first() is None
