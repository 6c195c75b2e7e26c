"""The message index: from a conversation to the deepest captured answer that it extends.

An answer stands under the chain of its conversation (:mod:`slime_core.chat.canonical`), so looking
up costs one dictionary access for each assistant message, the last one first. What is found there
agrees loosely; whether it is the client's own history is then checked turn by turn, along the way
to the root: all that clients wrote must agree strictly, reasoning must be the same where both have
it.

Of several answers that fit, the client means: the one it names, else the one whose tool-call ids
it repeats (they cannot be guessed, and every structured client keeps them), else its session's
own, else the latest, which is marked as ambiguous. As with text, what belongs to its session stands
above deeper answers that do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from slime_core.chat.canonical import (
    Conversation,
    is_mended,
    loosely,
    reasoning_of,
    verbatim,
    written,
)
from slime_core.chat.turn import Turn
from slime_core.segments import Segment
from slime_core.types import CallId

__all__ = ["NEAR", "TurnFound", "TurnIndex", "find_turn"]

NEAR: Final = 64
"""How many of equal answers are looked at, the latest first."""


class TurnIndex:
    """Every captured answer that is a turn, by its chain and by its tool-call ids."""

    def __init__(self) -> None:
        self._chains: Final[dict[bytes, dict[int, Segment]]] = {}
        self._calls: Final[dict[str, Segment]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._chains.values()))

    def add(self, segment: Segment, turn: Turn) -> None:
        """``segment`` is an answer, ``turn`` what it is in its conversation."""
        self._chains.setdefault(turn.chain, {})[segment.number] = segment
        self._calls.update(dict.fromkeys(turn.call_ids, segment))

    def remove(self, segment: Segment, turn: Turn) -> None:
        """``segment`` is no longer kept."""
        alike = self._chains[turn.chain]
        del alike[segment.number]
        if not alike:
            del self._chains[turn.chain]
        for call_id in turn.call_ids:
            if self._calls.get(call_id) is segment:
                del self._calls[call_id]

    def alike(self, chain: bytes) -> dict[int, Segment]:
        """All answers with that chain, by number, the earliest first."""
        return self._chains.get(chain, {})

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
    parent_call: CallId | None,
) -> TurnFound | None:
    """The deepest captured answer that ``conversation`` extends.

    ``owners`` are the answers of the client's session, by number; ``parent_call`` is the one it
    names.
    """
    look = _Look(index, conversation, owners, parent_call)
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
        parent_call: CallId | None,
    ) -> None:
        self._index = index
        self._conversation = conversation
        self._owners = owners
        self._parent_call = parent_call

    def is_own(self, segment: Segment) -> bool:
        """Whether an answer is the session's, or continues one that is."""
        here: Segment | None = segment
        while here is not None:
            if here.number in self._owners or self._is_named(here):
                return True
            here = here.parent
        return False

    def may_be_own(self, place: int) -> bool:
        """Whether an answer of the session stands at ``place``."""
        alike = self._index.alike(self._conversation.chains[place])
        few, many = sorted((alike, self._owners), key=len)
        return any(number in many for number in few)

    def _is_named(self, segment: Segment) -> bool:
        return segment.answer is not None and segment.answer.call == self._parent_call

    def at(self, place: int) -> TurnFound | None:
        """The answer at ``place`` that is meant."""
        fitting = [one for one in self._candidates(place) if self._fits(one, place)]
        if len(fitting) < 2:
            return TurnFound(segment=fitting[0], place=place, ambiguous=False) if fitting else None
        ranks = {one.number: self._rank(one, place) for one in fitting}
        best = max(ranks.values())
        meant = [one for one in fitting if ranks[one.number] == best]
        latest = max(meant, key=lambda one: one.number)
        return TurnFound(segment=latest, place=place, ambiguous=len(meant) > 1)

    def _candidates(self, place: int) -> Iterator[Segment]:
        """Answers with the chain at ``place``: a few of the latest, and those that ids name."""
        alike = self._index.alike(self._conversation.chains[place])
        seen: set[int] = set()
        for one in self._likely(alike, place):
            if (one.number in alike or not alike) and one.number not in seen:
                seen.add(one.number)
                yield one

    def _likely(self, alike: dict[int, Segment], place: int) -> Iterator[Segment]:
        yield from _latest(alike)
        if not alike:
            yield from self._mended(place)
        if len(alike) > NEAR:
            yield from _latest(self._owners)
            named = (self._index.by_call_id(one) for one in self._conversation.call_ids[place])
            yield from (one for one in named if one is not None)

    def _mended(self, place: int) -> Iterator[Segment]:
        """Answers whose tool calls had arguments that were no JSON, and came back mended.

        The calls' ids find them; all else must agree, the messages before included.
        """
        told = self._conversation
        for call_id in told.call_ids[place]:
            one = self._index.by_call_id(call_id)
            turn = None if one is None or one.answer is None else one.answer.turn
            if one is None or turn is None or turn.end != place:
                continue
            kept = turn.message(place)
            is_behind = turn.chain == loosely(told.before(place), kept)
            if is_behind and is_mended(kept, told.messages[place]):
                yield one

    def _fits(self, segment: Segment, place: int) -> bool:
        """Whether all that lies behind ``segment`` is what this client says of it."""
        told = self._conversation
        own = True
        for turn in _turns(segment):
            if turn.end != place or turn.written != written(told, turn.start, turn.end):
                return False
            if own and not self._same_reasoning(turn):
                return False
            if turn.start == 0 and not turn.continues:
                return True
            own = not turn.continues
            place = turn.start if turn.continues else turn.start - 1
        return False

    def _same_reasoning(self, turn: Turn) -> bool:
        """Reasoning may have been dropped since, not changed, and none may have come.

        Clients that add up only what they know of a stream keep the last piece of the rest: what is
        the end of the reasoning was dropped, not changed.
        """
        given = self._conversation.reasonings[turn.end]
        if given in (None, turn.reasoning):
            return True
        kept = reasoning_of(turn.message(turn.end))
        return kept.endswith(reasoning_of(self._conversation.messages[turn.end]))

    def _rank(self, segment: Segment, place: int) -> tuple[bool, int, bool, int, bool]:
        """How much speaks for ``segment``: it is named, ids, the session, reasoning, its words."""
        lineage = segment.lineage()
        told = self._conversation
        ids = reasonings = 0
        for turn in _turns(segment):
            ids += bool(turn.call_ids) and turn.call_ids == told.call_ids[turn.end]
            reasonings += turn.reasoning == told.reasonings[turn.end]
        last = next(_turns(segment))
        alike = verbatim(last.message(place)) == verbatim(told.messages[place])
        return any(map(self._is_named, lineage)), ids, self.is_own(segment), reasonings, alike


def _latest(segments: dict[int, Segment]) -> list[Segment]:
    """Up to :data:`NEAR` of them, the latest first."""
    found = []
    for segment in reversed(segments.values()):
        found.append(segment)
        if len(found) == NEAR:
            break
    return found


def _turns(segment: Segment) -> Iterator[Turn]:
    """The turns on the way from ``segment`` to where its conversation began."""
    here: Segment | None = segment
    while here is not None:
        turn = None if here.answer is None else here.answer.turn
        if turn is not None:
            yield turn
            if turn.start == 0 and not turn.continues:
                return
        here = here.parent
