"""The rules of a run, all of them: what must be true of any story, whatever went wrong in it.

Each rule is a small function from the naive book of a run (:mod:`tests.simulate.naive`) to
messages; :func:`judge` runs them all and reports every violation, not the first. Nothing is read
back from the forest but what is being checked. What can be seen only while a run goes on is noted
by :class:`tests.simulate.watch.Watch`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from slime_core.decide import next_gone
from slime_core.engine import Sampler, SamplingParams, float32, parse_sampling_params
from slime_core.errors import SlimeError
from slime_core.segments import Outcome
from slime_core.trajectory import trajectory
from slime_core.transitions import AnswerWithdrawn, Lookup, Retrieved, SegmentsGone
from tests.simulate.agents.composing import CHAT
from tests.simulate.agents.retrieving import BY_MESSAGES
from tests.simulate.cases import RULES, Case, Run, rule
from tests.simulate.naive import (
    Book,
    Call,
    Columns,
    Piece,
    common,
    events_of,
    wholly_before,
    without_logprobs,
)
from tests.simulate.naive_chat import Talks
from tests.simulate.reordered import swapped, view
from tests.simulate.story import Ask, Delivered, Ending, Exchange, Kind, Sampled
from tests.simulate.tokens import Tokens
from tests.simulate.watch import Violation, Watch, columns_of

__all__ = ["RULES", "Case", "Run", "Violation", "Watch", "case_of", "judge"]


def case_of(run: Run) -> Case:
    """The run with its book."""
    book = Book.of(run.story, run.tokens, run.watch.gone)
    for call, at in run.watch.gone_at.items():
        book.calls[call].gone_at = at
    for one in book.calls.values():
        if is_unsent(one) and one.id in run.watch.columns and not (one.truth and one.truth.told):
            # No worker's word counts: what one did for it before was in vain.
            one.prompt_ids = list(run.watch.columns[one.id].ids)
            one.truth, one.shown = None, ""
    numbers = run.watch.numbers
    parents = {
        one.id: numbers[one.captured.parent]
        for one in book.calls.values()
        if one.captured is not None and one.captured.parent in numbers
    }
    talks = Talks(book, run.tokens, lambda call: _named(book, call), parents)
    return Case(run, book, talks)


def judge(run: Run) -> list[Violation]:
    """Every violation of every rule, in the order of the rules."""
    case = case_of(run)
    _note_kinds(case)
    found = list(run.watch.violations)
    for name, check in RULES:
        found += [Violation(name, message) for message in check(case)]
    return found


def _note_kinds(case: Case) -> None:
    """What agents did, for the marks."""
    for exchange in case.story.exchanges:
        case.story.marks[f"kind:{exchange.ask.kind.value}"] += 1
        for habit in _habits(exchange):
            case.story.marks[f"habit:{habit}"] += 1
    for call in case.captured():
        if call.is_partial:
            case.note("partial answer")
        if len(set(call.versions)) > 1:
            case.note("several versions in an answer")
        if call.truth is not None and call.truth.lies is not None:
            case.note("captured what a lie left true")


def _habits(exchange: Exchange) -> Iterator[str]:
    """How its agent asked and behaved."""
    ask, conduct = exchange.ask, exchange.ask.conduct
    yield ask.path
    shown = {
        "streams": ask.stream,
        "asks for several samples": ask.samples > 1,
        "sends unlike prompts": bool(ask.others),
        "sends what must be refused": ask.malformed is not None,
        "names a session": ask.session is not None,
        "names a parent": ask.parent is not None,
        "reads slowly": conduct.read_pause_s > 0 and len(exchange.body) > 0,
        "ends its side": conduct.half_close,
        "uploads in pieces": conduct.upload_pieces > 1,
        "leaves after a time": conduct.leave_after_s is not None and exchange.ending is Ending.LEFT,
        "leaves after pieces": conduct.leave_after_pieces is not None
        and exchange.ending is Ending.LEFT,
    }
    yield from (habit for habit, is_so in shown.items() if is_so)


# -- 1: what was sampled is captured and delivered exactly -------------------------------


@rule("1 exact capture")
def captures_are_what_was_sampled(case: Case) -> Iterator[str]:
    """Ids, logprobs and versions as the worker sampled and told them: all, or explicitly a
    beginning."""
    for call in case.captured():
        truth, told = call.truth, case.run.watch.columns.get(call.id)
        if is_unsent(call) and truth is None:
            case.note("aborted before it began")
        elif truth is None:
            yield f"{call} was captured, and no worker sampled anything for it"
        elif told is not None:
            yield from _capture_problems(call, truth, told)
            yield from _outcome_problems(call, truth, len(told.ids) - call.start)


def is_unsent(call: Call) -> bool:
    """Whether the router itself ended it as one that was aborted in its queue."""
    kept = call.captured
    return kept is not None and not kept.answer_ids and kept.answer.outcome is Outcome.ABORTED


def _capture_problems(call: Call, truth: Sampled, told: Columns) -> Iterator[str]:
    start, size = call.start, len(told.ids) - call.start
    if size > truth.told:
        yield f"{call}: {size} tokens were captured, the worker told {truth.told} ({truth.lies})"
    if list(told.ids[start:]) != truth.told_ids[:size]:
        yield f"{call}: captured {told.ids[start:]}, sampled {truth.told_ids}"
    if list(told.logprobs[start:]) != truth.told_logprobs[:size]:
        yield f"{call}: captured logprobs {told.logprobs[start:]}, true are {truth.told_logprobs}"
    if truth.lies not in _GUESSED_VERSIONS and list(told.names[start:]) != _names(truth, size):
        yield f"{call}: captured versions {told.names[start:]}, true are {_names(truth, size)}"


_GUESSED_VERSIONS: Final = frozenset({"wrong_spans"})
"""Lies after which versions are told that are neither true nor consistent."""


def _names(truth: Sampled, size: int) -> list[str | None]:
    return truth.told_versions[:size]


def _outcome_problems(call: Call, truth: Sampled, size: int) -> Iterator[str]:
    assert call.captured is not None
    outcome = call.captured.answer.outcome
    finish = truth.told_finish or (truth.finish if truth.lies is not None else None)
    if outcome is Outcome.PARTIAL:
        return
    if finish is None:
        yield f"{call} is called {outcome.value}, and its worker had not finished"
    elif (finish.get("type") == "abort") is not (outcome is Outcome.ABORTED):
        yield f"{call} is called {outcome.value}, and ended with {finish}"
    if size != truth.told:
        yield f"{call} is called {outcome.value} with {size} of {truth.told} tokens"
    if truth.lies is None and (size != len(truth.ids) or call.captured.answer_text != truth.text):
        yield f"{call}: captured {call.captured.answer_text!r}, sampled {truth.text!r}"


@rule("1 exact prompt")
def captured_prompts_are_what_the_worker_got(case: Case) -> Iterator[str]:
    """The ids before an answer are those it was sampled behind."""
    for call in case.captured():
        told = case.run.watch.columns.get(call.id)
        if told is not None and list(told.ids[: call.start]) != call.prompt_ids:
            yield f"{call}: captured behind {list(told.ids)}, the worker got {call.prompt_ids}"


@rule("1 exact delivery")
def deliveries_are_exact(case: Case) -> Iterator[str]:
    """A retrieval by call is that call's ids, all of them; by text at least not other ones."""
    for delivered, columns in _deliveries(case):
        call = case.book.calls.get(columns.call)
        sizes = {len(columns.ids), len(columns.mask), len(columns.logprobs), len(columns.versions)}
        sizes |= {delivered.body[key] for key in ("token_length", "loss_mask_length")}
        if len(sizes) > 1:
            yield f"{columns.source}: columns of {sorted(sizes)} tokens"
        if call is None or call.captured is None:
            yield f"{columns.source}: {columns.call} was never captured"
        elif delivered.path.startswith("/trajectories/") and list(columns.ids) != call.ids:
            yield f"{columns.source}: {list(columns.ids)} instead of {call.ids}"


