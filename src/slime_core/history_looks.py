"""Looking a prompt up as text or as ids: how answers are measured, and what a place on one means.

Text is measured in characters, ids in tokens; whoever chooses between answers
(:mod:`slime_core.history`) need not know which.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from msgspec import Struct

from slime_core.alignment import Place, TokenBytes, tokens_before
from slime_core.forest import Forest
from slime_core.radix import Match, Node
from slime_core.segments import Outcome, Segment
from slime_core.types import ID_BYTES, CallId, unpack_ids

__all__ = ["History", "IdsLook", "Look", "TextLook", "Wish"]


class Wish(Struct, frozen=True, kw_only=True):
    """Which of several equal answers the client means: its session's own, or one by name."""

    session: str | None = None
    parent_call: CallId | None = None
    is_retrieval: bool = False
    """The text is looked up to be told, not to be gone on from: an answer without text that
    ends with it is part of it."""


class History(Struct, frozen=True):
    """The first ``token_start`` tokens of ``parent``, up to character ``text_start``.

    ``joint`` characters behind that repeat what those tokens hold already.
    """

    parent: Segment | None
    token_start: int
    text_start: int
    joint: int = 0
    cut: bool = False
    ambiguous: bool = False


class Look(Protocol):
    """One look-up: how to measure segments, and what a place on them means."""

    @property
    def unit(self) -> int:
        """How many items of a tree's key make one of the measure."""

    @property
    def found(self) -> Match[Any]:
        """The match in the tree."""

    @property
    def reached(self) -> int:
        """How much of the prompt is known."""

    @property
    def wish(self) -> Wish:
        """Which of several answers is meant."""

    @property
    def owners(self) -> dict[int, Segment]:
        """The answers that the client calls its own, by their numbers."""

    def node(self, one: Segment) -> Node[Any] | None:
        """Where it ends in the tree; ``None`` where it is not in it."""

    def start(self, one: Segment) -> int:
        """Where it begins."""

    def end(self, one: Segment) -> int:
        """Where it ends."""

    def depth(self, history: History) -> int:
        """How much of the prompt is this history."""

    def follows(self, one: Segment) -> bool:
        """Whether the prompt may be the continuation of this answer."""

    def after(self, one: Segment) -> History:
        """The history that ends with this answer."""

    def cut(self, one: Segment, at: int) -> History | None:
        """The history if this one is left at this place; ``None`` where nothing of it is left."""


class TextLook:
    """Measured in characters."""

    unit: Final = 1

    def __init__(
        self,
        forest: Forest,
        text: str,
        found: Match[str],
        vocabulary: TokenBytes | None,
        wish: Wish,
    ) -> None:
        self._forest = forest
        self._text = text
        self._vocabulary = vocabulary
        self._places: dict[object, Place] = {}
        self.found: Final = found
        self.reached: Final = found.length
        self.wish: Final = wish
        self.owners: Final = _owners(forest, wish)

    def node(self, one: Segment) -> Node[str] | None:
        """Where it ends."""
        return one.text_node

    def start(self, one: Segment) -> int:
        """Where it begins."""
        return one.text_start

    def end(self, one: Segment) -> int:
        """Where it ends."""
        return one.text_end

    def depth(self, history: History) -> int:
        """How much of the text is history."""
        return history.text_start + history.joint

    def follows(self, one: Segment) -> bool:
        """Whether the text may be the continuation of this answer.

        An answer without text (a stop token alone) cannot be told from its prompt by text: it is
        meant only if its ending follows or the client names it. One without tokens breaks no run:
        what follows it must be encoded together with its prompt, so it is no history to extend.
        """
        if one.answer is None:
            return False
        named = one.answer.call == self.wish.parent_call
        if not one.tokens:
            return named and one.text_end == len(self._text)
        if self._is_unseen(one) and self.cut(one, one.text_end) is None:
            return False  # None of its tokens was shown whole: nothing of it is left.
        if one.text_end > one.text_start or named or self._joint(one) > 0:
            return True
        if self.wish.is_retrieval:
            return one.text_end == len(self._text)
        # Whoever was given nothing and goes on from there in the same session has appended.
        return one.number in self.owners and one.text_end < len(self._text)

    def _joint(self, one: Segment) -> int:
        """How many characters repeat what the ids of this answer hold behind its text."""
        assert one.answer is not None
        for ending in one.answer.endings:
            if self._text.startswith(ending, one.text_end):
                return len(ending)
        return 0

    def after(self, one: Segment) -> History:
        """The history that ends with ``one``.

        Of an answer that broke off, the client may have been shown less than was sampled. If its
        text does not go on with the rest, the client never saw it: that is a cut.
        """
        cut = self.cut(one, one.text_end) if self._is_unseen(one) else None
        return cut or History(one, one.token_end, one.text_end, self._joint(one))

    def _is_unseen(self, one: Segment) -> bool:
        """Whether the client was not shown the end of an answer that broke off."""
        if self.wish.is_retrieval and one.text_end == len(self._text):
            return False
        answer = one.answer
        assert answer is not None
        is_hidden = answer.outcome is Outcome.PARTIAL and bool(answer.endings)
        return is_hidden and not self._joint(one)

    def _place(self, one: Segment, at: int, vocabulary: TokenBytes) -> Place:
        """Where ``one`` can be left. Equal answers have equal places: looked for once."""
        key = (one.id_node, one.token_start, one.text_node, one.text_start, at)
        if key not in self._places:
            ids = unpack_ids(self._forest.own_ids(one))
            text = self._forest.own_text(one)
            self._places[key] = tokens_before(ids, text, at - one.text_start, vocabulary)
        return self._places[key]

    def cut(self, one: Segment, at: int) -> History | None:
        """The history if ``one`` is left at this place."""
        if self._vocabulary is None:
            return None
        place = self._place(one, at, self._vocabulary)
        if not place.tokens:
            return None
        return History(
            one,
            one.token_start + place.tokens,
            one.text_start + place.chars,
            cut=place.tokens < one.tokens,
        )


class IdsLook:
    """Measured in tokens."""

    unit: Final = ID_BYTES

    def __init__(self, forest: Forest, found: Match[bytes], matched: int, wish: Wish) -> None:
        self.found: Final = found
        self.reached: Final = matched
        self.wish: Final = wish
        self.owners: Final = _owners(forest, wish)

    def node(self, one: Segment) -> Node[bytes]:
        """Where it ends."""
        return one.id_node

    def start(self, one: Segment) -> int:
        """Where it begins."""
        return one.token_start

    def end(self, one: Segment) -> int:
        """Where it ends."""
        return one.token_end

    def depth(self, history: History) -> int:
        """How many of the ids are history."""
        return history.token_start

    def follows(self, one: Segment) -> bool:
        """Whether ids can extend it."""
        return one.is_sampled and one.tokens > 0

    def after(self, one: Segment) -> History:
        """The history that ends with ``one``."""
        return History(one, one.token_end, one.text_end)

    def cut(self, one: Segment, at: int) -> History | None:
        """The history if ``one`` is left at this place."""
        return History(one, at, one.text_end, cut=True)


def _owners(forest: Forest, wish: Wish) -> dict[int, Segment]:
    """The answers that the client calls its own: its session's, else the one named."""
    own = {} if wish.session is None else forest.sessions.get(wish.session, {})
    if own or wish.parent_call is None:
        return own
    named = forest.calls.get(wish.parent_call)
    return {} if named is None else {named.number: named}
