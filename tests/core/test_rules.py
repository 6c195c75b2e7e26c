"""The rules that always hold, each over random rollouts; and that each check has teeth.

A check is a function that raises ``AssertionError`` where its rule is broken. It is run on random
rollouts, and then on rollouts of a core with a planted bug, where it must raise.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slime_core import history, history_looks, lookup
from slime_core.alignment import tokens_before
from slime_core.decide import (
    Limits,
    find_call,
    next_gone,
    next_untold,
    place,
    plan_retrieval,
    tell,
)
from slime_core.errors import ClientError, InvariantError, WorkerError
from slime_core.fleet import Fleet, Worker
from slime_core.forest import Forest
from slime_core.history_looks import History
from slime_core.lookup import find_ids, find_text
from slime_core.policies import POLICIES, Placement, Policy
from slime_core.segments import Outcome, Segment
from slime_core.state import RouterState
from slime_core.trajectory import Trajectory, _Builder, trajectory
from slime_core.transitions import (
    CallLost,
    CallOpened,
    SlotsGiven,
    SlotsTaken,
    Transition,
    WorkerMismatch,
    WorkerRemoved,
)
from slime_core.types import CallId, Encoding, WorkerUrl, pack_ids, unpack_ids
from slime_core.versions import as_number
from slime_trio.tokenizer import Tokenizer
from tests.core.capture import EOS, TOY, TOY_BOS, Driver, Pieces
from tests.core.rollouts import Rollout, Turn, play
from tests.fleet_support import joined
from tests.tokenizers import ALL

_QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
_CHANCE = st.randoms(use_true_random=False)
_TOYS = st.sampled_from([TOY, TOY_BOS])
_FIXED = 60
"""Fixed rollouts on which a planted bug must show at least once."""


@cache
def _real(name: str) -> Tokenizer:
    return Tokenizer(ALL[name]().to_str().encode())


def _found(rollout: Rollout, turn: Turn) -> Trajectory:
    forest = rollout.driver.state.forest
    return trajectory(forest, forest.calls[CallId(turn.call)])


def _fixed_rollouts(pieces: Pieces = TOY) -> Iterator[Rollout]:
    return (play(pieces, random.Random(seed)) for seed in range(_FIXED))


def _caught(check: Callable[[Rollout], None], pieces: Pieces = TOY) -> bool:
    """Whether ``check`` finds a bug in some fixed rollout."""
    try:
        for rollout in _fixed_rollouts(pieces):
            check(rollout)
    except (AssertionError, InvariantError):
        return True
    return False


def _many(check: Callable[[Pieces, int], None], seeds: int) -> None:
    for seed in range(seeds):
        check(TOY, seed)


# -- 1: a sampled id comes back as sampled ----------------------------------------------


def check_rule_1(rollout: Rollout) -> None:
    """Ids are what was sent and sampled; all columns have one length."""
    for turn in rollout.turns:
        found = _found(rollout, turn)
        assert unpack_ids(found.ids) == turn.ids
        columns = (found.mask, found.logprobs, found.versions)
        assert {len(column) for column in columns} == {len(turn.ids)}


@_QUICK
@given(_TOYS, _CHANCE)
def test_rule_1_a_sampled_id_comes_back_exactly_as_sampled(
    pieces: Pieces, chance: random.Random
) -> None:
    check_rule_1(play(pieces, chance))


def test_rule_1_has_teeth_for_ids_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Driver.captured

    def encoded_again(self: Driver, opened: Any, ids: Any, *rest: Any, **more: Any) -> Any:
        fact = own(self, opened, ids, *rest, **more)
        text = TOY.vocabulary.decode(ids, skip_special=False)
        again = TOY.encode(text, encoding=Encoding.RENDERED, first=False)[: len(ids)]
        changed = {**_fields(fact), "answer_ids": pack_ids([*again, *ids[len(again) :]])}
        return type(fact)(**changed)

    monkeypatch.setattr(Driver, "captured", encoded_again)
    assert _caught(check_rule_1)


# -- 2: mask, logprobs and versions -----------------------------------------------------


def _columns(rollout: Rollout, turn: Turn) -> tuple[list[int], list[float], list[int]]:
    """What a trainer must get, from the turns alone."""
    mask: list[int] = []
    logprobs: list[float] = []
    versions: list[int] = []
    if turn.parent is not None:
        mask, logprobs, versions = _columns(rollout, rollout.by_call()[turn.parent])
    new = len(turn.sent) - turn.kept
    return (
        [*mask[: turn.kept], *[0] * new, *[1] * len(turn.answer)],
        [*logprobs[: turn.kept], *[0.0] * new, *turn.logprobs],
        [*versions[: turn.kept], *[-1] * new, *map(as_number, turn.versions)],
    )


def check_rule_2(rollout: Rollout) -> None:
    """Each position's mask, logprob and version are those of the call that sampled it."""
    for turn in rollout.turns:
        found = _found(rollout, turn)
        mask, logprobs, versions = _columns(rollout, turn)
        assert list(found.mask) == mask
        assert found.logprobs.tolist() == logprobs
        assert found.versions.tolist() == versions
        named = {i for run in found.version_runs for i in range(run.start, run.end)}
        assert named == {i for i, bit in enumerate(mask) if bit}
        origins = [run for run in found.origins for _ in range(run.end - run.start)]
        assert [int(run.call is not None) for run in origins] == mask


