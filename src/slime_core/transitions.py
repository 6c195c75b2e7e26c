"""Everything that can happen to the router's state: facts, and nothing else.

Each is complete when it is made; ``RouterState.apply`` is the only place that acts on them. They
are structs because every request makes half a dozen: frozen dataclasses take ten times as long.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from slime_core.fleet import Loads, WorkerKind
from slime_core.health import Event, Health
from slime_core.logprob_kinds import LogprobKind
from slime_core.segments import Answer
from slime_core.types import NO_IDS, CallId, Encoding, Origin, PackedIds, WorkerUrl

__all__ = [
    "AnswerWithdrawn",
    "CallCaptured",
    "CallLost",
    "CallOpened",
    "LogprobsRead",
    "Lookup",
    "NewestUnheld",
    "PromptKept",
    "PromptTold",
    "Retrieved",
    "SegmentsGone",
    "SessionCollected",
    "SessionEnded",
    "SessionFreed",
    "SessionOpened",
    "SessionSealed",
    "SessionUsed",
    "SlotsGiven",
    "SlotsTaken",
    "Transition",
    "VersionFellBack",
    "VersionSeen",
    "WorkerAdded",
    "WorkerFlushed",
    "WorkerHealth",
    "WorkerLoads",
    "WorkerLogprobs",
    "WorkerMismatch",
    "WorkerPaused",
    "WorkerRemoved",
]


class CallOpened(Struct, frozen=True, kw_only=True, gc=False):
    """A call begins. Its parent stays in memory until the call ends, one way or another."""

    call: CallId
    parent: int | None
    session: str | None = None


class Lookup(Struct, frozen=True, kw_only=True, gc=False):
    """A prompt was looked up: for the books, and to keep what it used.

    ``tokens`` of the prompt, ``reused`` of them from the forest; ``used`` names the segments
    that supplied them.
    """

    tokens: int
    reused: int
    used: tuple[int, ...] = ()


class PromptKept(Struct, frozen=True, kw_only=True, gc=False):
    """The new part of a call's prompt was encoded, and is kept while the call is in flight.

    So calls that begin meanwhile with the same text need not encode it again. Fields as in
    :class:`CallCaptured`.
    """

    call: CallId
    encoding: Encoding
    token_start: int
    text_start: int
    joint: int
    prompt_ids: PackedIds
    prompt_text: str | None
    prompt_origin: Origin = Origin.PROMPT
    close_ids: PackedIds = NO_IDS
    close_text: str = ""
    hidden: bool = False


class CallCaptured(Struct, frozen=True, kw_only=True, gc=False):
    """A call ended and its prompt and answer are kept.

    The prompt's new part begins at token ``token_start`` and character ``text_start`` of the
    trajectory of ``parent`` (``None``: a root, both 0). ``prompt_text`` is ``None`` where the
    client sent ids; the first ``joint`` characters of it repeat what the parent's ids hold.

    ``close_ids`` end the parent's turn where sampling stopped short of that: a piece of its own, by
    the template, before the prompt's; ``joint`` then counts in ``close_text``. A ``hidden`` prompt
    is found by no text.
    """

    call: CallId
    parent: int | None
    encoding: Encoding
    token_start: int
    text_start: int
    joint: int
    prompt_ids: PackedIds
    prompt_text: str | None
    prompt_origin: Origin = Origin.PROMPT
    close_ids: PackedIds = NO_IDS
    close_text: str = ""
    hidden: bool = False
    answer_ids: PackedIds
    answer_text: str
    answer: Answer


class LogprobsRead(Struct, frozen=True, kw_only=True, gc=False):
    """The logprobs of a captured call, which were kept unread, are these, packed."""

    call: CallId
    logprobs: bytes


class AnswerWithdrawn(Struct, frozen=True, kw_only=True, gc=False):
    """The logprobs of a captured call, which were kept unread, are not those of its tokens.

    It is as if the call had been lost: ``problem`` says in words what did not fit.
    """

    call: CallId
    problem: str
    reason: str = "corrupt"


class CallLost(Struct, frozen=True, kw_only=True, gc=False):
    """A call ended without anything that could be kept; ``reason`` says why, in a word.

    ``text`` is what the client holds now, prompt and answer, where it is known.
    """

    call: CallId
    reason: str
    sampled: bool = False
    """Whether a model had sampled something that is now lost."""
    text: str | None = None


class PromptTold(Struct, frozen=True, kw_only=True, gc=False):
    """The text of a prompt that came as ids; the segments under it follow.

    It begins at character ``text_start`` of its trajectory; the first ``joint`` characters
    repeat what the parent's ids hold. ``text`` is ``None`` where it cannot be told: the segment
    stays known by its ids alone.
    """

    segment: int
    text_start: int = 0
    joint: int = 0
    text: str | None


class Retrieved(Struct, frozen=True, kw_only=True, gc=False):
    """The trajectory that ends in ``call`` was delivered to a trainer.

    ``token_end`` says that it was left midway, at that token; what lies behind was not delivered.
    """

    call: CallId
    token_end: int | None = None


class SegmentsGone(Struct, frozen=True, kw_only=True, gc=False):
    """Segments left memory, leaves first.

    ``reason`` is ``evicted`` or ``collected``, or the reason for which their session ended.
    ``unretrieved`` of them held answers that nobody had asked for.
    """

    segments: tuple[int, ...]
    reason: str
    unretrieved: int = 0


class SessionOpened(Struct, frozen=True, kw_only=True, gc=False):
    """A session gets an entry in the book, at ``now`` seconds.

    Of its key only a digest is kept; ``None``: it has none. ``metadata`` is a JSON object.
    """

    session: str
    now: float
    key_digest: bytes | None = None
    metadata: bytes = b"{}"


class SessionUsed(Struct, frozen=True, kw_only=True, gc=False):
    """A session was used at ``now``; ``requests`` is 1 where a request of it begins, -1 where one
    ends."""

    session: str
    now: float
    requests: int = 0


class SessionSealed(Struct, frozen=True, kw_only=True, gc=False):
    """A session takes no more calls, nor answers of those that are in flight."""

    session: str


class SessionCollected(Struct, frozen=True, kw_only=True, gc=False):
    """A trainer was given samples of a session, with all its answers up to ``segment``.

    They are held as data all the same until the session ends: asking again gives the same.
    """

    session: str
    segment: int


class SessionEnded(Struct, frozen=True, kw_only=True, gc=False):
    """A session is over; ``reason`` is ``deleted`` or ``expired``."""

    session: str
    reason: str


class SessionFreed(Struct, frozen=True, kw_only=True, gc=False):
    """All that can be freed of a session that ended is."""

    session: str


class WorkerAdded(Struct, frozen=True, kw_only=True, gc=False):
    """A worker was registered; a known one may change its kind, port and extras by it.

    ``id`` names it to operators (empty: its URL does); of a known one it stays. ``extras`` is a
    JSON object: what else was registered.
    """

    worker: WorkerUrl
    id: str = ""
    kind: WorkerKind = WorkerKind.REGULAR
    bootstrap_port: int | None = None
    extras: bytes = b"{}"


class WorkerRemoved(Struct, frozen=True, kw_only=True, gc=False):
    """A worker gets no new work and is forgotten once its last call has ended."""

    worker: WorkerUrl


class WorkerHealth(Struct, frozen=True, kw_only=True, gc=False):
    """A worker's health is another, because of ``event``."""

    worker: WorkerUrl
    health: Health
    event: Event