def _deliveries(case: Case) -> Iterator[tuple[Delivered, Columns]]:
    for one in case.story.delivered:
        if one.status == 200 and one.body.get("tokens"):
            yield one, _delivered_columns(one)


def _delivered_columns(one: Delivered) -> Columns:
    body = one.body
    names: list[str | None] = [None] * len(body["tokens"])
    for run in body["weight_versions"]:
        names[run["start"] : run["end"]] = [run["version"]] * (run["end"] - run["start"])
    return Columns(
        source=f"delivery {one.at} ({one.path})",
        call=str(body["id"]),
        ids=body["tokens"],
        mask=body["loss_mask"],
        logprobs=body["rollout_logp"],
        versions=body["generation_versions"],
        names=names,
        cut=body["cut"],
    )


@rule("1 one call per sample")
def a_sample_is_one_call(case: Case) -> Iterator[str]:
    """What a worker sampled once is captured once."""
    owners: dict[int, Call] = {}
    for call in case.captured():
        if call.truth is None:
            continue
        other = owners.setdefault(id(call.truth), call)
        if other is not call:
            yield f"{call} and {other} are one sample of {call.truth.worker}"


# -- 2 to 5: every position of every trajectory ------------------------------------------


def _all_columns(case: Case) -> Iterator[tuple[Columns, str | None, bool]]:
    """Columns from everywhere, with the text that they mean and whether they end in their call."""
    for columns in case.run.watch.columns.values():
        yield columns, case.book.calls[columns.call].whole, True
    forest = case.run.state.forest
    for name, segment in forest.calls.items():
        found = trajectory(forest, segment)
        yield columns_of(found, source="in the end", call=name), None, True
    for delivered, columns in _deliveries(case):
        by_call = delivered.path.startswith("/trajectories/")
        if delivered.path == BY_MESSAGES:
            yield columns, None, False  # What messages stand for is told by rules of their own.
            continue
        call = case.book.calls.get(columns.call)
        whole = call.whole if by_call and call is not None else delivered.body.get("response")
        yield columns, whole, by_call


@rule("2 mask, logprobs, versions")
def every_position_is_explained(case: Case) -> Iterator[str]:
    """Mask 1 where, and only where, a model sampled this in this very trajectory."""
    for columns, text, ends in _all_columns(case):
        where = f"call {columns.call}, {columns.source}"
        size = len(columns.ids)
        if not size == len(columns.mask) == len(columns.logprobs) == len(columns.versions):
            continue  # Rule 1 has said so.
        yield from (f"{where}: {one}" for one in _unsampled_problems(columns))
        call = case.book.calls.get(columns.call)
        if call is not None and ends:
            yield from (f"{where}: {one}" for one in _own_answer_problems(columns, call))
        ways = case.book.explain(columns)
        if not ways:
            yield f"{where}: {_unexplained(case.book, columns)}"
            continue
        if columns.cut not in ways and not (columns.cut and _leaves_an_end(case, call)):
            yield f"{where}: said to be {'cut' if columns.cut else 'not cut'}, and is not so"
        is_text = call is not None and call.text is not None
        all_ways = [way for some in ways.values() for way in some]
        if text is not None and is_text and not _has_ids(case, call, all_ways):
            case.note("text of a trajectory")
            problems = [case.book.spelled(way, columns.ids, text) for way in all_ways]
            if all(problem is not None for problem in problems):
                yield f"{where}: {problems[0]}"
        if not any(columns.mask) and call is not None and call.answer_ids:
            yield f"{where}: an all-zero mask"


