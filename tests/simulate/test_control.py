"""The control plane under simulation: what errands are drawn, and what a worker's desk does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from slime_core.engine import PauseMode
from tests.simulate.control.errands import ERRAND_KINDS, draw_errands
from tests.simulate.faults import FaultKind, FaultRates
from tests.simulate.workers.support import Asked, Shop, body_of, head_of

URLS = ("http://w1", "http://w2")
PAUSE, CONTINUE = "/pause_generation", "/continue_generation"
UPDATE = "/update_weights_from_disk"


def tell(shop: Shop, path: str, body: Any) -> Asked:
    return shop.send(path, msgspec.json.encode(body))


def status_of(asked: Asked) -> int:
    return head_of(asked.take()).status


def test_a_kind_that_is_left_out_moves_no_other() -> None:
    every = draw_errands(1, urls=URLS, until_s=5.0, rates=[(kind, 2) for kind in ERRAND_KINDS])
    fewer = draw_errands(1, urls=URLS, until_s=5.0, rates=[(kind, 2) for kind in ERRAND_KINDS[1:]])
    assert [one for one in every if one[1].kind != ERRAND_KINDS[0]] == fewer
    assert {errand.kind for _, errand in every} == set(ERRAND_KINDS)


def test_there_is_no_errand_of_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="no such errand: nap"):
        draw_errands(1, urls=URLS, until_s=5.0, rates=[("nap", 1)])


def test_a_pause_that_aborts_is_answered_once_nothing_is_left() -> None:
    shop = Shop()
    shop.ask()
    shop.step()
    asked = tell(shop, PAUSE, {})
    assert not asked.take()
    shop.run()
    assert status_of(asked) == 200
    assert shop.sampled[0].finish is not None
    assert shop.sampled[0].finish["type"] == "abort"


def test_new_weights_wait_for_what_runs_and_keep_out_what_comes() -> None:
    shop = Shop()
    first = shop.ask()
    shop.step()
    update = tell(shop, UPDATE, {"model_path": "/m", "weight_version": "2"})
    second = shop.ask()
    shop.run()
    assert status_of(update) == status_of(first) == status_of(second) == 200
    assert [sorted(set(one.versions)) for one in shop.sampled] == [["1"], ["2"]]


def test_a_paused_worker_takes_new_weights_beside_what_it_holds() -> None:
    shop = Shop()
    shop.ask(params={"max_new_tokens": 40, "ignore_eos": True})
    shop.step()
    tell(shop, PAUSE, {"mode": "in_place"})
    body = {"model_path": "/m", "weight_version": "2"}
    update = tell(shop, UPDATE, body)
    shop.run()
    assert status_of(update) == 400
    assert b"after updating weights" in body_of(update.pieces)
    assert shop.worker.version == "2"
    tell(shop, CONTINUE, {})
    shop.run()
    assert set(shop.sampled[0].versions) == {"1", "2"}


def test_older_weights_are_refused() -> None:
    shop = Shop()
    tell(shop, "/update_weight_version", {"new_version": "step-3"})
    asked = tell(shop, "/update_weight_version", {"new_version": "2"})
    assert status_of(asked) == 400
    assert shop.worker.version == "step-3"


def test_healing_ends_a_pause_only_if_nobody_asked_for_it() -> None:
    shop = Shop()
    shop.worker.pause(PauseMode.RETRACT)
    shop.worker.heal(0.0)
    assert shop.worker.engine.paused is None
    tell(shop, PAUSE, {"mode": "retract"})
    shop.worker.heal(0.0)
    assert shop.worker.engine.paused is PauseMode.RETRACT


def test_a_crash_ends_what_was_begun() -> None:
    shop = Shop()
    shop.ask()
    shop.step()
    tell(shop, UPDATE, {"model_path": "/m", "weight_version": "2"})
    shop.worker.crash(0.0)
    shop.worker.restart(0.0, "1")
    shop.run()
    assert shop.worker.version == "1"
    assert [one.done_at for one in shop.story.served] == [None]


def test_a_refusal_may_hide_that_it_was_done_and_the_story_tells() -> None:
    done = set()
    for seed in range(20):
        shop = Shop(faults=FaultRates({FaultKind.REFUSE: 1.0}, probes=1.0), seed=seed)
        assert status_of(tell(shop, PAUSE, {"mode": "retract"})) in (429, 502, 503)
        (served,) = shop.story.served
        assert (served.done_at is not None) is (shop.worker.engine.paused is not None)
        done.add(served.done_at is not None)
    assert done == {True, False}


@pytest.mark.parametrize("path", [PAUSE, CONTINUE, UPDATE])
def test_a_body_is_required(path: str) -> None:
    assert status_of(Shop().send(path)) == 400
