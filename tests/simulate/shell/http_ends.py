"""HTTP at both ends of the router: simulated workers that serve, agents that ask.

:class:`WorkerEnd` puts a worker's pieces on connections and drives its engine; :class:`ClientEnd`
sends what an agent means, as unkindly as it means it, and reads what comes back. Both speak to the
router's own code only through bytes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import quote

import h11
import trio

from slime_trio.upstream import STREAM_FAILURES
from tests.simulate.reading import Reader
from tests.simulate.shell.network import Answers, Conditions, Network, SimStream
from tests.simulate.story import EXCHANGE, Conduct, Exchange, Story
from tests.simulate.workers.pieces import (
    Answering,
    Cut,
    Data,
    End,
    Head,
    Piece,
    Raw,
    Request,
)
from tests.simulate.workers.worker import SimWorker

__all__ = ["ClientEnd", "WorkerEnd"]

_KEEP_ALIVE_S: Final = 5.0
"""After which SGLang's server closes an idle connection."""
_BETWEEN_PIECES_S: Final = 0.01
_HOST: Final = "router"
_TRIES: Final = 4

Headers = Sequence[tuple[str, str]]


class WorkerEnd:
    """One worker as the network knows it, with the conditions of its links, and more.

    ``races``: how often an idle connection is closed in the very moment in which it is used again.
    Whoever changes the worker or its links calls :meth:`changed`.
    """

    def __init__(
        self,
        worker: SimWorker,
        conditions: Conditions,
        *,
        story: Story,
        chance: random.Random,
        races: float = 0.0,
    ) -> None:
        self.worker: Final = worker
        self._conditions = conditions
        self._story = story
        self._chance = chance
        self._resets = 0
        self.races = races
        self._bell = trio.lowlevel.ParkingLot()
        self._answering: dict[Answering, trio.lowlevel.ParkingLot] = {}
        self._idle: dict[SimStream, None] = {}

    # -- as the network sees it ----------------------------------------------------------

    @property
    def refuse(self) -> bool:
        """A dead worker refuses, too."""
        return self._conditions.refuse or not self.worker.alive

    @property
    def hang(self) -> bool:
        return self._conditions.hang

    @property
    def delay_s(self) -> float:
        return self._conditions.delay_s

    @property
    def partitioned(self) -> bool:
        return self._conditions.partitioned

    @property
    def trickle(self) -> bool:
        return self._conditions.trickle

    # -- the engine ----------------------------------------------------------------------

    async def drive(self) -> None:
        """Advance the worker whenever it has something to do; until cancelled."""
        while True:
            due = self.worker.next_deadline
            if due is None:
                await self._bell.park()
            elif due > trio.current_time():
                with trio.move_on_at(due):
                    await self._bell.park()
            else:
                for answering in self.worker.advance(trio.current_time()):
                    self._ring(answering)
                await trio.lowlevel.checkpoint()

    def changed(self, *, reset: bool = False) -> None:
        """Something was done to the worker; with ``reset``, to its connections.

        Connections with an answer on them end with its pieces; the others end here.
        """
        if reset or not self.worker.alive:
            for stream in list(self._idle):
                stream.reset()
                stream.close()
        self._bell.unpark_all()

    def _ring(self, answering: Answering) -> None:
        lot = self._answering.get(answering)
        if lot is not None:
            lot.unpark_all()

    # -- connections ---------------------------------------------------------------------

    async def serve(self, stream: SimStream) -> None:
        """One connection, to its end."""
        rest, is_used = b"", False
        try:
            while True:
                arrived = await self._arrival(stream, rest, is_used=is_used)
                if arrived is None:
                    return
                request, rest = arrived
                if not await self._answer(stream, request):
                    return
                is_used = True
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass
        finally:
            stream.close()

    async def _arrival(
        self, stream: SimStream, rest: bytes, *, is_used: bool
    ) -> tuple[Request, bytes] | None:
        """The next request and what came behind it; ``None`` where the connection is to end."""
        if not rest:
            self._idle[stream] = None
            try:
                with trio.move_on_after(_KEEP_ALIVE_S if is_used else float("inf")):
                    rest = await stream.receive_some()
            finally:
                del self._idle[stream]
            if not rest:
                return None
            if is_used and self._chance.random() < self.races:
                self._story.marks["fault:idle_closed"] += 1
                return None
        parser = h11.Connection(h11.SERVER)
        parser.receive_data(rest)
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return _request(head, bytes(body)), parser.trailing_data[0]
            else:
                return None

    async def _answer(self, stream: SimStream, request: Request) -> bool:
        """Answer; whether another request may follow."""
        worker, may_go_on = self.worker, False
        answering = worker.receive(request, trio.current_time())
        answers = stream.begin_answer(_exchange_of(request))
        self._answering[answering] = trio.lowlevel.ParkingLot()
        self._bell.unpark_all()

        async def watch(scope: trio.CancelScope) -> None:
            await stream.wait_hangup()
            worker.hang_up(answering, trio.current_time())
            self._bell.unpark_all()
            scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, nursery.cancel_scope)
                may_go_on = await self._write(stream, answering, answers)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            worker.hang_up(answering, trio.current_time())
            self._bell.unpark_all()
            may_go_on = False
        finally:
            del self._answering[answering]
        return may_go_on

    async def _write(self, stream: SimStream, answering: Answering, answers: Answers) -> bool:
        in_chunks = False
        while True:
            piece = await self._piece(answering)
            match piece:
                case Head():
                    in_chunks = piece.streams
                    await stream.send_all(_head(piece))
                case Data(data):
                    answers.longest = max(answers.longest, len(data))
                    framed = b"%x\r\n%b\r\n" % (len(data), data) if in_chunks else data
                    await stream.send_all(framed)
                case Raw(data):
                    await stream.send_all(data)
                case End():
                    if in_chunks:
                        await stream.send_all(b"0\r\n\r\n")
                    return True
                case Cut():
                    if self._chance.random() < 0.5:
                        stream.reset()
                    return False

    async def _piece(self, answering: Answering) -> Piece:
        while not answering.pieces:
            await self._answering[answering].park()
        return answering.pieces.popleft()


