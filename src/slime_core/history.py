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
from typing import Any, Final

from msgspec.structs import replace

from slime_core.alignment import TokenBytes
from slime_core.forest import Forest
from slime_core.history_looks import History, IdsLook, Look, TextLook, Wish
from slime_core.radix import Match, Node
from slime_core.segments import Segment

__all__ = ["NEAR", "ids_history", "near_marks", "text_history"]

NEAR: Final = 64
"""How many marks at and below the place reached are looked at."""

_NONE: Final = History(None, 0, 0)


def text_history(
    forest: Forest, text: str, found: Match[str], vocabulary: TokenBytes | None, wish: Wish
) -> History:
    """The history that ``text`` extends; ``found`` is its match in the text tree."""
    return _history(TextLook(forest, text, found, vocabulary, wish))


def ids_history(forest: Forest, found: Match[bytes], matched: int, wish: Wish) -> History:
    """The history that ids extend, of which ``matched`` are known. Ids may be cut anywhere."""
    return _history(IdsLook(forest, found, matched, wish))


def _history(look: Look) -> History:
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


def _ended(look: Look) -> History:
    """The deepest answer that ends on the matched path."""
    best = _NONE
    for node in look.found.node.lineage():
        if look.depth(best) >= node.end // look.unit:
            break
        chosen = _choose(look, node)
        if chosen is not None and look.depth(chosen) > look.depth(best):
            best = chosen
    return best


def _choose(look: Look, node: Node[Any]) -> History | None:
    """The answer at ``node`` that is meant: the session's own, else the one named, else the latest
    of those whose hidden ending the prompt repeats, else the latest.

    What continues an own answer is as good as own.
    """
    following = (one for one in reversed(node.marks or ()) if look.follows(one))
    candidates = list(following if look.owners else islice(following, NEAR))
    meant = _meant(look, candidates) if look.owners and len(candidates) > 1 else candidates
    return _settle(look, [look.after(one) for one in meant[:NEAR]])


def _settle(look: Look, fitting: list[History]) -> History | None:
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


def _are_twins(look: Look, left: History, right: History) -> bool:
    if look.depth(left) == look.depth(right):
        return True
    assert left.parent is not None
    assert right.parent is not None
    return look.node(left.parent) is look.node(right.parent)


def _meant(look: Look, candidates: list[Segment]) -> list[Segment]:
    """Those of equal answers that a client with answers of its own can mean."""
    own = [one for one in candidates if one.number in look.owners] or [
        one for one in candidates if _continues(one, look.owners)
    ]
    return [one for one in own or candidates if _is_named(look, one)] or own or candidates


def _is_named(look: Look, one: Segment) -> bool:
    return one.answer is not None and one.answer.call == look.wish.parent_call


def _left_midway(look: Look) -> History:
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


def _covering(look: Look) -> Iterator[Segment]:
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


def _has_answers(look: Look) -> bool:
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


def _left(look: Look, one: Segment) -> History | None:
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


def _own(look: Look) -> History | None:
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


def _own_near(look: Look, path: set[Node[Any]]) -> Iterable[Segment]:
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


def _parting(look: Look, node: Node[Any], path: set[Node[Any]]) -> int:
    """Where the way to ``node`` and the matched path part: at a node, or at the place reached.

    The match goes on along whatever is longest, which may be someone else's.
    """
    for here in node.lineage():
        if here is look.found.below:
            return look.reached
        if here in path:
            return here.end // look.unit
    return 0
