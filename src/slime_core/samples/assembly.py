"""Samples: the trajectories of a session, each sampled token trained in exactly one of them.

All of this works on a :class:`~slime_core.samples.snapshot.Snapshot` and nothing else, so that a
thread may do it, and does the same whenever it is asked.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from slime_core.chat.turn import Turn
from slime_core.samples.accounting import Accounting, Books
from slime_core.samples.experts import Rows, RowsProblem, merge_rows
from slime_core.samples.policies import SamplePolicy, latest_retry
from slime_core.samples.snapshot import Piece, Snapshot
from slime_core.samples.tree import CallTree, grow, status_of
from slime_core.segments import Answer
from slime_core.types import ID_BYTES, CallId, PackedIds, token_count
from slime_core.versions import VersionRun

__all__ = ["Collected", "Sample", "Wanted", "collect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which samples are asked for.

    ``per``: ``branch`` (everything on the way to a leaf in one sample) or ``call``. ``include``
    names outcomes that are trained as well: ``partial``, ``aborted``. ``rewards`` and ``calls``
    (metadata) are by call; ``{"train": false}`` there makes a call auxiliary.
    """

    per: str = "branch"
    max_seq_len: int | None = None
    include: tuple[str, ...] = ()
    policy: SamplePolicy = latest_retry
    reward: float | None = None
    rewards: Mapping[CallId, float | None] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    calls: Mapping[CallId, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample. ``mask`` (a byte each) and ``logprobs`` begin behind the prompt; ``runs`` count
    from the first token and name the weights of what is trained."""

    ids: PackedIds
    prompt_length: int
    mask: bytes
    logprobs: array[float]
    runs: tuple[VersionRun, ...]
    calls: tuple[Answer, ...]
    """The session's calls on its way, first to last."""
    turns: tuple[Turn | None, ...]
    """What every answer on its way is in a conversation."""
    status: str
    shortened: bool
    """Whether ``max_seq_len`` ended it."""
    cut: bool
    """Whether it leaves a sampled answer midway."""
    rows: Rows | None
    rows_problem: str | None

    @property
    def response_length(self) -> int:
        """Tokens behind the prompt."""
        return len(self.mask)

    @property
    def last(self) -> Answer:
        """The call it ends with."""
        return self.calls[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Samples in the order of capture of their last calls, and where every token is."""

    samples: tuple[Sample, ...]
    accounting: Accounting
    tree: CallTree

    @property
    def empty_reason(self) -> str | None:
        """Why there is no sample at all: ``no_records``, ``all_truncated`` or ``all_dropped``."""
        if self.samples:
            return None
        if not self.tree.nodes:
            return "no_records"
        truncated = any(one.reason == "max_seq_len" for one in self.accounting.dropped)
        return "all_truncated" if truncated else "all_dropped"


def collect(snapshot: Snapshot, wanted: Wanted) -> Collected:
    """The samples of a session, as ``wanted``."""
    by_call = snapshot.by_call()
    auxiliary = {
        by_call[call]
        for call, metadata in wanted.calls.items()
        if call in by_call and metadata.get("train") is False
    }
    tree = grow(snapshot, include=wanted.include, auxiliary=auxiliary)
    dropped = {
        number: reason for number, reason in wanted.policy(tree).items() if number in tree.leaves
    }
    ends = tree.leaves
    if wanted.per == "call":
        ends = tuple(number for number, node in tree.nodes.items() if node.excluded is None)
    books = Books(snapshot, tree, dropped)
    made = [
        _sample(snapshot, tree, books, number, wanted) for number in ends if number not in dropped
    ]
    accounting = books.accounting()
    return Collected(
        samples=tuple(one for one in made if one is not None),
        accounting=accounting,
        tree=tree,
    )


def _sample(
    snapshot: Snapshot, tree: CallTree, books: Books, number: int, wanted: Wanted
) -> Sample | None:
    """The sample that ends with call ``number``; ``None`` if ``max_seq_len`` leaves nothing to
    train of it."""
    whole = snapshot.path(number)
    end = snapshot.pieces[number].token_end
    limit = end if wanted.max_seq_len is None else min(end, wanted.max_seq_len)
    path = _cut(whole, limit)
    limit = path[-1][1] if path else 0
    per_call = wanted.per == "call"
    own = [(one, stop) for one, stop in path if one.own]
    trains = [(one, stop) for one, stop in own if one.number == number or not per_call]
    fresh = books.fresh([entry for entry in trains if tree.nodes[entry[0].number].excluded is None])
    books.note_reach([entry for entry in whole if entry[0].own])
    if not trains or (limit < end and not fresh):
        return None
    books.note_sample(own, fresh)
    answers = tuple(one.answer for one, _ in own if one.answer is not None)
    start = trains[0][0].token_start
    columns = _Columns(limit - start, start)
    for piece, first, last in fresh:
        columns.add(piece, first, last)
    rows, problem = _rows(path, limit)
    return Sample(
        ids=_ids(path),
        prompt_length=start,
        mask=bytes(columns.mask),
        logprobs=columns.logprobs,
        runs=tuple(columns.runs),
        calls=answers,
        turns=tuple(one.answer.turn for one, _ in path if one.answer is not None),
        status="truncated" if limit < end else status_of(answers[-1]),
        shortened=limit < end,
        cut=any(stop < one.token_end for one, stop in whole if one.own),
        rows=rows,
        rows_problem=problem,
    )


def _cut(path: Sequence[tuple[Piece, int]], limit: int) -> list[tuple[Piece, int]]:
    """The way up to token ``limit``, and up to the end of an answer: a prompt that follows belongs
    to a turn that is dropped. A piece that begins at the limit is on it only if it is empty."""
    found = [
        (piece, min(stop, limit))
        for piece, stop in path
        if piece.token_start < limit or piece.token_end == piece.token_start == limit
    ]
    while found and not found[-1][0].own:
        found.pop()
    return found


def _ids(path: Sequence[tuple[Piece, int]]) -> PackedIds:
    return PackedIds(b"".join(one.ids[: (stop - one.token_start) * ID_BYTES] for one, stop in path))


def _rows(path: Sequence[tuple[Piece, int]], tokens: int) -> tuple[Rows | None, str | None]:
    try:
        return merge_rows(path, tokens), None
    except RowsProblem as problem:
        return None, str(problem)


class _Columns:
    """The columns of a response of ``count`` tokens that begins at token ``start``."""

    def __init__(self, count: int, start: int) -> None:
        self._start = start
        self.mask = bytearray(count)
        self.logprobs = array("d", bytes(8 * count))
        self.runs: list[VersionRun] = []

    def add(self, piece: Piece, first: int, last: int) -> None:
        """Train the tokens ``first`` to ``last`` (exclusive) of the trajectory."""
        answer = piece.answer
        assert answer is not None
        at = slice(first - self._start, last - self._start)
        self.mask[at] = b"\x01" * (last - first)
        values = answer.values(token_count(piece.ids))
        begin = piece.token_start
        self.logprobs[at] = array("d", values[first - begin : last - begin])
        for run in answer.runs:
            start, end = max(run.start + begin, first), min(run.end + begin, last)
            if start < end:
                self.runs.append(VersionRun(run.version, start, end))