def _leaves_an_end(case: Case, call: Call | None) -> bool:
    """Whether a chat goes on with a turn of which its end was all that was sampled."""
    talk = None if call is None else case.talks.of.get(call.id)
    line = [] if talk is None else [*talk.lineage, talk]
    offers = [one.extends for one in line if one.extends is not None]
    return any(one.cuts and len(one.call.answer_ids) == 1 for one in offers)


def _unsampled_problems(columns: Columns) -> Iterator[str]:
    for place, bit in enumerate(columns.mask):
        told = columns.logprobs[place], columns.versions[place], columns.names[place]
        if bit not in (0, 1) or (not bit and told != (0.0, -1, None)):
            yield f"token {place} has mask {bit}, and {told}"
            return


def _own_answer_problems(columns: Columns, call: Call) -> Iterator[str]:
    """A twin's numbers would explain its columns as well; only its own are right."""
    start = call.start
    if list(columns.ids) != call.ids:
        yield f"ids {list(columns.ids)} instead of {call.ids}"
    elif list(columns.mask[start:]) != [1] * len(call.answer_ids):
        yield f"mask {list(columns.mask[start:])} for {len(call.answer_ids)} sampled tokens"
    elif list(columns.logprobs[start:]) != call.logprobs:
        yield f"logprobs {list(columns.logprobs[start:])} instead of {call.logprobs}"
    elif list(columns.names[start:]) != call.versions:
        yield f"versions {list(columns.names[start:])} instead of {call.versions}"


def _has_ids(case: Case, call: Call | None, ways: list[list[Piece]]) -> bool:
    """Whether ids of a client are in it: then text says nothing of them."""
    while call is not None and call.captured is not None:
        if call.from_ids:
            return True
        numbers = case.run.watch.numbers
        call = case.book.calls.get(numbers.get(call.captured.parent or 0, ""))
    return any(
        piece.call is not None and (piece.call.from_ids or piece.call.text is None)
        for way in ways
        for piece in way
    )


def _unexplained(book: Book, columns: Columns) -> str:
    """The longest beginning that can be explained, for the message."""
    low, high = 0, len(columns.ids)
    while low < high:
        middle = (low + high + 1) // 2
        if book.explain(_beginning(columns, middle)):
            low = middle
        else:
            high = middle - 1
    place = min(low, len(columns.ids) - 1)
    told = (
        columns.ids[place],
        columns.mask[place],
        columns.logprobs[place],
        columns.versions[place],
        columns.names[place],
    )
    return f"nobody sampled token {place} so, in this place: {told}"


def _beginning(columns: Columns, size: int) -> Columns:
    return Columns(
        source=columns.source,
        call=columns.call,
        ids=columns.ids[:size],
        mask=columns.mask[:size],
        logprobs=columns.logprobs[:size],
        versions=columns.versions[:size],
        names=columns.names[:size],
        cut=columns.cut,
    )


@rule("3 history is extended")
def known_history_is_extended(case: Case) -> Iterator[str]:
    """A prompt that goes on from captured answers begins with all ids of the deepest of them."""
    for call in case.book.calls.values():
        if call.text is None or call.truth is None or _is_extended_talk(case, call):
            continue
        offers = _offers(case, call)
        if not offers:
            continue
        owners = _owners(case, call)
        own = [one for one in offers if one in owners]
        if not own and any(_leaves(call, one) for one in owners):
            continue  # Its own answers stand above others' that reach farther.
        meant = own or offers
        depth = max(_depth(one, call.text) for one in meant)
        fitting = [one for one in meant if _depth(one, call.text) >= depth]
        named = [one for one in fitting if one.id == _named(case.book, call)]
        fitting = named or fitting
        deeper = [one for one in offers if _depth(one, call.text) > depth]
        case.note("history extended")
        if any(one.joint(call.text) for one in fitting):
            case.note("joint")
        if len(fitting) > 1:
            case.note("ambiguous twins")
        if not any(_extends(case, call, one) for one in [*fitting, *deeper]):
            if not _extends_a_cut(case, call, depth):
                yield (
                    f"{call} goes on from {fitting[-1]} and was sent {call.prompt_ids}, which does "
                    f"not begin with {fitting[-1].ids} sampled there"
                )
        elif (
            _named(case.book, call) is None
            # Where it goes on from there settles which of several it came through.
            and not any(_extends(case, call, one) for one in deeper)
            and not _comes_from_deeper(case, call, max(len(one.ids) for one in fitting))
            and _is_unclear(call, fitting, own)
            and "parent_ambiguous" not in _flags(call)
        ):
            yield f"{call} may extend any of {[one.id for one in fitting]} and does not say so"


def _is_extended_talk(case: Case, call: Call) -> bool:
    """Whether it is a chat that was found by its messages, which other rules are about."""
    talk = case.talks.of.get(call.id)
    return talk is not None and talk.extends is not None


