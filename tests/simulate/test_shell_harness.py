"""The shell's harness: a quiet run is quiet, a run repeats itself, and what is wrong is noticed."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import pytest
import structlog
import trio
import trio.testing

from slime_trio import app, retrieval
from slime_trio.upstream.connection import Connection
from slime_trio.upstream.site import Site
from tests.listeners import LISTENERS
from tests.simulate.knobs import Knobs
from tests.simulate.oracles import judge
from tests.simulate.run import Run
from tests.simulate.shell import harness as shell_harness
from tests.simulate.shell.http_ends import ClientEnd, WorkerEnd
from tests.simulate.shell.network import Calm, Network, SimStream
from tests.simulate.story import Ask, Conduct, Ending, Exchange, Kind, Story
from tests.simulate.workers.pieces import Answering, Cut, Data, End, Head, Piece, Raw
from tests.simulate.world import knobs_of

QUIET = Knobs(seed=7)


def _run(knobs: Knobs = QUIET) -> Run:
    return shell_harness.run(knobs)


# -- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("listener", LISTENERS)
def test_a_quiet_run_answers_captures_and_delivers_without_complaint(listener: str) -> None:
    run = _run(replace(QUIET, listener=listener))
    assert run.story.complaints == []
    assert [one.status for one in run.story.exchanges] == [200]
    assert [one.ending for one in run.story.exchanges] == [Ending.COMPLETE]
    assert {one.status for one in run.story.delivered} == {200}
    assert judge(run) == []


def test_streams_groups_and_chats_pass_through_the_whole_shell() -> None:
    knobs = Knobs(seed=3, agents=4, turns=3, group=3, workers=2)
    run = _run(replace(knobs, stream_share=0.5, chat_share=0.5, group_share=0.5))
    assert judge(run) == []
    assert len(run.story.exchanges) > 8
    assert {one.ask.path for one in run.story.exchanges} > {"/generate"}


@pytest.mark.parametrize("seed", range(3))
def test_a_seed_is_the_same_run_whatever_ran_before_it(seed: int) -> None:
    first = _run(knobs_of(seed)).digest
    _run()
    assert _run(knobs_of(seed)).digest == first


def test_another_schedule_is_another_run() -> None:
    knobs = Knobs(seed=1, agents=4, turns=2)
    assert _run(knobs).digest != _run(Knobs(seed=2, agents=4, turns=2)).digest


def test_afterwards_the_seams_are_closed_again() -> None:
    def seams() -> tuple[Any, ...]:
        return (
            trio.to_thread.run_sync,
            vars(app)["_settle_garbage"],
            logging.getLogger().handlers[:],
        )

    before, configured = seams(), structlog.get_config()
    _run()
    assert seams() == before
    assert structlog.get_config() == configured


# -- what is wrong is noticed ------------------------------------------------------------------


def _complaints(knobs: Knobs = QUIET) -> str:
    return "\n".join(_run(knobs).story.complaints)


def test_a_connection_that_is_never_closed_is_noticed() -> None:
    with patch.object(Connection, "close", lambda self: None):
        assert "a stream was left open: w0:30000 #" in _complaints()


def test_a_connection_that_never_leaves_the_hands_of_its_exchange_is_noticed() -> None:
    with patch.object(Site, "release", lambda self, connection: None):
        assert "the pool has " in _complaints()


def test_an_agent_that_is_never_answered_is_named() -> None:
    async def idle(self: WorkerEnd) -> None:
        await trio.sleep_forever()

    with patch.object(WorkerEnd, "drive", idle):
        assert "not done in time: agent0" in _complaints(Knobs(seed=7, liveness_s=20))


def test_an_internal_error_in_the_log_is_a_complaint() -> None:
    async def broken(*_arguments: object) -> bytes:
        raise ZeroDivisionError("by zero")

    with patch.object(retrieval, "by_call", broken):
        assert "ZeroDivisionError: by zero" in _complaints()


# -- a worker's end ----------------------------------------------------------------------------


class _Answers:
    """Stands for a worker that always answers with the same pieces."""

    def __init__(self, *pieces: Piece) -> None:
        self.pieces = pieces
        self.alive = True
        self.hung_up = 0
        self.targets: list[str] = []

    next_deadline = None

    def receive(self, request: Any, now: float) -> Answering:
        answering = Answering()
        answering.pieces.extend(self.pieces)
        self.targets.append(request.target)
        return answering

    def hang_up(self, answering: Answering, now: float) -> None:
        self.hung_up += 1


REQUEST = b"GET /model_info HTTP/1.1\r\nhost: w\r\n\r\n"
WHOLE = (Head(200, (("content-length", "2"),), streams=False), Data(b"ok"), End())


Act = Callable[[SimStream], Awaitable[Any]]


def _with_worker(worker: _Answers, act: Act, *, races: float = 0.0) -> tuple[Any, float]:
    """What ``act`` returns, and when, with one connection to this worker."""
    found: list[tuple[Any, float]] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            network, chance = Network(1, nursery), random.Random(1)
            simulated: Any = worker
            end = WorkerEnd(simulated, Calm(), story=Story(), chance=chance, races=races)
            near, far = network.pair("w")
            nursery.start_soon(end.serve, far)
            found.append((await act(near), trio.current_time()))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return found[0]


async def _all(stream: SimStream) -> bytes:
    """Everything up to the end; ``b"!"`` behind it where that is a reset."""
    got = b""
    try:
        while data := await stream.receive_some():
            got += data
    except trio.BrokenResourceError:
        got += b"!"
    return got


async def _ask_once(stream: SimStream) -> bytes:
    await stream.send_all(REQUEST)
    return await _all(stream)


def test_an_idle_connection_is_closed_after_five_seconds() -> None:
    got, at_s = _with_worker(_Answers(*WHOLE), _ask_once)
    assert got == b"HTTP/1.1 200 Simulated\r\ncontent-length: 2\r\n\r\nok"
    assert at_s == 5.0


def test_requests_follow_each_other_on_one_connection() -> None:
    async def twice(stream: SimStream) -> bytes:
        await stream.send_all(REQUEST + REQUEST[:9])
        await trio.sleep(1)
        await stream.send_all(REQUEST[9:])
        return await _all(stream)

    worker = _Answers(*WHOLE)
    got, _ = _with_worker(worker, twice)
    assert worker.targets == ["/model_info", "/model_info"]
    assert got.count(b"\r\n\r\nok") == 2


def test_an_idle_connection_may_be_closed_just_as_it_is_used_again() -> None:
    async def twice(stream: SimStream) -> bytes:
        await stream.send_all(REQUEST)
        await trio.sleep(1)
        await stream.send_all(REQUEST)
        return await _all(stream)

    worker = _Answers(*WHOLE)
    got, at_s = _with_worker(worker, twice, races=1.0)
    assert worker.targets == ["/model_info"]
    assert (got.count(b"ok"), at_s) == (1, 1.0)


def test_a_stream_goes_out_in_chunks_and_a_cut_leaves_it_without_an_end() -> None:
    head = Head(200, (("content-type", "text/event-stream"),), streams=True)
    whole, _ = _with_worker(_Answers(head, Data(b"data: 1\n\n"), End()), _ask_once)
    cut, _ = _with_worker(_Answers(head, Data(b"data: 1\n\n"), Cut()), _ask_once)
    body = b"transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
    assert whole.endswith(body + b"0\r\n\r\n")
    assert cut.rstrip(b"!").endswith(body)


def test_raw_bytes_go_out_as_they_are() -> None:
    got, at_s = _with_worker(_Answers(Raw(b"SSH-2.0\r\n"), Cut()), _ask_once)
    assert (got.rstrip(b"!"), at_s) == (b"SSH-2.0\r\n", 0.0)


def test_a_worker_learns_that_its_client_has_hung_up() -> None:
    async def leave(stream: SimStream) -> None:
        await stream.send_all(REQUEST)
        await trio.sleep(1)
        stream.close()
        await trio.sleep(1)

    worker = _Answers()
    _with_worker(worker, leave)
    assert worker.hung_up == 1


# -- an agent's end ----------------------------------------------------------------------------

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{}  "


@dataclass
class _Served:
    """What a router of this one answer saw of an agent."""

    exchange: Exchange
    arrived: bytes = b""
    at_s: list[float] = field(default_factory=list)
    connections: int = 0


def _sent(conduct: Conduct, answer: bytes = ANSWER, *, keeps: bool = True, times: int = 1) -> Any:
    ask = Ask(path="/generate", body={}, kind=Kind.ROOT, conduct=conduct)
    served = _Served(Exchange(number=0, agent="a", ask=ask, asked_at=0))

    async def answering(stream: SimStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while data := await stream.receive_some():
                    served.arrived += data
                    served.at_s.append(trio.current_time())
                    if served.arrived.endswith(b"{}"):
                        await stream.send_all(answer)

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            def accept(stream: SimStream) -> None:
                served.connections += 1
                nursery.start_soon(answering, stream)

            network = Network(1, nursery)
            client = ClientEnd("a", network, Story(), accept, keeps=keeps, stall_s=60)
            for _ in range(times):
                await client.send(served.exchange)
            client.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return served


def test_an_answer_is_read_to_its_end() -> None:
    served = _sent(Conduct())
    assert (served.exchange.ending, served.exchange.status) == (Ending.COMPLETE, 200)
    assert bytes(served.exchange.body) == b"{}  "


@pytest.mark.parametrize(("keeps", "connections"), [(True, 1), (False, 3)])
def test_connections_are_kept_or_not(keeps: bool, connections: int) -> None:
    assert _sent(Conduct(), keeps=keeps, times=3).connections == connections


@pytest.mark.parametrize(("after", "read"), [(0, b""), (1, b"{}  ")])
def test_an_agent_leaves_after_so_many_pieces(after: int, read: bytes) -> None:
    exchange = _sent(Conduct(leave_after_pieces=after)).exchange
    assert (exchange.ending, bytes(exchange.body)) == (Ending.LEFT, read)


def test_an_agent_leaves_after_a_time_whatever_has_come() -> None:
    exchange = _sent(Conduct(leave_after_s=3.0), b"HTTP/1.1 200 OK\r\n").exchange
    assert (exchange.ending, exchange.ended_s) == (Ending.LEFT, 3.0)


def test_an_upload_in_pieces_arrives_whole_and_takes_its_time() -> None:
    whole, pieces = _sent(Conduct()), _sent(Conduct(upload_pieces=5))
    assert pieces.arrived == whole.arrived
    assert (len(whole.at_s), len(pieces.at_s)) == (1, 5)


def test_a_slow_reader_waits_before_every_read() -> None:
    assert _sent(Conduct(read_pause_s=20.0)).exchange.ended_s == 20.0


def test_a_half_close_ends_the_sending_side_and_waits_for_the_answer() -> None:
    served = _sent(Conduct(half_close=True))
    assert (served.exchange.ending, served.connections) == (Ending.COMPLETE, 1)


@pytest.mark.parametrize("answer", [b"", ANSWER[:10], ANSWER[:-1]], ids=["none", "head", "body"])
def test_an_answer_that_is_cut_off_is_broken(answer: bytes) -> None:
    async def cut(self: SimStream, data: bytes) -> None:
        self._out.put(data)
        if not data.startswith(b"POST"):
            self.close()

    with patch.object(SimStream, "send_all", cut):
        assert _sent(Conduct(), answer).exchange.ending is Ending.BROKEN
