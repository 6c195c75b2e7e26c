"""The tree of a session's calls, and which of them can be trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import msgspec

from slime_core.samples.snapshot import Snapshot
from slime_core.segments import Answer, Outcome

__all__ = ["CallNode", "CallTree", "finish_type", "grow", "status_of"]

_STATUS: Final = {
    "stop": "completed",
    "tool_calls": "completed",
    "length": "truncated",
    "abort": "aborted",
}


class _Finish(msgspec.Struct):
    type: str | None = None


def finish_type(answer: Answer) -> str | None:
    """The type of the worker's finish reason, if it is one that can be read."""
    try:
        found = msgspec.json.decode(answer.finish_reason, type=_Finish | str | None)
    except msgspec.DecodeError:
        return None
    return found.type if isinstance(found, _Finish) else found


def status_of(answer: Answer) -> str:
    """slime's word for how a call ended: completed, truncated, aborted or failed.

    A finish reason that nobody knows is a failure, in words, and not something pending.
    """
    if answer.outcome is not Outcome.COMPLETE:
        return "aborted"
    return _STATUS.get(finish_type(answer) or "", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallNode:
    """One call of the session. ``parent`` is the call of the session that it builds on."""

    number: int
    parent: int | None
    answer: Answer
    prompt: int | None
    """The segment before its answer: calls of one prompt share it."""
    excluded: str | None
    """Why it is not trained; ``None`` if it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTree:
    """The calls of a session in the order of capture, parents before their children.

    ``live`` are the calls that are trained themselves or lead to one that is; ``leaves`` those of
    them that lead no further: the ends of the branches.
    """

    nodes: dict[int, CallNode]
    children: dict[int | None, list[int]] = field(default_factory=dict)
    live: frozenset[int] = frozenset()
    leaves: tuple[int, ...] = ()

    def later_siblings(self, number: int) -> list[CallNode]:
        """The live calls after this one that build on the same call as it does."""
        node = self.nodes[number]
        siblings = self.children.get(node.parent, [])
        return [self.nodes[one] for one in siblings if one > number and one in self.live]


def grow(
    snapshot: Snapshot, *, include: Collection[str] = (), auxiliary: Collection[int] = ()
) -> CallTree:
    """The tree of the session. ``include`` names outcomes (``partial``, ``aborted``) that are to be
    trained as well; ``auxiliary`` are calls that are not, whatever they are."""
    nodes: dict[int, CallNode] = {}
    children: dict[int | None, list[int]] = {}
    for number in snapshot.answers:
        answer = snapshot.answer(number)
        piece = snapshot.pieces[number]
        excluded = "auxiliary" if number in auxiliary else _excluded(answer, include)
        parent = _own_parent(snapshot, number)
        nodes[number] = CallNode(
            number=number, parent=parent, answer=answer, prompt=piece.parent, excluded=excluded
        )
        children.setdefault(parent, []).append(number)
    live = {number for number, node in nodes.items() if node.excluded is None}
    for number in reversed(nodes):
        parent = nodes[number].parent
        if number in live and parent is not None:
            live.add(parent)
    leaves = tuple(
        number
        for number in nodes
        if number in live and not any(one in live for one in children.get(number, ()))
    )
    return CallTree(nodes=nodes, children=children, live=frozenset(live), leaves=leaves)


def _excluded(answer: Answer, include: Collection[str]) -> str | None:
    if answer.outcome is Outcome.PARTIAL:
        return None if "partial" in include else "partial"
    if status_of(answer) == "aborted":
        return None if "aborted" in include else "aborted"
    return None


def _own_parent(snapshot: Snapshot, number: int) -> int | None:
    """The nearest answer of the session above this one."""
    here = snapshot.pieces[number].parent
    while here is not None and not snapshot.pieces[here].own:
        here = snapshot.pieces[here].parent
    return here
