"""Recorded traces: one line of JSON for each captured call, lengths and times but no text.

``slime-router --record-trace FILE`` writes them and ``slime-router simulate --trace FILE`` plays
them back. :class:`TraceRecorder` is an observer of committed transitions. It only encodes the line
and puts it into a bounded queue; a thread writes, so that a slow disk holds nobody up. A line that
finds no room, in the queue or on the disk, is lost: that is counted, said at the first such line
and summed up at the end, and it breaks no request. A batch that was written in part is cut off
again, so that the file always ends with a whole line.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import structlog

from slime_core.segments import Answer, Segment
from slime_core.state import RouterState
from slime_core.transitions import CallCaptured, CallLost, CallOpened, SlotsTaken, Transition
from slime_core.types import CallId, WorkerUrl, token_count

__all__ = ["TraceError", "TraceRecorder", "TracedCall", "read_trace"]

_WAITING_MOST: Final = 65_536
"""Lines that may wait for the disk: some 20 MB."""
_AT_ONCE: Final = 256
_CLOSE_S: Final = 5.0
"""How long the end waits for a disk that does not take what is left."""

# The bounds of what can be replayed.
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e12)]


class TracedCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One captured call: a line of a trace."""

    at_s: _Seconds
    """When it began, in seconds since 1970; only differences matter."""
    duration_s: _Seconds
    """From there until its answer was captured."""
    session: str | None
    """The rollout it belongs to, if its client said so."""
    call: str
    parent: str | None
    """The call whose answer its prompt continues, or leaves midway."""
    prompt: str
    """A name that calls with one and the same prompt share."""
    kept_tokens: _Count
    """Prompt tokens that ``parent`` had: those of its own prompt and of its answer."""
    new_tokens: _Count
    """The other prompt tokens."""
    answer_tokens: _Count
    worker: str
    outcome: str
    """``complete``, ``aborted`` or ``partial``."""
    finish: str | None
    """The worker's reason, such as ``stop`` or ``length``; ``null`` for a partial answer."""


class TraceError(ValueError):
    """A trace that cannot be read or written; the message is one line."""


def read_trace(path: str | Path) -> list[TracedCall]:
    """The calls of a trace, in the order in which they began.

    Raises :class:`TraceError`, naming line and field, for a line that is not a call, for a call
    that is there twice, and for a file that cannot be read or holds no calls.
    """
    decoder = msgspec.json.Decoder(TracedCall)
    calls: dict[str, TracedCall] = {}
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                call = _parsed(decoder, line, f"{path}, line {number}")
                if call.call in calls:
                    raise TraceError(f"{path}, line {number}: `call` {call.call!r} is there twice")
                calls[call.call] = call
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error
    if not calls:
        raise TraceError(f"{path} holds no calls")
    return sorted(calls.values(), key=lambda one: one.at_s)