def _exchange_of(request: Request) -> int:
    """The number of the agent's exchange; -1 where it is none."""
    numbers = [value for name, value in request.headers if name == EXCHANGE]
    return int(numbers[0]) if numbers else -1


def _request(head: h11.Request, body: bytes) -> Request:
    return Request(
        method=head.method.decode(),
        target=head.target.decode("latin-1"),
        headers=tuple((name.decode(), value.decode("latin-1")) for name, value in head.headers),
        body=body,
    )


def _head(head: Head) -> bytes:
    framing = "transfer-encoding: chunked\r\n" if head.streams else ""
    fields = "".join(f"{name}: {value}\r\n" for name, value in head.headers)
    return f"HTTP/1.1 {head.status} Simulated\r\n{fields}{framing}\r\n".encode("latin-1")


# -- clients -------------------------------------------------------------------------------------


class _Left(Exception):
    """The agent goes away."""


class ClientEnd:
    """The connections of one agent. ``accept`` gives the far end of each to the router.

    Without ``keeps`` every request has a connection of its own.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        story: Story,
        accept: Callable[[SimStream], None],
        *,
        keeps: bool,
        stall_s: float,
    ) -> None:
        self._name = name
        self._network = network
        self._story = story
        self._accept = accept
        self._keeps = keeps
        self._stall_s = stall_s
        self._idle: list[SimStream] = []

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()

    async def send(self, exchange: Exchange) -> None:
        """Have one exchange, to whatever end."""
        reader = Reader(self._story, exchange)
        conduct = exchange.ask.conduct
        stream, may_keep, ending = self._take(), False, reader.left
        patience_s = float("inf") if conduct.leave_after_s is None else conduct.leave_after_s
        self._network.asking[exchange.number] = stream
        try:
            with trio.move_on_after(patience_s):
                conversation = _Conversation(stream, conduct)
                may_keep = await conversation.have(_post(exchange), reader)
                ending = reader.end
        except _Left:
            pass
        except (*STREAM_FAILURES, h11.RemoteProtocolError):
            ending = reader.broken
        finally:
            del self._network.asking[exchange.number]
            self._give_back(stream, may_keep=may_keep)
        ending(trio.current_time())

    async def call(
        self, method: str, path: str, body: Any = None, *, headers: Headers = ()
    ) -> tuple[int, Any]:
        """A plain request; status and JSON of the answer.

        Where a connection breaks (idle ones may be closed at any moment, and all are when the clock
        jumps) it is sent again, a few times; then one of ``STREAM_FAILURES``, or
        ``h11.RemoteProtocolError``, is raised.
        """
        data = b"" if body is None else json.dumps(body).encode()
        fields = [("host", _HOST), ("content-length", str(len(data))), *headers]
        request = h11.Request(method=method, target=quote(path, safe="/:?=&"), headers=fields)
        for tries_left in reversed(range(_TRIES)):
            answer = _Whole()
            stream, may_keep = self._take(), False
            try:
                may_keep = await _Conversation(stream, Conduct()).have((request, data), answer)
                return answer.status, json.loads(answer.body) if answer.body else None
            except (*STREAM_FAILURES, h11.RemoteProtocolError):
                if not tries_left:
                    raise
            finally:
                self._give_back(stream, may_keep=may_keep)
        raise AssertionError("the last try returns or raises")

    def _take(self) -> SimStream:
        while self._idle:
            stream = self._idle.pop()
            if not stream.is_stale():
                return stream
            stream.close()
        near, far = self._network.pair(self._name, stall_s=self._stall_s)
        self._accept(far)
        return near

    def _give_back(self, stream: SimStream, *, may_keep: bool) -> None:
        if may_keep and self._keeps:
            self._idle.append(stream)
        else:
            stream.close()


class _Whole:
    """A reader that only collects."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    def head(self, status: int, _headers: dict[str, str]) -> None:
        self.status = status

    def data(self, data: bytes) -> None:
        self.body += data