def _offers(case: Case, call: Call) -> list[Call]:
    """Kept answers that run through the prompt's text to their end."""
    assert call.text is not None
    offers, owners, named = [], _owners(case, call), _named(case.book, call)
    for one in case.book.calls.values():
        if one.whole is None or not one.answer_ids or not one.is_kept_at(call.opened_at):
            continue
        if not case.book.same_tree(one.encoding, call.encoding) or not call.text.startswith(
            one.whole
        ):
            continue
        joint = one.joint(call.text)
        unseen = one.is_partial and one.endings and not joint
        goes_on = one in owners and len(one.whole) < len(call.text)
        if (one.shown or joint or one.id == named or goes_on) and not unseen:
            offers.append(one)
    return offers


def _depth(one: Call, text: str) -> int:
    return len(one.whole or "") + one.joint(text)


def _named(book: Book, call: Call) -> str | None:
    """The call that its request names as parent, by its id or by an alias."""
    name = None if call.ask is None else call.ask.parent
    if name is None or name in book.calls:
        return name
    known = [
        one.id
        for one in book.calls.values()
        if one.captured is not None and name in one.captured.answer.aliases
    ]
    return known[0] if len(known) == 1 else None


def _owners(case: Case, call: Call) -> list[Call]:
    """The kept answers that a client calls its own: its session's, else the one it names."""
    kept = [one for one in case.captured() if one.is_kept_at(call.opened_at)]
    own = [one for one in kept if call.session is not None and one.session == call.session]
    return own or [one for one in kept if one.id == _named(case.book, call)]


def _is_own(case: Case, one: Call, call: Call) -> bool:
    return any(own is one for own in _owners(case, call))


def _leaves(call: Call, one: Call) -> bool:
    """Whether the prompt leaves that answer midway, or may."""
    if call.text is None or one.whole is None or one.text is None:
        return True
    return common(call.text, one.whole) > len(one.text)


def _extends(case: Case, call: Call, one: Call) -> bool:
    """Whether the worker was sent all of ``one``, and its values are in the trajectory."""
    end = len(one.ids)
    if call.prompt_ids[:end] != one.ids:
        return False
    told = case.run.watch.columns.get(call.id)
    if told is None:
        return True
    same = list(told.logprobs[one.start : end]) == one.logprobs
    return same and list(told.names[one.start : end]) == one.versions


def _comes_from_deeper(case: Case, call: Call, tokens: int) -> bool:
    """Whether the answer that was extended had itself begun behind so many tokens."""
    if call.captured is None or call.captured.parent is None:
        return False
    parent = case.book.calls.get(case.run.watch.numbers.get(call.captured.parent, ""))
    return parent is not None and parent.start >= tokens


def _extends_a_cut(case: Case, call: Call, depth: int) -> bool:
    """Whether the prompt leaves some other answer midway, farther on; its own, as far."""
    assert call.text is not None
    owners = _owners(case, call)
    for one in case.book.calls.values():
        if one.whole is None or one.text is None or not one.is_kept_at(call.opened_at):
            continue
        reached = common(call.text, one.whole)
        is_far = reached >= depth if one in owners else reached > depth
        if is_far and reached > len(one.text):
            _, kept = wholly_before(
                case.run.tokens.vocabulary, one.answer_ids, one.shown, reached - len(one.text)
            )
            end = one.start + kept
            while kept and end > one.start:
                if call.prompt_ids[:end] == one.ids[:end]:
                    return True
                end -= 1
    return any(
        one.text is None and one.answer_ids and call.prompt_ids[: len(one.ids)] == one.ids
        for one in case.book.calls.values()
    )


def _is_unclear(call: Call, fitting: list[Call], own: list[Call]) -> bool:
    """Several equal answers, and nothing that tells which is meant."""
    twins = [one for one in fitting if one.whole == fitting[-1].whole and one.shown]
    if call.exchange is None or call.exchange.status != 200 or "cut" in _flags(call):
        return False  # Of a refusal's head no flags are expected; a cut lies deeper than twins.
    if len(twins) < 2:
        return False
    return not own or len([one for one in twins if one in own]) > 1


def _flags(call: Call) -> tuple[str, ...]:
    return () if call.exchange is None else call.exchange.flags


_BY_WORKERS: Final = ("refused", "prefill_error", "decode_error")
"""Why a call was lost that a worker refused, or one side of a pair: a fault of the run."""


@rule("4 never an error")
def history_is_never_an_error(case: Case) -> Iterator[str]:
    """The router refuses what is malformed, and no well-formed request for its history."""
    for exchange, calls in case.exchanges():
        refused = exchange.status is not None and 400 <= exchange.status < 500
        if exchange.ask.malformed is not None:
            if exchange.status is not None and not refused:
                yield f"exchange {exchange.number} ({exchange.ask.malformed}): {exchange.status}"
        elif (
            refused
            and all(call.truth is None for call in calls)
            and any(call.lost is None or call.lost.reason not in _BY_WORKERS for call in calls)
        ):
            yield f"exchange {exchange.number} was refused: {exchange.error}"


