"""How much of a prompt is history: where the last sampled answer that it extends ends or is left.

A prompt extends an answer if it runs through it to its end, and *cuts* it if it leaves it midway.
Both are read off the tree: answers that end on the matched path carry their marks there; answers
left midway, and prompts that an earlier cut led to, lie on a path through the place reached, so
their marks are at or below it. Only marks near that place are looked at (:data:`NEAR`): one is
enough unless the same text was sampled by one client and sent as a prompt by another.

The longest match decides which place that is. An answer that parts from the prompt earlier than the
match does is history only where it is the client's own: for a client without a name, what is known
of its prompt farther on says better what it extends.

Of several answers that fit, the deepest is meant, unless the client says otherwise: its session's
own answers, or the one it names, stand above deeper ones that do not continue them. Otherwise
someone else's sample that happens to spell what this client appended would take its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from slime_core.alignment import Place, TokenBytes, tokens_before
from slime_core.forest import Forest
from slime_core.radix import Match, Node
from slime_core.segments import Outcome, Segment
from slime_core.types import ID_BYTES, CallId, unpack_ids

__all__ = ["NEAR", "History", "Wish", "ids_history", "near_marks", "text_history"]

NEAR: Final = 64
"""How many marks at and below the place reached are looked at."""


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


_NONE: Final = History(None, 0, 0)


def text_history(
    forest: Forest, text: str, found: Match[str], vocabulary: TokenBytes | None, wish: Wish
) -> History:
    """The history that ``text`` extends; ``found`` is its match in the text tree."""
    return _history(_TextLook(forest, text, found, vocabulary, wish))


def ids_history(forest: Forest, found: Match[bytes], matched: int, wish: Wish) -> History:
    """The history that ids extend, of which ``matched`` are known. Ids may be cut anywhere."""
    return _history(_IdsLook(forest, found, matched, wish))


class _Look(Protocol):
    """One look-up: how to measure segments, and what a place on them means."""

    @property
    def unit(self) -> int: ...
    @property
    def found(self) -> Match[Any]: ...
    @property
    def reached(self) -> int: ...
    @property
    def wish(self) -> Wish: ...
    @property
    def owners(self) -> dict[int, Segment]: ...
    def node(self, one: Segment) -> Node[Any] | None: ...
    def start(self, one: Segment) -> int: ...
    def end(self, one: Segment) -> int: ...
    def depth(self, history: History) -> int: ...
    def follows(self, one: Segment) -> bool: ...
    def after(self, one: Segment) -> History: ...
    def cut(self, one: Segment, at: int) -> History | None: ...


class _TextLook:
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


class _IdsLook:
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


def _history(look: _Look) -> History:
    ended, left = _ended(look), _left_midway(look)
    deepest = left if look.depth(left) > look.depth(ended) else ended
    own = _own(look) if look.owners else None
    if own is None:
        return deepest
    deeper = look.depth(deepest) > look.depth(own)
    return deepest if deeper and _continues(deepest.parent, look.owners) else own


def _continues(one: Segment | None, owners: dict[int, Segment]) -> bool:
    """Whether ``one`` is an owner's or descends from one."""
    while one is not None:
        if one.number in owners:
            return True
        one = one.parent
    return False


def _ended(look: _Look) -> History:
    """The deepest answer that ends on the matched path."""
    best = _NONE
    for node in look.found.node.lineage():
        if look.depth(best) >= node.end // look.unit:
            break
        chosen = _choose(look, node)
        if chosen is not None and look.depth(chosen) > look.depth(best):
            best = chosen
    return best


def _choose(look: _Look, node: Node[Any]) -> History | None:
    """The answer at ``node`` that is meant: the session's own, else the one named, else the latest
    of those whose hidden ending the prompt repeats, else the latest.

    What continues an own answer is as good as own.
    """
    following = (one for one in reversed(node.marks or ()) if look.follows(one))
    candidates = list(following if look.owners else islice(following, NEAR))
    meant = _meant(look, candidates) if look.owners and len(candidates) > 1 else candidates
    return _settle(look, [look.after(one) for one in meant[:NEAR]])


def _settle(look: _Look, fitting: list[History]) -> History | None:
    """The deepest of what fits, the first of equals; of those at one place the one that is named.

    That a prompt repeats the hidden ending of one answer does not rule out its twins without one:
    a chat template writes the stop token behind whatever was sampled. So that is ambiguous, too.
    """
    if not fitting:
        return None
    deepest = max(fitting, key=look.depth)
    twins = [one for one in fitting if _are_twins(look, one, deepest)]
    named = [one for one in twins if one.parent is not None and _is_named(look, one.parent)]
    if named or len(twins) == 1:
        return (named or twins)[0]
    return replace(deepest, ambiguous=True)


