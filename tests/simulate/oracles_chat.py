"""The rules of chat: what a conversation goes on from, and what may be written behind it.

As :mod:`tests.simulate.oracles`, of whose list they are a part; what a chat extends is told by
:mod:`tests.simulate.naive_chat`.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.simulate.cases import Case, rule
from tests.simulate.messages import call_ids
from tests.simulate.naive import Call, Columns
from tests.simulate.naive_chat import Offer, Talk
from tests.simulate.story import Ending, Exchange

__all__: list[str] = []


@rule("3 chat is extended")
def known_conversations_are_extended(case: Case) -> Iterator[str]:
    """A chat that repeats what an agent was given goes on behind those very ids, with nothing but
    what the template writes for the new messages behind them."""
    for talk in _sent(case):
        if case.history != "exact" and not talk.chat.continues:
            continue
        if not talk.sure:
            continue
        case.note("conversation extended")
        if talk.chat.continues:
            case.note("answer continued")
        if talk.extends is None and _is_deeper_by_text(talk):
            case.note("deeper by text")
        elif talk.extends is None:
            offer = talk.sure[-1]
            yield (
                f"{talk.call} goes on from {offer.call} and was sent {talk.call.prompt_ids}, not "
                f"{offer.ids}"
            )
        elif talk.extends.place < talk.sure[0].place:
            nearer = talk.sure[-1].call
            yield f"{talk.call} goes on from {talk.extends.call}, and {nearer} is nearer"


def _is_deeper_by_text(talk: Talk) -> bool:
    """Whether a branch, or the beginning of a message that is to be gone on with, was found
    farther on by its text than by its messages."""
    fact, depth = talk.call.captured, max(len(one.call.ids) for one in talk.sure)
    may_be = talk.last_answer > talk.sure[0].place or talk.chat.continues
    return may_be and (fact is None or fact.token_start > depth)


@rule("3 chat twins")
def of_twins_the_right_one_is_extended(case: Case) -> Iterator[str]:
    """Of answers that look alike: the named one, else the one whose ids of calls are repeated, else
    the session's own. Where nothing tells, it is said."""
    for talk in _sent(case):
        if case.history != "exact" or talk.extends is None or not talk.sure:
            continue
        if talk.extends.place != talk.sure[0].place:
            continue
        told = case.run.watch.columns.get(talk.call.id)
        if told is None:
            continue
        _note_twins(case, talk)
        names = [one.call.id for one in talk.sure]
        right = [one for one in talk.sure if _runs_through(told, one)]
        beside = case.talks.beside(talk)
        says = "parent_ambiguous" in _flags(talk.call) or not _is_served(talk.call)
        if not right and not any(_runs_through(told, one) for one in beside):
            yield f"{talk.call} extends none of {names}"
        elif len(talk.sure) > 1 and not beside and not says:
            yield f"{talk.call} may extend any of {names} and does not say so"
        elif len(talk.sure) == 1 and _is_unclear(talk) and not case.talks.rivals(talk):
            yield f"{talk.call} can extend nothing but {names}, and is said to be ambiguous"


def _is_unclear(talk: Talk) -> bool:
    return _is_served(talk.call) and "parent_ambiguous" in _flags(talk.call)


def _note_twins(case: Case, talk: Talk) -> None:
    if len(talk.sure) > 1:
        case.note("ambiguous turns")
    answer = None if talk.sure[0].talk is None else talk.sure[0].talk.answer
    if answer is not None and call_ids(answer) and len(case.talks.alike(talk)) > len(talk.sure):
        case.note("twins told apart")


def _runs_through(told: Columns, offer: Offer) -> bool:
    """Whether a trajectory has the values of what is offered."""
    call = offer.call
    end = len(call.ids) - offer.cuts
    size = end - call.start
    same = list(told.logprobs[call.start : end]) == call.logprobs[:size]
    return same and list(told.names[call.start : end]) == call.versions[:size]


@rule("3 chat is written as the template does")
def prompts_are_what_the_template_writes(case: Case) -> Iterator[str]:
    """What extends nothing is the whole rendering; content forges no control token in it."""
    for talk in _sent(case):
        if talk.rendered is None:
            continue
        case.note("conversation rendered")
        if talk.rendered.hidden:
            case.note("content that spells control")
        told = case.run.watch.columns.get(talk.call.id)
        sent = talk.call.prompt_ids
        if told is None:
            continue
        forged = _forged(case, told, talk)
        if forged:
            yield f"{talk.call} was sent control tokens that the template never wrote: {forged}"
        # Thoughts that a client dropped are put back before they are rendered.
        is_plain = case.history == "exact" and (talk.last_answer < 0 or not talk.chat.continues)
        is_new = not any(told.mask[: talk.call.start])
        if is_new and is_plain and sent != talk.rendered.ids:
            yield f"{talk.call} was sent {sent}, the template writes {talk.rendered.ids}"


