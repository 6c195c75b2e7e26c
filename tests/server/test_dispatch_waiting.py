"""Who waits for a worker, in which order they are let in, and what those are told who are not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from slime_core.health import Condition, Event, Health
from slime_core.transitions import VersionSeen, WorkerHealth, WorkerPaused
from slime_core.types import WorkerUrl
from slime_trio.dispatch.dispatcher import Answered, Wish
from slime_trio.dispatch.place import Places
from slime_trio.passing import aborted_answer
from slime_trio.router import Router
from tests.server.dispatch_support import Station, asking, fleet, until


def _paused(router: Router, station: Station, paused: bool) -> None:
    router.commit(WorkerPaused(worker=station.url, paused=paused))


async def test_more_than_may_run_wait_until_one_ends(autojump_clock: MockClock) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station, max_concurrent_requests=2) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = [asking(nursery, router) for _ in range(3)]
            await until(lambda: len(station.held) == 2)
            await trio.sleep(1)
            assert len(station.arrived) == 2
            station.finish(1)
            await until(lambda: len(station.arrived) == 3)
            station.answer = station.at_once
            station.finish()
        assert [one.status for one in asked] == [200] * 3


async def test_a_queue_that_is_full_refuses_and_says_when_to_come_back(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station, max_concurrent_requests=1, queue_size=1) as (router, _):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                asking(nursery, router)
            await until(lambda: router.shared.dispatcher.room.waiting)
            late = asking(nursery, router)
            await late.ended.wait()
            assert (late.status, late.code) == (429, "queue_full")
            assert late.error is not None
            assert late.error.retry_after_s
            station.answer = station.at_once
            station.finish()
        assert router.state.counters.calls_captured == 2


async def test_a_session_that_fills_the_queue_keeps_nobody_else_out(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station, max_concurrent_requests=1, queue_size=3) as (router, _):
        async with trio.open_nursery() as nursery:
            asking(nursery, router)
            await until(lambda: station.held)
            greedy = [asking(nursery, router, headers=[(b"x-session-id", b"g")]) for _ in range(3)]
            await until(lambda: len(router.shared.dispatcher.room.waiting) == 3)
            modest = asking(nursery, router, headers=[(b"x-session-id", b"m")])
            await until(lambda: any(one.ended.is_set() for one in greedy))
            station.answer = station.at_once
            station.finish()
        codes = [one.code for one in greedy]
        assert (codes.count("queue_full"), codes.count(None), modest.status) == (1, 2, 200)


async def test_requests_for_many_different_weights_do_not_hold_up_the_others(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = Station("a")
    finds = []
    proper = Places.find

    def counted(self: Places, *args: Any, **more: Any) -> Any:
        finds.append(args)
        return proper(self, *args, **more)

    monkeypatch.setattr(Places, "find", counted)
    async with fleet(station) as (router, _):
        router.commit(VersionSeen(worker=station.url, version="1"))
        async with trio.open_nursery() as nursery:
            picky = [
                asking(nursery, router, headers=[(b"x-smg-version-policy", b"min-version:%d" % n)])
                for n in range(100, 180)
            ]
            await trio.sleep(1)
            refused = [one.code for one in picky if one.ended.is_set()]
            assert refused == ["queue_full"] * 16
            before = len(finds)
            for _ in range(20):
                plain = asking(nursery, router)
                await plain.ended.wait()
                assert plain.status == 200
            assert len(finds) - before == 20
            for one in picky:
                one.scope.cancel()


async def test_without_a_queue_whatever_can_begin_begins(autojump_clock: MockClock) -> None:
    station = Station("a")
    async with fleet(station, max_concurrent_requests=1, queue_size=0) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
        assert asked.status == 200


async def test_who_has_waited_for_too_long_is_told_so(autojump_clock: MockClock) -> None:
    station = Station("a")
    station.answer = station.hold
    async with (
        fleet(station, max_concurrent_requests=1, queue_timeout_s=5.0) as (router, _),
        trio.open_nursery() as nursery,
    ):
        asking(nursery, router)
        await until(lambda: station.held)
        began = trio.current_time()
        late = asking(nursery, router)
        await late.ended.wait()
        assert trio.current_time() - began == pytest.approx(5.0)
        assert (late.status, late.code) == (503, "queue_timeout")
        assert late.error is not None
        assert late.error.retry_after_s
        station.finish()


async def test_a_client_that_leaves_while_it_waits_leaves_no_place_taken(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station, max_concurrent_requests=1, queue_size=1) as (router, _):
        async with trio.open_nursery() as nursery:
            asking(nursery, router)
            await until(lambda: station.held)
            leaves = asking(nursery, router)
            await until(lambda: router.shared.dispatcher.room.waiting)
            leaves.scope.cancel()
            await leaves.ended.wait()
            assert not router.shared.dispatcher.room.waiting
            stays = asking(nursery, router)
            station.answer = station.at_once
            await until(lambda: router.shared.dispatcher.room.waiting)
            station.finish()
        assert stays.status == 200
        assert len(station.arrived) == 2
        assert station.told == []
        assert router.state.counters.answers_not_captured == 0


async def test_nobody_waits_where_there_is_no_worker(autojump_clock: MockClock) -> None:
    station = Station("a")
    async with fleet(station) as (router, _):
        sick = Health(condition=Condition.QUARANTINED, until=30.0)
        router.commit(WorkerHealth(worker=station.url, health=sick, event=Event.UNREACHABLE))
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
        assert (asked.status, asked.code) == (503, "no_fit_workers")
        assert asked.error is not None
        assert asked.error.retry_after_s
        assert trio.current_time() == 0


async def test_whoever_finds_workers_paused_waits_until_one_goes_on(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    async with fleet(station) as (router, _):
        _paused(router, station, True)
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router)
            await trio.sleep(100)
            assert not station.arrived
            _paused(router, station, False)
            began = trio.current_time()
            await asked.ended.wait()
        # Woken by the transition: had it looked now and then, time would have passed.
        assert trio.current_time() == began
        assert asked.status == 200


async def test_whoever_gave_up_waiting_for_a_worker_stands_in_nobodys_way(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    async with fleet(station) as (router, _), trio.open_nursery() as nursery:
        _paused(router, station, True)
        gone = asking(nursery, router)
        await until(lambda: router.shared.dispatcher.room.waiting)
        gone.scope.cancel()
        await gone.ended.wait()
        _paused(router, station, False)
        late = asking(nursery, router)
        await until(late.ended.is_set)
        assert late.status == 200


async def test_a_worker_on_trial_gets_no_more_than_its_allowance_and_others_wait(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station) as (router, _):
        trial = Health(condition=Condition.TRIAL, allowance=1)
        router.commit(WorkerHealth(worker=station.url, health=trial, event=Event.PROBE_PASSED))
        async with trio.open_nursery() as nursery:
            asked = [asking(nursery, router) for _ in range(3)]
            await trio.sleep(1)
            assert len(station.arrived) == 1
            station.answer = station.at_once
            station.finish()
        assert [one.status for one in asked] == [200] * 3


async def test_a_weight_update_keeps_generations_out_until_it_is_done(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    async with fleet(station) as (router, _), trio.open_nursery() as nursery:
        async with router.shared.gate.write(drain=True):
            asked = asking(nursery, router)
            await trio.sleep(1)
            assert not station.arrived
        await asked.ended.wait()
        assert asked.status == 200


async def test_a_weight_update_waits_for_what_is_at_workers_and_not_for_what_waits(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    station.answer = station.hold
    async with (
        fleet(station, max_concurrent_requests=1) as (router, _),
        trio.open_nursery() as nursery,
    ):
        asking(nursery, router)
        await until(lambda: station.held)
        asking(nursery, router)
        await until(lambda: router.shared.dispatcher.room.waiting)
        nursery.start_soon(_finish_after, station, 3.0)
        async with router.shared.gate.write(drain=True):
            assert trio.current_time() >= 3.0
            assert len(station.arrived) == 1
        station.answer = station.at_once
        await until(lambda: len(station.arrived) == 2)


async def _finish_after(station: Station, seconds: float) -> None:
    await trio.sleep(seconds)
    station.answer = station.at_once
    station.finish()


async def test_between_two_weight_updates_whoever_waits_gets_in(autojump_clock: MockClock) -> None:
    station = Station("a")
    async with fleet(station) as (router, _), trio.open_nursery() as nursery:
        gate = router.shared.gate

        async def update() -> None:
            async with gate.write(drain=True):
                await trio.sleep(1)

        async with gate.write(drain=True):
            nursery.start_soon(update)
            await until(lambda: gate.waiting)
            asked = asking(nursery, router)
            await trio.sleep(0.1)
        await asked.ended.wait()
        assert trio.current_time() < 1


async def test_sessions_take_turns(autojump_clock: MockClock) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station, max_concurrent_requests=1) as (router, _):
        async with trio.open_nursery() as nursery:
            asking(nursery, router)
            await until(lambda: station.held)
            for session in [b"greedy"] * 5 + [b"modest"] * 2:
                asking(nursery, router, headers=[(b"x-smg-routing-key", session)])
                await until(lambda: router.shared.dispatcher.room.waiting)
            await until(lambda: len(router.shared.dispatcher.room.waiting) == 7)
            for count in range(2, 9):
                station.finish()
                await until(lambda count=count: len(station.arrived) == count)  # type: ignore[misc]
            station.finish()
        keys = [b"modest" in head for head in station.heads[1:5]]
        assert Counter(keys) == {True: 2, False: 2}


async def test_the_urgent_go_before_the_patient(autojump_clock: MockClock) -> None:
    station = Station("a")
    station.answer = station.hold
    async with fleet(station, max_concurrent_requests=1) as (router, _):
        async with trio.open_nursery() as nursery:
            asking(nursery, router)
            await until(lambda: station.held)
            for word in (b"low", b"normal", b"high"):
                asking(nursery, router, headers=[(b"x-slime-priority", word)])
                await trio.sleep(0.01)
            for count in range(2, 5):
                station.finish()
                await until(lambda count=count: len(station.arrived) == count)  # type: ignore[misc]
            station.finish()
        words = [_field(head, b"x-slime-priority") for head in station.heads[1:]]
        assert words == [b"high", b"normal", b"low"]


def _field(head: bytes, name: bytes) -> bytes:
    lines = (line.partition(b": ") for line in head.split(b"\r\n"))
    return next(value for key, _, value in lines if key == name)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (b"x-slime-priority", b"urgent"),
        (b"x-smg-priority", b""),
        (b"x-smg-version-policy", b"min-version"),
        (b"x-slime-version-policy", b"newest"),
        (b"x-slime-timeout-s", b"-1"),
        (b"x-slime-timeout-s", b"soon"),
        (b"x-slime-timeout-s", b"inf"),
        (b"x-smg-target-worker", b"9"),
    ],
)
async def test_a_header_that_asks_for_nonsense_is_refused_by_name(
    name: bytes, word: bytes, autojump_clock: MockClock
) -> None:
    station = Station("a")
    async with fleet(station) as (router, _):
        async with trio.open_nursery() as nursery:
            asked = asking(nursery, router, headers=[(name, word)])
        assert asked.status == 400
        assert asked.error is not None
        assert asked.error.param is not None
        what = name.decode().split("-", 2)[2]
        assert asked.error.param.endswith(what)
        assert what in asked.error.message


@pytest.mark.parametrize("name", [b"x-slime-version-policy", b"x-smg-version-policy"])
async def test_a_request_for_newer_weights_waits_for_them_and_others_pass_it(
    name: bytes, autojump_clock: MockClock
) -> None:
    station = Station("a")
    async with fleet(station) as (router, _), trio.open_nursery() as nursery:
        router.commit(VersionSeen(worker=station.url, version="4"))
        picky = asking(nursery, router, headers=[(name, b"min-version:5")])
        await trio.sleep(1)
        plain = asking(nursery, router)
        await plain.ended.wait()
        assert (plain.status, picky.ended.is_set()) == (200, False)
        router.commit(VersionSeen(worker=station.url, version="5"))
        await picky.ended.wait()
        assert picky.status == 200


async def test_a_request_goes_to_the_worker_that_it_names(autojump_clock: MockClock) -> None:
    stations = [Station("a"), Station("b")]
    async with fleet(*stations) as (router, _):
        async with trio.open_nursery() as nursery:
            for target in (b"1", stations[1].url.encode()):
                asking(nursery, router, headers=[(b"x-smg-target-worker", target)])
        assert [len(station.arrived) for station in stations] == [0, 2]


async def test_calls_of_a_session_stay_with_their_worker(autojump_clock: MockClock) -> None:
    stations = [Station("a"), Station("b")]
    async with fleet(*stations, policy="random") as (router, _):
        for _ in range(8):
            async with trio.open_nursery() as nursery:
                asking(nursery, router, headers=[(b"x-session-id", b"s")])
        assert sorted(len(station.arrived) for station in stations) == [0, 8]


async def test_thousands_that_wait_are_all_served_and_leave_nothing(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    statuses: Counter[int] = Counter()
    async with fleet(station, max_concurrent_requests=200) as (router, _):
        dispatcher = router.shared.dispatcher

        async def take(answered: Answered) -> None:
            statuses[answered.response.status] += 1

        async def ask(number: int) -> None:
            call = router.new_call_id()
            wish = Wish(calls=(call,), rids=((call,),), key=f"session {number % 100}")
            body = b'{"rid":"%d"}' % number
            asked = dispatcher.ask(router, wish, "POST", b"/generate", lambda _: [], body)
            await asked.run(take)

        _paused(router, station, True)
        async with trio.open_nursery() as nursery:
            for number in range(3000):
                nursery.start_soon(ask, number)
            await trio.sleep(1)
            assert dispatcher.room.waiting_count == len(dispatcher.live) == 3000
            _paused(router, station, False)
        assert statuses == {200: 3000}


async def test_an_answer_says_which_worker_gave_it_and_with_which_weights(
    autojump_clock: MockClock,
) -> None:
    station = Station("a")
    async with fleet(station) as (router, _):
        router.commit(VersionSeen(worker=station.url, version="3"))
        async with trio.open_nursery() as nursery:
            plain = asking(nursery, router)
            chat = asking(
                nursery,
                router,
                path="/v1/chat/completions",
                model="m",
                messages=[{"role": "user", "content": "x"}],
            )
        for asked in (plain, chat):
            assert asked.header(b"x-slime-worker") == b"1"  # no URL
            told = asked.json if asked is plain else None
            own = None if told is None else told["meta_info"]["weight_version"].encode()
            assert asked.header(b"x-slime-weight-version") in (own, b"3", b"7", b"1")


@pytest.mark.parametrize(
    ("version", "shown"),
    [
        ("1\r\nx-evil: 1", b"1%0D%0Ax-evil:%201"),
        ("step-\u00fc 50%", b"step-%C3%BC%2050%25"),
        ("v" * 100_000, b"v" * 256),
    ],
)
def test_a_version_that_is_no_header_field_is_shown_as_one(version: str, shown: bytes) -> None:
    answered = Answered(aborted_answer(["r"], array=False, stream=False), WorkerUrl("http://w"))
    assert answered.marks(version) == [(b"x-slime-weight-version", shown)]
