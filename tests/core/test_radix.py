"""The radix trees against a dict of marks, and what a look-up costs without a clock."""

from __future__ import annotations

import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slime_core.errors import InvariantError
from slime_core.radix import Node, RadixTree, id_tree, text_tree
from slime_core.types import Encoding, pack_ids
from tests.core.capture import TOY, Driver

_LETTERS = st.lists(st.integers(0, 2), max_size=7)


def _text_key(letters: list[int]) -> str:
    return "".join("abé"[letter] for letter in letters)


def _ids_key(letters: list[int]) -> bytes:
    # Ids that share bytes, also across their borders.
    return pack_ids([1, 256, 65536][letter] for letter in letters)


class TextTree(RuleBasedStateMachine):
    """A tree over text and a plain list of (key, mark, held)."""

    unit = 1

    def __init__(self) -> None:
        super().__init__()
        self.tree: RadixTree[Any] = text_tree()
        self.marks: list[tuple[Any, int, Node[Any]]] = []
        self.held: list[tuple[Any, Node[Any]]] = []
        self.count = 0

    def key(self, letters: list[int]) -> Any:
        return _text_key(letters)

    @rule(letters=_LETTERS)
    def insert(self, letters: list[int]) -> None:
        key = self.key(letters)
        self._mark(key, self.tree.insert(key))

    def _mark(self, key: Any, node: Node[Any]) -> None:
        self.count += 1
        self.tree.mark(node, self.count)
        self.marks.append((key, self.count, node))
        assert self.tree.key(node) == key

    @precondition(lambda self: self.marks)
    @rule(data=st.data(), letters=_LETTERS)
    def insert_below(self, data: st.DataObject, letters: list[int]) -> None:
        key, _, node = data.draw(st.sampled_from(self.marks))
        depth = self.unit * data.draw(st.integers(0, len(key) // self.unit))
        more = self.key(letters)
        self._mark(key[:depth] + more, self.tree.insert_at(more, node, depth))

    @precondition(lambda self: self.marks)
    @rule(data=st.data())
    def unmark(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.marks))
        if any(node is entry[2] for _, node in self.held):
            others = [one for one in self.marks if one[2] is entry[2] and one is not entry]
            if not others:
                return
        self.marks.remove(entry)
        self.tree.unmark(entry[2], entry[1])

    @precondition(lambda self: self.marks)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        key, _, node = data.draw(st.sampled_from(self.marks))
        self.tree.hold(node)
        self.held.append((key, node))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.held) - 1))
        _, node = self.held.pop(at)
        self.tree.release(node)

    @rule(letters=_LETTERS)
    def match(self, letters: list[int]) -> None:
        key = self.key(letters)
        known = [one for one, _, _ in self.marks]
        longest = max((_common(key, one, self.unit) for one in known), default=0)
        found = self.tree.match(key)
        assert found.length == longest
        assert key.startswith(self.tree.key(found.node))
        assert self.tree.key(found.below)[: found.length] == key[: found.length]
        assert (found.inside is None) == (found.node.end == found.length)

    @invariant()
    def is_a_tree(self) -> None:
        self.tree.check()

    @invariant()
    def keeps_every_mark(self) -> None:
        assert sum(len(node.marks or ()) for node in self.tree.walk()) == len(self.marks)
        for key, mark, node in self.marks:
            assert self.tree.key(node) == key
            assert mark in (node.marks or ())

    @invariant()
    def weighs_what_is_shared_once(self) -> None:
        prefixes = {key[:end] for key, _, _ in self.marks for end in _ends(key, self.unit)}
        held = {key[:end] for key, _ in self.held for end in _ends(key, self.unit)}
        if self._plain():
            assert self.tree.weight == self.unit * len(prefixes)
            assert self.tree.weight_held == self.unit * len(held)

    def _plain(self) -> bool:
        return all(isinstance(key, bytes) or key.isascii() for key, _, _ in self.marks)

    def teardown(self) -> None:
        if sys.exception() is not None:
            return
        for _, node in self.held:
            self.tree.release(node)
        for _, mark, node in self.marks:
            self.tree.unmark(node, mark)
        self.tree.check()
        assert (self.tree.nodes, self.tree.weight, self.tree.weight_held) == (1, 0, 0)


class IdTree(TextTree):
    """The same over packed ids."""

    unit = 4

    def __init__(self) -> None:
        super().__init__()
        self.tree = id_tree()

    def key(self, letters: list[int]) -> Any:
        return _ids_key(letters)


_SETTINGS = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestTextTree = TextTree.TestCase
TestTextTree.settings = _SETTINGS
TestIdTree = IdTree.TestCase
TestIdTree.settings = _SETTINGS


def _common(left: Any, right: Any, unit: int) -> int:
    size = 0
    while (
        size < min(len(left), len(right)) and left[size : size + unit] == right[size : size + unit]
    ):
        size += unit
    return size


