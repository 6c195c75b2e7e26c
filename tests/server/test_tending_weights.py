"""Weights and loads as tending learns them, at exact virtual times."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from slime_core.enlistment import Enlistment
from slime_core.fleet import Loads, Worker
from slime_core.policies import Placement
from slime_core.transitions import (
    NewestUnheld,
    VersionFellBack,
    VersionSeen,
    WorkerFlushed,
    WorkerPaused,
)
from slime_core.types import WorkerUrl
from slime_trio.tending import add_worker, enlist, poll_now
from tests.server.tending_support import ONE, TWO, Tended, Told, tended

LOADS = {
    "loads": [{"num_running_reqs": 3, "num_waiting_reqs": 1, "token_usage": 0.5}],
}


async def _at(seconds: float) -> None:
    """Just after what happens at that time."""
    await trio.sleep_until(seconds)
    await wait_all_tasks_blocked()


def _answered(router: Tended, worker: WorkerUrl, version: str) -> None:
    """A call's answer told of these weights."""
    router.router.commit(VersionSeen(worker=worker, version=version))


# -- new weights -------------------------------------------------------------------------------


async def test_new_weights_in_an_answer_have_all_others_polled_at_once(
    autojump_clock: MockClock,
) -> None:
    one, two = Told(version="7"), Told(version="7")
    async with tended({ONE: one, TWO: two}) as router:
        await _at(15)
        two.version = "8"
        _answered(router, ONE, "8")
        await wait_all_tasks_blocked()
        assert two.times("/model_info")[-1] == 15
        assert router.worker(TWO).version == "8"
        assert router.worker(TWO).is_fit


async def test_who_still_holds_old_weights_after_that_poll_gets_no_work_until_it_is_updated(
    autojump_clock: MockClock,
) -> None:
    one, two = Told(version="7"), Told(version="7")
    async with tended({ONE: one, TWO: two}) as router:
        await _at(15)
        one.version = "8"
        _answered(router, ONE, "8")
        await wait_all_tasks_blocked()
        assert router.worker(TWO).unfit == "holds old weights"
        await _at(18.5)
        assert two.times("/model_info")[-4:] == [15, 16, 17, 18]
        two.version = "8"
        await _at(19)
        assert router.worker(TWO).is_fit


async def test_a_poll_that_sees_new_weights_has_all_others_polled_at_once(
    autojump_clock: MockClock,
) -> None:
    one, two = Told(version="7"), Told(version="7")
    async with tended({ONE: one, TWO: two}, worker_urls=()) as router:
        await add_worker(router.router, ONE)
        await _at(4)
        await add_worker(router.router, TWO)
        await _at(8)
        one.version = two.version = "8"
        await _at(one.times("/model_info")[-1] + 10)
        assert one.times("/model_info")[-1] == two.times("/model_info")[-1]
        assert router.worker(TWO).version == "8"


async def test_a_worker_that_lags_no_more_than_allowed_works_on(
    autojump_clock: MockClock,
) -> None:
    one, two = Told(version="8"), Told(version="7")
    async with tended({ONE: one, TWO: two}, max_weight_staleness=1) as router:
        await _at(30)
        assert router.worker(TWO).is_fit


async def test_a_worker_that_tells_nothing_of_weights_works_and_is_polled_as_seldom(
    autojump_clock: MockClock,
) -> None:
    one, silent = Told(version="8"), Told(version=None)
    async with tended({ONE: one, TWO: silent}) as router:
        await _at(95)
        assert router.worker(TWO).is_fit
        assert len(silent.times("/model_info")) <= 11


# -- restarts ----------------------------------------------------------------------------------


async def test_a_worker_that_comes_back_with_old_weights_gets_no_work_until_updated(
    autojump_clock: MockClock,
) -> None:
    one, two = Told(version="7"), Told(version="7")
    async with tended({ONE: one, TWO: two}) as router:
        await _at(15)
        two.version = "default"  # restarted between two looks at it
        await enlist(router.router, Enlistment(url=TWO))
        assert router.worker(TWO).unfit == "holds old weights"
        await _at(60)
        assert router.worker(TWO).unfit == "holds old weights"
        two.version = "7"
        await _at(61)
        assert router.worker(TWO).is_fit


async def test_a_version_that_goes_back_is_a_restart(autojump_clock: MockClock) -> None:
    one, two = Told(version="7"), Told(version="7")
    async with tended({ONE: one, TWO: two}) as router:
        await _at(15)
        two.version = "default"
        await _at(25)
        assert router.worker(TWO).unfit == "holds old weights"
        assert router.committed(WorkerFlushed(worker=TWO))
        assert not router.committed(WorkerFlushed(worker=ONE))


async def test_an_answer_with_older_weights_leaves_a_doubt_that_a_poll_settles(
    autojump_clock: MockClock,
) -> None:
    one = Told(version="7")
    async with tended({ONE: one}) as router:
        await _at(15)
        _answered(router, ONE, "6")
        await _at(15)
        assert one.times("/model_info")[-1] == 15
        assert router.worker(ONE).is_fit


