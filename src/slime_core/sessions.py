"""What may happen to sessions: queries that change nothing.

A session groups the calls of one rollout. It is open, then perhaps sealed, and ends deleted or
expired. One that a header merely names has no entry in the book and is open for ever, unless it is
sealed or deleted.
"""

from __future__ import annotations

from slime_core.errors import ClientError
from slime_core.segments import Segment
from slime_core.session_book import Leaving, Session
from slime_core.state import RouterState
from slime_core.transitions import SegmentsGone, SessionEnded, SessionFreed

__all__ = [
    "expire",
    "is_delivered",
    "may_write",
    "next_deadline",
    "next_leaving",
    "require_known",
    "require_open",
    "require_writable",
]


def may_write(state: RouterState, session: str | None) -> str | None:
    """Why an answer cannot be added to ``session`` now; ``None`` if it can.

    ``session_sealed``, ``session_deleted`` or ``session_expired``: whoever collected its samples,
    or ended it, must not find another answer in it later.
    """
    if session is None:
        return None
    ended = state.sessions.ended.get(session)
    if ended is not None:
        return f"session_{ended.reason}"
    known = state.sessions.known.get(session)
    return "session_sealed" if known is not None and known.sealed else None


def require_open(state: RouterState, session: str) -> None:
    """Raise ``ClientError`` (410) for a session that ended."""
    ended = state.sessions.ended.get(session)
    if ended is not None:
        raise ClientError(
            f"this session is over: it was {ended.reason}",
            status=410,
            code=f"session_{ended.reason}",
            param="session_id",
        )


def require_writable(state: RouterState, session: str) -> None:
    """Raise ``ClientError`` for a session that takes no calls: 410 if it ended, 409 if sealed."""
    require_open(state, session)
    if may_write(state, session) is not None:
        raise ClientError(
            "this session is sealed: it takes no more calls",
            status=409,
            code="session_sealed",
            param="session_id",
        )


def require_known(state: RouterState, session: str) -> Session | None:
    """The session's entry, if it has one; it must be known by that or by what it holds.

    Raises ``ClientError``: 410 if it ended, 404 if nothing is known of it.
    """
    require_open(state, session)
    known = state.sessions.known.get(session)
    if known is None and session not in state.forest.sessions:
        raise ClientError(
            "there is no such session", status=404, code="session_not_found", param="session_id"
        )
    return known


def next_deadline(state: RouterState, idle_s: float) -> float | None:
    """When the next session will have idled for ``idle_s`` seconds; ``None`` if none can."""
    session = state.sessions.longest_idle()
    return None if session is None else session.used_at + idle_s


def expire(state: RouterState, now: float, idle_s: float) -> SessionEnded | None:
    """The end of a session that has idled for ``idle_s`` seconds. Ask again after applying it."""
    session = state.sessions.longest_idle()
    if session is None or session.used_at + idle_s > now:
        return None
    return SessionEnded(session=session.name, reason="expired")


def next_leaving(
    state: RouterState, *, segments: int = 64, characters: int = 2**19
) -> SegmentsGone | SessionFreed | None:
    """What is to be freed next of sessions that ended. Ask again after applying it.

    At most about ``segments`` at once, and no more than it takes to read ``characters`` of the
    texts by whose fingerprints they are remembered. What other calls build on stays.
    """
    name = next(iter(state.sessions.leaving), None)
    if name is None:
        return None
    leaving = state.sessions.leaving[name]
    gone = _freeable(state, name, segments, characters)
    if not gone:
        return SessionFreed(session=name)
    return SegmentsGone(
        segments=tuple(one.number for one in gone),
        reason=leaving.reason,
        unretrieved=_unretrieved(gone, leaving),
    )


def _unretrieved(gone: list[Segment], leaving: Leaving) -> int:
    """Answers that nobody has seen. What is deleted on purpose is not lost."""
    if leaving.reason == "deleted":
        return 0
    return sum(
        1
        for one in gone
        if one.is_sampled and not one.retrieved and one.number > leaving.collected_to
    )


def _freeable(state: RouterState, name: str, segments: int, characters: int) -> list[Segment]:
    """Segments that only this session needs, leaves first."""
    own = state.forest.sessions.get(name, {})
    children: dict[int, int] = {}
    gone: dict[int, Segment] = {}
    read = 0
    for answer in reversed(own.values()):
        here: Segment | None = answer
        while here is not None and here.number not in gone and _is_alone(here, name, children):
            gone[here.number] = here
            read += here.text_end
            parent = here.parent
            if parent is not None:
                children[parent.number] = children.get(parent.number, parent.children) - 1
            here = parent
        if len(gone) >= segments or read > characters:
            break
    return list(gone.values())


def _is_alone(segment: Segment, name: str, children: dict[int, int]) -> bool:
    """Whether nothing builds on ``segment``, and no other session may."""
    if segment.pins or children.get(segment.number, segment.children):
        return False
    return segment.answer is None or segment.answer.session == name


def is_delivered(state: RouterState, segment: Segment) -> bool:
    """Whether a trainer was given this answer, by itself or in samples."""
    if segment.retrieved or segment.answer is None:
        return segment.retrieved
    session = segment.answer.session
    known = None if session is None else state.sessions.known.get(session)
    return known is not None and segment.number <= known.collected_to
