"""Which branches are dropped though they could be trained: policies by name.

A policy gets the tree of the session's calls and gives, for every leaf to drop, the reason in a
word. What it drops is accounted for under that word. Only leaves can be dropped, and only while a
live sibling remains, or their parent would become an end that no branch leads to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from slime_core.samples.tree import CallNode, CallTree
from slime_core.segments import Outcome

__all__ = [
    "DEFAULT_POLICY",
    "POLICIES",
    "RETRIED",
    "SamplePolicy",
    "keep_all",
    "latest_retry",
    "latest_sibling",
]

SamplePolicy: TypeAlias = Callable[[CallTree], Mapping[int, str]]

RETRIED: Final = "retried"
"""The flag of an answer whose client asked again because it never got it."""


def keep_all(tree: CallTree) -> Mapping[int, str]:
    """Every branch is a sample."""
    return {}


def latest_retry(tree: CallTree) -> Mapping[int, str]:
    """Drop what a retry superseded.

    That is a leaf with a later sibling which was asked the very same, if it did not come to its end
    or is marked as retried. Two whole answers to one prompt are two samples: groups do that.
    """
    return {leaf: "superseded_retry" for leaf in tree.leaves if _is_superseded(tree, leaf)}


def _is_superseded(tree: CallTree, leaf: int) -> bool:
    node = tree.nodes[leaf]
    answer = node.answer
    unfinished = answer.outcome is not Outcome.COMPLETE or RETRIED in answer.flags
    return unfinished and any(_same_request(node, one) for one in tree.later_siblings(leaf))


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