@_QUICK
@given(_TOYS, _CHANCE)
def test_rule_2_mask_logprobs_and_versions_are_the_sampling_calls(
    pieces: Pieces, chance: random.Random
) -> None:
    check_rule_2(play(pieces, chance))


def test_rule_2_has_teeth_for_a_mask_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    build = _Builder.build

    def shifted(self: _Builder, ids: Any, end: int) -> Trajectory:
        self._sampled = [
            run._replace(start=max(0, run.start - 1), end=run.end - 1) for run in self._sampled
        ]
        return build(self, ids, end)

    monkeypatch.setattr(_Builder, "build", shifted)
    assert _caught(check_rule_2)


def test_rule_2_has_teeth_for_logprobs_of_a_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    add = _Builder.add

    def twins(self: _Builder, segment: Segment, stop: int) -> None:
        mine = segment.answer
        segment.answer = (segment.id_node.marks or [segment])[0].answer or mine
        add(self, segment, stop)
        segment.answer = mine

    monkeypatch.setattr(_Builder, "add", twins)
    assert _caught(check_rule_2)


def test_rule_2_has_teeth_for_one_version_for_a_whole_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add = _Builder._add_versions

    def whole(self: _Builder, run: Any, offset: int, kept: int) -> None:
        add(self, type(run)(run.version, 0, kept), offset, kept)

    monkeypatch.setattr(_Builder, "_add_versions", whole)
    assert _caught(check_rule_2)


# -- 3: what was merely appended to is extended -----------------------------------------


def _calls_above(rollout: Rollout, turn: Turn) -> list[str]:
    """The calls whose answers this turn's prompt extends, the nearest first."""
    by_call, above = rollout.by_call(), []
    while turn.parent is not None:
        turn = by_call[turn.parent]
        above.append(turn.call)
    return above


def check_rule_3(rollout: Rollout) -> None:
    """A client that appends gets all it held, and nothing twice."""
    for turn in rollout.turns:
        after = turn.after
        if turn.kind != "append" or after is None or turn.text is None:
            continue
        seen_all = after.outcome is not Outcome.PARTIAL or after.hidden is None
        if not after.answer or not seen_all:
            continue
        assert turn.sent[: len(after.ids)] == after.ids
        assert after.call in _calls_above(rollout, turn)
        rest = turn.appended
        if after.hidden is not None and rest.startswith(after.hidden):
            rest = rest[len(after.hidden) :]
            new = turn.sent[len(after.ids) :]
            if turn.parent == after.call:
                assert new == rollout.pieces.encode(rest, encoding=rollout.encoding, first=False)


