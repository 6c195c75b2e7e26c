"""Segments: what one step added to a trajectory.

A segment covers the tokens ``token_start … token_end`` and the characters ``text_start …
text_end`` of its trajectory, counted from the root. It holds neither: both are read back from the
radix trees, where its two nodes stand (:mod:`slime_core.radix`). So a child is simply something
that begins at or before its parent's end; where it begins earlier, it left the parent midway (a
*cut*), and the parent's later tokens are not part of the child's trajectory.
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Iterator

from msgspec import Struct

from slime_core.chat.turn import Turn
from slime_core.errors import InvariantError
from slime_core.logprob_kinds import LogprobKind
from slime_core.radix import Node
from slime_core.types import CallId, Encoding, Origin, logprob_column, unpack_logprobs
from slime_core.versions import VersionRun

__all__ = ["Answer", "Outcome", "Segment", "kept"]


class Outcome(enum.Enum):
    """How a call ended."""

    COMPLETE = "complete"
    """The worker finished it."""
    ABORTED = "aborted"
    """The worker was told to stop, and said so."""
    PARTIAL = "partial"
    """The connection to the client or the worker ended first; what had come by then is kept."""


class Answer(Struct, frozen=True, kw_only=True, gc=False):
    """What one call sampled, apart from its ids and text.

    ``logprobs`` are packed (:func:`slime_core.types.pack_logprobs`), one per token; ``runs`` cover
    the same tokens. ``endings`` is what its ids hold behind its text
    (:func:`slime_core.alignment.hidden_endings`); ``finish_reason`` and ``extras`` are the
    worker's own JSON, byte for byte.
    """

    call: CallId
    session: str | None
    outcome: Outcome
    logprobs: bytes
    runs: tuple[VersionRun, ...]
    finish_reason: bytes
    endings: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    extras: tuple[tuple[str, bytes], ...] = ()
    flags: tuple[str, ...] = ()
    """Words that a trainer should know: ``parent_ambiguous``, …"""
    logprob_kind: LogprobKind = LogprobKind.UNKNOWN
    """What ``logprobs`` are of, as far as that was known when it was captured."""
    turn: Turn | None = None
    """What it is in a conversation; ``None`` where it answered no chat messages."""
    unread: bytes = b""
    """The worker's own JSON of the logprobs, while nobody has read it (:mod:`slime_core.unread`);
    ``logprobs`` are empty as long."""

    @property
    def size(self) -> int:
        """Bytes beyond ids and text."""
        told = len(self.logprobs) + len(self.unread) + len(self.finish_reason)
        return told + self.extras_size

    @property
    def packed(self) -> bytes:
        """Its logprobs, packed. Raises ``InvariantError`` while they are unread."""
        if self.unread:
            raise InvariantError("logprobs are read before anybody is told of them")
        return self.logprobs

    def values(self, count: int) -> list[float]:
        """The logprobs of its ``count`` tokens. Raises likewise."""
        return unpack_logprobs(self.packed, count)

    def column(self, count: int) -> array[float]:
        """The same as an array, as wide as they are packed. Raises likewise."""
        return logprob_column(self.packed, count)

    @property
    def extras_size(self) -> int:
        """Bytes of opaque extras, and of messages."""
        turn = 0 if self.turn is None else self.turn.size
        if not self.extras:
            return turn
        return turn + sum(len(name) + len(value) for name, value in self.extras)


class Segment(Struct, kw_only=True, eq=False):
    """One step of a trajectory. Changed by :class:`slime_core.forest.Forest` only."""

    number: int
    """Counts segments in the order of their making."""
    parent: Segment | None
    origin: Origin
    encoding: Encoding
    token_start: int
    token_end: int
    text_start: int
    text_end: int
    id_node: Node[bytes]
    text_node: Node[str] | None
    """``None`` while only ids are known (a prompt that came as ids)."""
    waiting_text: str | None = None
    """Its own text, while the text before it is not known."""
    from_ids: bool = False
    """A prompt that came as ids: they need not be the tokenizer's encoding of its text."""
    hidden: bool = False
    """Its ids are not what its text would become anywhere else (special tokens that content spells
    are plain text), so no text leads to it or beyond."""
    joint: int = 0
    """Characters at the start that repeat what the parent's ids already hold."""
    answer: Answer | None = None
    size: int = 0
    """:attr:`Answer.size` of its answer."""
    extras_size: int = 0
    """:attr:`Answer.extras_size` of its answer."""
    retrieved: bool = False
    unanswered: bool = False
    """A prompt that calls in flight brought and no answer has followed yet."""
    children: int = 0
    pins: int = 0
    """Calls in flight that will extend this segment."""
    wanted: int = 0
    """Reasons to hold it as data: an answer not yet retrieved, calls in flight, and children
    that have such a reason."""
    used: int = 0
    """The logical time of its last use."""
    epoch: int = 0
    """The epoch of weights at its last use (:class:`slime_core.versions.VersionOrder`)."""

    @property
    def tokens(self) -> int:
        """How many tokens it adds."""
        return self.token_end - self.token_start

    @property
    def is_sampled(self) -> bool:
        """Whether its tokens were sampled by a model."""
        return self.answer is not None

    @property
    def run_text_start(self) -> int:
        """Where the text begins that its tokens stand for."""
        return self.text_start + self.joint

    def lineage(self) -> list[Segment]:
        """The segments from the root to this one."""
        path = []
        here: Segment | None = self
        while here is not None:
            path.append(here)
            here = here.parent
        path.reverse()
        return path


def kept(segment: Segment | None, end: int) -> Iterator[tuple[Segment, int]]:
    """The segments of the path to ``segment``, root first, each with the token at which the
    trajectory leaves it; ``segment`` itself is left at ``end``."""
    path = [] if segment is None else segment.lineage()
    for place, one in enumerate(path):
        stop = path[place + 1].token_start if place + 1 < len(path) else end
        yield one, stop
