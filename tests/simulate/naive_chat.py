"""What chats go on from, found the plain way: every conversation is compared with every other.

A *talk* is a chat call with its conversation and the message that its client was given. Which one
a prompt extends is found by comparing messages (:mod:`tests.simulate.messages`), what must stand
behind it by writing the new messages with the template (:mod:`tests.simulate.writing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from slime_core.segments import Outcome
from tests.simulate.messages import alike, call_ids, joined, reasoning_of, verbatim
from tests.simulate.naive import Book, Call
from tests.simulate.story import Chat
from tests.simulate.tokens import Tokens
from tests.simulate.writing import Written, written, written_behind

__all__ = ["Offer", "Talk", "Talks"]

Message = dict[str, Any]


@dataclass(kw_only=True, eq=False)
class Talk:
    """One chat call. ``history`` are the messages before its answer, ``sampled`` says which of them
    are answers that it extends; ``answer`` is its own, where its client was surely given it."""

    call: Call
    chat: Chat
    history: list[Message] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    answer: Message | None = None
    lineage: list[Talk] = field(default_factory=list)
    """The talks that it extends, the first one first."""
    text: str | None = None
    """All text of its prompt, if it is known by its text."""
    sure: list[Offer] = field(default_factory=list)
    """What it may extend, by what everybody knows; deepest and dearest only."""
    extends: Offer | None = None
    """What it was seen to extend."""
    rendered: Written | None = None
    """Its whole conversation through the template, where it extends no talk."""

    @property
    def place(self) -> int:
        """Where its answer stands."""
        return len(self.history)

    @property
    def last_answer(self) -> int:
        """The place of the last assistant's message that its own answer is no part of; or -1."""
        end = len(self.chat.messages) - self.chat.continues
        roles = [message["role"] for message in self.chat.messages[:end]]
        return max((at for at, role in enumerate(roles) if role == "assistant"), default=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A call that a chat may go on from, and the ids that its prompt then has."""

    call: Call
    talk: Talk | None
    place: int
    ids: list[int]
    text: str | None
    hidden: bool
    closes: bool = False
    """The turn was left open, and is closed."""
    cuts: bool = False
    """The token that ended the turn is left out."""


class Talks:
    """All talks of a run, by call."""

    def __init__(
        self,
        book: Book,
        tokens: Tokens,
        named: Callable[[Call], str | None],
        parents: dict[str, str],
    ) -> None:
        self._tokens = tokens
        self._named = named
        self._book = book
        self._parents = parents
        self.of: dict[str, Talk] = {}
        self._unread: list[Call] = []
        """Captured calls whose conversation nobody outside the router knows."""
        for call in sorted(book.calls.values(), key=lambda one: one.opened_at):
            if call.ask is not None and call.ask.chat is not None:
                self.of[call.id] = self._talk(call, call.ask.chat)
            elif call.ask is None and call.captured is not None:
                self._unread.append(call)

    def _talk(self, call: Call, chat: Chat) -> Talk:
        talk = Talk(call=call, chat=chat)
        if call.truth is not None:
            talk.sure = self._best(talk, list(self._sure(talk)))
            talk.extends = self._seen(talk)
        self._place(talk)
        talk.answer = _given(talk)
        return talk

    # -- what may be extended ---------------------------------------------------------------

    def _sure(self, talk: Talk) -> Iterator[Offer]:
        """Every kept talk whose whole conversation this one repeats."""
        for other in self.of.values():
            if other.answer is None or not other.call.is_kept_at(talk.call.opened_at):
                continue
            if other.call.is_partial or not _same_frame(other.chat, talk.chat):
                continue
            size = other.place + 1
            told = talk.chat.messages[:size]
            whole = [*other.history, other.answer]
            if len(told) == size and alike(whole, [*other.sampled, True], told):
                for offer in self._offer(talk, other.call, other, other.place):
                    if not self._hides(talk, offer):
                        yield offer

    def _hides(self, talk: Talk, offer: Offer) -> bool:
        """Whether it would show a session what another one's answers thought."""
        if talk.call.session is None or self._is_own(talk, offer):
            return False
        told = talk.chat.messages
        return any(
            reasoning_of(one.answer)[0] != reasoning_of(told[one.place])[0]
            for one in _talks(offer)
            if one.answer is not None
        )

    def _possible(self, talk: Talk) -> Iterator[Offer]:
        """What the router may know better: answers that nobody is known to have been given."""
        for other in self.of.values():
            if not _same_frame(other.chat, talk.chat):
                continue
            size = other.place + 1
            if other.answer is not None and alike(
                [*other.history, other.answer],
                [*other.sampled, True],
                talk.chat.messages[:size],
                mended=True,
            ):
                yield from self._offer(talk, other.call, other, other.place)
            unknown = other.answer is None or other.call.is_partial
            if not unknown or other.call.captured is None or len(talk.chat.messages) < size:
                continue
            told = talk.chat.messages
            if told[other.place]["role"] == "assistant" and alike(
                other.history, other.sampled, told[: other.place]
            ):
                yield from self._offer(talk, other.call, other, other.place)
        for call in self._unread:
            for place, message in enumerate(talk.chat.messages):
                if message["role"] == "assistant":
                    yield from self._offer(talk, call, None, place)

    def _offer(self, talk: Talk, call: Call, other: Talk | None, place: int) -> Iterator[Offer]:
        ids, chat = call.ids, talk.chat
        text = None if other is None or other.text is None else other.text + call.shown
        ending = next(iter(call.endings), "")
        if chat.continues and place == len(chat.messages) - 1:
            cuts = bool(call.answer_ids) and ids[-1] in self._tokens.end_ids
            kept = ids[:-1] if cuts else ids
            if cuts and text is not None and not ending:
                # Its end was shown, and is left out with the token.
                text = text.removesuffix(self._tokens.vocabulary.bytes_of(ids[-1]).decode())
            yield Offer(
                call=call, talk=other, place=place, ids=kept, text=text, hidden=False, cuts=cuts
            )
            return
        rest = written_behind(self._tokens, chat, place + 1, ids[-1] if ids else -1)
        yield Offer(
            call=call,
            talk=other,
            place=place,
            ids=[*ids, *rest.ids],
            text=None if text is None or rest.hidden else text + ending + rest.text,
            hidden=rest.hidden,
            closes=rest.closes,
        )

    def _best(self, talk: Talk, offers: list[Offer]) -> list[Offer]:
        """The deepest, its session's own first; of several the one that most speaks for."""
        own = [one for one in offers if self._is_own(talk, one)]
        meant = own if own and self._owns(talk) else offers
        depth = max((one.place for one in meant), default=0)
        meant = self._likely(talk, [one for one in meant if one.place == depth])
        ranks = [self._rank(talk, one) for one in meant]
        return [one for one, rank in zip(meant, ranks, strict=True) if rank == max(ranks)]

    def _owns(self, talk: Talk) -> bool:
        """Whether anything is its session's yet."""
        session, at = talk.call.session, talk.call.opened_at
        kept = (one for one in self._book.calls.values() if one.is_kept_at(at))
        return session is not None and any(one.session == session for one in kept)

    def _likely(self, talk: Talk, offers: list[Offer]) -> list[Offer]:
        """Those whose calls are named by their ids, else the session's own and the named one."""
        session, named = talk.call.session, self._named(talk.call)
        by_ids = [one for one in offers if _given_ids(one) & _told_ids(talk, one)]
        own = [
            one
            for one in offers
            if (session is not None and one.call.session == session) or one.call.id == named
        ]
        return by_ids or own or offers

    def _is_own(self, talk: Talk, offer: Offer) -> bool:
        session, named = talk.call.session, self._named(talk.call)
        return any(
            (session is not None and one.session == session) or one.id == named
            for one in _line(offer)
        )

    def _rank(self, talk: Talk, offer: Offer) -> tuple[bool, int, bool, int, bool]:
        named = self._named(talk.call)
        is_named = named is not None and any(one.id == named for one in _line(offer))
        ids = thoughts = 0
        assert offer.talk is not None
        for one in (*offer.talk.lineage, offer.talk):
            if one.answer is None:
                continue
            told = talk.chat.messages[one.place]
            mine = call_ids(one.answer)
            ids += bool(mine) and mine == call_ids(told)
            thoughts += reasoning_of(one.answer)[0] == reasoning_of(told)[0]
        told = talk.chat.messages[offer.place]
        alike = offer.talk.answer is not None and verbatim(offer.talk.answer) == verbatim(told)
        return is_named, ids, self._is_own(talk, offer), thoughts, alike

    def alike(self, talk: Talk) -> list[Offer]:
        """All that it may extend as deep as what is meant."""
        depth = talk.sure[0].place
        return [one for one in self._sure(talk) if one.place == depth]

    def rivals(self, talk: Talk) -> bool:
        """Whether only the router may know of others as deep."""
        depth, sure = talk.sure[0].place, {one.call.id for one in self._sure(talk)}
        return any(one.place == depth and one.call.id not in sure for one in self._possible(talk))

    def beside(self, talk: Talk) -> list[Offer]:
        """What only the router may know, with the same ids."""
        sent = talk.call.prompt_ids
        return [one for one in self._possible(talk) if one.ids == sent]

    # -- what was extended ----------------------------------------------------------------------

    def _seen(self, talk: Talk) -> Offer | None:
        """Whatever explains the prompt; what is meant, first."""
        sent, parent = talk.call.prompt_ids, self._parents.get(talk.call.id)
        for offers in (talk.sure, self._sure(talk), self._possible(talk)):
            fitting = [one for one in offers if one.ids == sent]
            through = [one for one in fitting if one.call.id == parent and _is_behind(talk, one)]
            if through or (fitting and talk.call.captured is None):
                return (through or fitting)[-1]
        return None

    def _place(self, talk: Talk) -> None:
        """Its history and its text, by what it extends."""
        end = len(talk.chat.messages) - talk.chat.continues
        told = list(talk.chat.messages)
        offer = talk.extends
        if offer is None:
            talk.rendered = written(self._tokens, talk.chat)
            # By its text it may have found what lies deeper, with thoughts put back.
            is_known = not talk.rendered.hidden and not talk.sure and not any(self._possible(talk))
            talk.text = talk.rendered.text if is_known else None
            talk.history, talk.sampled = told[:end], [False] * end
            talk.call.text = talk.text
            return
        talk.text = offer.text
        talk.call.text = offer.text
        other = offer.talk
        size = offer.place + (offer.place < end)
        before = (
            told[:size] if other is None else [*other.history, other.answer or told[offer.place]]
        )
        flags = (
            [one["role"] == "assistant" for one in before]
            if other is None
            else [*other.sampled, True]
        )
        talk.history = [*before[:size], *told[size:end]]
        talk.sampled = [*flags[:size], *([False] * (end - size))]
        talk.lineage = [] if other is None else [*other.lineage, other]


def _is_behind(talk: Talk, offer: Offer) -> bool:
    """Whether the prompt says itself that it stands behind that turn, and not behind its text."""
    fact = talk.call.captured
    return fact is None or bool(fact.close_ids) is offer.closes


def _talks(offer: Offer) -> list[Talk]:
    return [] if offer.talk is None else [*offer.talk.lineage, offer.talk]


def _given_ids(offer: Offer) -> set[str]:
    answer = None if offer.talk is None else offer.talk.answer
    return set() if answer is None else set(call_ids(answer)) - {""}


def _told_ids(talk: Talk, offer: Offer) -> set[str]:
    return set(call_ids(talk.chat.messages[offer.place]))


def _line(offer: Offer) -> list[Call]:
    before = [] if offer.talk is None else [one.call for one in offer.talk.lineage]
    return [*before, offer.call]


def _same_frame(left: Chat, right: Chat) -> bool:
    return left.tools == right.tools and left.arguments == right.arguments


def _given(talk: Talk) -> Message | None:
    """The message that its client was given, all of it."""
    call = talk.call
    if call.captured is None or call.exchange is None:
        return None
    if call.captured.answer.outcome is not Outcome.COMPLETE:
        return None
    told = [one.samples[call.sample] for one in call.exchanges if call.sample < len(one.samples)]
    got = next((one for one in told if one.finish is not None and one.message is not None), None)
    if got is None or got.message is None:
        return None
    return joined(talk.chat.messages[-1], got.message) if talk.chat.continues else got.message