@_QUICK
@given(_TOYS, _CHANCE)
def test_rule_3_what_was_merely_appended_to_is_extended_id_by_id(
    pieces: Pieces, chance: random.Random
) -> None:
    check_rule_3(play(pieces, chance))


def test_rule_3_has_teeth_for_history_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "text_history", lambda *_: History(None, 0, 0))
    assert _caught(check_rule_3)


def test_rule_3_has_teeth_for_a_doubled_joint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_looks.TextLook, "_joint", lambda *_: 0)
    assert _caught(check_rule_3)


def test_rule_3_has_teeth_for_a_longer_sample_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_looks, "_owners", lambda *_: {})
    with pytest.raises(AssertionError):
        _append_what_others_sampled()


def _append_what_others_sampled() -> None:
    rollout = Rollout(Driver(TOY), random.Random(0))
    short, long = rollout.start("x"), rollout.start("x")
    mine = rollout.finish(*short, [97, 98])
    rollout.finish(*long, [97, 98, 99])
    rollout.finish(*rollout.append(mine, "cd"), [97])
    check_rule_3(rollout)


def test_rule_3_holds_where_others_sampled_what_was_appended() -> None:
    _append_what_others_sampled()


# -- 4: what cannot be extended forks, and a cut keeps the tokens before it --------------


def _wholly_before(pieces: Pieces, ids: list[int], shown: str, chars: int, *, skip: bool) -> int:
    """How many tokens lie wholly before a place in the shown text, by trying each number."""
    for count in range(len(ids), 0, -1):
        text = pieces.vocabulary.decode_bytes(ids[:count], skip_special=skip, at_start=False)
        if shown[:chars].encode().startswith(text) and text:
            try:
                text.decode()
            except UnicodeDecodeError:
                continue
            return count
    return 0


def _ways_shown(pieces: Pieces, ids: list[int], shown: str) -> list[bool]:
    """With special tokens skipped, shown, or either, as far as the text can tell."""
    texts = {
        skip: pieces.vocabulary.decode(ids, skip_special=skip, at_start=False)
        for skip in (True, False)
    }
    return [skip for skip in texts if texts[skip].startswith(shown)] or list(texts)


def check_rule_4(rollout: Rollout) -> None:
    """A cut keeps the sampled tokens wholly before it, and says that it is one."""
    by_call = rollout.by_call()
    for turn in rollout.turns:
        after = turn.after
        if turn.kind != "cut" or after is None or turn.text is None:
            continue
        whole = (after.text or "") + after.shown
        common = 0
        while common < min(len(whole), len(turn.text)) and whole[common] == turn.text[common]:
            common += 1
        if common >= len(whole):
            continue
        chars = common - len(after.text or "")
        pieces, ids, shown = rollout.pieces, after.answer, after.shown
        counts = [
            _wholly_before(pieces, ids, shown, chars, skip=skip)
            for skip in _ways_shown(pieces, ids, shown)
        ]
        least, most = min(counts), max(counts)
        while least and rollout.pieces.vocabulary.is_special(after.answer[least - 1]):
            least -= 1  # A token that was not shown lies on neither side of the cut.
        if not least:
            continue
        most, least = len(after.sent) + most, len(after.sent) + least
        assert turn.sent[:least] == after.ids[:least]
        assert turn.kept >= least
        assert turn.kept <= most or turn.parent != after.call
        assert turn.parent is not None
        assert turn.cut is (turn.kept < len(by_call[turn.parent].ids))


def check_cuts_are_marked(rollout: Rollout) -> None:
    """A trajectory says that it is cut exactly if some answer in it was left midway."""
    by_call = rollout.by_call()
    for turn in rollout.turns:
        here, cut = turn, False
        while here.parent is not None:
            cut = cut or here.kept < len(by_call[here.parent].ids)
            here = by_call[here.parent]
        assert _found(rollout, turn).cut is cut


