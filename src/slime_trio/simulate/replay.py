"""A recorded trace as a workload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slime_core.errors import ClientError
from slime_core.simulation import Trace, TraceEntry
from slime_trio.config import ConfigurationError
from slime_trio.trace import TracedCall, TraceError, read_trace

__all__ = ["Replay", "load_replay", "replay_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A trace, and how many of its calls go on with calls that it does not hold.

    Those are taken for new, as they are when recording begins in the midst of their sessions.
    """

    trace: Trace
    orphans: int


def load_replay(path: Path, source: str) -> Replay:
    """The trace of a file. Raises :class:`ConfigurationError`, naming line and field."""
    try:
        return replay_of(read_trace(path))
    except TraceError as error:
        raise ConfigurationError(f"{source}: {error}") from error


def replay_of(calls: Sequence[TracedCall]) -> Replay:
    """``calls``, in the order of their beginning, as a trace that begins at 0.

    A call without a session belongs to the one of its parent, or begins one. Where several calls
    have one prompt, it is what they share: each but the first goes on where the prompt of the first
    ends. Raises :class:`TraceError` for a call that keeps more of its parent than there is.
    """
    places: dict[str, int] = {}
    prompts: dict[str, int] = {}
    entries: list[TraceEntry] = []
    orphans = 0
    for place, call in enumerate(calls):
        parent, kept, new = _history(call, places)
        orphans += parent is None and call.parent is not None
        session = call.session
        if session is None:
            session = f"call {call.call}" if parent is None else entries[parent].session
        twin = prompts.setdefault(call.prompt, place)
        if twin != place and _same_prompt(calls[twin], call):
            parent, kept, new = twin, call.kept_tokens + call.new_tokens, 0
        entries.append(
            TraceEntry(
                at_s=call.at_s - calls[0].at_s,
                session=session,
                parent=parent,
                kept_tokens=kept,
                new_tokens=new,
                # One that was aborted before its first token took its prompt's work all the same.
                answer_tokens=max(1, call.answer_tokens),
            )
        )
        places[call.call] = place
    return Replay(trace=_trace(calls, entries), orphans=orphans)


def _history(call: TracedCall, places: dict[str, int]) -> tuple[int | None, int | None, int]:
    """Parent, kept and new tokens; a parent that is not there leaves nothing to keep."""
    parent = None if call.parent is None else places.get(call.parent)
    if parent is None:
        return None, None, max(1, call.kept_tokens + call.new_tokens)
    return parent, call.kept_tokens, call.new_tokens


def _same_prompt(one: TracedCall, other: TracedCall) -> bool:
    length = one.kept_tokens + one.new_tokens
    return length == other.kept_tokens + other.new_tokens and length > 0


def _trace(calls: Sequence[TracedCall], entries: list[TraceEntry]) -> Trace:
    try:
        return Trace(entries=tuple(entries))
    except ClientError as error:
        # Such as entries[3].kept_tokens.
        where, _, field = (error.param or "").partition(".")
        call = calls[int(where.removeprefix("entries[").removesuffix("]"))]
        problem = str(error).removeprefix(error.param or "").strip()
        raise TraceError(f"call {call.call!r}: `{field}` {problem}") from error