class _Conversation:
    """One request and its answer on a connection."""

    def __init__(self, stream: SimStream, conduct: Conduct) -> None:
        self._stream = stream
        self._conduct = conduct
        self._pieces = 0

    async def have(self, sent: tuple[h11.Request, bytes], reader: Reader | _Whole) -> bool:
        """Send, and let ``reader`` read; whether the connection can be used again.

        Raises :class:`_Left` where the agent goes away, ``h11.RemoteProtocolError`` or one of
        ``STREAM_FAILURES`` where the answer is cut off.
        """
        conduct, parser = self._conduct, h11.Connection(h11.CLIENT)
        request, body = sent
        parts = (parser.send(request), body and parser.send(h11.Data(data=body)))
        parser.send(h11.EndOfMessage())
        try:
            await self._upload(b"".join(part for part in parts if part))
            if conduct.half_close:
                await self._stream.send_eof()
        except trio.BrokenResourceError:
            pass  # it may have been answered all the same: a refusal need not wait for the rest
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                if conduct.read_pause_s:
                    await trio.sleep(conduct.read_pause_s)
                parser.receive_data(await self._stream.receive_some())
            elif isinstance(event, h11.EndOfMessage):
                return not conduct.half_close and parser.their_state is h11.DONE
            else:
                self._note(event, reader)

    async def _upload(self, data: bytes) -> None:
        count = max(1, self._conduct.upload_pieces)
        size = -(-len(data) // count)
        for at in range(0, len(data), size):
            if at:
                await trio.sleep(_BETWEEN_PIECES_S)
            await self._stream.send_all(data[at : at + size])

    def _note(self, event: object, reader: Reader | _Whole) -> None:
        leaves_after = self._conduct.leave_after_pieces
        if isinstance(event, h11.Response):
            told = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            reader.head(event.status_code, told)
        elif isinstance(event, h11.Data):
            reader.data(bytes(event.data))
            self._pieces += 1
        else:
            raise trio.BrokenResourceError("the connection ended before an answer had begun")
        if leaves_after is not None and self._pieces >= leaves_after:
            raise _Left


def _post(exchange: Exchange) -> tuple[h11.Request, bytes]:
    ask = exchange.ask
    body = ask.raw if ask.raw is not None else json.dumps(ask.body).encode()
    fields = [("host", _HOST), ("content-type", "application/json")]
    fields += [("content-length", str(len(body))), (EXCHANGE, str(exchange.number))]
    fields += ask.headers
    return h11.Request(method="POST", target=ask.path, headers=fields), body