@_QUICK
@given(_TOYS, _CHANCE)
def test_rule_4_a_cut_keeps_the_tokens_before_it(pieces: Pieces, chance: random.Random) -> None:
    rollout = play(pieces, chance)
    check_rule_4(rollout)
    check_cuts_are_marked(rollout)


def test_rule_4_has_teeth_for_a_token_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    right = tokens_before

    def greedy(ids: Any, text: str, chars: int, vocabulary: Any) -> Any:
        place = right(ids, text, chars, vocabulary)
        return type(place)(min(place.tokens + 1, len(ids)), place.chars)

    monkeypatch.setattr(history_looks, "tokens_before", greedy)
    assert _caught(check_rule_4)


def test_rule_4_has_teeth_for_cuts_that_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_looks.TextLook, "cut", lambda *_: None)
    assert _caught(check_rule_4)


def test_rule_4_has_teeth_for_cuts_found_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left = history._left
    monkeypatch.setattr(
        history, "_left", lambda look, one: left(look, one) if one.is_sampled else None
    )
    monkeypatch.setattr(history, "_own", lambda *_: None)
    assert _caught(check_rule_6_alone)


def test_rule_4_has_teeth_for_cuts_that_are_not_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    build = _Builder.build

    def unmarked(self: _Builder, ids: Any, end: int) -> Trajectory:
        self._cut = False
        return build(self, ids, end)

    monkeypatch.setattr(_Builder, "build", unmarked)
    assert _caught(check_cuts_are_marked)


# -- 5: reuse never changes ids ----------------------------------------------------------


def _unsampled_runs(found: Trajectory) -> Iterator[tuple[int, list[int]]]:
    ids, at = unpack_ids(found.ids), 0
    for bit, group in itertools.groupby(found.mask):
        size = len(list(group))
        if not bit:
            yield at, ids[at : at + size]
        at += size


def check_rule_5(rollout: Rollout) -> None:
    """Each maximal unsampled run is the tokenizer's own encoding of that run."""
    pieces, encoding = rollout.pieces, rollout.encoding
    for turn in rollout.turns:
        if _has_client_ids(rollout, turn):
            continue
        assert turn.text is not None
        first = not turn.kept
        mine = pieces.encode(turn.text[turn.run_start :], encoding=encoding, first=first)
        assert turn.sent[turn.kept :] == (mine if first or turn.text[turn.run_start :] else [])
        skip = len(pieces.prefix_ids) if encoding is Encoding.RAW else 0
        for at, ids in _unsampled_runs(_found(rollout, turn)):
            first = at == 0
            if first and pieces.vocabulary.lead_spaces:
                continue  # Decoding does not tell which spaces the tokenizer put there.
            bare = ids[skip:] if first else ids
            text = pieces.vocabulary.decode(bare, skip_special=False, at_start=first)
            assert pieces.encode(text, encoding=encoding, first=first) == ids


def _has_client_ids(rollout: Rollout, turn: Turn) -> bool:
    here: Turn | None = turn
    by_call = rollout.by_call()
    while here is not None:
        if here.text is None:
            return True
        here = None if here.parent is None else by_call[here.parent]
    return False


@_QUICK
@given(_TOYS, _CHANCE)
def test_rule_5_every_unsampled_run_is_its_own_encoding(
    pieces: Pieces, chance: random.Random
) -> None:
    check_rule_5(play(pieces, chance))


def _check_text_rules(rollout: Rollout) -> None:
    for check in (check_rule_1, check_rule_2, check_rule_3, check_rule_4, check_rule_5):
        check(rollout)


@settings(_QUICK, max_examples=40)
@given(_CHANCE, st.sampled_from(Encoding))
def test_rules_1_to_5_over_a_byte_level_vocabulary(
    chance: random.Random, encoding: Encoding
) -> None:
    _check_text_rules(play(_real("byte_level_bpe"), chance, encoding=encoding))


