"""Where every captured token of a session is: trained, context, or dropped and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from slime_core.samples.snapshot import Piece, Snapshot
from slime_core.samples.tree import CallTree
from slime_core.types import CallId

__all__ = ["Accounting", "Books", "Fresh", "Unused"]

Fresh: TypeAlias = tuple[Piece, int, int]
"""Whose tokens, from and to (exclusive) where in the trajectory, are trained for the first time."""


@dataclass(frozen=True, slots=True)
class Unused:
    """Sampled tokens that are not trained. ``call`` is ``None`` for answers that left memory, of
    which there were ``calls``."""

    call: CallId | None
    tokens: int
    reason: str
    calls: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """``captured`` = ``used`` + the tokens of ``context`` + those of ``dropped``.

    ``context``: in some sample, trained in none. ``dropped``: in no sample. ``lost`` counts calls
    of which nothing was captured, by reason.
    """

    captured: int
    used: int
    context: tuple[Unused, ...]
    dropped: tuple[Unused, ...]
    lost: tuple[tuple[str, int], ...]


class Books:
    """Keeps account while samples are made. All counts are tokens from the start of an answer: what
    is used of it is always its beginning."""

    def __init__(self, snapshot: Snapshot, tree: CallTree, dropped: Mapping[int, str]) -> None:
        self._snapshot = snapshot
        self._tree = tree
        self._dropped = dropped
        self._trained: dict[int, int] = {}
        self._present: dict[int, int] = {}
        self._reach: dict[int, int] = {}

    def fresh(self, entries: Sequence[tuple[Piece, int]]) -> list[Fresh]:
        """What no sample before has trained of these answers, each taken up to its token."""
        found = []
        for piece, stop in entries:
            first = piece.token_start + self._trained.get(piece.number, 0)
            if first < stop:
                found.append((piece, first, stop))
        return found

    def note_reach(self, entries: Sequence[tuple[Piece, int]]) -> None:
        """A sample would hold these answers up to these tokens, were there no limit."""
        for piece, stop in entries:
            _raise_to(self._reach, piece, stop)

    def note_sample(self, entries: Sequence[tuple[Piece, int]], fresh: Sequence[Fresh]) -> None:
        """A sample holds these answers up to these tokens, and trains ``fresh``."""
        for piece, stop in entries:
            _raise_to(self._present, piece, stop)
        for piece, _, stop in fresh:
            _raise_to(self._trained, piece, stop)

    def accounting(self) -> Accounting:
        """The account, once all samples are made."""
        snapshot, reasons = self._snapshot, self._reasons()
        context, dropped = [], []
        for number, node in self._tree.nodes.items():
            call, tokens = node.answer.call, snapshot.pieces[number].tokens
            trained = self._trained.get(number, 0)
            present = self._present.get(number, 0)
            reach = max(present, self._reach.get(number, 0))
            if present > trained:
                context.append(Unused(call, present - trained, node.excluded or "context"))
            if reach > present:
                dropped.append(Unused(call, reach - present, "max_seq_len"))
            if number not in self._reach:
                dropped.append(Unused(call, tokens, reasons[number]))
            elif tokens > reach:
                dropped.append(Unused(call, tokens - reach, "cut"))
        gone = [Unused(None, tokens, reason, calls) for reason, calls, tokens in snapshot.gone]
        held = sum(snapshot.pieces[number].tokens for number in self._tree.nodes)
        return Accounting(
            captured=held + sum(one.tokens for one in gone),
            used=sum(self._trained.values()),
            context=tuple(context),
            dropped=(*dropped, *gone),
            lost=snapshot.lost,
        )

    def _reasons(self) -> dict[int, str]:
        """Why calls would be in no sample: their own reason, else that of what they lead to."""
        reasons: dict[int, str] = {}
        for number, node in reversed(self._tree.nodes.items()):
            own = self._dropped.get(number) or node.excluded
            if own is not None:
                reasons[number] = own
            if node.parent is not None and number in reasons:
                reasons.setdefault(node.parent, reasons[number])
        return reasons


def _raise_to(counts: dict[int, int], piece: Piece, stop: int) -> None:
    counts[piece.number] = max(counts.get(piece.number, 0), stop - piece.token_start)
