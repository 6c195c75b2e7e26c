"""A worker's stream on its way to its client: event by event, and mostly by plain calls.

Nearly every event brings more of a sample and nothing else. Such events are read, captured and
shown by :meth:`StreamRelay._take`, which awaits nothing, so no task is woken for them
(:meth:`slime_trio.upstream.Response.pass_on`). The request's own task does whatever may take time
or end something: it starts the answer, waits for a client whose socket is full, sees to many events
at once in slices, and commits a sample before the event that ends it is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from slime_core import sglang, sse
from slime_core.errors import SlimeError, WorkerError
from slime_trio.dialects import Dialect
from slime_trio.exchange import Headers, Reply, direct
from slime_trio.upstream import WorkerAnswer

__all__ = ["StreamRelay"]

_NOT_CAPTURED: Final = sse.comment("x-slime-captured: false")
"""In a stream the head is gone by the time it is known: a comment, which clients skip, says it."""

_EVENTS_AT_ONCE: Final = 128
"""Some milliseconds of work: after so many events others have their turn."""

Keep = Callable[[int, sglang.Answer], bool]


class StreamRelay:
    """One stream. ``keep`` commits an answer to a sample, and tells whether it could be kept;
    ``refused`` is told when the worker itself ends the stream with an error."""

    def __init__(
        self,
        dialect: Dialect,
        reply: Reply,
        headers: Headers,
        *,
        keep: Keep,
        refused: Callable[[], None],
    ) -> None:
        self._dialect = dialect
        self._reply = reply
        self._headers = headers
        self._keep = keep
        self._note_refusal = refused
        self._is_refused = False
        self._as_they_are = dialect.shows_events
        self._decoder = sse.Decoder()
        self._assembler = sglang.StreamAssembler(dialect.asked)
        self._direct = direct(reply)
        self._begin: bytes | None = None
        """What the stream begins with, until it has begun."""
        self._events: list[sse.Event] = []
        """Those that wait for the request's task."""
        self._error: SlimeError | None = None

    def partial(self, sample: int) -> sglang.Answer | None:
        """A sample as far as it came; ``None`` if nothing came. Raises ``WorkerError``."""
        return self._assembler.partial(sample)

    async def run(self, response: WorkerAnswer) -> None:
        """Relay events as they come. Until the head is out, an error keeps its own status."""
        if self._dialect.verbatim:
            await self._reply.start(200, self._headers)
        self._begin = self._dialect.begin()
        if self._direct is None:
            while data := await response.receive_some():
                await self._show_all(self._decoder.receive(data))
        else:
            while not await response.pass_on(self._take):
                await self._direct.flush()
                events, self._events = self._events, []
                await self._show_all(events)
        self._decoder.close()
        if not self._assembler.finished and not self._is_refused:
            raise WorkerError("the worker's stream ended before its answer was complete")
        await self._send(self._dialect.end())

    # -- by plain calls ------------------------------------------------------------------------

    def _take(self, data: bytes) -> bool:
        """Show what these bytes complete; whether nothing of it is left to do."""
        events = self._decoder.receive(data)
        if self._begin is not None or len(events) > _EVENTS_AT_ONCE:
            self._events = events
            return False
        shown: list[bytes] = []
        for event in events:
            try:
                view = self._plain_view(event)
            except SlimeError as error:
                self._error = error
                break
            if view is None:
                break
            shown.append(view)
        else:
            return self._send_now(shown)
        self._events = events[len(shown) :]
        self._send_now(shown)
        return False

    def _plain_view(self, event: sse.Event) -> bytes | None:
        """The client's view of an event that ends nothing; ``None`` for any other, of which nothing
        was taken."""
        if self._as_they_are:
            return self._assembler.take_plain(event)
        step = self._assembler.plain_step(event)
        return None if step is None else self._dialect.step(step)

    def _send_now(self, shown: list[bytes]) -> bool:
        """Send it as far as that goes at once; whether nothing waits."""
        assert self._direct is not None
        data = b"".join(shown)
        return not data or self._direct.send_now(data)

    # -- by the request's task -----------------------------------------------------------------

    async def _show_all(self, events: list[sse.Event]) -> None:
        """Show events that came together. Raises what cannot be shown."""
        if self._error is not None:
            raise self._error
        for start in range(0, len(events), _EVENTS_AT_ONCE):
            if start:
                await trio.lowlevel.checkpoint()
            shown, error = self._steps(events[start : start + _EVENTS_AT_ONCE])
            if shown:
                await self._send(shown)
            if error is not None:
                raise error

    async def _send(self, data: bytes) -> None:
        if self._begin is not None:
            data, self._begin = self._begin + data, None
            if not self._reply.started:
                await self._reply.start(200, self._headers)
        await self._reply.send(data)

    def _steps(self, events: list[sse.Event]) -> tuple[bytes, SlimeError | None]:
        """The client's view of events, up to one that cannot be shown.

        What an event completes is committed first.
        """
        shown: list[bytes] = []
        try:
            for event in events:
                view = self._assembler.take_plain(event) if self._as_they_are else None
                if view is not None:
                    shown.append(view)
                    continue
                for step in self._assembler.receive(event):
                    if step.finish_reason is None and step.error is None:
                        shown.append(self._dialect.step(step))
                    else:
                        shown.append(self._ending(step))
        except SlimeError as error:
            return b"".join(shown), error
        return b"".join(shown), None

    def _ending(self, step: sglang.StreamStep) -> bytes:
        """The client's view of a step that ends its sample, or the stream."""
        shown = b""
        # Read before it is kept: what is kept of a chat's answer is what its client is shown.
        view, error = self._view(step)
        if step.sample is not None and step.finish_reason is not None:
            answer = self._assembler.partial(step.sample)
            assert answer is not None
            if not self._keep(step.sample, answer):
                shown = _NOT_CAPTURED
        if step.error is not None:
            self._is_refused = True
            self._note_refusal()
        if error is not None:
            raise error
        if step.sample is None:
            return view
        return shown + view + self._dialect.finish(step.sample)

    def _view(self, step: sglang.StreamStep) -> tuple[bytes, SlimeError | None]:
        try:
            return self._dialect.step(step), None
        except SlimeError as error:
            return b"", error