@pytest.mark.parametrize("name", [name for name in ALL if name != "byte_level_bpe"])
def test_rules_1_to_5_over_a_real_vocabulary(name: str) -> None:
    for seed in range(12):
        _check_text_rules(play(_real(name), random.Random(seed)))


def test_rule_5_has_teeth_for_a_cut_at_the_end_of_a_mere_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def eager(forest: Any, text: str, found: Any, base: History, facts: Any, is_whole: bool) -> Any:
        start = base.text_start + base.joint
        source = lookup._run_source(found, base, start) if found.length > start else None
        if source is None or source.text_end > found.length:
            return None, pack_ids(()), start
        return source, forest.own_ids(source), source.text_end

    monkeypatch.setattr(lookup, "_equal_run", eager)
    assert _caught(check_rule_5)


def test_rule_5_has_teeth_for_ids_of_a_client_taken_for_an_encoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Segment, "from_ids", property(lambda _: False, lambda *_: None))
    with pytest.raises(AssertionError):
        _client_ids_then_text()


def _client_ids_then_text() -> None:
    rollout = Rollout(Driver(TOY), random.Random(0))
    rollout.finish(*rollout.start_ids([97, 98, 99]), [97])
    rollout.driver.tell_all()
    rollout.finish(*rollout.start("abc"), [97])
    check_rule_5(rollout)


def test_rule_5_holds_after_a_client_sent_ids_of_the_same_text() -> None:
    _client_ids_then_text()


# -- 6: the order of commits -------------------------------------------------------------


def _view(driver: Driver) -> dict[str, tuple[object, ...]]:
    """The forest as calls: ids, parents, mask, logprobs, versions, text."""
    driver.tell_all()
    forest, view = driver.state.forest, dict[str, tuple[object, ...]]()
    for call, segment in forest.calls.items():
        found = trajectory(forest, segment)
        above = [one.answer.call for one in segment.lineage()[:-1] if one.answer is not None]
        text = None
        if segment.text_node is not None:
            text = forest.texts[segment.encoding].key(segment.text_node)
        view[call] = (
            (found.ids, found.mask, tuple(found.logprobs), tuple(found.versions)),
            (tuple(above), text, found.cut),
        )
    return view


def _concurrent(pieces: Pieces, chance: random.Random) -> tuple[Driver, list[Transition]]:
    """A forest, and captures of calls that were all in flight at once."""
    rollout = play(pieces, chance, steps=4)
    facts: list[Transition] = []
    texts = [turn for turn in rollout.turns if turn.text is not None]
    for number in range(4):
        after = chance.choice(texts)
        kind = chance.randrange(4)
        more = rollout.words_of(2)
        if kind == 0:
            turn, opened = rollout.append(after, more)
        elif kind == 1:
            turn, opened = rollout.cut(after, chance.randint(0, len(after.shown)), more)
        elif kind == 2:
            turn, opened = rollout.start_ids(after.ids[: chance.randint(0, len(after.ids))])
        else:
            turn, opened = rollout.start(after.text or "")
        del turn
        for _ in range(chance.choice((1, 2))):
            ids = [97 + chance.randrange(3) for _ in range(chance.randint(0, 3))]
            fact = rollout.driver.captured(opened, ids, logprobs=[-float(number)] * len(ids))
            again = CallId(f"{fact.call}.{len(facts)}")
            rollout.driver.apply(CallOpened(call=again, parent=fact.parent))
            answer = type(fact.answer)(**{**_fields(fact.answer), "call": again})
            facts.append(type(fact)(**{**_fields(fact), "call": again, "answer": answer}))
    return rollout.driver, facts


def check_rule_6(pieces: Pieces, seed: int) -> None:
    """Any order of the same captures makes the same forest; no sample is lost or merged."""
    _, facts = _concurrent(pieces, random.Random(seed))
    views = []
    for order in (facts, facts[::-1], random.Random(seed).sample(facts, len(facts))):
        driver, _ = _concurrent(pieces, random.Random(seed))
        for fact in order:
            driver.apply(fact)
            driver.state.check()
        views.append(_view(driver))
        assert len(driver.state.forest.calls) == sum(
            type(fact).__name__ == "CallCaptured" for fact in driver.journal
        )
    assert views[0] == views[1] == views[2]


