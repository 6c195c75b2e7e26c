"""One client's connection: request after request in one task, until either side has enough.

A request is read and served by the same task; nothing is started and no scope opened for it. That
its client leaves meanwhile is told from elsewhere (:mod:`slime_trio.upstream.end_watch`), and so is
that a wait was too long (:mod:`slime_trio.listener.deadlines`); either cancels the one scope that
the connection has, since nothing can follow on it. What is not served is refused in words, outside
of that scope. A half-close counts as leaving.

Whoever serves a request (:mod:`slime_trio.listener.hot_paths`, :mod:`slime_trio.listener.asgi`)
reads its body from here and answers by :attr:`Connection.answer`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Final

import trio

from slime_trio.byte_stream import STREAM_FAILURES, ClientStream
from slime_trio.config import Settings
from slime_trio.exchange import ClientGone
from slime_trio.limits.head import HeadLimits, Refusal
from slime_trio.limits.refusals import refusal_body
from slime_trio.listener.answer import Answer
from slime_trio.listener.answer_writer import AnswerWriter
from slime_trio.listener.deadlines import Deadlines
from slime_trio.listener.request_head import RequestHead
from slime_trio.listener.request_parser import Data, RequestParser

__all__ = ["LINGER_S", "LINGER_TLS_S", "Connection", "Ends", "Refused", "Serve", "Site", "log_bug"]

LINGER_S: Final = 2.0
"""How long what a client still sends is read when its connection ends, lest a reset destroy the
answer on its way to a client that has not read it yet (RFC 9112, 9.6)."""

LINGER_TLS_S: Final = 0.5
"""The same over TLS, where no half of a connection can be closed to tell the client to go."""

_READ: Final = 256 * 1024


class Refused(Exception):
    """The request cannot be read any further, because of what its client sent."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