@rule("4 cuts")
def cuts_keep_the_tokens_before_them(case: Case) -> Iterator[str]:
    """A prompt that leaves an answer midway keeps the tokens wholly before, says so, and is
    served."""
    for call in case.book.calls.values():
        left = _left_midway(case, call)
        served = call.exchange is not None and call.exchange.status == 200
        if left is None or not served or "parent_ambiguous" in _flags(call):
            continue  # Of several that it leaves at this place, it says, another may be meant.
        assert call.text is not None
        assert left.text is not None
        chars = common(call.text, left.text + left.shown) - len(left.text)
        vocabulary = case.run.tokens.vocabulary
        least, most = wholly_before(vocabulary, left.answer_ids, left.shown, chars)
        while least and vocabulary.is_special(left.answer_ids[least - 1]):
            least -= 1  # A token that was not shown lies on neither side of the cut.
        if not least:
            continue
        case.note("cut")
        if call.prompt_ids[: left.start + least] != left.ids[: left.start + least]:
            yield f"{call} leaves {left} after {least} tokens and was sent {call.prompt_ids}"
        told = case.run.watch.columns.get(call.id)
        kept = left.start + most
        nearer = any(_depth(one, call.text) > len(left.text) for one in _offers(case, call))
        if told is not None and kept < len(left.ids) and not nearer:
            if not all(told.mask[left.start : left.start + least]):
                yield f"{call} leaves {left} after {least} tokens, and its mask says otherwise"
            if "cut" not in _flags(call):
                yield f"{call} leaves {left} midway and does not say so"


def _left_midway(case: Case, call: Call) -> Call | None:
    """The answer that this prompt surely leaves midway: the client's own, or nobody's is nearer."""
    ask = call.ask
    if ask is None or ask.meant is not Kind.CUT or ask.after is None:
        return None
    if call.text is None or call.truth is None or _is_extended_talk(case, call):
        return None
    before = case.story.exchanges[ask.after].calls
    left = case.book.calls.get(before[ask.after_sample]) if before else None
    if left is None or left.whole is None or not left.is_kept_at(call.opened_at):
        return None
    if not case.book.same_tree(left.encoding, call.encoding):
        return None
    assert left.text is not None
    reached = common(call.text, left.whole)
    inside = len(left.text) < reached < len(left.whole)
    if not inside or _has_longer(case, call, left):
        return None
    return left if _is_own(case, left, call) or not _owners(case, call) else None


def _has_longer(case: Case, call: Call, left: Call) -> bool:
    """Whether another known text, as much the client's own, goes on farther with the prompt's."""
    assert call.text is not None
    assert left.whole is not None
    reached = common(call.text, left.whole)
    is_own = _is_own(case, left, call)
    return any(
        other is not left
        and other is not call
        and other.opened_at < call.opened_at
        and (not is_own or _is_own(case, other, call))
        and (other.text is None or common(call.text, other.whole or "") > reached)
        for other in case.book.calls.values()
    )


# -- 6: the order of commits -------------------------------------------------------------


@rule("6 order of commits")
def the_order_of_commits_does_not_matter(case: Case) -> Iterator[str]:
    """Captures of concurrent calls that change places make the same forest."""
    journal = [entry.fact for entry in case.story.journal]
    try:
        other = swapped(journal, case.run.journal_state)
    except SlimeError as error:
        yield f"with neighbouring captures swapped the journal cannot be applied: {error}"
        return
    if other is None:
        return
    case.note("order of commits")
    mine, theirs = view(case.run.state), view(other)
    for call in mine.keys() | theirs.keys():
        if mine.get(call) != theirs.get(call):
            yield f"call {call} is {mine.get(call)}, in another order {theirs.get(call)}"


# -- 7: nothing is lost silently ---------------------------------------------------------


@rule("7 calls end once")
def calls_end_exactly_once(case: Case) -> Iterator[str]:
    """Each call that was opened was captured or lost, and nothing after that."""
    for call in case.book.calls.values():
        if call.ends != 1:
            yield f"{call} ended {call.ends} times"


@rule("7 losses are counted")
def losses_have_a_reason(case: Case) -> Iterator[str]:
    """A call whose worker sampled is captured, or lost with a word, and told as sampled."""
    for call in case.book.calls.values():
        lost, truth = call.lost, call.truth
        if lost is None:
            continue
        if not lost.reason:
            yield f"{call} was lost without a reason"
        if truth is None or not truth.ids or not truth.wire or lost.sampled:
            continue
        # Who refuses tells no tokens, unless the status is a lie.
        if lost.reason != "refused" or (truth.told and truth.lies is None):
            yield f"{call} was lost ({lost.reason}) as if nothing had been sampled"


@rule("7 missing history is said")
def missing_history_is_said(case: Case) -> Iterator[str]:
    """A prompt that goes on from an answer that went is served, and says what it lacks."""
    for call in case.book.calls.values():
        if call.text is None or call.exchange is None or call.exchange.status != 200:
            continue
        if _is_extended_talk(case, call):
            continue
        depth = max((_depth(one, call.text) for one in _offers(case, call)), default=0)
        for one in case.captured():
            went = one.gone_at is not None and one.gone_at < call.opened_at
            if not went or not one.shown or one.whole is None or "cut" in _flags(call):
                continue
            lacks = len(one.whole) > depth and call.text.startswith(one.whole)
            # Of several that ended so, one reason is remembered.
            if lacks and not any(flag.startswith("history_") for flag in _flags(call)):
                yield f"{call} goes on from {one}, which was {one.gone_for}, and does not say so"
            if lacks:
                case.note("missing history")