def check_rule_6_alone(rollout: Rollout) -> None:
    """Two equal prompts extend the same history, whether or not the first was answered."""
    for number, turn in enumerate(list(rollout.turns)):
        if turn.text is None or not turn.shown:
            continue
        text = f"{turn.text}{turn.shown[:-1]}{number}?"
        first, opened = rollout.start(text)
        rollout.finish(first, opened, [97])
        second, opened = rollout.start(text)
        rollout.driver.lose(opened)
        assert second.sent == first.sent
        assert second.kept == first.kept


@_QUICK
@given(_TOYS, st.integers(0, 10**6))
def test_rule_6_the_order_of_commits_does_not_change_the_forest(pieces: Pieces, seed: int) -> None:
    check_rule_6(pieces, seed)


@_QUICK
@given(_TOYS, _CHANCE)
def test_rule_6_a_prompt_asked_twice_extends_the_same_history(
    pieces: Pieces, chance: random.Random
) -> None:
    check_rule_6_alone(play(pieces, chance, steps=5))


def test_rule_6_has_teeth_for_samples_deduplicated_by_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capture = Forest.capture

    def deduplicated(self: Forest, fact: Any, epoch: int) -> Segment:
        for one in self.calls.values():
            same = one.text_node is not None and self.own_text(one) == fact.answer_text
            if same and one.tokens * 4 == len(fact.answer_ids):
                return one
        return capture(self, fact, epoch)

    monkeypatch.setattr(Forest, "capture", deduplicated)
    with pytest.raises((AssertionError, InvariantError, KeyError)):
        _many(check_rule_6, 20)


def test_rule_6_has_teeth_for_a_parent_chosen_at_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = Forest.capture

    def latest(self: Forest, fact: Any, epoch: int) -> Segment:
        parents = [one for one in self.calls.values() if one.token_end == fact.token_start]
        if parents and fact.parent is not None:
            fact = type(fact)(**{**_fields(fact), "parent": parents[-1].number})
        return capture(self, fact, epoch)

    monkeypatch.setattr(Forest, "capture", latest)
    with pytest.raises((AssertionError, InvariantError)):
        _many(check_rule_6, 20)


# -- 7: nothing captured is lost silently -----------------------------------------------


def check_rule_7(rollout: Rollout) -> None:
    """Whatever became of a call, asking for it gives the data or a word."""
    driver = rollout.driver
    turn, opened = rollout.start("never answered")
    driver.apply(CallLost(call=CallId(turn.call), reason="aborted", sampled=True))
    del opened
    limits = Limits(reuse_tokens=0, data_bytes=driver.state.forest.data_bytes // 2)
    while (fact := next_gone(driver.state, limits)) is not None:
        driver.apply(fact)
    kept = driver.state.forest.calls
    lost = [one for one in rollout.turns if one.call not in kept]
    assert driver.state.counters.answers_lost_unretrieved == len(lost)
    assert _word(driver, turn.call) == (410, "aborted")
    assert _word(driver, "c999999") == (404, "unknown_or_evicted")
    for one in rollout.turns:
        assert _word(driver, one.call) == ((200, "") if one.call in kept else (410, "evicted"))
        whole = (one.text or "") + one.shown
        if one in lost and one.text is not None and one.shown and not _known(driver, whole):
            with pytest.raises(ClientError) as caught:
                plan_retrieval(driver.state, driver.facts, whole, None)
            assert caught.value.status == 410


def _known(driver: Driver, text: str) -> bool:
    return driver.look(text).run_start >= len(text)


def _word(driver: Driver, call: str) -> tuple[int, str]:
    try:
        find_call(driver.state, call)
    except ClientError as error:
        return error.status, error.code
    return 200, ""


@_QUICK
@given(_TOYS, _CHANCE)
def test_rule_7_what_is_gone_is_said_in_a_word(pieces: Pieces, chance: random.Random) -> None:
    rollout = play(pieces, chance)
    rollout.driver.tell_all()
    check_rule_7(rollout)


def test_rule_7_has_teeth_for_what_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Forest, "_remember", lambda *_: None)
    assert _caught(check_rule_7)