def _are_twins(look: _Look, left: History, right: History) -> bool:
    if look.depth(left) == look.depth(right):
        return True
    assert left.parent is not None
    assert right.parent is not None
    return look.node(left.parent) is look.node(right.parent)


def _meant(look: _Look, candidates: list[Segment]) -> list[Segment]:
    """Those of equal answers that a client with answers of its own can mean."""
    own = [one for one in candidates if one.number in look.owners] or [
        one for one in candidates if _continues(one, look.owners)
    ]
    return [one for one in own or candidates if _is_named(look, one)] or own or candidates


def _is_named(look: _Look, one: Segment) -> bool:
    return one.answer is not None and one.answer.call == look.wish.parent_call


def _left_midway(look: _Look) -> History:
    """The history that is left, now or by an earlier prompt, on the path through the place."""
    best: list[History] = []
    for one in _covering(look):
        left = _left(look, one)
        if left is None:
            continue
        if not best or look.depth(left) > look.depth(best[0]):
            best = [left]
        elif look.depth(left) == look.depth(best[0]):
            best.append(left)
    if not best:
        return _NONE
    parents = {one.parent.number: one for one in best if one.parent is not None}
    latest = parents[max(parents)]
    return replace(latest, ambiguous=latest.ambiguous or len(parents) > 1)


def _covering(look: _Look) -> Iterator[Segment]:
    """Segments that span the place reached, each once; but none that begins a trajectory, since
    that is a prompt with no answer before it."""
    reached, start = look.reached, look.start
    if not _has_answers(look):
        return
    seen: set[int] = set()
    for one in near_marks(look.found.below):
        parent = one.parent
        while parent is not None and one.number not in seen:
            seen.add(one.number)
            if start(one) < reached:
                yield one
                break
            one, parent = parent, parent.parent


def _has_answers(look: _Look) -> bool:
    """Whether an answer may begin before the place reached.

    It would begin where a prompt ends, whose mark is on the matched path.
    """
    end = look.reached * look.unit
    return any(node.marks and node.end < end for node in look.found.node.lineage())


def near_marks(below: Node[Any]) -> Iterator[Segment]:
    """Up to :data:`NEAR` segments that end at or below a node, the nearest first."""
    left = NEAR
    nodes = [below]
    for node in nodes:
        if node.marks:
            yield from islice(reversed(node.marks), left)
            left -= len(node.marks)
            if left <= 0:
                return
        if node.children and len(nodes) <= NEAR:
            nodes += islice(node.children.values(), NEAR + 1 - len(nodes))


def _left(look: _Look, one: Segment) -> History | None:
    """The history under a segment that spans the place; ended answers are not its business."""
    if one.is_sampled:
        if look.end(one) <= look.reached:
            return None
        left = look.cut(one, look.reached)
        if left is not None:
            return left
    while one.parent is not None:
        parent, kept = one.parent, one.token_start - one.parent.token_start
        if parent.is_sampled and kept:
            is_cut = one.token_start < parent.token_end
            left = History(parent, one.token_start, one.text_start, one.joint, cut=True)
            return left if is_cut and look.depth(left) <= look.reached else None
        one = parent
    return None


def _own(look: _Look) -> History | None:
    """The deepest history that ends with, or leaves, one of the client's own answers."""
    path = set(look.found.node.lineage())
    fitting = []
    for one in _own_near(look, path):
        node = look.node(one)
        if node in path:
            if look.follows(one):
                fitting.append(look.after(one))
        # An answer is left before the place reached: one that begins there or later never was.
        elif node is not None and look.start(one) < look.reached:
            at = _parting(look, node, path)
            left = look.cut(one, at) if look.start(one) < at < look.end(one) else None
            if left is not None:
                fitting.append(left)
    return _settle(look, fitting)


def _own_near(look: _Look, path: set[Node[Any]]) -> Iterable[Segment]:
    """The client's own answers, the latest first; of many, those on the matched path and the last.

    A session of a thousand calls must not cost a thousand looks at each of them.
    """
    owners = look.owners
    if len(owners) <= NEAR:
        return reversed(owners.values())
    last = list(islice(reversed(owners.values()), NEAR))
    older: list[Segment] = [
        one
        for node in path
        for one in node.marks or ()
        if one.number < last[-1].number and one.number in owners
    ]
    older.sort(key=lambda one: one.number, reverse=True)
    return last + older


def _parting(look: _Look, node: Node[Any], path: set[Node[Any]]) -> int:
    """Where the way to ``node`` and the matched path part: at a node, or at the place reached.

    The match goes on along whatever is longest, which may be someone else's.
    """
    for here in node.lineage():
        if here is look.found.below:
            return look.reached
        if here in path:
            return here.end // look.unit
    return 0
