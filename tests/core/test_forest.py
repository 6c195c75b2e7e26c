"""The forest against a naive model: whatever happens, every kept call comes back as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from slime_core.decide import Limits, next_gone, plan_retrieval
from slime_core.errors import InvariantError
from slime_core.forest import SEGMENT_BYTES
from slime_core.lookup import TextFound
from slime_core.segments import Outcome, Segment
from slime_core.trajectory import Trajectory, trajectory
from slime_core.transitions import CallOpened, Retrieved, SegmentsGone, VersionSeen
from slime_core.types import CallId, Encoding, WorkerUrl, pack_ids, unpack_ids, unpack_logprobs
from slime_core.versions import VersionRun
from tests.core.capture import EOS, TOY, TOY_BOS, Driver, Opened, Pieces, spread
from tests.core.naive import NaiveForest

_PIECES = st.sampled_from(["a", "b", "ab", "c", "d", "<E>", "<", "E>", "é", "#!", " ", "x"])
_TEXTS = st.lists(_PIECES, max_size=4).map("".join)
_IDS = st.lists(st.sampled_from([97, 98, 99, 256, 257, 258, 60, 0xC3, 0xA9, EOS, 32]), max_size=6)
_OUTCOMES = st.sampled_from([Outcome.COMPLETE, Outcome.COMPLETE, Outcome.PARTIAL, Outcome.ABORTED])


class Rollouts(RuleBasedStateMachine):
    """Random agents: they append, cut, branch, repeat, and mix text with ids."""

    pieces: Pieces = TOY

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(self.pieces)
        self.naive = NaiveForest(self.pieces.vocabulary)
        self.open: list[Opened] = []
        self.version = 1
        self.count = 0
        self.gone: set[str] = set()
        self.driver.apply(VersionSeen(worker=WorkerUrl("w"), version="1"))

    def _new(self) -> str:
        self.count += 1
        return f"c{self.count}"

    def _seen_texts(self) -> list[str]:
        return ["", *(one.text for one in self.naive.calls.values() if one.text is not None)]

    @rule(data=st.data(), more=_TEXTS, encoding=st.sampled_from(Encoding))
    def open_text(self, data: st.DataObject, more: str, encoding: Encoding) -> None:
        seen = data.draw(st.sampled_from(self._seen_texts()))
        keep = data.draw(st.sampled_from([len(seen), len(seen), len(seen) - 1, len(seen) // 2]))
        text = seen[: max(keep, 0)] + more
        if (
            self.driver.state.forest.texts[Encoding.RAW]
            is not (self.driver.state.forest.texts[Encoding.RENDERED])
        ):
            encoding = Encoding.RAW  # the naive model keeps one text only
        opened = self.driver.open_text(self._new(), text, encoding)
        if data.draw(st.booleans()):
            self.driver.keep(opened)
        assert isinstance(opened.found, TextFound)
        self._check_reach(opened.found, text)
        self.open.append(opened)

    def _check_reach(self, found: TextFound, text: str) -> None:
        """The history is one that some call offers, and none offers clearly more."""
        if any(one.text is None for one in self.naive.calls.values()):
            return
        offers = self.naive.reaches(text)
        parent = found.parent
        if parent is not None:
            assert parent.answer is not None
            assert (found.run_start, parent.answer.call, found.token_start) in offers
        clear = self.naive.reaches(text, found.matched)
        best = max((chars for chars, _, _ in clear), default=0)
        longest_ending = max(
            (len(e) for c in self.naive.calls.values() for e in c.endings), default=0
        )
        assert found.run_start >= best - longest_ending

    @rule(data=st.data(), more=_IDS)
    def open_ids(self, data: st.DataObject, more: list[int]) -> None:
        seen = data.draw(st.sampled_from([[], *(c.ids for c in self.naive.calls.values())]))
        keep = data.draw(st.integers(max(0, len(seen) - 3), len(seen)))
        ids = seen[:keep] + more
        opened = self.driver.open_ids(self._new(), ids)
        if data.draw(st.booleans()):
            self.driver.keep(opened)
        assert opened.found.token_start in self.naive.kept_ids(ids)
        assert opened.found.token_start >= max(self.naive.kept_ids(ids, opened.found.matched))
        self.open.append(opened)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), ids=_IDS, hide=st.integers(0, 2), outcome=_OUTCOMES)
    def capture(self, data: st.DataObject, ids: list[int], hide: int, outcome: Outcome) -> None:
        opened = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        text = self.pieces.vocabulary.decode(ids, skip_special=True)
        text = text[: max(0, len(text) - hide)]
        half = len(ids) // 2
        runs = [
            VersionRun(str(self.version - 1), 0, half),
            VersionRun(str(self.version), half, len(ids)),
        ]
        values = spread(int(opened.call[1:]), len(ids))
        fact = self.driver.captured(
            opened, ids, text, logprobs=values, outcome=outcome, runs=runs, aliases=("alias",)
        )
        parent = opened.found.parent
        self.naive.add(
            opened.call,
            None if parent is None or parent.answer is None else parent.answer.call,
            opened.found.token_start,
            unpack_ids(opened.prompt_ids),
            prompt_text=self._prompt_text(opened),
            answer_ids=ids,
            answer_text=text,
            logprobs=values,
            versions=[run.version for run in runs for _ in range(run.end - run.start)],
            endings=fact.answer.endings,
            outcome=outcome,
        )
        self.driver.apply(fact)

    def _prompt_text(self, opened: Opened) -> str | None:
        if opened.prompt_text is None:
            return None
        parent = opened.found.parent
        if parent is None:
            return opened.prompt_text
        assert isinstance(opened.found, TextFound)
        forest = self.driver.state.forest
        assert parent.text_node is not None
        whole = forest.texts[opened.encoding].key(parent.text_node)
        return whole[: opened.found.text_start] + opened.prompt_text

    @precondition(lambda self: self.open)
    @rule()
    def lose(self) -> None:
        self.driver.lose(self.open.pop())

    @rule()
    def tell(self) -> None:
        self.driver.tell_all()

    @precondition(lambda self: self.naive.calls)
    @rule(data=st.data())
    def retrieve(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(list(self.naive.calls)))
        self.driver.apply(Retrieved(call=CallId(call)))
        here: str | None = call
        while here is not None:
            self.naive.calls[here].retrieved = True
            here = self.naive.calls[here].parent

    @precondition(lambda self: self.naive.calls)
    @rule(data=st.data())
    def retrieve_by_text(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(list(self.naive.calls)))
        one = self.naive.calls[call]
        if one.text is None or not one.answer_ids or one.outcome is Outcome.PARTIAL:
            return
        self.driver.tell_all()
        plan = plan_retrieval(self.driver.state, self.driver.facts, one.text, CallId(call))
        rest = self.driver.pieces.encode(plan.rest, encoding=Encoding.RENDERED, first=False)
        _same(plan.result(self.driver.state.forest, pack_ids(rest if plan.rest else [])), one)

    @rule(steps=st.integers(1, 6))
    def new_weights(self, steps: int) -> None:
        self.version += steps
        self.driver.apply(VersionSeen(worker=WorkerUrl("w"), version=str(self.version)))

    @rule(reuse=st.integers(0, 40), segments=st.integers(0, 12))
    def evict(self, reuse: int, segments: int) -> None:
        limits = Limits(reuse_tokens=reuse, data_bytes=segments * SEGMENT_BYTES, epochs=8)
        state = self.driver.state
        while (fact := next_gone(state, limits)) is not None:
            (number,) = fact.segments
            segment = state.forest.segments[number]
            assert not segment.children
            assert segment not in [one.parent for one in state.open_calls.values()]
            if segment.answer is not None:
                self.naive.calls.pop(segment.answer.call)
                self.gone.add(segment.answer.call)
            self.driver.apply(fact)
        # Afterwards a bound is exceeded only by what calls in flight still need.
        forest = state.forest
        assert forest.reuse_tokens <= reuse or forest.oldest_reusable() is None
        assert forest.data_bytes <= limits.data_bytes or forest.oldest_wanted() is None

    @invariant()
    def books_are_right(self) -> None:
        self.driver.state.check()

    @invariant()
    def every_call_comes_back_as_it_was(self) -> None:
        forest = self.driver.state.forest
        assert set(forest.calls) == set(self.naive.calls)
        for call, one in self.naive.calls.items():
            _same(trajectory(forest, forest.calls[CallId(call)]), one)

    @invariant()
    def what_is_gone_is_remembered(self) -> None:
        assert all(
            self.driver.state.forest.gone.call(CallId(call)) != "unknown" for call in self.gone
        )

    @invariant()
    def the_oldest_leaf_goes_first(self) -> None:
        forest = self.driver.state.forest
        for wanted, first in ((False, forest.oldest_reusable()), (True, forest.oldest_wanted())):
            leaves = [one for one in forest.segments.values() if _is_leaf(one)]
            purse = [one for one in leaves if bool(one.wanted) is wanted]
            assert first is min(purse, key=lambda one: (one.used, one.number), default=None)

    @invariant()
    def what_segments_share_is_counted_once(self) -> None:
        forest = self.driver.state.forest
        every = {path for one in forest.segments.values() for path in _paths(forest.ids, one)}
        held = {
            path
            for one in forest.segments.values()
            if one.wanted
            for path in _paths(forest.ids, one)
        }
        assert forest.total_tokens == len(every)
        assert forest.ids.weight_held == 4 * len(held)
        assert forest.answer_bytes == sum(_size(one) for one in forest.segments.values())
        wanted = [one for one in forest.segments.values() if one.wanted]
        assert forest.answer_bytes_wanted == sum(map(_size, wanted))
        assert forest.segments_wanted == len(wanted)

    @invariant()
    def every_text_is_kept(self) -> None:
        forest = self.driver.state.forest
        for call, one in self.naive.calls.items():
            segment = forest.calls[CallId(call)]
            if segment.text_node is None:
                continue
            assert forest.own_text(segment) == one.answer_text
            if one.text is not None:
                assert forest.texts[segment.encoding].key(segment.text_node) == one.text

    def teardown(self) -> None:
        if sys.exception() is not None:
            return  # A rule failed: that is the news, not what it left behind.
        assert self.driver.replayed().digest() == self.driver.state.digest()
        for opened in self.open:
            self.driver.lose(opened)
        nothing = Limits(reuse_tokens=0, data_bytes=0)
        while (fact := next_gone(self.driver.state, nothing)) is not None:
            self.driver.apply(fact)
        forest = self.driver.state.forest
        assert not forest.segments
        assert not forest.calls
        assert not forest.aliases
        assert not forest.untold
        assert (forest.total_bytes, forest.data_bytes, forest.reuse_tokens) == (0, 0, 0)
        assert forest.ids.nodes == 1
        assert all(tree.nodes == 1 for tree in forest.texts.values())


class RolloutsWithPrefix(Rollouts):
    """The same where raw text gets a BOS."""

    pieces = TOY_BOS


_SETTINGS = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestRollouts = Rollouts.TestCase
TestRollouts.settings = _SETTINGS
TestRolloutsWithPrefix = RolloutsWithPrefix.TestCase
TestRolloutsWithPrefix.settings = settings(_SETTINGS, max_examples=25)


def _is_leaf(segment: Segment) -> bool:
    return not segment.children and not segment.pins


def _size(segment: Segment) -> int:
    return 0 if segment.answer is None else segment.answer.size


def _paths(tree: Any, segment: Segment) -> Iterator[bytes]:
    key = tree.key(segment.id_node)
    return (key[:end] for end in range(4, len(key) + 1, 4))


def _same(found: Trajectory, one: Any) -> None:
    assert unpack_ids(found.ids) == one.ids
    assert list(found.mask) == one.mask
    assert found.logprobs.tolist() == one.logprobs
    assert found.versions.tolist() == one.numbers
    assert len(found) == len(found.mask) == len(found.logprobs) == len(found.versions)


# -- single facts ------------------------------------------------------------------------


def test_equal_prompts_share_a_segment_and_equal_answers_do_not() -> None:
    driver = Driver()
    for call in "123":
        driver.say(call, "abc", [97])
    forest = driver.state.forest
    assert [one.is_sampled for one in forest.segments.values()] == [False, True, True, True]
    assert forest.total_tokens == 2


def test_equal_ids_of_other_texts_are_other_prompts() -> None:
    driver = Driver()
    first, second = (
        driver.open_text("1", "a"),
        driver.open_text("2", "b"),
    )
    driver.apply(driver.captured(first, [99]))
    fact = driver.captured(second, [99])
    driver.apply(type(fact)(**{**_fields(fact), "prompt_ids": first.prompt_ids}))
    driver.state.check()
    assert len(driver.state.forest.segments) == 4


def test_an_alias_of_two_calls_names_both_until_one_is_gone() -> None:
    driver = Driver()
    for call in "12":
        opened = driver.open_text(call, "x")
        driver.apply(driver.captured(opened, [97], aliases=("both",)))
    forest = driver.state.forest
    assert [*forest.aliases["both"]] == ["1", "2"]
    driver.apply(SegmentsGone(segments=(forest.calls[CallId("1")].number,), reason="evicted"))
    assert [*forest.aliases["both"]] == ["2"]


def test_what_waits_for_its_text_may_go_meanwhile() -> None:
    driver = Driver()
    for call in "12":
        driver.apply(driver.captured(driver.open_ids(call, [97]), [98]))
    forest = driver.state.forest
    driver.apply(SegmentsGone(segments=(forest.calls[CallId("1")].number,), reason="evicted"))
    driver.tell_all()
    driver.state.check()
    assert forest.calls[CallId("2")].text_end == 2


def test_a_pinned_segment_cannot_go() -> None:
    driver = Driver()
    driver.say("1", "x", [97])
    driver.open_text("2", "xab")
    number = driver.state.forest.calls[CallId("1")].number
    with pytest.raises(InvariantError, match="only a leaf"):
        driver.state.apply(SegmentsGone(segments=(number,), reason="evicted"))


def test_a_segment_with_children_cannot_go() -> None:
    driver = Driver()
    driver.say("1", "x", [97])
    with pytest.raises(InvariantError, match="only a leaf"):
        driver.state.apply(SegmentsGone(segments=(1,), reason="evicted"))


def test_a_segment_that_is_not_there_is_a_bug() -> None:
    with pytest.raises(InvariantError, match="not in the forest"):
        Driver().state.apply(CallOpened(call=CallId("1"), parent=7))


def test_a_text_that_is_not_told_cannot_be_asked_for() -> None:
    driver = Driver()
    driver.apply(driver.captured(driver.open_ids("1", [97]), [98]))
    with pytest.raises(InvariantError, match="not told"):
        driver.state.forest.own_text(driver.state.forest.segments[1])


def test_a_prompt_without_a_vocabulary_stays_known_by_its_ids() -> None:
    driver = Driver()
    driver.apply(driver.captured(driver.open_ids("1", [97]), [98]))
    driver.facts = type(driver.facts)(vocabulary=None, hard_tokens=TOY.hard_tokens)
    driver.tell_all()
    assert not driver.state.forest.untold
    assert driver.open_ids("2", [97, 98, 99]).found.token_start == 2


def test_logprobs_come_back_bit_for_bit_in_double_precision() -> None:
    driver = Driver()
    opened = driver.open_text("1", "x")
    driver.apply(driver.captured(opened, [97, 98], logprobs=[-0.1, -1e-300]))
    answer = driver.state.forest.calls[CallId("1")].answer
    assert answer is not None
    assert unpack_logprobs(answer.logprobs, 2) == [-0.1, -1e-300]


def _fields(fact: Any) -> dict[str, Any]:
    return {name: getattr(fact, name) for name in type(fact).__struct_fields__}
