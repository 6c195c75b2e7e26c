"""What waits is aborted as in a worker's queue, also by an abort of everything at the workers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from slime_core.transitions import WorkerPaused
from slime_trio.router import Router
from tests.server.dispatch_support import Asked, Station, asking, fleet, until
from tests.server.harness import answer_item, events_of
from tests.server.upstream_support import answer

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def _pause(router: Router, station: Station) -> None:
    router.commit(WorkerPaused(worker=station.url, paused=True))


async def _aborted(autojump_clock: MockClock, **asked: Any) -> Asked:
    """The answer to a request that is aborted while it waits."""
    station = Station("a")
    async with fleet(station) as (router, _):
        _pause(router, station)
        async with trio.open_nursery() as nursery:
            request = asking(nursery, router, **asked)
            await until(lambda: router.shared.dispatcher.room.waiting)
            count = len(router.shared.dispatcher.live)
            assert router.shared.dispatcher.abort_waiting(lambda _: True) == count
        assert not station.arrived
        assert not station.told
        return request


async def test_a_request_aborted_while_it_waits_is_answered_as_by_a_worker(
    autojump_clock: MockClock,
) -> None:
    asked = await _aborted(autojump_clock, text="x", rid="mine")
    assert asked.status == 200
    reason = asked.json["meta_info"]["finish_reason"]
    assert (reason["type"], reason["message"]) == ("abort", "Abort in waiting queue")
    assert asked.json["meta_info"]["id"] == "mine"
    assert asked.header(b"x-slime-worker") is None


async def test_a_batch_is_answered_as_a_list(autojump_clock: MockClock) -> None:
    asked = await _aborted(autojump_clock, text=["x", "y"], rid=["m1", "m2"])
    assert [one["meta_info"]["id"] for one in asked.json] == ["m1", "m2"]


async def test_a_stream_ends_with_the_abort(autojump_clock: MockClock) -> None:
    asked = await _aborted(autojump_clock, text="x", stream=True)
    assert asked.header(b"content-type") == b"text/event-stream; charset=utf-8"
    first, end = events_of(b"".join(asked.sink.got).decode())
    assert (first["meta_info"]["finish_reason"]["type"], end) == ("abort", "[DONE]")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_is_told_what_an_abort_means_to_its_clients(
    stream: bool, autojump_clock: MockClock
) -> None:
    asked = await _aborted(autojump_clock, path="/v1/chat/completions", stream=stream, **CHAT)
    if stream and asked.error is None:
        assert b"generation_aborted" in b"".join(asked.sink.got)
    else:
        assert (asked.status, asked.code) == (503, "generation_aborted")


async def test_only_what_is_meant_is_aborted(autojump_clock: MockClock) -> None:
    station = Station("a")
    async with fleet(station) as (router, _):
        _pause(router, station)
        dispatcher = router.shared.dispatcher
        async with trio.open_nursery() as nursery:
            mine = asking(nursery, router, text="x", rid="mine")
            other = asking(nursery, router, text="x", rid="other")
            half = asking(nursery, router, text=["x", "y"], rid=["mine-too", "not"])
            await until(lambda: len(dispatcher.room.waiting) == 3)
            assert dispatcher.abort_waiting(lambda live: "mine" in live.rids) == 1
            await mine.ended.wait()
            # Of a batch all or nothing: one body is sent.
            assert dispatcher.abort_waiting(lambda live: "mine-too" in live.rids) == 0
            router.commit(WorkerPaused(worker=station.url, paused=False))
        kinds = [one.json["meta_info"]["finish_reason"]["type"] for one in (mine, other)]
        assert kinds == ["abort", "stop"]
        assert half.error is not None  # the station answers single requests


async def test_what_is_at_a_worker_is_live_there_and_not_for_the_queue_to_abort(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station) as (router, _), trio.open_nursery() as nursery:
        headers = [(b"x-session-id", b"s")]
        asking(nursery, router, text="x", rid="mine", headers=headers)
        await until(lambda: station.held)
        dispatcher = router.shared.dispatcher
        (live,) = dispatcher.live.values()
        assert (live.worker, live.workers) == (station.url, (station.url,))
        assert (live.session, live.tenant, live.aborted) == ("s", "", False)
        assert live.rids == (live.call, "mine")
        assert dispatcher.abort_waiting(lambda _: True) == 0
        station.finish()


async def test_what_waits_for_its_next_try_can_be_aborted(autojump_clock: MockClock) -> None:
    first, second = Station("a"), Station("b")
    first.answer = first.hang_up
    async with fleet(first, second, retry_backoff_s=8.0) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
            await until(lambda: first.told)
            began = trio.current_time()
            assert router.shared.dispatcher.abort_waiting(lambda _: True) == 1
        assert asked.json["meta_info"]["finish_reason"]["type"] == "abort"
        assert trio.current_time() == began
        assert not second.arrived


async def test_what_was_to_be_aborted_at_a_worker_that_fails_is_not_tried_elsewhere(
    autojump_clock: MockClock,
) -> None:
    first, second = Station("a"), Station("b")

    async def die(asked: dict[str, Any]) -> bytes | None:
        await first.hold(asked)
        return None

    first.answer = die
    async with fleet(first, second) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
            await until(lambda: first.held)
            (live,) = router.shared.dispatcher.live.values()
            live.aborted = True
            first.finish()
        assert _reason(asked) == ("abort", "Abort in waiting queue")
        assert not second.arrived


async def test_what_is_aborted_before_it_was_sent_is_not_sent(autojump_clock: MockClock) -> None:
    station = Station("a")
    async with fleet(station) as (router, _):
        _pause(router, station)
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
            await until(lambda: router.shared.dispatcher.room.waiting)
            router.commit(WorkerPaused(worker=station.url, paused=False))
            (live,) = router.shared.dispatcher.live.values()
            assert live.workers  # it has its place, and its task has not run since
            live.aborted = True
        assert _reason(asked) == ("abort", "Abort in waiting queue")
        assert not station.arrived


async def test_a_passed_through_generation_is_aborted_likewise(autojump_clock: MockClock) -> None:
    asked = await _aborted(autojump_clock, text="x", session_params={"id": "s"}, rid="mine")
    assert asked.json["meta_info"]["id"] == "mine"
    assert asked.header(b"x-slime-captured") == b"false"


async def test_what_was_aborted_at_a_worker_that_then_dies_is_not_tried_again(
    autojump_clock: MockClock,
) -> None:
    first, second = Station("a"), Station("b")
    dies = trio.Event()

    async def dying(asked: dict[str, Any]) -> bytes | None:
        await dies.wait()
        return None

    first.answer = dying
    async with fleet(first, second) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
            await until(lambda: first.arrived)
            for live in router.shared.dispatcher.live.values():
                live.aborted = True
            dies.set()
        assert asked.json["meta_info"]["finish_reason"]["type"] == "abort"
        assert not second.arrived


async def test_what_is_aborted_while_it_is_on_its_way_to_a_worker_never_gets_there(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    station.connects_after_s = 5.0
    async with fleet(station) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
            await trio.sleep(1)
            (live,) = router.shared.dispatcher.live.values()
            assert live.worker == station.url
            live.aborted = True
        assert asked.json["meta_info"]["finish_reason"]["type"] == "abort"
        assert not station.arrived


# -- an abort of everything, sent straight to the workers ----------------------------------------


async def _ask_many(nursery: trio.Nursery, router: Router, count: int) -> list[Asked]:
    return [asking(nursery, router) for _ in range(count)]


def _reason(asked: Asked) -> tuple[str, str]:
    reason = json.loads(b"".join(asked.sink.got))["meta_info"]["finish_reason"]
    return reason["type"], reason.get("message", "")


async def test_an_abort_of_everything_at_the_workers_drains_the_queue(
    autojump_clock: MockClock,
) -> None:
    stations = [Station("a"), Station("b")]
    for station in stations:
        station.answer = station.hold
    async with fleet(*stations, max_concurrent_requests=8) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = await _ask_many(nursery, router, 20)
            await until(lambda: len(router.shared.dispatcher.room.waiting) == 12)
            for station in stations:
                station.abort()
            for one in asked:
                await one.ended.wait()
            assert sum(len(station.arrived) for station in stations) == 8
            words = [_reason(one) for one in asked]
            assert words.count(("abort", "Aborted")) == 8
            assert words.count(("abort", "Abort in waiting queue")) == 12
            # A rollout that begins later is served.
            for station in stations:
                station.answer = station.at_once
            later = asking(nursery, router)
            await later.ended.wait()
        assert _reason(later)[0] == "stop"


async def test_a_tenant_that_had_nothing_there_goes_on_waiting(autojump_clock: MockClock) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station, replays=False, max_concurrent_requests=2) as (router, _):
        other = Router(router.args, shared=router.shared, tenant="tenant-1")
        async with trio.open_nursery() as nursery:
            await _ask_many(nursery, router, 2)
            await until(lambda: len(station.held) == 2)
            mine, theirs = asking(nursery, router), asking(nursery, other)
            await until(lambda: len(router.shared.dispatcher.room.waiting) == 2)
            station.answer = station.at_once
            station.abort()
        assert _reason(mine) == ("abort", "Abort in waiting queue")
        assert _reason(theirs)[0] == "stop"


async def test_the_abort_of_one_call_ends_no_other(autojump_clock: MockClock) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station, max_concurrent_requests=4) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = await _ask_many(nursery, router, 8)
            await until(lambda: len(station.held) == 4)
            await until(lambda: len(router.shared.dispatcher.room.waiting) == 4)
            station.abort(1)
            await trio.sleep(0.5)
            assert len(station.arrived) == 4  # its place is kept free while it is not known
            await trio.sleep(2)
            assert len(station.arrived) == 5
            station.answer = station.at_once
            station.finish()
        assert sorted(_reason(one)[0] for one in asked) == ["abort"] + ["stop"] * 7


async def test_an_abort_that_was_asked_for_here_drains_nothing(autojump_clock: MockClock) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station, max_concurrent_requests=1) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = await _ask_many(nursery, router, 2)
            await until(lambda: router.shared.dispatcher.room.waiting)
            for live in router.shared.dispatcher.live.values():
                live.aborted = bool(live.workers)
            station.answer = station.at_once
            station.abort()
        assert sorted(_reason(one)[0] for one in asked) == ["abort", "stop"]


_REFUSED = {
    "type": "abort",
    "message": "no such grammar",
    "status_code": 400,
    "err_type": "BadRequestError",
}


@pytest.mark.parametrize("captured", [True, False])
async def test_what_a_worker_refuses_by_an_abort_drains_nothing(
    captured: bool, autojump_clock: MockClock
) -> None:
    """Whoever has a bad request must not be able to end what others wait for."""
    station = Station("a")

    async def refuse(asked: dict[str, Any]) -> bytes | None:
        await station.hold(asked)
        item = answer_item([5], "a", rid=asked.get("rid", "r"), finish=_REFUSED)
        return answer(json.dumps(item).encode())

    station.answer = refuse
    body: dict[str, Any] = {"text": "x"} if captured else {"text": "x", "session_params": {}}
    async with fleet(station, max_concurrent_requests=1) as (router, _):
        async with trio.open_nursery() as nursery:
            refused = asking(nursery, router, rid="bad", **body)
            await until(lambda: station.held)
            waits = asking(nursery, router)
            await until(lambda: router.shared.dispatcher.room.waiting)
            station.answer = station.at_once
            station.finish()
        assert _reason(refused) == ("abort", "no such grammar")
        assert _reason(waits)[0] == "stop"


async def test_a_chats_abort_counts_like_any_other(autojump_clock: MockClock) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station, max_concurrent_requests=1) as (router, _):
        async with trio.open_nursery() as nursery:
            asking(nursery, router, path="/v1/chat/completions", **CHAT)
            await until(lambda: station.held)
            waits = asking(nursery, router)
            await until(lambda: router.shared.dispatcher.room.waiting)
            station.abort()
        assert _reason(waits) == ("abort", "Abort in waiting queue")
