"""One connection: a stream, a parser, and the exchanges that pass over them in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

from slime_trio.byte_stream import ByteStream, TcpStream
from slime_trio.upstream.failures import STREAM_FAILURES, FailureCode, UpstreamError
from slime_trio.upstream.parser import Head, ResponseParser
from slime_trio.upstream.read_watch import ReadWatch

__all__ = ["Connection"]

_ONE_SEND_MAX: Final = 64 * 1024
"""Up to this many body bytes are copied behind the head: cheaper than a second system call."""


class Connection:
    """A connection to one worker, used by one exchange at a time.

    An exchange is :meth:`exchange_head`, then :meth:`receive_some` until it gives ``b""``.
    Whatever goes wrong, it raises :class:`UpstreamError` and goes on raising it: an answer that
    was cut off never has a clean end. It does not close itself; whoever holds it does.
    """

    __slots__ = (
        "_fault",
        "_has_ended",
        "_is_closed",
        "_parser",
        "_read_chunk",
        "_readers",
        "_stream",
        "_worker_url",
    )

    def __init__(
        self,
        stream: ByteStream,
        *,
        worker_url: str,
        max_head_bytes: int,
        read_chunk: int,
        readers: ReadWatch | None = None,
    ) -> None:
        self._stream = stream
        self._parser = ResponseParser(max_head_bytes=max_head_bytes)
        self._worker_url = worker_url
        self._read_chunk = read_chunk
        self._readers = readers
        self._fault: FailureCode | None = None
        self._has_ended = False
        self._is_closed = False

    @property
    def socket_number(self) -> int:
        """The socket underneath; -1 where there is none."""
        return self._stream.socket_number()

    @property
    def is_answered(self) -> bool:
        """Whether a byte of the current answer has arrived."""
        return self._parser.is_started

    @property
    def is_reusable(self) -> bool:
        """Whether the last exchange is over and another may follow."""
        is_fit = self._fault is None and not self._has_ended and not self._is_closed
        return is_fit and self._parser.is_reusable

    def has_ended(self) -> None:
        """The worker has closed it: what is under way may be read to its end, nothing follows."""
        self._has_ended = True

    def is_stale(self) -> bool:
        """Whether, idle, it can be seen to be of no more use."""
        return self._stream.is_stale()

    async def exchange_head(self, head: bytes, body: bytes, *, is_head_request: bool) -> Head:
        """Send a request; the head of its final response, interim ones (1xx) skipped.

        A worker may answer before it has read everything and close (413 for a large body): when
        sending fails, what it said meanwhile is still read, and the connection ends with it.
        """
        parser = self._parser
        parser.start(is_head_request=is_head_request)
        try:
            if len(body) <= _ONE_SEND_MAX:
                await self._stream.send_all(head + body)
            else:
                await self._stream.send_all(head)
                await self._stream.send_all(body)
        except STREAM_FAILURES:
            while parser.head is None and parser.fault is None:
                await self._pull()
            parser.give_up_keep_alive()
        while (answer := parser.head) is None:
            if parser.fault is not None:
                self._raise(parser.fault)
            # As in _pull, which would be one more coroutine to go through.
            try:
                data = await self._stream.receive_some(self._read_chunk)
            except STREAM_FAILURES:
                self._raise("connection_lost")
            parser.feed(data) if data else parser.feed_eof()
        return answer

    async def receive_some(self) -> bytes:
        """The next piece of the body as it came off the stream; ``b""`` at its end."""
        parser = self._parser
        while not (data := parser.take()):
            fault = self._fault or parser.fault
            if fault is not None:
                self._raise(fault)
            if parser.is_complete:
                return b""
            # As in _pull, which would be one more coroutine to go through for every event.
            try:
                read = await self._stream.receive_some(self._read_chunk)
            except STREAM_FAILURES:
                self._raise("connection_lost")
            parser.feed(read) if read else parser.feed_eof()
        return data

    async def pass_on(self, take: Callable[[bytes], bool]) -> bool:
        """Have ``take`` called with piece after piece of the body, until it returns false; whether
        that was the end of the body instead. Raises what ``take`` raises.

        From a socket no task is woken for a piece (:mod:`slime_trio.upstream.read_watch`).
        """
        while True:
            if self._can_be_watched and self._parser.is_wanting:
                if not await self._watched(take):
                    return False
                continue
            data = await self.receive_some()
            if not data:
                return True
            if not take(data):
                return False

    async def _watched(self, take: Callable[[bytes], bool]) -> bool:
        """Have pieces taken off the socket as they come; whether more of them are wanted."""
        wanted = True

        def readable() -> bool:
            nonlocal wanted
            data = self._received()
            wanted = not data or take(data)
            return wanted and self._parser.is_wanting

        assert self._readers is not None
        if not await self._readers.read(self._stream.socket_number(), readable):
            self._readers = None  # the task reads by itself
        return wanted

    @property
    def _can_be_watched(self) -> bool:
        if self._readers is None or not self._readers.is_running or self._fault is not None:
            return False
        return isinstance(self._stream, TcpStream)

    def _received(self) -> bytes:
        """What a socket that is ready brings of the body."""
        assert isinstance(self._stream, TcpStream)
        try:
            read = self._stream.receive_now(self._read_chunk)
        except STREAM_FAILURES:
            self._raise("connection_lost")
        if read is None:
            return b""
        self._parser.feed(read) if read else self._parser.feed_eof()
        return self._parser.take()

    async def _pull(self) -> None:
        """One read off the stream into the parser."""
        try:
            data = await self._stream.receive_some(self._read_chunk)
        except STREAM_FAILURES:
            self._raise("connection_lost")
        if data:
            self._parser.feed(data)
        else:
            self._parser.feed_eof()

    def _raise(self, fault: FailureCode) -> NoReturn:
        # Kept, because a stream may report a reset once and a plain end ever after, which a
        # body without announced length would take for its own end.
        self._fault = fault
        raise UpstreamError(fault, worker_url=self._worker_url, first_byte_sent=self.is_answered)

    def close(self) -> None:
        """Close at once, in whatever state; more than once is allowed."""
        if not self._is_closed:
            self._is_closed = True
            self._stream.close()
            self._parser.close()
