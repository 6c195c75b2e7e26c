"""Which branches are dropped though they could be trained: policies by name.

A policy gets the tree of the session's calls and gives, for every leaf to drop, the reason in a
word. What it drops is accounted for under that word. Only leaves can be dropped. A call that leads
to dropped leaves alone is dropped with them: it does not become a leaf of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from slime_core.samples.tree import CallNode, CallTree
from slime_core.segments import Outcome

__all__ = [
    "DEFAULT_POLICY",
    "POLICIES",
    "SamplePolicy",
    "keep_all",
    "latest_retry",
    "latest_sibling",
]

SamplePolicy: TypeAlias = Callable[[CallTree], Mapping[int, str]]

_RETRY_OF: Final = "retry_of:"
"""Flags of a retry that begin so name the calls whose answers its client never got."""


def keep_all(tree: CallTree) -> Mapping[int, str]:
    """Every branch is a sample."""
    return {}


def latest_retry(tree: CallTree) -> Mapping[int, str]:
    """Drop what a retry superseded.

    That is a leaf that a later call names as the one it repeats, or one that did not come to its
    end and has a later sibling which was asked the very same. Two whole answers to one prompt are
    two samples where nothing tells of a retry: groups ask so.
    """
    named = {
        flag.removeprefix(_RETRY_OF)
        for number in tree.nodes
        if number in tree.live
        for flag in tree.nodes[number].answer.flags
        if flag.startswith(_RETRY_OF)
    }
    return {
        leaf: "superseded_retry"
        for leaf in tree.leaves
        if tree.nodes[leaf].answer.call in named or _was_asked_again(tree, leaf)
    }


def _was_asked_again(tree: CallTree, leaf: int) -> bool:
    node = tree.nodes[leaf]
    if node.answer.outcome is Outcome.COMPLETE:
        return False
    return any(_same_request(node, one) for one in tree.later_siblings(leaf))


def _same_request(one: CallNode, other: CallNode) -> bool:
    """Whether both were asked the same after the same: one prompt, or equal appended messages."""
    if one.prompt == other.prompt:
        return True
    mine, others = one.answer.turn, other.answer.turn
    if mine is None or others is None:
        return False
    return (mine.start, mine.written) == (others.start, others.written)


def latest_sibling(tree: CallTree) -> Mapping[int, str]:
    """Of leaves below one call only the latest is kept; leaves that begin a conversation stay."""
    return {
        leaf: "later_sibling"
        for leaf in tree.leaves
        if tree.nodes[leaf].parent is not None and tree.later_siblings(leaf)
    }


POLICIES: Final[Mapping[str, SamplePolicy]] = {
    "keep_all": keep_all,
    "latest_retry": latest_retry,
    "latest_sibling": latest_sibling,
}
DEFAULT_POLICY: Final = "latest_retry"