def check_pinned_stays(pieces: Pieces, seed: int) -> None:
    """What a call in flight extends is there when it ends, however little is kept."""
    rollout = play(pieces, random.Random(seed), steps=3)
    texts = [one for one in rollout.turns if one.text is not None]
    turn, opened = rollout.append(texts[-1], "x")
    nothing = Limits(reuse_tokens=0, data_bytes=0)
    while (fact := next_gone(rollout.driver.state, nothing)) is not None:
        rollout.driver.apply(fact)
    rollout.finish(turn, opened, [97])
    assert unpack_ids(_found(rollout, turn).ids) == turn.ids


@_QUICK
@given(_TOYS, st.integers(0, 10**6))
def test_rule_7_what_a_call_in_flight_extends_never_goes(pieces: Pieces, seed: int) -> None:
    check_pinned_stays(pieces, seed)


def test_rule_7_has_teeth_for_the_eviction_of_what_is_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unpinned(segment: Segment) -> bool:
        return not segment.children and segment.number > 0

    monkeypatch.setattr(Forest, "_is_leaf", staticmethod(unpinned))
    with pytest.raises((AssertionError, InvariantError)):
        _many(check_pinned_stays, 10)


# -- 10: workers -------------------------------------------------------------------------


def check_rule_10(chance: random.Random) -> None:
    """No work for a worker that is not fit; every slot comes back."""
    state, taken = RouterState(), dict[CallId, WorkerUrl]()
    urls = [WorkerUrl(name) for name in "abc"]
    reasons: dict[WorkerUrl, str | None] = {}
    leaving: set[WorkerUrl] = set()
    for number in range(40):
        url, act = chance.choice(urls), chance.randrange(6)
        if act == 0:
            for fact in joined(url):
                state.apply(fact)
            reasons.setdefault(url, None)
            leaving.discard(url)
        elif act == 1:
            state.apply(WorkerRemoved(worker=url))
            leaving |= {url} & set(reasons)
        elif act == 2:
            unfit = chance.choice((None, "draining", "stale"))
            state.apply(WorkerMismatch(worker=url, reason=unfit))
            reasons.update({url: unfit} if url in reasons else {})
        elif act == 3 and taken:
            call = chance.choice(list(taken))
            state.apply(SlotsGiven(worker=taken.pop(call), calls=(call,)))
        else:
            fit = {one for one in reasons if reasons[one] is None and one not in leaving}
            chosen = _chosen(state, chance.choice(list(POLICIES.values())), chance.random())
            assert (chosen in fit) if fit else chosen is None
            if chosen is not None:
                taken[CallId(str(number))] = chosen
                state.apply(SlotsTaken(worker=chosen, calls=(CallId(str(number)),)))
        for one in leaving - set(taken.values()):
            leaving.discard(one)
            del reasons[one]
        assert set(state.fleet.workers) == set(reasons)
        assert state.fleet.total_in_flight == len(taken)
    for call, url in taken.items():
        state.apply(SlotsGiven(worker=url, calls=(call,)))
    assert state.fleet.total_in_flight == 0
    assert not any(worker.leaving for worker in state.fleet.workers.values())


def _chosen(state: RouterState, policy: Policy, chance: float) -> WorkerUrl | None:
    try:
        return place(state, policy, Placement(key="s", chance=chance)).url
    except WorkerError:
        return None


@_QUICK
@given(_CHANCE)
def test_rule_10_only_fit_workers_get_work_and_every_slot_comes_back(
    chance: random.Random,
) -> None:
    check_rule_10(chance)