def _ends(key: Any, unit: int) -> range:
    return range(unit, len(key) + 1, unit)


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_ids_are_compared_in_units_of_four_bytes(left: bytes, right: bytes) -> None:
    left, right = left[: len(left) // 4 * 4], right[: len(right) // 4 * 4]
    tree = id_tree()
    tree.mark(tree.insert(left), "mark")
    assert tree.match(right).length == _common(left, right, 4)


def test_a_depth_that_is_not_on_the_path_is_a_bug() -> None:
    tree = text_tree()
    node = tree.insert("abc")
    tree.mark(node, 1)
    with pytest.raises(InvariantError, match="no such depth"):
        tree.at_depth(node, 9)


@pytest.mark.parametrize("damage", ["weight", "needless", "held", "parent", "key"])
def test_the_check_finds_damage(damage: str) -> None:
    tree = text_tree()
    for key in ("abc", "abd"):
        tree.mark(tree.insert(key), key)
    upper = tree.match("ab").node
    assert upper.children is not None
    child = upper.children["c"]
    match damage:
        case "weight":
            tree.weight += 1
        case "needless":
            child.marks = None
        case "held":
            child.held, tree.weight_held = 1, 1
        case "parent":
            child.parent = tree.root
        case _:
            upper.children["x"] = upper.children.pop("c")
    with pytest.raises(InvariantError):
        tree.check()


# -- costs, counted and never timed ------------------------------------------------------


class Counted(str):
    """A key that counts how often labels are compared with it."""

    comparisons = 0

    def startswith(self, *arguments: Any) -> bool:
        type(self).comparisons += 1
        return super().startswith(*arguments)


def _comparisons(driver: Driver, text: str) -> int:
    Counted.comparisons = 0
    driver.state.forest.texts[Encoding.RAW].match(Counted(text))
    return Counted.comparisons


def _with_siblings(count: int) -> Driver:
    driver = Driver(TOY)
    prompt = "x" * 100
    calls = [driver.open_text(str(number), prompt) for number in range(count)]
    for number, opened in enumerate(calls):
        driver.apply(driver.captured(opened, list(f"answer {number:05} ends".encode())))
    return driver


def test_a_look_up_does_not_pay_for_a_thousand_siblings() -> None:
    few, many = _with_siblings(10), _with_siblings(1000)
    text = "x" * 100 + "answer 00007 ends and goes on"
    # The number of the answer adds digits' nodes to the path, not its siblings.
    assert _comparisons(many, text) <= _comparisons(few, text) + 2 * 5


def test_a_look_up_does_not_pay_for_ten_thousand_prompts_under_one_root() -> None:
    tree = text_tree()
    for number in range(10_000):
        tree.mark(tree.insert(f"system prompt {number:05} question"), number)
    Counted.comparisons = 0
    assert tree.match(Counted("system prompt 01234 question and more")).length == 28
    assert Counted.comparisons <= 7


def test_a_place_in_a_long_label_is_found_in_few_steps() -> None:
    tree = text_tree()
    tree.mark(tree.insert("x" * 100_000), 1)
    Counted.comparisons = 0
    assert tree.match(Counted("x" * 70_000 + "y")).length == 70_000
    assert Counted.comparisons <= 2 * 17 + 2


def test_equal_answers_are_looked_at_once_per_call_and_no_more() -> None:
    driver = Driver(TOY)
    calls = [driver.open_text(str(number), "x") for number in range(1000)]
    for opened in calls:
        driver.apply(driver.captured(opened, [97, 98]))
    found = driver.look("xabQ")
    assert found.ambiguous
    assert found.parent is driver.state.forest.calls[calls[-1].call]


# -- memory ------------------------------------------------------------------------------


def _grown(driver: Driver, count: int, size: int) -> int:
    """Bytes allocated for ``count`` turns of ``size`` tokens, each after the one before."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    text = f"q{size}"
    for number in range(count):
        answer = [97 + (number + place) % 26 for place in range(size)]
        opened = driver.open_text(f"{size}-{number:06}", text)
        driver.apply(driver.captured(opened, answer))
        text += bytes(answer).decode() + "?"
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return grown


def test_a_cached_token_of_a_long_segment_costs_at_most_sixteen_bytes() -> None:
    driver = Driver(TOY)
    driver.journal = _Forgetful()
    assert _grown(driver, 100, 1000) / (100 * 1000) <= 16


def test_a_short_segment_costs_at_most_two_kilobytes() -> None:
    driver = Driver(TOY)
    driver.journal = _Forgetful()
    _grown(driver, 10, 3)
    # A turn is two segments: what was asked, and the answer with its record.
    assert _grown(driver, 500, 2) / (2 * 500) <= 1500


class _Forgetful(list[Any]):
    """A journal that keeps nothing, so that only the state is measured."""

    def append(self, _: Any) -> None:
        """Nothing."""
