"""Health checks, pauses, quarantine and return, at exact virtual times."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import pairwise

import structlog
import structlog.testing
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from slime_core.enlistment import Details, Enlistment
from slime_core.health import READY, Condition, Event
from slime_core.transitions import WorkerFlushed, WorkerHealth, WorkerPaused
from slime_trio.tending import add_worker, enlist, remove_worker
from slime_trio.tending.visits import note_health
from tests.server.tending_support import ONE, TWO, Told, tended


def _after(seconds: float, status: int) -> Callable[[], Awaitable[int]]:
    async def health() -> int:
        await trio.sleep(seconds)
        return status

    return health


async def _at(seconds: float) -> None:
    """Just after what happens at that time."""
    await trio.sleep_until(seconds)
    await wait_all_tasks_blocked()


# -- checks ------------------------------------------------------------------------------------


async def test_an_idle_worker_generates_a_token_every_interval(autojump_clock: MockClock) -> None:
    told = Told(health=_after(1.0, 200))
    async with tended({ONE: told}):
        await _at(100)
        assert told.times("/health") == [30, 61, 92]


async def test_a_check_may_take_its_time(autojump_clock: MockClock) -> None:
    told = Told(health=_after(24.0, 200))
    async with tended({ONE: told}) as router:
        await _at(100)
        assert told.times("/health") == [30, 84]
        assert router.worker(ONE).health == READY


async def test_checks_that_fail_in_a_row_end_in_quarantine(autojump_clock: MockClock) -> None:
    told = Told(health=503)
    async with tended({ONE: told}) as router:
        await _at(89)
        assert router.worker(ONE).is_fit
        await _at(90)
        assert router.worker(ONE).unfit == "in quarantine"
        assert told.times("/health") == [30, 60, 90]


async def test_a_check_that_is_never_answered_has_failed_when_its_time_is_over(
    autojump_clock: MockClock,
) -> None:
    told = Told(health=_after(10_000.0, 200))
    async with tended({ONE: told}, failure_threshold=1, connect_timeout_s=1.0) as router:
        await _at(55)
        assert router.worker(ONE).is_fit
        await _at(56)
        assert not router.worker(ONE).is_fit


async def test_a_busy_worker_is_not_checked(autojump_clock: MockClock) -> None:
    told = Told()
    async with tended({ONE: told}) as router:
        for at in (20, 45, 70):
            await _at(at)
            router.router.shared.worker_book.note_answer(ONE, trio.current_time())
        await _at(101)
        assert told.times("/health") == [100]


async def test_a_check_that_fails_while_calls_are_answered_is_no_failure(
    autojump_clock: MockClock,
) -> None:
    told = Told(health=_after(5.0, 503))
    async with tended({ONE: told}) as router:
        await _at(32)
        router.router.shared.worker_book.note_answer(ONE, trio.current_time())
        await _at(36)
        assert router.worker(ONE).health.failures == 0


async def test_no_checks_are_made_where_they_are_switched_off(autojump_clock: MockClock) -> None:
    told = Told(health=503)
    async with tended({ONE: told}, health_check=False) as router:
        await _at(300)
        assert told.times("/health") == []
        assert router.worker(ONE).is_fit


async def test_what_a_registration_asks_for_goes_before_the_settings(
    autojump_clock: MockClock,
) -> None:
    one, two = Told(health=503), Told(health=503)
    async with tended({ONE: one, TWO: two}, worker_urls=()) as router:
        fast = Details(health_check_interval_secs=5.0, health_failure_threshold=2)
        await enlist(router.router, Enlistment(url=ONE, details=fast))
        never = Details(disable_health_check=True)
        await enlist(router.router, Enlistment(url=TWO, details=never))
        await _at(10)
        assert one.times("/health") == [5, 10]
        assert not router.worker(ONE).is_fit
        await _at(300)
        assert two.times("/health") == []


async def test_a_server_without_health_is_taken_at_its_word(autojump_clock: MockClock) -> None:
    told = Told(health=404, ready=404)
    async with tended({ONE: told}) as router:
        await _at(200)
        assert router.worker(ONE).health == READY


async def test_a_worker_that_fails_delays_nobody(autojump_clock: MockClock) -> None:
    hanging, well = Told(health=_after(20.0, 200)), Told()
    async with tended({ONE: hanging, TWO: well}):
        await _at(91)
        assert well.times("/health") == [30, 60, 90]
        polls = hanging.times("/model_info")[-5:]
        assert {later - earlier for earlier, later in pairwise(polls)} == {10}


# -- pauses ------------------------------------------------------------------------------------


async def test_a_worker_that_somebody_else_paused_gets_no_work_and_is_not_sick(
    autojump_clock: MockClock,
) -> None:
    told = Told()
    async with tended({ONE: told}) as router:
        await _at(20)
        told.ready, told.health = 503, _after(20.0, 503)
        await _at(30)
        assert router.worker(ONE).unfit == "paused"
        await _at(500)
        assert router.worker(ONE).health == READY
        assert told.times("/health") == []
        told.ready = 200
        await _at(501)
        assert router.worker(ONE).is_fit


async def test_a_worker_that_is_paused_in_mid_check_is_not_sick(autojump_clock: MockClock) -> None:
    told = Told()

    async def pausing() -> int:
        told.ready = 503
        await trio.sleep(20)
        return 503

    told.health = pausing
    async with tended({ONE: told}, failure_threshold=1) as router:
        await _at(50)
        assert router.worker(ONE).unfit == "paused"
        assert router.worker(ONE).health == READY


async def test_an_older_worker_that_fails_its_check_is_sick(autojump_clock: MockClock) -> None:
    told = Told(ready=404, health=503)
    async with tended({ONE: told}, failure_threshold=1) as router:
        await _at(30)
        assert router.worker(ONE).unfit == "in quarantine"


async def test_a_worker_that_dies_of_its_check_is_out_at_once(autojump_clock: MockClock) -> None:
    told = Told()

    async def dying() -> int:
        told.is_up = False
        return 503

    told.health = dying
    async with tended({ONE: told}, poll_interval_s=1000.0) as router:
        await _at(30)
        assert router.worker(ONE).unfit == "in quarantine"


async def test_no_checks_are_made_while_the_router_knows_of_a_pause(
    autojump_clock: MockClock,
) -> None:
    told = Told()
    async with tended({ONE: told}) as router:
        told.ready = 503
        router.router.commit(WorkerPaused(worker=ONE, paused=True))
        await _at(200)
        assert told.times("/health") == []
        router.router.commit(WorkerPaused(worker=ONE, paused=False))
        told.ready = 200
        await _at(201)
        assert told.times("/health") == [200]


async def test_a_pause_is_not_over_before_the_worker_has_noticed_it(
    autojump_clock: MockClock,
) -> None:
    told = Told()
    async with tended({ONE: told}) as router:
        await _at(10)
        router.router.commit(WorkerPaused(worker=ONE, paused=True))
        await _at(15)  # it still says that it is ready: the pause is on its way
        assert router.worker(ONE).paused
        told.ready = 503
        await _at(18)
        assert router.worker(ONE).paused
        told.ready = 200  # continued by somebody else
        await _at(19)
        assert not router.worker(ONE).paused


async def test_a_worker_that_goes_on_saying_that_it_is_ready_is_not_paused(
    autojump_clock: MockClock,
) -> None:
    async with tended({ONE: Told()}) as router:
        await _at(10)
        router.router.commit(WorkerPaused(worker=ONE, paused=True))
        await _at(18)
        assert router.worker(ONE).paused
        await _at(25)
        assert not router.worker(ONE).paused


async def test_an_older_worker_stays_paused_until_the_router_says_otherwise(
    autojump_clock: MockClock,
) -> None:
    async with tended({ONE: Told(ready=404)}) as router:
        router.router.commit(WorkerPaused(worker=ONE, paused=True))
        await _at(500)
        assert router.worker(ONE).paused


# -- quarantine and return ---------------------------------------------------------------------


async def test_a_worker_that_is_gone_is_looked_at_less_and_less_often(
    autojump_clock: MockClock,
) -> None:
    told = Told()
    async with tended({ONE: told}) as router:
        told.is_up = False
        await _at(115)
        assert router.times(WorkerHealth)[1:] == [10, 11, 13, 17, 25, 41, 71, 101]


async def test_a_worker_that_is_back_is_tried_with_one_call_after_it_generated(
    autojump_clock: MockClock,
) -> None:
    told = Told(health=_after(1.0, 200))
    async with tended({ONE: told}) as router:
        told.is_up = False
        await _at(12)
        told.is_up = True
        await _at(13.5)
        assert not router.worker(ONE).is_fit
        await _at(14)
        worker = router.worker(ONE)
        assert (worker.health.condition, worker.health.allowance) == (Condition.TRIAL, 1)
        assert worker.is_fit
        assert told.times("/health") == [13]
        assert router.committed(WorkerFlushed(worker=ONE))


async def test_a_worker_that_is_back_and_does_not_generate_stays_in_quarantine(
    autojump_clock: MockClock,
) -> None:
    told = Told(health=503)
    async with tended({ONE: told}) as router:
        told.is_up = False
        await _at(12)
        told.is_up = True
        await _at(100)
        assert router.worker(ONE).unfit == "in quarantine"


async def test_a_worker_that_was_never_there_is_contacted_until_it_is(
    autojump_clock: MockClock,
) -> None:
    told = Told(is_up=False)
    async with tended({ONE: told}) as router:
        await _at(60)
        assert router.worker(ONE).unfit == "in quarantine"
        told.is_up = True
        await _at(92)
        assert router.worker(ONE).is_fit


async def test_a_worker_that_is_paused_when_it_comes_back_need_not_generate(
    autojump_clock: MockClock,
) -> None:
    told = Told(health=_after(20.0, 503), ready=503)
    async with tended({ONE: told}) as router:
        note_health(router.router, ONE, Event.UNREACHABLE)
        await _at(2)
        assert router.worker(ONE).health.condition is Condition.TRIAL
        assert router.worker(ONE).unfit == "paused"


async def test_a_worker_that_was_restarted_is_no_longer_paused(autojump_clock: MockClock) -> None:
    told = Told(ready=404)
    async with tended({ONE: told}) as router:
        router.router.commit(WorkerPaused(worker=ONE, paused=True))
        told.is_up = False
        await _at(10.5)
        told.is_up = True
        await _at(20)
        assert router.worker(ONE).is_fit


async def test_a_paused_worker_in_quarantine_is_not_looked_at_again_and_again(
    autojump_clock: MockClock,
) -> None:
    told = Told(ready=404, health=503)
    async with tended({ONE: told}) as router:
        router.router.commit(WorkerPaused(worker=ONE, paused=True))
        told.is_up = False
        await _at(10.5)
        told.is_up = True
        await _at(40)
        assert 5 < len(told.times("/health")) <= 30


async def test_registering_again_ends_a_quarantine(autojump_clock: MockClock) -> None:
    told = Told()
    async with tended({ONE: told}) as router:
        told.is_up = False
        await _at(75)
        told.is_up = True
        await add_worker(router.router, ONE)
        assert router.worker(ONE).health == READY
        assert trio.current_time() < 76


async def test_registering_waits_for_contact_only_so_long(autojump_clock: MockClock) -> None:
    told = Told(hangs=True)
    async with tended({ONE: told}, worker_urls=()) as router:
        await add_worker(router.router, ONE)
        assert trio.current_time() == 5
        assert router.worker(ONE).unfit == "not contacted yet"


async def test_a_removed_worker_is_asked_nothing_more(autojump_clock: MockClock) -> None:
    told = Told()
    async with tended({ONE: told}) as router:
        await _at(15)
        remove_worker(router.router, ONE)
        asked = len(told.asked)
        await _at(200)
        assert len(told.asked) == asked
        assert router.router.shared.keeper is not None
        assert not router.router.shared.keeper.knows(ONE)


async def test_a_bug_in_a_visit_is_reported_and_ends_no_tending(
    autojump_clock: MockClock,
) -> None:
    broken, well = Told(bug=ZeroDivisionError("a bug")), Told()
    with structlog.testing.capture_logs() as logs:
        async with tended({ONE: broken, TWO: well}) as router:
            await _at(35)
            assert well.times("/health") == [30]
            broken.bug = None
            await _at(37)
            assert router.worker(ONE).is_fit
    assert {"event": "internal error", "task": "contact", "worker": ONE} in [
        {key: log.get(key) for key in ("event", "task", "worker")} for log in logs
    ]
