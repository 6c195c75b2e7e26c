"""Trajectories: what a trainer gets, derived from the path of segments.

The loss mask is never stored. A position is 1 exactly where its segment was sampled; its logprob
and version are that call's. Everything else is 0, 0.0 and -1.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

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

__all__ = ["OriginRun", "SampledRun", "Trajectory", "count_other_answers", "trajectory"]


@dataclass(frozen=True, slots=True)
class OriginRun:
    """Tokens ``start`` to ``end`` (exclusive) came from ``origin``; ``call`` if sampled."""

    origin: Origin
    start: int
    end: int
    call: str | None = None


class SampledRun(NamedTuple):
    """Tokens ``start`` to ``end`` (exclusive) were sampled by one call, with these logprobs."""

    start: int
    end: int
    logprobs: array[float]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Token ids with all that is known of each: one length throughout.

    ``ids`` packed; everything else as runs, which cover what they name. What is told token by token
    is made of them when it is asked for: to write the runs themselves takes a third of the time.
    """

    ids: PackedIds
    sampled: tuple[SampledRun, ...]
    version_runs: tuple[VersionRun, ...]
    origins: tuple[OriginRun, ...]
    cut: bool
    """Whether it leaves a sampled answer midway somewhere."""
    logprob_kind: str | None
    """What the logprobs are of (:mod:`slime_core.logprob_kinds`); ``None`` where there are none."""

    def __len__(self) -> int:
        return token_count(self.ids)

    @cached_property
    def mask(self) -> bytes:
        """1 for every sampled token: one byte a token."""
        mask = bytearray(len(self))
        for run in self.sampled:
            mask[run.start : run.end] = b"\x01" * (run.end - run.start)
        return bytes(mask)

    @cached_property
    def logprobs(self) -> array[float]:
        """As ``float64``; 0.0 where nothing was sampled."""
        logprobs = array("d", bytes(8 * len(self)))
        for run in self.sampled:
            logprobs[run.start : run.end] = array("d", run.logprobs)
        return logprobs

    @cached_property
    def versions(self) -> array[int]:
        """One integer a token (:mod:`slime_core.versions`)."""
        versions = array("q", (NOT_SAMPLED,)) * len(self)
        for run in self.version_runs:
            number = as_number(run.version)
            versions[run.start : run.end] = array("q", (number,)) * (run.end - run.start)
        return versions


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
    builder = _Builder()
    for one, stop in kept(segment, end):
        builder.add(one, stop)
    return builder.build(PackedIds(ids + (tail or b"")), end)


class _Builder:
    """Collects the runs of the segments on the way."""

    def __init__(self) -> None:
        self._sampled: list[SampledRun] = []
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
        self._sampled.append(SampledRun(start, stop, answer.column(segment.tokens)[:count]))
        for run in answer.runs:
            self._add_versions(run, start, count)

    def _add_versions(self, run: VersionRun, offset: int, count: int) -> None:
        first, last = run.start, min(run.end, count)
        if first < last:
            at = VersionRun(run.version, offset + first, offset + last)
            self._version_runs.append(at)

    def build(self, ids: PackedIds, end: int) -> Trajectory:
        """All of it; ids behind ``end`` are an unsampled tail."""
        count = token_count(ids)
        if end < count:
            self._origins.append(OriginRun(Origin.PROMPT, end, count))
        return Trajectory(
            ids=ids,
            sampled=tuple(self._sampled),
            version_runs=tuple(self._version_runs),
            origins=tuple(self._origins),
            cut=self._cut,
            logprob_kind=together(self._kinds),
        )


def count_other_answers(segment: Segment) -> int:
    """How many other trajectories with the same text differ in an id, logprob or version."""
    if segment.text_node is None:
        return 0
    marks = segment.text_node.marks or ()
    others = [one for one in marks if one.is_sampled and one is not segment]
    own = _facts(segment) if others else None
    return sum(1 for one in others if _facts(one) != own)


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
