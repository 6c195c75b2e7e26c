"""Which failures are tried elsewhere, where, how often, and what the client is told at last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from slime_core.health import Condition
from slime_core.transitions import WorkerPaused
from tests.server.dispatch_support import Asked, Station, asking, fleet, refusing, until
from tests.server.harness import answer_item
from tests.server.relay_support import STREAM_HEAD, event_chunk

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def _down(station: Station) -> None:
    station.takes_connections = False


def _hangs_up(station: Station) -> None:
    station.answer = station.hang_up


def _refuses(status: bytes) -> Callable[[Station], None]:
    def change(station: Station) -> None:
        station.answer = refusing(status)

    return change


BREAKS: dict[str, Callable[[Station], None]] = {
    "no connection": _down,
    "no answer": _hangs_up,
    "429": _refuses(b"429 Busy"),
    "502": _refuses(b"502 Bad"),
    "503": _refuses(b"503 Busy"),
    "504": _refuses(b"504 Late"),
}


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
@pytest.mark.parametrize("broken", BREAKS)
async def test_what_one_worker_fails_to_begin_another_is_given(
    broken: str, path: str, autojump_clock: MockClock
) -> None:
    first, second = Station("a"), Station("b")
    BREAKS[broken](first)
    async with fleet(first, second) as (router, _):
        async with trio.open_nursery() as nursery:
            body = {"text": "x"} if path == "/generate" else CHAT
            asked = asking(nursery, router, path=path, **body)
        assert asked.status == 200
        assert len(second.arrived) == 1
        assert asked.header(b"x-slime-worker") == b"2"
        if first.arrived:
            assert first.arrived == second.arrived  # under the same id
        assert router.state.counters.calls_captured == 1
        assert router.state.counters.calls_lost == 0


@pytest.mark.parametrize(
    "status", [b"400 No", b"401 No", b"404 No", b"413 No", b"500 Bug", b"501 No"]
)
async def test_what_a_worker_says_of_the_request_is_its_answer(
    status: bytes, autojump_clock: MockClock
) -> None:
    first, second = Station("a"), Station("b")
    first.answer = refusing(status)
    async with fleet(first, second) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
        assert asked.status == int(status[:3])
        assert not second.arrived


async def test_an_aborted_generation_is_never_tried_again(autojump_clock: MockClock) -> None:
    first, second = Station("a"), Station("b")
    first.answer = first.hold
    async with fleet(first, second) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
            await until(lambda: first.held)
            first.abort()
        assert asked.json["meta_info"]["finish_reason"]["type"] == "abort"
        assert not second.arrived


async def test_nothing_is_sent_again_once_an_answer_has_begun(autojump_clock: MockClock) -> None:
    first, second = Station("a"), Station("b")

    async def begins(asked: dict[str, Any]) -> bytes | None:
        return STREAM_HEAD + event_chunk(answer_item([5], "a", finished=False)) + b"broken"

    first.answer = begins
    async with fleet(first, second) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router, text="x", stream=True)
        assert asked.status == 200
        assert not second.arrived
        (segment,) = router.state.forest.calls.values()
        assert segment.answer is not None
        assert segment.answer.outcome.value == "partial"


async def test_a_request_is_tried_so_often_and_at_each_worker_once(
    autojump_clock: MockClock,
) -> None:
    stations = [Station(name) for name in "abcd"]
    for station in stations:
        station.answer = refusing(b"503 Busy")
    async with fleet(*stations, max_attempts=3) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
        assert [len(station.arrived) for station in stations] == [1, 1, 1, 0]
        assert asked.status == 503


async def test_after_the_last_try_the_workers_own_words_are_passed_on(
    autojump_clock: MockClock,
) -> None:
    first, second = Station("a"), Station("b")
    first.answer = refusing(b"429 Busy", b'{"error": "first"}')
    second.answer = refusing(b"503 Full", b'{"error":   "second"}')
    async with fleet(first, second) as (router, _):
        async with trio.open_nursery() as nursery:
            native = asking(nursery, router)
        async with trio.open_nursery() as nursery:
            chat = asking(nursery, router, path="/v1/chat/completions", **CHAT)
        assert native.status == 503
        assert (b"".join(native.sink.got), native.header(b"x-why")) == (
            b'{"error":   "second"}',
            b"it",
        )
        assert (chat.status, chat.code) == (503, "worker_unavailable")
        assert chat.error is not None
        assert "second" in chat.error.message


@pytest.mark.parametrize(("broken", "code"), [("no connection", "connect_failed"),
                                              ("no answer", "connection_lost")])  # fmt: skip
async def test_what_a_lone_worker_fails_is_not_tried_on_itself(
    broken: str, code: str, autojump_clock: MockClock
) -> None:
    station = Station("a")
    BREAKS[broken](station)
    async with fleet(station) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
        assert (asked.status, asked.code) == (502, code)
        assert len(station.arrived) <= 1


async def test_between_two_tries_time_passes_by_chance(autojump_clock: MockClock) -> None:
    first, second, third = (Station(name) for name in "abc")
    for station in (first, second):
        station.answer = refusing(b"503 Busy")
    async with fleet(first, second, third, retry_backoff_s=1.0) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
        assert asked.status == 200
        assert 0.5 + 1.0 <= trio.current_time() <= 1.0 + 2.0


async def test_while_it_waits_for_its_next_try_it_occupies_no_worker(
    autojump_clock: MockClock,
) -> None:
    first, second = Station("a"), Station("b")
    first.answer = refusing(b"503 Busy")
    async with (
        fleet(first, second, retry_backoff_s=8.0) as (router, _),
        trio.open_nursery() as nursery,
    ):
        asking(nursery, router)
        await until(lambda: first.arrived)
        await trio.sleep(1)
        assert router.state.fleet.total_in_flight == 0
        assert router.shared.gate.readers == 0
        assert router.shared.dispatcher.room.running == 1


async def test_a_try_waits_for_a_worker_that_is_only_paused(autojump_clock: MockClock) -> None:
    first, second = Station("a"), Station("b")
    async with fleet(first, second) as (router, _):
        router.commit(WorkerPaused(worker=second.url, paused=True))
        first.answer = refusing(b"503 Busy")
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
            await trio.sleep(50)
            assert not asked.ended.is_set()
            router.commit(WorkerPaused(worker=second.url, paused=False))
        assert asked.status == 200


async def test_who_has_run_for_long_has_new_time_to_wait_for_another_worker(
    autojump_clock: MockClock,
) -> None:
    first, second = Station("a"), Station("b")

    async def dies_late(asked: dict[str, Any]) -> bytes | None:
        await trio.sleep(50)
        return None

    first.answer = dies_late
    async with fleet(first, second, queue_timeout_s=10.0) as (router, _):
        router.commit(WorkerPaused(worker=second.url, paused=True))
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
            await trio.sleep(55)
            assert not asked.ended.is_set()
            router.commit(WorkerPaused(worker=second.url, paused=False))
        assert asked.status == 200


@pytest.mark.parametrize("broken", ["no answer", "504"])
async def test_a_worker_that_is_given_up_on_is_told_to_abort(
    broken: str, autojump_clock: MockClock
) -> None:
    first, second = Station("a"), Station("b")
    BREAKS[broken](first)
    async with fleet(first, second) as (router, _):
        async with trio.open_nursery() as nursery:
            asking(nursery, router)
        await until(lambda: first.told)
        assert first.told == [first.arrived[0]["rid"]]


async def test_a_worker_that_takes_no_connection_is_put_into_quarantine(
    autojump_clock: MockClock,
) -> None:
    first, second = Station("a"), Station("b")
    _down(first)
    async with fleet(first, second) as (router, _):
        async with trio.open_nursery() as nursery:
            asking(nursery, router)
        workers = router.state.fleet.workers
        assert workers[first.url].health.condition is Condition.QUARANTINED
        assert workers[second.url].health.condition is Condition.READY


async def test_one_that_loses_connections_is_put_there_after_so_many(
    autojump_clock: MockClock,
) -> None:
    first, second = Station("a"), Station("b")
    first.answer = first.hang_up
    async with fleet(first, second, failure_threshold=2, policy="round-robin") as (router, _):
        for expected in (Condition.READY, Condition.QUARANTINED):
            while True:
                before = len(first.arrived)
                async with trio.open_nursery() as nursery:
                    asking(nursery, router)
                if len(first.arrived) > before:
                    break
            assert router.state.fleet.workers[first.url].health.condition is expected


@pytest.mark.parametrize("status", [b"400 No", b"500 Bug", b"503 Busy"])
async def test_no_answer_of_an_application_makes_a_worker_sick(
    status: bytes, autojump_clock: MockClock
) -> None:
    station = Station("a")
    station.answer = refusing(status)
    async with fleet(station, failure_threshold=1) as (router, _):
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                asking(nursery, router)
        assert router.state.fleet.workers[station.url].health.condition is Condition.READY


# -- deadlines ---------------------------------------------------------------------------------


async def _too_late(router: Any, asked: Asked, station: Station, seconds: float) -> None:
    await asked.ended.wait()
    assert trio.current_time() == pytest.approx(seconds, abs=0.01)
    assert (asked.status, asked.code) == (504, "deadline_exceeded")


async def test_a_worker_that_takes_too_long_is_told_to_abort(autojump_clock: MockClock) -> None:
    station = Station("a")
    station.answer = station.hold
    async with (
        fleet(station, request_timeout_s=20.0) as (router, _),
        trio.open_nursery() as nursery,
    ):
        asked = asking(nursery, router)
        await _too_late(router, asked, station, 20.0)
        await until(lambda: station.told)
        assert station.told == [station.arrived[0]["rid"]]


async def test_a_client_may_give_it_less_time(autojump_clock: MockClock) -> None:
    station = Station("a")
    station.answer = station.hold
    async with (
        fleet(station, request_timeout_s=20.0) as (router, _),
        trio.open_nursery() as nursery,
    ):
        asked = asking(nursery, router, headers=[(b"x-slime-timeout-s", b"2.5")])
        await _too_late(router, asked, station, 2.5)


async def test_and_not_more(autojump_clock: MockClock) -> None:
    station = Station("a")
    station.answer = station.hold
    async with (
        fleet(station, request_timeout_s=20.0) as (router, _),
        trio.open_nursery() as nursery,
    ):
        asked = asking(nursery, router, headers=[(b"x-slime-timeout-s", b"100")])
        await _too_late(router, asked, station, 20.0)


async def test_a_clients_time_runs_while_it_waits(autojump_clock: MockClock) -> None:
    station = Station("a")
    async with fleet(station) as (router, _), trio.open_nursery() as nursery:
        router.commit(WorkerPaused(worker=station.url, paused=True))
        asked = asking(nursery, router, headers=[(b"x-slime-timeout-s", b"3")])
        await _too_late(router, asked, station, 3.0)
        assert not station.arrived


async def test_a_stream_that_takes_too_long_is_kept_as_far_as_it_came(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    async with fleet(station, request_timeout_s=5.0) as (router, _):
        station.begins_with = STREAM_HEAD + event_chunk(answer_item([5], "a", finished=False))
        station.answer = station.hold
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router, text="x", stream=True)
        assert asked.status == 200
        assert b"deadline_exceeded" in asked.sink.got[-1]
        (segment,) = router.state.forest.calls.values()
        assert segment.answer is not None
        assert (segment.answer.outcome.value, segment.tokens) == ("partial", 1)


async def test_by_itself_no_generation_has_an_end(autojump_clock: MockClock) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
            await trio.sleep(10 * 24 * 3600)
            station.finish()
        assert asked.status == 200