@rule("7 counters")
def counters_add_up(case: Case) -> Iterator[str]:
    """The router's totals are those of its facts."""
    journal = [entry.fact for entry in case.story.journal]
    lookups = [fact for fact in journal if isinstance(fact, Lookup)]
    gone = [fact for fact in journal if isinstance(fact, SegmentsGone)]
    withdrawn = sum(1 for fact in journal if isinstance(fact, AnswerWithdrawn))
    calls = case.book.calls.values()
    lost = [call.lost for call in calls if call.lost is not None]
    counters = case.run.state.counters
    expected = {
        "lookups": len(lookups),
        "hits": sum(1 for fact in lookups if fact.reused),
        "prompt_tokens": sum(fact.tokens for fact in lookups),
        "reused_tokens": sum(fact.reused for fact in lookups),
        "calls_opened": len(calls),
        "calls_captured": len(case.captured()),
        "calls_lost": len(lost) + withdrawn,
        "answers_not_captured": sum(1 for fact in lost if fact.sampled) + withdrawn,
        "segments_evicted": sum(len(one.segments) for one in gone if one.reason == "evicted"),
        "segments_collected": sum(len(one.segments) for one in gone if one.reason == "collected"),
        "answers_lost_unretrieved": case.run.watch.unretrieved_gone,
        "retrievals": sum(1 for fact in journal if isinstance(fact, Retrieved)),
    }
    for name, value in expected.items():
        if getattr(counters, name) != value:
            yield f"{name} is {getattr(counters, name)}, and should be {value}"


@rule("7 a word for what is gone")
def retrievals_say_a_word(case: Case) -> Iterator[str]:
    """Asking for a call gives it, or says truly what became of it."""
    for one in case.story.delivered:
        name = _asked_call(one)
        call = case.book.calls.get(name) if name is not None else None
        if call is None:
            if one.status not in (200, 400, 404, 409, 410, 501):
                yield f"retrieval {one.at} ({one.path}) was answered {one.status}: {one.body}"
            continue
        # What became of it meanwhile may be said, or not.
        begun = one.begun_at or one.at
        moments = [begun, one.at]
        if call.ended_at is not None and begun < call.ended_at < one.at:
            moments.append(call.ended_at)
        right = [_became(call, moment) for moment in moments]
        if one.path.startswith("/trajectories/") and (one.status, _code(one)) not in right:
            yield (
                f"retrieval {one.at} of {call} was answered {one.status} {_code(one)!r}, "
                f"which should be {right}"
            )


def _asked_call(one: Delivered) -> str | None:
    if one.path.startswith("/trajectories/"):
        return one.path.removeprefix("/trajectories/")
    named = one.asked.get("id")
    return named if isinstance(named, str) else None


def _became(call: Call, at: int) -> tuple[int, str]:
    if call.ended_at is None or call.ended_at > at:
        return 409, "in_flight"
    if call.lost is not None:
        return 410, call.lost.reason
    if call.gone_at is not None and call.gone_at < at:
        return 410, call.gone_for
    return 200, ""


def _code(one: Delivered) -> str:
    if one.status == 200:
        return ""
    error = one.body.get("error", one.body)
    return str(error.get("code")) if isinstance(error, dict) else str(error)


@rule("7 known text is found")
def known_text_is_found(case: Case) -> Iterator[str]:
    """A text that ends with a kept answer is retrieved; one whose answer went says so."""
    for one in case.story.delivered:
        text = one.asked.get("text")
        if one.path != "/retrieve_from_text" or not isinstance(text, str) or "id" in one.asked:
            continue
        ends = [call for call in case.captured() if call.whole == text and call.shown]
        kept = [call for call in ends if call.is_kept_at(one.at) and call.shown]
        went = [call for call in ends if call.gone_at is not None and call.gone_at < one.at]
        if kept and one.status != 200 and not went:
            yield f"retrieval {one.at}: {kept[0]} ends so, and the answer is {one.body}"
        if one.status == 200 and ends and not kept and not any(one.body["loss_mask"]):
            yield f"retrieval {one.at}: the answer is gone, and nothing says so"
        if not kept and went and one.status == 404:
            yield f"retrieval {one.at}: {went[0]} ends so and went, and the answer is {one.body}"


@rule("7 not captured is said")
def what_is_not_captured_is_said(case: Case) -> Iterator[str]:
    """An answer that could not be captured says so; one that was captured does not."""
    for exchange, calls in case.exchanges():
        if exchange.status != 200 or exchange.ending is not Ending.COMPLETE or not calls:
            continue
        said = exchange.headers.get("x-slime-captured") == "false"
        said = said or b": x-slime-captured: false" in bytes(exchange.body)
        lost = [call for call in calls if call.captured is None]
        if bool(lost) is not said:
            yield (
                f"exchange {exchange.number} says {'' if said else 'not '}that it was not "
                f"captured; lost are {[call.id for call in lost]}"
            )


# -- 8: committed first ------------------------------------------------------------------


@rule("8 commit before telling")
def turns_are_committed_before_they_are_told(case: Case) -> Iterator[str]:
    """No byte tells that an answer is complete before it is kept, or counted as lost."""
    for exchange, calls in case.exchanges():
        for call in calls:
            ended = call.ended_at
            got = exchange.samples[call.sample] if call.sample < len(exchange.samples) else None
            told = [None if got is None else got.told_at]
            if exchange.ending is Ending.COMPLETE:
                told.append(exchange.last_byte_at)
            for at in told:
                if at is not None and (ended is None or ended > at):
                    yield f"{call} was told at {at} and committed at {ended}"


# -- 9: nobody is believed, nobody is mixed up -------------------------------------------


@rule("9 sessions")
def calls_belong_to_their_session(case: Case) -> Iterator[str]:
    """A call is its own request's: in its session, named in one head only."""
    for exchange, calls in case.exchanges():
        for call in calls:
            if call.session != exchange.ask.session:
                yield f"{call} is in session {call.session!r}, asked in {exchange.ask.session!r}"
    for call in case.book.calls.values():
        told = call.exchanges
        if told and call.opened_at < min(one.asked_at for one in told) and not _is_shared(told):
            yield f"{call} was opened before its request"


