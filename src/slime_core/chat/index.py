"""The message index: from a conversation to the deepest captured answer that it extends.

An answer stands under the chain of its conversation (:mod:`slime_core.chat.canonical`), so looking
up costs one dictionary access for each assistant message, the last one first. What is found there
agrees loosely; whether it is the client's own history is then checked turn by turn, along the way
to the root: all that clients wrote must agree strictly, reasoning must be the same where both have
it.

Of several answers that fit, the client means: the one it names, else the one whose tool-call ids
it repeats (they cannot be guessed, and every structured client keeps them), else its session's
own, else the latest, which is marked as ambiguous. As with text, what belongs to its session stands
above deeper answers that do not. A client in a session goes on behind another session's answer only
if it tells the reasoning, too: it could not know it otherwise, and the prompt would show it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from slime_core.chat.canonical import (
    Conversation,
    is_mended,
    loosely,
    reasoning_of,
    verbatim,
    written,
)
from slime_core.chat.turn import Told, Turn
from slime_core.segments import Segment

if TYPE_CHECKING:
    from slime_core.history_looks import Wish

__all__ = ["NEAR", "TurnFound", "TurnIndex", "find_turn"]

NEAR: Final = 16
"""How many of equal answers are looked at, the latest first. Each is followed to its root."""


class TurnIndex:
    """Every captured answer that is a turn, by its chain and by its tool-call ids."""

    def __init__(self) -> None:
        self._chains: Final[dict[bytes, dict[int, Segment]]] = {}
        self._calls: Final[dict[str, Segment]] = {}
        self._told: Final[dict[bytes, tuple[Told, int]]] = {}
        """What prompts told, by key, and how many turns share it."""

    def __len__(self) -> int:
        return sum(map(len, self._chains.values()))

    def add(self, segment: Segment, turn: Turn) -> None:
        """``segment`` is an answer, ``turn`` what it is in its conversation."""
        self._chains.setdefault(turn.chain, {})[segment.number] = segment
        self._calls.update(dict.fromkeys(turn.call_ids, segment))
        told, count = self._told.get(turn.told.key, (turn.told, 0))
        self._told[turn.told.key] = (told, count + 1)

    def remove(self, segment: Segment, turn: Turn) -> None:
        """``segment`` is no longer kept."""
        alike = self._chains[turn.chain]
        del alike[segment.number]
        if not alike:
            del self._chains[turn.chain]
        told, count = self._told[turn.told.key]
        if count > 1:
            self._told[turn.told.key] = (told, count - 1)
        else:
            del self._told[turn.told.key]
        for call_id in turn.call_ids:
            if self._calls.get(call_id) is segment:
                del self._calls[call_id]

    def alike(self, chain: bytes) -> dict[int, Segment]:
        """All answers with that chain, by number, the earliest first."""
        return self._chains.get(chain, {})

    def told(self, key: bytes) -> Told | None:
        """What an earlier prompt told with that key."""
        return self._told.get(key, (None, 0))[0]

    def by_call_id(self, call_id: str) -> Segment | None:
        """The answer that made the tool call of that id."""
        return self._calls.get(call_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFound:
    """The messages up to ``place`` are those of the conversation that ``segment`` ends."""

    segment: Segment
    place: int
    ambiguous: bool


def find_turn(
    index: TurnIndex,
    conversation: Conversation,
    *,
    owners: dict[int, Segment],
    wish: Wish,
) -> TurnFound | None:
    """The deepest captured answer that ``conversation`` extends.

    ``owners`` are the answers of the client's session, by number; ``wish`` names that session, and
    perhaps an answer.
    """
    look = _Look(index, conversation, owners, wish)
    first: TurnFound | None = None
    for place in reversed(range(len(conversation.messages))):
        if first is not None and not look.may_be_own(place):
            continue
        found = look.at(place) if conversation.is_assistant(place) else None
        if found is None:
            continue
        if not owners or look.is_own(found.segment):
            return found
        first = first or found
    return first


class _Look:
    """One look-up."""

    def __init__(
        self,
        index: TurnIndex,
        conversation: Conversation,
        owners: dict[int, Segment],
        wish: Wish,
    ) -> None:
        self._index = index
        self._session = wish.session
        self._conversation = conversation
        self._owners = owners
        self._parent_call = wish.parent_call
        self._own: dict[int, bool] = {}
        """What is known of segments: whether they are the session's, or continue what is."""
        self._unfit: set[tuple[int, bool]] = set()
        """Turns that do not fit, by number and whether they must tell their reasoning."""

    def is_own(self, segment: Segment) -> bool:
        """Whether an answer is the session's, or continues one that is."""
        way: list[int] = []
        here: Segment | None = segment
        is_own = False
        while here is not None and here.number not in self._own:
            way.append(here.number)
            is_own = here.number in self._owners or self._is_named(here)
            here = None if is_own else here.parent
        if here is not None:
            is_own = self._own[here.number]
        self._own.update(dict.fromkeys(way, is_own))
        return is_own

    def may_be_own(self, place: int) -> bool:
        """Whether an answer of the session stands at ``place``."""
        alike = self._index.alike(self._conversation.chains[place])
        few, many = sorted((alike, self._owners), key=len)
        return any(number in many for number in few)

    def _is_named(self, segment: Segment) -> bool:
        return segment.answer is not None and segment.answer.call == self._parent_call

    def at(self, place: int) -> TurnFound | None:
        """The answer at ``place`` that is meant."""
        fitting: list[Segment] = []
        for alike in self._likely(place):
            fitting = [one for one in alike.values() if self._fits(one, place)]
            if fitting:
                break
        if len(fitting) < 2:
            return TurnFound(segment=fitting[0], place=place, ambiguous=False) if fitting else None
        ranks = {one.number: self._rank(one, place) for one in fitting}
        best = max(ranks.values())
        meant = [one for one in fitting if ranks[one.number] == best]
        latest = max(meant, key=lambda one: one.number)
        return TurnFound(segment=latest, place=place, ambiguous=len(meant) > 1)

    def _likely(self, place: int) -> Iterator[dict[int, Segment]]:
        """Answers with the chain at ``place``, those first that stand above the others: what calls
        are named by their ids, what is the session's own or named; then the latest."""
        alike = self._index.alike(self._conversation.chains[place])
        if not alike:
            yield self._mended(place)
            return
        if self._parent_call is not None:
            yield {one.number: one for one in alike.values() if self._is_named(one)}
        ids = map(self._index.by_call_id, self._conversation.call_ids[place])
        yield {one.number: one for one in ids if one is not None and one.number in alike}
        few, many = sorted((alike, self._owners), key=len)
        own = {number: alike[number] for number in reversed(few) if number in many}
        yield dict(islice(own.items(), NEAR))
        yield dict(islice(reversed(alike.items()), NEAR))

    def _mended(self, place: int) -> dict[int, Segment]:
        """Answers whose tool calls had arguments that were no JSON, and came back mended.

        The calls' ids find them; all else must agree, the messages before included.
        """
        told = self._conversation
        mended: dict[int, Segment] = {}
        for call_id in told.call_ids[place]:
            one = self._index.by_call_id(call_id)
            turn = None if one is None or one.answer is None else one.answer.turn
            if one is None or turn is None or turn.end != place:
                continue
            kept = turn.message(place)
            is_behind = turn.chain == loosely(told.before(place), kept)
            if is_behind and is_mended(kept, told.messages[place]):
                mended[one.number] = one
        return mended

    def _fits(self, segment: Segment, place: int) -> bool:
        """Whether all that lies behind ``segment`` is what this client says of it."""
        told = self._conversation
        own = True
        hides = self._is_foreign(segment)
        walked: set[tuple[int, bool]] = set()
        for number, turn in _turns(segment):
            walked.add((number, hides))
            is_same = turn.end == place and turn.written == written(told, turn.start, turn.end)
            if (
                (number, hides) in self._unfit
                or not is_same
                or (own and not self._same_reasoning(turn, hides))
            ):
                # What stands behind a turn that does not fit does not either.
                self._unfit |= walked
                return False
            if turn.start == 0 and not turn.continues:
                return True
            own = not turn.continues
            place = turn.start if turn.continues else turn.start - 1
        return False

    def _is_foreign(self, segment: Segment) -> bool:
        """Whether an answer is another session's, whose reasoning is not for this one to see."""
        return self._session is not None and not self.is_own(segment)

    def _same_reasoning(self, turn: Turn, hides: bool) -> bool:
        """Reasoning may have been dropped since, not changed, and none may have come.

        ``hides``: it must have been told by the client itself.

        Clients that add up only what they know of a stream keep the last piece of the rest: what is
        the end of the reasoning was dropped, not changed.
        """
        given = self._conversation.reasonings[turn.end]
        if given == turn.reasoning:
            return True
        if hides:
            return False
        if given is None:
            return True
        kept = reasoning_of(turn.message(turn.end))
        return kept.endswith(reasoning_of(self._conversation.messages[turn.end]))

    def _rank(self, segment: Segment, place: int) -> tuple[bool, int, bool, int, bool]:
        """How much speaks for ``segment``: it is named, ids, the session, reasoning, its words."""
        lineage = segment.lineage()
        told = self._conversation
        ids = reasonings = 0
        for _, turn in _turns(segment):
            ids += bool(turn.call_ids) and turn.call_ids == told.call_ids[turn.end]
            reasonings += turn.reasoning == told.reasonings[turn.end]
        _, last = next(_turns(segment))
        alike = verbatim(last.message(place)) == verbatim(told.messages[place])
        return any(map(self._is_named, lineage)), ids, self.is_own(segment), reasonings, alike


def _turns(segment: Segment) -> Iterator[tuple[int, Turn]]:
    """The turns on the way from ``segment`` to where its conversation began, with their numbers."""
    here: Segment | None = segment
    while here is not None:
        turn = None if here.answer is None else here.answer.turn
        if turn is not None:
            yield here.number, turn
            if turn.start == 0 and not turn.continues:
                return
        here = here.parent
