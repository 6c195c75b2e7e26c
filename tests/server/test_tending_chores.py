"""When each chore is due: pure functions, looked at row by row."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from slime_core.enlistment import Details
from slime_core.fleet import Worker, WorkerKind
from slime_core.health import READY, Condition, Health
from slime_core.logprob_kinds import LogprobKind
from slime_core.types import WorkerUrl
from slime_trio.config import Settings
from slime_trio.tending.chores import DUE, LOADS_S, LOGPROB_TRIES, LOGPROBS_S, SOON_S, Known
from slime_trio.tending.diary import Diary

SETTINGS = Settings(poll_interval_s=10.0, health_check_interval_s=30.0, probe_logprobs=False)
PROBING = Settings()
ENDED = dict.fromkeys(DUE, 100.0)
JOINING = Health()
QUARANTINED = Health(condition=Condition.QUARANTINED, until=130.0)
OVERDUE = Health(condition=Condition.QUARANTINED, until=50.0)
TRIAL = Health(condition=Condition.TRIAL, allowance=1)


def _known(
    health: Health = READY,
    *,
    settings: Settings = SETTINGS,
    details: Details | None = None,
    sighting: int = 3,
    answered: float = -inf,
    wants_loads: bool = True,
    diary: dict[str, Any] | None = None,
    **worker: Any,
) -> Known:
    known: dict[str, Any] = {"confirmed": 3, "version": "3"} | worker
    extras = (details or Details()).encoded()
    remembered: dict[str, Any] = {"ended": ENDED, "asked_at": 3, "jitter": 0.5} | (diary or {})
    return Known(
        args=settings,
        worker=Worker(
            url=WorkerUrl("http://a"), number=1, id="a", health=health, extras=extras, **known
        ),
        diary=Diary(**remembered),
        sighting=sighting,
        newest=str(sighting),
        answered=answered,
        wants_loads=wants_loads,
    )


def _due(known: Known) -> dict[str, float | None]:
    return {chore: due(known) for chore, due in DUE.items()}


NEVER: dict[str, float | None] = dict.fromkeys(DUE)


@pytest.mark.parametrize(
    ("known", "due"),
    [
        (_known(JOINING), NEVER | {"contact": 100.0 + SOON_S}),
        (_known(JOINING, diary={"ended": {}}), NEVER | {"contact": -inf}),
        (_known(QUARANTINED), NEVER | {"contact": 130.0}),
        (_known(OVERDUE, paused=True), NEVER | {"contact": 100.0 + SOON_S}),
        (_known(READY), NEVER | {"poll": 110.0, "check": 130.0, "loads": 100.0 + LOADS_S}),
        (_known(TRIAL), NEVER | {"poll": 110.0, "check": 130.0, "loads": 100.0 + LOADS_S}),
        (
            _known(READY, paused=True),
            NEVER | {"poll": 110.0, "resume": 100.0 + SOON_S, "loads": 100.0 + LOADS_S},
        ),
    ],
    ids=["joining", "never contacted", "quarantined", "overdue", "ready", "trial", "paused"],
)
def test_a_worker_s_condition_says_which_chores_there_are(
    known: Known, due: dict[str, float | None]
) -> None:
    assert _due(known) == due


@pytest.mark.parametrize(
    ("known", "at"),
    [
        (_known(), 110.0),
        (_known(sighting=4), -inf),
        (_known(sighting=4, version="4"), 100.0 + SOON_S),
        (_known(sighting=4, diary={"asked_at": 4}), 100.0 + SOON_S),
        (_known(stale=True), 100.0 + SOON_S),
        (_known(confirmed=-1), 100.0 + SOON_S),
        (_known(confirmed=-1, diary={"tells_nothing": True}), 110.0),
        (_known(stale=True, settings=Settings(poll_interval_s=0.1)), 100.1),
    ],
    ids=[
        "known",
        "new sighting",
        "its own sighting",
        "asked in vain",
        "stale",
        "doubt",
        "silent",
        "impatient",
    ],
)
def test_a_poll_is_due_at_once_or_soon_where_weights_are_not_known(known: Known, at: float) -> None:
    assert DUE["poll"](known) == at


@pytest.mark.parametrize(
    ("known", "at"),
    [
        (_known(answered=120.0), 150.0),
        (_known(answered=90.0), 130.0),
        (_known(diary={"ended": {"contact": 110.0}}), 140.0),
        (_known(diary={"jitter": 0.0}), 127.0),
        (_known(diary={"jitter": 1.0}), 133.0),
        (_known(details=Details(health_check_interval_secs=5.0)), 105.0),
        (_known(details=Details(disable_health_check=True)), None),
        (_known(settings=Settings(health_check=False)), None),
    ],
    ids=["busy", "was busy", "new", "early", "late", "its own interval", "its own wish", "off"],
)
def test_a_check_is_due_an_interval_after_the_last_sign_of_life(
    known: Known, at: float | None
) -> None:
    assert DUE["check"](known) == at


def test_loads_are_asked_for_only_where_a_policy_reads_them() -> None:
    assert DUE["loads"](_known(wants_loads=False)) is None


@pytest.mark.parametrize(
    ("known", "at"),
    [
        (_known(settings=PROBING, diary={"ended": {}}), -inf),
        (_known(settings=PROBING, diary={"logprob_tries": 1}), 100.0 + LOGPROBS_S),
        (_known(settings=PROBING, diary={"logprob_tries": LOGPROB_TRIES}), None),
        (_known(JOINING, settings=PROBING), None),
        (_known(settings=PROBING, paused=True), None),
        (_known(settings=PROBING, logprob_kind=LogprobKind.RAW), None),
        (_known(settings=PROBING, kind=WorkerKind.PREFILL), None),
        (_known(), None),
    ],
)
def test_a_worker_that_gets_work_is_probed_for_its_logprobs_until_it_tells(
    known: Known, at: float | None
) -> None:
    assert DUE["logprobs"](known) == at