@rule("9 retries")
def answers_are_shared_with_evidence_only(case: Case) -> Iterator[str]:
    """Several requests are given one answer only if they are attempts of one request, which they
    prove, and then the very same."""
    for call in case.book.calls.values():
        told = sorted(call.exchanges, key=lambda one: one.asked_at)
        if len(told) < 2 or call.sample:
            continue
        case.note("answer shared")
        first = told[0]
        for other in told[1:]:
            if not _may_share(first, other):
                yield f"{call} was given to exchange {other.number} as well, without evidence"
            if other.status == first.status == 200 and not {first.retry, other.retry} - {None}:
                yield f"exchanges {first.number} and {other.number} share {call} and do not say so"
            if not _agree(bytes(first.body), bytes(other.body)):
                yield f"exchanges {first.number} and {other.number} share {call}, and differ"


def _is_shared(told: list[Exchange]) -> bool:
    """Whether an attempt that saw no head may have been the first."""
    return any(one.retry is not None for one in told)


def _may_share(first: Exchange, other: Exchange) -> bool:
    """The same request in the same session, with a key, a count, or after a lost reply."""
    left, right = first.ask, other.ask
    if (left.path, left.body, left.session) != (right.path, right.body, right.session):
        return False
    keys = {dict(ask.headers).get("Idempotency-Key") for ask in (left, right)}
    counts = [dict(ask.headers).get("x-stainless-retry-count", "0") for ask in (left, right)]
    lost = left.session is not None and Ending.COMPLETE not in (first.ending, other.ending)
    lost = lost or (left.session is not None and first.ending in (Ending.LEFT, Ending.BROKEN))
    return (len(keys) == 1 and None not in keys) or any(one != "0" for one in counts) or lost


def _agree(left: bytes, right: bytes) -> bool:
    """Whether one is the beginning of the other, comments of keep-alive left out."""
    texts = [re.sub(rb"(?m)^:[^\n]*(\n\n|\Z)", b"", one) for one in (left, right)]
    size = min(map(len, texts))
    return texts[0][:size] == texts[1][:size]


@rule("9 nothing forged")
def versions_come_from_workers(case: Case) -> Iterator[str]:
    """No version is told that no worker sampled with (or falsely told)."""
    true: set[str | None] = {None}
    for sampled in case.story.sampled:
        true |= {*sampled.versions, *(sampled.claimed_versions or ())}
    for columns, _, _ in _all_columns(case):
        forged = set(columns.names) - true
        if forged:
            yield f"call {columns.call}, {columns.source}: versions {sorted(map(str, forged))}"


def _is_refused(one: Sampled) -> bool:
    """Whether the worker had no room for it, or for another prompt of its list: that is told with
    a status of its own, and no token."""
    return not one.told and one.wire.startswith(b'{"object":"error"') and b'"code":503' in one.wire


# -- 10: workers and quiescence ----------------------------------------------------------


@rule("10 quiescence")
def everything_is_given_back(case: Case) -> Iterator[str]:
    """At the end nothing is in flight, open, pinned, or kept for nobody; everything fits."""
    state = case.run.state
    if case.run.watch.fleet.occupied or state.fleet.total_in_flight:
        yield f"slots are still taken: {case.run.watch.fleet.occupied}"
    if state.open_calls:
        yield f"calls are still open: {list(state.open_calls)}"
    for one in state.forest.segments.values():
        if one.pins or one.unanswered:
            yield f"segment {one.number} is still {'pinned' if one.pins else 'kept for a call'}"
    gone = next_gone(state, case.run.knobs.limits())
    if gone is not None and not state.open_calls:
        yield f"more is kept than may be: {gone} is still there"


@rule("10 no second attempt")
def calls_reach_one_worker_once(case: Case) -> Iterator[str]:
    """No generation is asked for twice once a byte of the first has come back."""
    arrived: dict[object, list[Sampled]] = {}
    for sampled in case.story.sampled:
        # Several samples of a request have ids of the worker's making; its exchange they tell.
        is_told = sampled.exchange is not None
        key = (sampled.exchange, sampled.place) if is_told else sampled.rid
        arrived.setdefault(key, []).append(sampled)
    for several in arrived.values():
        if any(one.wire and not _is_refused(one) for one in several[:-1]):
            yield f"{several[0].rid} was sent to {[one.worker for one in several]}"


# -- 11: replay --------------------------------------------------------------------------


@rule("11 replay")
def the_journal_replays(case: Case) -> Iterator[str]:
    """The journal makes the same state again."""
    state = case.run.journal_state()
    try:
        for entry in case.story.journal:
            state.apply(entry.fact)
    except SlimeError as error:
        yield f"the journal cannot be replayed: {error}"
        return
    if state.digest() != case.run.state.digest():
        yield "the journal makes another state"
    try:
        case.run.state.check()
    except SlimeError as error:
        yield f"{error}"


# -- what clients receive ----------------------------------------------------------------


@rule("client bytes")
def clients_receive_what_workers_sent(case: Case) -> Iterator[str]:
    """A native answer is the worker's, event by event; logprobs may be missing, nothing else."""
    for exchange, calls in case.exchanges():
        wires = {id(call.truth.wire): call.truth for call in calls if call.truth is not None}
        if any(is_unsent(call) for call in calls):
            continue
        if exchange.status != 200 or exchange.ask.path != "/generate" or len(wires) != 1:
            continue
        wire, body = bytes(next(iter(wires.values())).wire), bytes(exchange.body)
        if exchange.headers.get("content-type", "").startswith("text/event-stream"):
            case.note("stream")
            yield from _stream_problems(exchange, events_of(body), events_of(wire))
        elif (
            exchange.ending is Ending.COMPLETE
            and not events_of(body)
            and without_logprobs(body) != without_logprobs(wire)
        ):
            yield f"exchange {exchange.number} got {body!r}, the worker sent {wire!r}"