def _parsed(decoder: msgspec.json.Decoder[TracedCall], line: bytes, place: str) -> TracedCall:
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        raise TraceError(f"{place}: {str(error).replace('$.', '')}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TraceError(f"{place}: not a line of JSON ({error})") from error


def unix_clock() -> Callable[[], float]:
    """Seconds since 1970 that never jump, whatever is done to the system's clock meanwhile."""
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()


class TraceRecorder:
    """An observer that appends a line to a file for every captured call.

    ``close`` must be called in the end. Raises :class:`TraceError` if ``path`` cannot be written,
    or holds something that is no trace.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Callable[[], float] | None = None,
        waiting_most: int = _WAITING_MOST,
    ) -> None:
        self._clock = clock or unix_clock()
        self._file = _TraceFile(path)
        self._queue: queue.Queue[bytes | None] = queue.Queue(waiting_most)
        self._run = f"{self._clock():.3f}"
        self._begun: dict[CallId, tuple[float, WorkerUrl | None]] = {}
        self._dropped = 0
        self._closed = False
        self._writer = threading.Thread(target=self._write, name="trace", daemon=True)
        self._writer.start()

    @property
    def written(self) -> int:
        """Lines in the file."""
        return self._file.written

    @property
    def lost(self) -> int:
        """Lines that found no room, in the queue or on the disk."""
        return self._dropped + self._file.lost

    kinds: Final = (CallOpened, SlotsTaken, CallLost, CallCaptured)
    """The kinds of facts that tell of calls."""

    def __call__(self, fact: Transition, state: RouterState, /) -> None:
        """Note what ``fact`` tells of a call."""
        match fact:
            case CallOpened():
                self._begun[fact.call] = (self._clock(), None)
            case SlotsTaken():
                for call in fact.calls:
                    # Requests that are passed through take slots too, and open no call.
                    if call in self._begun:
                        self._begun[call] = (self._begun[call][0], fact.worker)
            case CallLost():
                self._begun.pop(fact.call, None)
            case CallCaptured():
                self._record(fact, state.forest.calls[fact.call], state.tenant)
            case _:
                pass

    def _record(self, fact: CallCaptured, segment: Segment, tenant: str) -> None:
        # Tenants name sessions, and their forests number segments, as if there were no others.
        whose = f"{tenant}/" if tenant else ""
        session = fact.answer.session
        now = self._clock()
        began, worker = self._begun.pop(fact.call, (now, None))
        line = TracedCall(
            at_s=round(began, 6),
            duration_s=round(max(0.0, now - began), 6),
            session=session and whose + session,
            call=fact.call,
            parent=_answered(segment.parent),
            # Numbers of segments begin anew in the next process, which may append to this file.
            prompt=f"{self._run}/{whose}{(segment.parent or segment).number}",
            kept_tokens=fact.token_start,
            new_tokens=token_count(fact.prompt_ids),
            answer_tokens=token_count(fact.answer_ids),
            worker=worker or "",
            outcome=fact.answer.outcome.value,
            finish=_finish(fact.answer),
        )
        self._put(msgspec.json.encode(line) + b"\n")

    def _put(self, line: bytes) -> None:
        try:
            if self._closed:
                raise queue.Full
            self._queue.put_nowait(line)
        except queue.Full:
            self._dropped += 1
            self._file.warn("the disk does not keep up")

    def _write(self) -> None:
        """The thread: write what waits, many lines at once, until ``None`` comes."""
        while True:
            lines = [self._queue.get()]
            with suppress(queue.Empty):
                while lines[-1] is not None and len(lines) < _AT_ONCE:
                    lines.append(self._queue.get_nowait())
            self._file.append([line for line in lines if line is not None])
            if lines[-1] is None:
                return

    def close(self) -> None:
        """Write what waits, for at most some seconds, and close the file. Safe to repeat.

        Blocks: nothing but the end of the router should call it.
        """
        if self._closed:
            return
        self._closed = True
        with suppress(queue.Full):
            self._queue.put(None, timeout=_CLOSE_S)
        self._writer.join(_CLOSE_S)
        if self._writer.is_alive():
            # The thread still uses the file; both end with the process.
            self._dropped += self._queue.qsize()
        else:
            self._file.close()
        self._file.summary(self.lost)


def _answered(segment: Segment | None) -> str | None:
    """The nearest answer at or above ``segment``: the call that is being continued."""
    while segment is not None and segment.answer is None:
        segment = segment.parent
    return None if segment is None or segment.answer is None else segment.answer.call


def _finish(answer: Answer) -> str | None:
    """The type of the worker's finish reason, which is JSON of the worker's own making."""
    try:
        reason = msgspec.json.decode(answer.finish_reason)
    except msgspec.DecodeError:
        return None
    kind = reason.get("type") if isinstance(reason, dict) else reason
    return kind if isinstance(kind, str) else None


class _TraceFile:
    """The file: whole lines only, and the books of what could not be written."""

    def __init__(self, path: str | Path) -> None:
        self.written = 0
        self.lost = 0
        self._path = str(path)
        self._log: Any = structlog.get_logger("slime_router")
        self._warned = False
        try:
            # Not to be held up by a pipe that nobody reads.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
            self._file = os.open(path, flags, 0o644)
            self._size = self._end_of_lines()
        except OSError as error:
            raise TraceError(f"{path}: {error.strerror}") from error

    def _end_of_lines(self) -> int:
        """Where to go on. What a crash left of a last line is cut off."""
        told = os.fstat(self._file)
        if not stat.S_ISREG(told.st_mode) or not told.st_size:
            return 0
        if not os.pread(self._file, 8, 0).startswith(b'{"at_s":'):
            os.close(self._file)
            raise TraceError(f"{self._path} exists and is no trace")
        end = size = told.st_size
        while end and os.pread(self._file, 1, end - 1) != b"\n":
            end -= 1
        if end < size:
            os.ftruncate(self._file, end)
            self._log.warning("trace: cut off a last line that was not whole", file=self._path)
        return end

    def append(self, lines: list[bytes]) -> None:
        """Write ``lines``, or none of them."""
        data = b"".join(lines)
        end = self._size + len(data)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            self.lost += len(lines)
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            self.warn(error.strerror or type(error).__name__)
            return
        self._size = end
        self.written += len(lines)

    def warn(self, reason: str) -> None:
        """Say once that lines get lost."""
        if not self._warned:
            self._warned = True
            self._log.error("trace: lines are lost", file=self._path, reason=reason)

    def summary(self, lost: int) -> None:
        """Say in the end how much is missing, if anything is."""
        if lost:
            self._log.error("trace: incomplete", file=self._path, lost=lost, written=self.written)

    def close(self) -> None:
        """Close it."""
        os.close(self._file)