# -- falling back ------------------------------------------------------------------------------


async def test_a_trainer_that_starts_over_is_followed_after_the_grace_time(
    autojump_clock: MockClock,
) -> None:
    one, two = Told(version="7"), Told(version="7")
    async with tended({ONE: one, TWO: two}, version_grace_s=60.0) as router:
        await _at(15)
        one.version = two.version = "0"
        await _at(30)
        (since,) = router.times(NewestUnheld)
        assert {router.worker(url).unfit for url in (ONE, TWO)} == {"holds old weights"}
        await _at(since + 59)
        assert router.times(VersionFellBack) == []
        await _at(since + 60)
        assert router.times(VersionFellBack) == [since + 60]
        assert router.router.state.versions.newest == "0"
        await _at(since + 62)
        assert all(router.worker(url).is_fit for url in (ONE, TWO))


async def test_a_fleet_that_is_paused_does_not_fall_back(autojump_clock: MockClock) -> None:
    one, two = Told(version="7"), Told(version="7", ready=404)
    async with tended({ONE: one, TWO: two}) as router:
        await _at(15)
        one.ready = 503
        router.router.commit(WorkerPaused(worker=ONE, paused=True))
        two.version = "0"
        await _at(500)
        assert router.router.state.versions.newest == "7"


# -- asking now --------------------------------------------------------------------------------


@pytest.mark.parametrize("both", [True, False])
async def test_weights_are_polled_when_somebody_says_so(
    both: bool, autojump_clock: MockClock
) -> None:
    one, two = Told(version="7"), Told(version="7")
    async with tended({ONE: one, TWO: two}, max_weight_staleness=1) as router:
        await _at(15)
        one.version = two.version = "8"
        await poll_now(router.router.shared, None if both else ONE)
        assert router.worker(ONE).version == "8"
        assert (two.times("/model_info")[-1] == 15) or not both


async def test_a_worker_that_does_not_answer_is_not_waited_for_for_ever(
    autojump_clock: MockClock,
) -> None:
    one = Told()
    async with tended({ONE: one}, connect_timeout_s=3.0) as router:
        await _at(15)
        one.hangs = True
        await poll_now(router.router.shared)
        assert trio.current_time() == 28
        assert router.worker(ONE).is_fit


# -- loads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["policy", "prefill_policy", "decode_policy"])
async def test_loads_are_asked_for_where_a_policy_reads_them(
    setting: str, autojump_clock: MockClock
) -> None:
    one = Told(loads=LOADS)
    async with tended({ONE: one}, **{setting: "least-load"}) as router:
        await _at(5)
        assert one.times("/v1/loads") == [0, 2, 4]
        assert router.worker(ONE).reported == Loads(running=3, waiting=1, token_usage=0.5)


class _ReadsLoads:
    reads_loads = True

    def __call__(self, workers: Sequence[Worker], placement: Placement, /) -> Worker:
        return workers[0]


reads_loads = _ReadsLoads()


async def test_loads_are_asked_for_where_a_policy_of_one_s_own_says_that_it_reads_them(
    autojump_clock: MockClock,
) -> None:
    one = Told(loads=LOADS)
    async with tended({ONE: one}, policy=f"{__name__}.reads_loads") as router:
        await _at(5)
        assert router.worker(ONE).reported is not None


async def test_loads_are_asked_for_by_nobody_else(autojump_clock: MockClock) -> None:
    one = Told(loads=LOADS)
    async with tended({ONE: one}):
        await _at(30)
        assert one.times("/v1/loads") == []


async def test_a_worker_that_tells_no_load_is_let_alone(autojump_clock: MockClock) -> None:
    one = Told()
    async with tended({ONE: one}, policy="least-load") as router:
        await _at(30)
        assert router.worker(ONE).reported is None
        assert router.worker(ONE).is_fit


# -- keys and kinds ----------------------------------------------------------------------------


async def test_a_worker_is_asked_with_its_own_key_before_that_of_all(
    autojump_clock: MockClock,
) -> None:
    one, two = Told(), Told()
    async with tended({ONE: one, TWO: two}, worker_urls=(), worker_api_key="of-all") as router:
        await enlist(router.router, Enlistment(url=ONE, api_key="its-own"))
        await enlist(router.router, Enlistment(url=TWO))
        assert set(one.keys) == {"Bearer its-own"}
        assert set(two.keys) == {"Bearer of-all"}


@pytest.mark.parametrize(("mode", "fits"), [("null", True), (None, True), ("prefill", False)])
async def test_a_worker_of_another_kind_than_registered_gets_no_work(
    mode: str | None, fits: bool, autojump_clock: MockClock
) -> None:
    one = Told(mode=mode)
    async with tended({ONE: one}) as router:
        assert router.worker(ONE).is_fit == fits
        if not fits:
            assert router.worker(ONE).unfit == (
                "it is a prefill worker, and was registered as regular"
            )