def _caught_in_fleet() -> bool:
    try:
        for seed in range(20):
            check_rule_10(random.Random(seed))
    except (AssertionError, InvariantError):
        return True
    return False


def test_rule_10_has_teeth_for_a_slot_that_is_not_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fleet, "give", lambda *_: None)
    assert _caught_in_fleet()


def test_rule_10_has_teeth_for_work_given_to_the_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "is_fit", property(lambda self: True))
    assert _caught_in_fleet()


# -- 11: deciding and applying -----------------------------------------------------------


def _decide_everything(rollout: Rollout) -> list[object]:
    """Every question that can be asked, asked."""
    driver = rollout.driver
    state, facts = driver.state, driver.facts
    answers: list[object] = [next_gone(state, Limits(reuse_tokens=0, data_bytes=0))]
    untold = next_untold(state)
    answers.append(None if untold is None else tell(untold, facts.vocabulary))
    for turn in rollout.turns:
        text = (turn.text or "") + turn.shown[:1] + "x"
        found = find_text(state.forest, text, Encoding.RAW, facts)
        answers.append((found.token_start, found.encode_from, found.run_ids, found.used))
        by_ids = find_ids(state.forest, pack_ids([*turn.ids[:-1], 1]))
        answers.append((by_ids.token_start, by_ids.matched, by_ids.cut))
        answers.append(find_call(state, turn.call))
        try:
            answers.append(plan_retrieval(state, facts, text, None).delivered)
        except ClientError as error:
            answers.append(error.code)
    return answers


def check_rule_11(rollout: Rollout) -> None:
    """Deciding changes nothing, twice the same; the journal makes the same state."""
    before = rollout.driver.state.digest()
    assert _decide_everything(rollout) == _decide_everything(rollout)
    assert rollout.driver.state.digest() == before
    assert rollout.driver.replayed().digest() == before


@_QUICK
@given(_TOYS, _CHANCE)
def test_rule_11_deciding_changes_nothing_and_replaying_gives_the_same_digest(
    pieces: Pieces, chance: random.Random
) -> None:
    check_rule_11(play(pieces, chance))


def test_rule_11_has_teeth_for_a_look_up_that_touches(monkeypatch: pytest.MonkeyPatch) -> None:
    match = history.ids_history

    def touching(forest: Forest, *rest: Any) -> History:
        found = match(forest, *rest)
        if found.parent is not None:
            forest.touch(found.parent, 0)
        return found

    monkeypatch.setattr(lookup, "ids_history", touching)
    assert _caught(check_rule_11)


_DIGESTS = """
import random
from tests.core.capture import TOY
from tests.core.rollouts import play
for seed in range(5):
    rollout = play(TOY, random.Random(seed), steps=10)
    print(rollout.driver.state.digest())
"""


def test_rule_11_the_digest_is_the_same_under_any_hash_seed() -> None:
    lines = {
        subprocess.run(
            [sys.executable, "-c", _DIGESTS],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "4242")
    }
    assert len(lines) == 1
    assert len(lines.pop().split()) == 5


def test_the_rollouts_reach_the_situations_that_the_rules_are_about() -> None:
    met: set[str] = set()
    for rollout in _fixed_rollouts():
        for turn in rollout.turns:
            met.add(turn.kind)
            met.add(turn.outcome.value)
            met |= {"cut"} if turn.cut else set()
            met |= {"empty answer"} if not turn.answer else set()
            met |= {"invalid"} if "\ufffd" in turn.shown else set()
            met |= {"hidden ending"} if turn.hidden else set()
            met |= (
                {"spelled special"} if EOS not in turn.sent and "<E" in (turn.text or "") else set()
            )
    assert met >= {"root", "append", "cut", "ids", "partial", "complete"}
    assert met >= {"empty answer", "invalid", "hidden ending", "spelled special"}


def _fields(fact: Any) -> dict[str, Any]:
    return {name: getattr(fact, name) for name in type(fact).__struct_fields__}