def _forged(case: Case, told: Columns, talk: Talk) -> list[str]:
    """Markers of turns that stand in a prompt, unsampled, more often than the template wrote."""
    assert talk.rendered is not None
    tokens = case.run.tokens
    unsampled = [
        token for token, bit in zip(told.ids[: talk.call.start], told.mask, strict=False) if not bit
    ]
    markers = [(text, tokens.id_of(text)) for text in tokens.template.markers]
    return [text for text, id in markers if unsampled.count(id) > talk.rendered.ids.count(id)]


@rule("4 branches are said")
def branches_are_said(case: Case) -> Iterator[str]:
    """A chat with an assistant's turn that is not continued exactly says that it is a branch."""
    for talk in _sent(case):
        if not _is_served(talk.call):
            continue
        says, last = "branch" in _flags(talk.call), talk.last_answer
        told = case.run.watch.columns.get(talk.call.id)
        if talk.extends is not None and talk.extends.place >= last and case.history == "exact":
            if says and talk.extends in talk.sure:
                yield f"{talk.call} extends {talk.extends.call}, and is said to be a branch"
        elif last >= 0 and _is_new(talk, told) and not says:
            yield f"{talk.call} begins a branch, and does not say so"
        if says:
            case.note("branch said")


def _is_new(talk: Talk, told: Columns | None) -> bool:
    """Whether nothing of its prompt was known to be an answer."""
    return talk.extends is None and told is not None and not any(told.mask[: talk.call.start])


@rule("client messages")
def clients_see_what_was_said(case: Case) -> Iterator[str]:
    """Whatever a chat's client was given was sampled, in this order; with nothing left to parse,
    all of it."""
    for exchange, calls in case.exchanges():
        if exchange.ask.chat is None or exchange.status != 200:
            continue
        for call in calls:
            if call.truth is not None and call.truth.lies is None:
                yield from _message_problems(case, exchange, call)


def _message_problems(case: Case, exchange: Exchange, call: Call) -> Iterator[str]:
    got = exchange.samples[call.sample] if call.sample < len(exchange.samples) else None
    if got is None or got.message is None or call.truth is None:
        return
    vocabulary = case.run.tokens.vocabulary
    # Without the stop token, which may have made a character of bytes that are shown as none.
    wholes = [
        vocabulary.decode(ids, skip_special=False, at_start=False)
        for ids in (call.truth.ids, _untrimmed(call))
    ]
    message = got.message
    arguments = [one["function"]["arguments"] for one in message.get("tool_calls") or ()]
    if arguments:
        case.note("tool calls")
    if message.get("reasoning_content"):
        case.note("reasoning")
    for part in (message.get("reasoning_content"), message.get("content"), *arguments):
        if part and not any(_within(part, whole) for whole in wholes):
            yield f"{call} was shown {part!r}, and sampled {wholes[0]!r}"
    if exchange.ending is Ending.COMPLETE and got.finish is None:
        yield f"{call} ended well without a finish reason"
    told = [message.get("reasoning_content") or "", message.get("content") or "", *arguments]
    matched = (call.truth.finish or {}).get("matched")
    is_plain = case.run.tokens.template.name == "plain" and not isinstance(matched, str)
    if is_plain and exchange.ending is Ending.COMPLETE and "".join(told) != _visible(case, call):
        yield f"{call} was shown {told} of {_visible(case, call)!r}"


def _visible(case: Case, call: Call) -> str:
    """What is shown of an answer in which there is nothing to parse, and that no string ended."""
    assert call.ask is not None
    ids = _untrimmed(call)
    vocabulary = case.run.tokens.vocabulary
    if not call.ask.body.get("skip_special_tokens", True):
        return vocabulary.decode(ids, skip_special=False, at_start=False)
    # Bytes on both sides of a token that is left out make no character together.
    runs: list[list[int]] = [[]]
    for token in ids:
        if vocabulary.is_special(token):
            runs.append([])
        else:
            runs[-1].append(token)
    return "".join(vocabulary.decode(run, skip_special=False, at_start=False) for run in runs)


def _untrimmed(call: Call) -> list[int]:
    """What was sampled, without the token that stopped it where that is left out."""
    assert call.truth is not None
    assert call.ask is not None
    ids = list(call.truth.ids)
    matched = (call.truth.finish or {}).get("matched")
    if not call.ask.body.get("no_stop_trim") and ids and ids[-1] == matched:
        ids.pop()
    return ids


def _within(part: str, whole: str) -> bool:
    """Whether the characters of ``part`` come in ``whole`` in their order."""
    rest = iter(whole)
    return all(character in rest for character in part)


def _sent(case: Case) -> Iterator[Talk]:
    """Chats that a worker was given."""
    for talk in case.talks.of.values():
        if talk.call.truth is not None:
            yield talk


def _flags(call: Call) -> tuple[str, ...]:
    return () if call.exchange is None else call.exchange.flags


def _is_served(call: Call) -> bool:
    return call.exchange is not None and call.exchange.status == 200
