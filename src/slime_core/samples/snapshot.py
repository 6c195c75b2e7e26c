"""What one session captured, copied out of the forest, so that a thread may work on it.

Segments store their own part only, and so does the copy: it grows with the tokens of the session,
never with its turns squared.
"""

from __future__ import annotations

from dataclasses import dataclass

from slime_core.segments import Answer, Segment
from slime_core.state import RouterState
from slime_core.types import CallId, PackedIds

__all__ = ["Piece", "Snapshot", "take"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One segment on the way to an answer of the session; fields as in ``Segment``."""

    number: int
    parent: int | None
    token_start: int
    token_end: int
    ids: PackedIds
    """Its own ids; empty where the copy was made without them."""
    answer: Answer | None
    own: bool
    """Whether it is an answer of this session: another's on the way is context like a prompt."""
    retrieved: bool

    @property
    def tokens(self) -> int:
        """How many tokens it adds."""
        return self.token_end - self.token_start


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The session's answers and everything before them, by number; parents have lower numbers.

    ``lost`` counts calls that ended without a capture, ``gone`` what left memory, as calls and
    tokens, both by reason and as far as the session's book tells.
    """

    session: str
    pieces: dict[int, Piece]
    answers: tuple[int, ...]
    """The session's own, in the order of capture."""
    metadata: bytes = b"{}"
    lost: tuple[tuple[str, int], ...] = ()
    gone: tuple[tuple[str, int, int], ...] = ()
    in_flight: int = 0
    """Calls that had not ended: nothing of them is here yet."""

    def path(self, number: int) -> list[tuple[Piece, int]]:
        """The pieces from the root to one, each with the token at which the way leaves it."""
        found = []
        here: int | None = number
        stop = self.pieces[number].token_end
        while here is not None:
            piece = self.pieces[here]
            found.append((piece, stop))
            here, stop = piece.parent, piece.token_start
        found.reverse()
        return found

    def by_call(self) -> dict[CallId, int]:
        """The session's own answers by their call."""
        return {self.answer(number).call: number for number in self.answers}

    def answer(self, number: int) -> Answer:
        """The answer of that number."""
        found = self.pieces[number].answer
        assert found is not None
        return found


def take(state: RouterState, session: str, *, with_ids: bool = True) -> Snapshot:
    """Copy what ``session`` captured. ``with_ids`` is left out where only the tree is asked for."""
    own = state.forest.sessions.get(session, {})
    pieces: dict[int, Piece] = {}
    for segment in own.values():
        here: Segment | None = segment
        while here is not None and here.number not in pieces:
            pieces[here.number] = _piece(state, here, here.number in own, with_ids)
            here = here.parent
    known = state.sessions.known.get(session)
    in_flight = sum(1 for one in state.open_calls.values() if one.session == session)
    return Snapshot(
        session=session,
        in_flight=in_flight,
        pieces=dict(sorted(pieces.items())),
        answers=tuple(sorted(own)),
        metadata=b"{}" if known is None else known.metadata,
        lost=() if known is None else tuple(sorted(known.lost.items())),
        gone=()
        if known is None
        else tuple((reason, one.calls, one.tokens) for reason, one in sorted(known.gone.items())),
    )


def _piece(state: RouterState, segment: Segment, own: bool, with_ids: bool) -> Piece:
    ids = state.forest.own_ids(segment) if with_ids else b""
    return Piece(
        number=segment.number,
        parent=None if segment.parent is None else segment.parent.number,
        token_start=segment.token_start,
        token_end=segment.token_end,
        ids=PackedIds(ids),
        answer=segment.answer,
        own=own,
        retrieved=segment.retrieved,
    )