def _stream_problems(exchange: Exchange, got: list[bytes], sent: list[bytes]) -> Iterator[str]:
    for place, event in enumerate(got):
        last = place == len(got) - 1
        if place < len(sent) and without_logprobs(event) == without_logprobs(sent[place]):
            continue
        if last and _is_error(event):
            continue
        yield f"exchange {exchange.number}: event {place} is {event!r}, not the worker's"
        return


def _is_error(event: bytes) -> bool:
    value = without_logprobs(event)
    return isinstance(value, dict) and value.get("error") is not None


@rule("bounded buffers")
def a_slow_reader_holds_its_worker_up(case: Case) -> Iterator[str]:
    """While an agent reads nothing, no more of its stream is read than a few events.

    One waits in the server's hands, one in the relay's, and one may have been read in part. Of a
    native stream, that is: in other dialects an event may have nothing to tell.
    """
    for number, (ahead, longest) in case.story.read_ahead.items():
        ask = case.story.exchanges[number].ask
        if not ask.stream or ask.path != "/generate":
            continue
        case.note("reader that holds up")
        most = _AHEAD + (1 if _is_recorded(ask) else 0)
        if ahead > most * longest + _FRAMING_BYTES:
            yield f"exchange {number}: {ahead} bytes were read ahead, of events of {longest}"


def _is_recorded(ask: Ask) -> bool:
    """Whether a retry may share its answer, which is then one event farther from its client."""
    names = {name.lower() for name, _ in ask.headers}
    return ask.session is not None or bool(names & {"idempotency-key", "x-stainless-retry-count"})


_AHEAD: Final = 3
"""Events between a worker and a client that reads nothing; see the rule."""

_FRAMING_BYTES: Final = 512
"""What HTTP and keep-alive comments add to an event."""


_QUEUE_ABORT: Final = "Abort in waiting queue"


@rule("client text")
def clients_see_what_was_sampled(case: Case) -> Iterator[str]:
    """What a client saw of a sample is a beginning of it, and all of it if it ended well."""
    for exchange, calls in case.exchanges():
        if exchange.status != 200 or exchange.ask.path == CHAT:
            continue
        for call in calls:
            truth = call.truth
            if truth is None or truth.lies is not None or call.sample >= len(exchange.samples):
                continue
            got = exchange.samples[call.sample]
            if (got.finish or {}).get("message") == _QUEUE_ABORT and got.ids is not None:
                continue  # SGLang tells all of the text again, and the last id
            whole = exchange.ending is Ending.COMPLETE
            if not truth.text.startswith(got.text) and truth.finish is not None:
                yield f"{call} was shown {got.text!r}, sampled {truth.text!r}"
            elif whole and (got.text != truth.text or got.finish is None):
                yield f"{call} ended well with {got.text!r} of {truth.text!r} ({got.finish})"
            if got.ids is not None and got.ids != truth.ids[: len(got.ids)]:
                yield f"{call} was shown the ids {got.ids}, sampled {truth.ids}"


@rule("liveness")
def everything_ends(case: Case) -> Iterator[str]:
    """Every exchange has an ending, and the harness found nothing wrong."""
    yield from case.story.complaints
    for exchange in case.story.exchanges:
        if exchange.ending is Ending.OPEN:
            yield f"exchange {exchange.number} of {exchange.agent} never ended"
        if _says(exchange, "internal_error"):
            yield f"exchange {exchange.number} met a bug: {exchange.error}"


def _says(exchange: Exchange, code: str) -> bool:
    return code in json.dumps(exchange.error)


# -- the world itself --------------------------------------------------------------------


@rule("the world's own logprobs")
def logprobs_are_the_models(case: Case) -> Iterator[str]:
    """What workers say they sampled with is what the language model gives: first, middle, last."""
    tokens = case.run.tokens
    sampler = Sampler(tokens.language, end_ids=tokens.end_ids)
    for sampled in case.story.sampled:
        sizes = {len(sampled.ids), len(sampled.logprobs), len(sampled.versions)}
        if len(sizes) > 1:
            yield f"{sampled.rid} at {sampled.worker}: columns of {sorted(sizes)} tokens"
            continue
        params = _params(sampled.params, tokens)
        for place in _some(len(sampled.ids)):
            context = [*sampled.prompt_ids, *sampled.ids[:place]]
            expected = float32(
                sampler.logprob(
                    context,
                    sampled.ids[place],
                    params,
                    sampled.ids[:place],
                    sampled.versions[place],
                )
            )
            if sampled.logprobs[place] != expected:
                yield f"{sampled.rid}, token {place}: {sampled.logprobs[place]}, not {expected}"


def _params(raw: dict[str, Any], tokens: Tokens) -> SamplingParams:
    return parse_sampling_params(raw, vocabulary_size=len(tokens.vocabulary))


def _some(size: int) -> Iterable[int]:
    return sorted({0, size // 2, size - 1}) if size else ()


# The rules of chat and of sessions register themselves.
from tests.simulate import oracles_chat as _chat  # noqa: E402, F401
from tests.simulate import oracles_fleet as _fleet  # noqa: E402, F401
from tests.simulate import oracles_sessions as _sessions  # noqa: E402, F401
from tests.simulate.control import rules as _control  # noqa: E402, F401