Serve = Callable[["Connection", RequestHead], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class Site:
    """What all connections of one listener share. ``serve`` has a request served."""

    settings: Settings
    limits: HeadLimits
    serve: Serve
    deadlines: Deadlines
    date: Callable[[], bytes]
    keep_alive_s: float
    """How long a connection may wait for its next request."""
    is_stopping: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The addresses at both ends, where there are any, and whether the way between is TLS."""

    client: tuple[str, int] | None = None
    server: tuple[str, int] | None = None
    is_secure: bool = False


class Connection:
    """An accepted connection, whose stream somebody else owns."""

    __slots__ = (
        "_head",
        "_head_until",
        "_parser",
        "_refusal",
        "_scope",
        "_site",
        "_stream",
        "_was_refused",
        "answer",
        "ends",
        "has_left",
        "on_leaving",
        "until",
    )

    def __init__(self, site: Site, stream: ClientStream, ends: Ends) -> None:
        self._site = site
        self._stream = stream
        self._parser = RequestParser(site.limits)
        self._scope = trio.CancelScope()
        self._head: RequestHead | None = None
        self._head_until = inf
        self._refusal: Refusal | None = None
        self._was_refused = False
        self.ends = ends
        self.answer: Answer | None = None
        """To the request that is being served."""
        self.until = inf
        self.has_left = False
        self.on_leaving: Callable[[], None] | None = None
        """Called when the client leaves; whoever serves a request chooses what that means."""

    # -- what is told from elsewhere ---------------------------------------------------------

    def left(self) -> None:
        """The client has left, or closed its half of the connection, or it broke."""
        self.has_left = True
        if self.on_leaving is not None:
            self.on_leaving()

    def end_when_left(self) -> None:
        """From now on it ends when its client leaves; if it has left already, at once."""
        self.on_leaving = self.cancel
        if self.has_left:
            self.cancel()

    def overdue(self) -> None:
        """The client was waited for until ``until``."""
        phase = self._parser.phase
        if phase in ("head", "body"):
            words = f"the {phase} of the request did not come in time"
            self._refusal = Refusal(408, "request_timeout", words)
        self._scope.cancel()

    def stop(self) -> None:
        """The server is to end: close, unless a request is being served."""
        if self.answer is None:
            self._scope.cancel()

    def cancel(self) -> None:
        """End the connection and what is done on it, as far as it came."""
        self._scope.cancel()

    # -- its life ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve requests until one side ends, or one of them cannot be served.

        The stream is then to be closed.
        """
        self._site.deadlines.enter(self)
        try:
            with self._scope, suppress(Refused):
                await self._serve_all()
            refusal = self._refusal or self._parser.refusal
            if refusal is not None:
                await self.refuse(refusal)
            if refusal is not None or self._parser.phase == "body":
                await self._linger()
        except (ClientGone, *STREAM_FAILURES):
            pass
        except Exception:
            # One connection's trouble must not end all the others.
            log_bug("connection")
        finally:
            self._site.deadlines.leave(self)

    async def _serve_all(self) -> None:
        site, parser = self._site, self._parser
        while True:
            while (head := self._next_head()) is None:
                if parser.refusal is not None or parser.has_ended:
                    return
                await self._read()
            self._head = head
            self.answer = Answer(head, self, site.date)
            await site.serve(self, head)
            if not self._can_go_on():
                return
            self._head = self.answer = None
            parser.start_next()
            if parser.phase != "idle":
                # It was sent ahead: who sends many at once must not keep all others waiting.
                await trio.lowlevel.checkpoint()

    def _next_head(self) -> RequestHead | None:
        """The next request, if its head has come."""
        event = self._parser.next_event()
        if event is not None:
            self.until = self._head_until = inf
            assert isinstance(event, RequestHead)
        return event

    def _can_go_on(self) -> bool:
        """Whether another request may follow the one that was served."""
        assert self.answer is not None
        if not self.answer.keeps_alive or self._site.is_stopping:
            return False
        # Of a body that nobody wanted, what is there already is in nobody's way.
        while self._parser.next_event() is not None:
            pass
        return self._parser.phase == "answer" and self._parser.refusal is None

    # -- reading -----------------------------------------------------------------------------

    def body_at_hand(self) -> bytes | None:
        """The whole body of the request, if it has come with its head as that of most does; else
        :meth:`read_body`."""
        return self._parser.take_body()

    async def read_body(self) -> bytes:
        """The whole body of the request. Raises :class:`Refused`."""
        pieces = []
        while (piece := await self.next_piece()) is not None:
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def is_body_unwanted(self) -> bool:
        """Whether the client waits to be told to send its body, and was given its answer."""
        is_waiting = self._head is not None and self._head.expects_continue
        return is_waiting and self.answer is not None and self.answer.started

    async def next_piece(self) -> bytes | None:
        """Some of the request's body; ``None`` behind the last, once. Raises :class:`Refused`."""
        while True:
            event = self._parser.next_event()
            if isinstance(event, Data):
                return event.data
            if event is not None:
                self.until = inf
                return None
            if self._parser.refusal is not None:
                raise Refused(self._parser.refusal)
            await self._invite_body()
            await self._read()

    async def _invite_body(self) -> None:
        """Tell a client that waits for it to send its body: once, and if none of it has come."""
        if self._head is not None and self._head.expects_continue:
            assert self.answer is not None
            self._head = self._head._replace(expects_continue=False)
            await self.answer.go_on()

    async def _read(self) -> None:
        """Feed the parser, or be cancelled because that takes too long."""
        self._site.deadlines.wait_until(self, self._patience())
        data = await self._stream.receive_some(_READ)
        self.until = inf
        if data:
            self._parser.feed(data)
        else:
            self._parser.feed_eof()

    def _patience(self) -> float:
        """Until when the next bytes are waited for.

        A head has one deadline from its first byte on; a body, one from piece to piece.
        """
        now, phase = trio.current_time(), self._parser.phase
        if phase == "idle":
            return now + self._site.keep_alive_s
        if phase == "body":
            return now + self._site.settings.body_timeout_s
        self._head_until = min(self._head_until, now + self._site.settings.header_timeout_s)
        return self._head_until

    # -- writing -----------------------------------------------------------------------------

    async def send(self, data: bytes) -> None:
        """Send everything. Raises ``ClientGone``, also if nothing of it is taken for too long."""
        try:
            sent = self._stream.send_now(data)
            if sent < len(data):
                await self._send_rest(data, sent)
        except STREAM_FAILURES as error:
            raise ClientGone("the client's connection is lost") from error

    @property
    def sends_now(self) -> bool:
        """Whether :meth:`send_now` is of use."""
        return self._stream.sends_now

    def send_now(self, data: bytes) -> int:
        """Send what can be sent without waiting; how much that was. Raises ``ClientGone``."""
        try:
            return self._stream.send_now(data)
        except STREAM_FAILURES as error:
            raise ClientGone("the client's connection is lost") from error

    async def _send_rest(self, data: bytes, sent: int) -> None:
        with memoryview(data) as view:
            while sent < len(data):
                with trio.move_on_after(self._site.settings.client_stall_s) as bound:
                    with view[sent:] as rest:
                        sent += await self._stream.send_some(rest)
                if bound.cancelled_caught:
                    raise ClientGone("the client takes nothing any more")

    # -- the end -----------------------------------------------------------------------------

    async def refuse(self, refusal: Refusal) -> None:
        """Answer so, where no answer has begun; once is enough. Raises ``ClientGone``."""
        if self._was_refused or (self.answer is not None and self.answer.started):
            return
        self._was_refused = True
        writer, body = AnswerWriter(self._head), refusal_body(refusal)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        head = writer.start(refusal.status, headers, date=self._site.date(), closes=True)
        await self.send(head + writer.data(body) + writer.end())

    async def _linger(self) -> None:
        """Let the client read what it was told before the connection is closed."""
        bound = LINGER_TLS_S if self.ends.is_secure else LINGER_S
        with trio.move_on_after(bound), suppress(*STREAM_FAILURES):
            await self._stream.send_eof()
            while await self._stream.receive_some(_READ):
                pass


def log_bug(task: str) -> None:
    """Log the exception that is being handled, with all there is of it."""
    import structlog

    structlog.get_logger("slime_router").exception("internal error", task=task)