class WorkerPaused(Struct, frozen=True, kw_only=True, gc=False):
    """A worker's generation was paused, or goes on."""

    worker: WorkerUrl
    paused: bool


class WorkerMismatch(Struct, frozen=True, kw_only=True, gc=False):
    """A worker cannot be one of ours, and why (``None``: it can)."""

    worker: WorkerUrl
    reason: str | None


class WorkerLogprobs(Struct, frozen=True, kw_only=True, gc=False):
    """It was found out what a worker's logprobs are of."""

    worker: WorkerUrl
    kind: LogprobKind


class WorkerLoads(Struct, frozen=True, kw_only=True, gc=False):
    """A worker told of its load."""

    worker: WorkerUrl
    loads: Loads


class WorkerFlushed(Struct, frozen=True, kw_only=True, gc=False):
    """A worker's prefix cache is empty."""

    worker: WorkerUrl


class SlotsTaken(Struct, frozen=True, kw_only=True, gc=False):
    """These calls are being sent to ``worker``.

    ``key`` is the session or routing key that is at home there from now on; ``pages`` are those of
    the prompt, which its cache will hold (:mod:`slime_core.prefixes`).
    """

    worker: WorkerUrl
    calls: tuple[CallId, ...]
    key: str | None = None
    pages: tuple[bytes, ...] = ()


class SlotsGiven(Struct, frozen=True, kw_only=True, gc=False):
    """These calls no longer occupy ``worker``."""

    worker: WorkerUrl
    calls: tuple[CallId, ...]


class VersionSeen(Struct, frozen=True, kw_only=True, gc=False):
    """``worker`` holds, or has sampled with, the weights named ``version``.

    ``sighting``: the fleet's sighting when it was asked, if it was (a poll, an update of its
    weights); ``None``: an answer told it, which may have begun under older weights.
    """

    worker: WorkerUrl
    version: str
    sighting: int | None = None


class NewestUnheld(Struct, frozen=True, kw_only=True, gc=False):
    """Since then nobody holds new enough weights and others wait; ``None``: that is over."""

    since: float | None


class VersionFellBack(Struct, frozen=True, kw_only=True, gc=False):
    """The trainer started over: ``version``, which is older, is the newest from now on."""

    version: str


Transition: TypeAlias = (
    CallOpened
    | Lookup
    | PromptKept
    | CallCaptured
    | CallLost
    | LogprobsRead
    | AnswerWithdrawn
    | PromptTold
    | Retrieved
    | SegmentsGone
    | SessionOpened
    | SessionUsed
    | SessionSealed
    | SessionCollected
    | SessionEnded
    | SessionFreed
    | WorkerAdded
    | WorkerRemoved
    | WorkerHealth
    | WorkerPaused
    | WorkerMismatch
    | WorkerLoads
    | WorkerLogprobs
    | WorkerFlushed
    | SlotsTaken
    | SlotsGiven
    | VersionSeen
    | NewestUnheld
    | VersionFellBack
)
