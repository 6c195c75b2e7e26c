"""Trajectories: what a trainer gets, derived from the path of segments.

The loss mask is never stored. A position is 1 exactly where its segment was sampled; its logprob
and version are that call's. Everything else is 0, 0.0 and -1.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from slime_core.forest import Forest
from slime_core.logprob_kinds import LogprobKind, together
from slime_core.segments import Segment, kept
from slime_core.types import (
    ID_BYTES,
    Origin,
    PackedIds,
    pack_logprobs,
    token_count,
)
from slime_core.versions import NOT_SAMPLED, VersionRun, as_number

__all__ = ["OriginRun", "Trajectory", "count_other_answers", "trajectory"]


@dataclass(frozen=True, slots=True)
class OriginRun:
    """Tokens ``start`` to ``end`` (exclusive) came from ``origin``; ``call`` if sampled."""

    origin: Origin
    start: int
    end: int
    call: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """Token ids with all that is known of each: one length throughout.

    ``ids`` packed; ``logprobs`` as float64; ``mask`` one byte a token; ``versions`` one integer a
    token (:mod:`slime_core.versions`); ``version_runs`` and ``origins`` cover what they name.
    """

    ids: PackedIds
    mask: bytes
    logprobs: array[float]
    versions: array[int]
    version_runs: tuple[VersionRun, ...]
    origins: tuple[OriginRun, ...]
    cut: bool
    """Whether it leaves a sampled answer midway somewhere."""
    logprob_kind: str | None
    """What the logprobs are of (:mod:`slime_core.logprob_kinds`); ``None`` where there are none."""

    def __len__(self) -> int:
        return token_count(self.ids)


def trajectory(
    forest: Forest,
    segment: Segment | None,
    *,
    token_end: int | None = None,
    tail: PackedIds | None = None,
) -> Trajectory:
    """The trajectory that ends in ``segment`` at ``token_end`` (default: with it), then ``tail``.

    ``tail`` is a run of ids that nobody sampled.
    """
    end = (0 if segment is None else segment.token_end) if token_end is None else token_end
    ids = b"" if segment is None else forest.ids.key(segment.id_node)[: end * ID_BYTES]
    builder = _Builder(end + token_count(tail or b""))
    for one, stop in kept(segment, end):
        builder.add(one, stop)
    return builder.build(PackedIds(ids + (tail or b"")), end)


class _Builder:
    """Fills the columns from runs, never token by token."""

    def __init__(self, count: int) -> None:
        self._mask = bytearray(count)
        self._logprobs = array("d", bytes(8 * count))
        self._versions = array("q", (NOT_SAMPLED,)) * count
        self._version_runs: list[VersionRun] = []
        self._origins: list[OriginRun] = []
        self._cut = False
        self._kinds: list[LogprobKind] = []

    def add(self, segment: Segment, stop: int) -> None:
        """``segment`` up to token ``stop`` of the trajectory."""
        start = segment.token_start
        answer = segment.answer
        self._cut = self._cut or stop < segment.token_end
        if stop <= start:
            return
        self._origins.append(
            OriginRun(segment.origin, start, stop, None if answer is None else answer.call)
        )
        if answer is None:
            return
        self._kinds.append(answer.logprob_kind)
        count = stop - start
        self._mask[start:stop] = b"\x01" * count
        values = answer.values(segment.tokens)
        self._logprobs[start:stop] = array("d", values[:count])
        for run in answer.runs:
            self._add_versions(run, start, count)

    def _add_versions(self, run: VersionRun, offset: int, count: int) -> None:
        first, last = run.start, min(run.end, count)
        if first < last:
            at = VersionRun(run.version, offset + first, offset + last)
            self._version_runs.append(at)
            number = as_number(run.version)
            self._versions[at.start : at.end] = array("q", (number,)) * (last - first)

    def build(self, ids: PackedIds, end: int) -> Trajectory:
        """All of it; ids behind ``end`` are an unsampled tail."""
        if end < len(self._mask):
            self._origins.append(OriginRun(Origin.PROMPT, end, len(self._mask)))
        return Trajectory(
            ids=ids,
            mask=bytes(self._mask),
            logprobs=self._logprobs,
            versions=self._versions,
            version_runs=tuple(self._version_runs),
            origins=tuple(self._origins),
            cut=self._cut,
            logprob_kind=together(self._kinds),
        )


def count_other_answers(segment: Segment) -> int:
    """How many other trajectories with the same text differ in an id, logprob or version."""
    if segment.text_node is None:
        return 0
    own = _facts(segment)
    return sum(
        1
        for one in segment.text_node.marks or ()
        if one.is_sampled and one is not segment and _facts(one) != own
    )


def _facts(segment: Segment) -> tuple[object, ...]:
    """What makes two trajectories of equal text different.

    Equal ids have the same node: that is what a tree is.
    """
    sampled = [
        (one.token_start, stop, _sampling(one, stop))
        for one, stop in kept(segment, segment.token_end)
        if one.answer is not None
    ]
    return (segment.id_node, tuple(sampled))


def _sampling(segment: Segment, stop: int) -> tuple[object, ...]:
    """Versions, and logprobs as packed as they can be, of a sampled segment up to ``stop``.

    Packing is canonical: equal values are equal bytes.
    """
    answer = segment.answer
    assert answer is not None
    count = stop - segment.token_start
    logprobs = answer.packed
    if count < segment.tokens:
        logprobs = pack_logprobs(answer.values(segment.tokens)[:count])
    runs = [(run.version, run.start, min(run.end, count)) for run in answer.runs]
    return (logprobs, tuple(run for run in runs if run[1] < run[2]))
