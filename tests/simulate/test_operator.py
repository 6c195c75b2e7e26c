"""What befalls a fleet: timelines from seeds, and what each action does."""

from __future__ import annotations

import pytest

from slime_core.engine import EngineOptions, PauseMode
from tests.simulate import tokens
from tests.simulate.chance import derive
from tests.simulate.operator import (
    ACTION_KINDS,
    LINK_KINDS,
    Action,
    Conditions,
    Operator,
    Rates,
    Timeline,
    draw,
)
from tests.simulate.story import Story
from tests.simulate.workers.worker import Answering, Cut, Request, SimWorker

URLS = ("http://w1", "http://w2", "http://w3")
EVERYTHING: Rates = [(kind, 2) for kind in ACTION_KINDS]
EVERY_LINK: Rates = [(kind, 2) for kind in LINK_KINDS]
BODY = b'{"input_ids":[5,6],"stream":true,"sampling_params":{"max_new_tokens":9,"ignore_eos":true}}'


class Fleet:
    """Three workers, their links, and whoever performs on them."""

    def __init__(self, timeline: Timeline | None = None) -> None:
        self.story = Story()
        self.workers = {
            url: SimWorker(
                url,
                tokens=tokens.of("bytes"),
                story=self.story,
                chance=derive(1, url),
                options=EngineOptions(),
                version="1",
            )
            for url in URLS
        }
        self.conditions = {url: Conditions() for url in URLS}
        self.operator = Operator(
            self.workers, self.conditions, story=self.story, timeline=timeline or []
        )
        self.joined: list[str] = []

    def perform(self, what: str, kind: str = "it", **details: object) -> None:
        action = Action(kind=kind, what=what, **{"url": URLS[0], **details})  # type: ignore[arg-type]
        self.operator.perform(action, 0.0)

    def ask(self, url: str = URLS[0]) -> Answering:
        answering = self.workers[url].receive(
            Request(method="POST", target="/generate", body=BODY), 0.0
        )
        self.workers[url].advance(0.0)
        return answering

    def run(self) -> None:
        for worker in self.workers.values():
            while worker.next_deadline is not None:
                worker.advance(0.0)


def drawn(seed: int, actions: Rates = EVERYTHING, links: Rates = EVERY_LINK) -> Timeline:
    return draw(seed, urls=URLS, until_s=10.0, actions=actions, links=links)


# Timelines


def test_a_seed_has_one_timeline() -> None:
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize("seed", range(5))
def test_a_timeline_is_in_order_and_ends_in_time(seed: int) -> None:
    times = [at for at, _ in drawn(seed)]
    assert times == sorted(times)
    assert times[0] >= 0.0
    assert times[-1] <= 10.0


@pytest.mark.parametrize("kind", ["crash", "clog", "flush"])
def test_leaving_a_kind_out_moves_no_other(kind: str) -> None:
    fewer = drawn(
        3,
        [pair for pair in EVERYTHING if pair[0] != kind],
        [pair for pair in EVERY_LINK if pair[0] != kind],
    )
    assert fewer
    assert [step for step in drawn(3) if step in fewer] == fewer


@pytest.mark.parametrize("seed", range(5))
def test_versions_count_up_in_the_order_of_updates(seed: int) -> None:
    updates = [action for _, action in drawn(seed) if action.version]
    firsts = list(dict.fromkeys(action.epoch for action in updates))
    assert firsts == list(range(2, len(firsts) + 2))
    for action in updates:
        assert action.version in (str(action.epoch), f"step-{action.epoch}")


@pytest.mark.parametrize("seed", range(20))
def test_what_begins_also_ends(seed: int) -> None:
    timeline = drawn(seed)
    for begin, end in (("pause", "continue"), ("crash", "restart"), ("remove", "add")):
        counts = [sum(action.what == what for _, action in timeline) for what in (begin, end)]
        assert counts[0] == counts[1] > 0
    for what in ("refuse", "hang", "delay", "partition", "trickle"):
        on = [action.on for _, action in timeline if action.what == what]
        assert on.count(True) == on.count(False) > 0


def test_clogs_end_in_another_order_than_they_began() -> None:
    orders = set()
    for seed in range(30):
        steps = [action for _, action in draw(seed, urls=URLS, until_s=9, links=[("clog", 1)])]
        began = tuple(action.url for action in steps if action.on)
        ended = tuple(action.url for action in steps if not action.on)
        assert sorted(began) == sorted(ended)
        orders.add(began == ended)
    assert orders == {True, False}


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="no such action: earthquake"):
        draw(1, urls=URLS, until_s=1.0, actions=[("earthquake", 1)])
    with pytest.raises(ValueError, match="no such action: crash"):
        draw(1, urls=URLS, until_s=1.0, links=[("crash", 1)])


# Actions


def test_an_update_changes_the_weights_of_running_requests() -> None:
    fleet = Fleet()
    fleet.ask()
    fleet.perform("update", version="2", epoch=2)
    fleet.run()
    assert fleet.story.sampled[0].versions == ["1"] + ["2"] * 8
    assert fleet.story.marks == {"operator:it": 1}


def test_no_worker_goes_back_to_earlier_weights() -> None:
    fleet = Fleet()
    fleet.perform("update", version="3", epoch=3)
    fleet.perform("update", version="2", epoch=2)
    assert fleet.workers[URLS[0]].version == "3"
    assert fleet.story.marks == {"operator:it": 1}


@pytest.mark.parametrize("mode", PauseMode)
def test_a_pause_lasts_until_it_is_ended(mode: PauseMode) -> None:
    fleet = Fleet()
    fleet.ask()
    fleet.perform("pause", mode=mode)
    fleet.ask()
    fleet.run()
    assert fleet.workers[URLS[0]].engine.paused is mode
    assert fleet.story.sampled[1].ids == []
    fleet.perform("continue", "end")
    fleet.perform("continue", "end")
    fleet.run()
    assert len(fleet.story.sampled[1].ids) == 9
    assert fleet.story.marks == {"operator:it": 1, "operator:end": 1}


@pytest.mark.parametrize(("old", "version"), [(False, "2"), (True, "1")])
def test_a_crashed_worker_starts_again_with_new_or_old_weights(old: bool, version: str) -> None:
    fleet = Fleet()
    answering = fleet.ask()
    fleet.perform("update", version="2", epoch=2)
    fleet.perform("crash", "crash")
    fleet.perform("crash", "crash")
    assert answering.pieces[-1] == Cut()
    assert not fleet.workers[URLS[0]].alive
    fleet.perform("restart", "restart", old=old)
    fleet.perform("restart", "restart", old=old)
    assert [worker.alive for worker in fleet.workers.values()] == [True, True, True]
    assert fleet.workers[URLS[0]].version == version
    assert fleet.story.marks["operator:crash"] == fleet.story.marks["operator:restart"] == 1


def test_weights_that_come_while_a_worker_is_down_are_there_when_it_starts() -> None:
    fleet = Fleet()
    fleet.perform("crash")
    fleet.perform("update", version="2", epoch=2)
    fleet.perform("restart")
    assert fleet.workers[URLS[0]].version == "2"


def test_removing_and_adding_is_left_to_the_harness() -> None:
    fleet = Fleet()
    fleet.perform("remove")
    assert not fleet.story.marks
    fleet.operator.on_add = lambda url: fleet.joined.append(f"+{url}")
    fleet.operator.on_remove = lambda url: fleet.joined.append(f"-{url}")
    fleet.perform("add")
    fleet.perform("remove")
    fleet.perform("remove")
    fleet.perform("add")
    assert fleet.joined == [f"-{URLS[0]}", f"+{URLS[0]}"]


def test_aborting_everything_ends_what_runs() -> None:
    fleet = Fleet()
    fleet.perform("abort_all")
    assert not fleet.story.marks
    fleet.ask()
    fleet.perform("abort_all")
    fleet.run()
    assert fleet.story.sampled[0].finish == {
        "type": "abort",
        "message": "Aborted",
        "status_code": None,
        "err_type": None,
    }
    assert fleet.story.marks == {"operator:it": 1}


def test_flushing_is_refused_while_requests_run() -> None:
    fleet = Fleet()
    fleet.ask()
    fleet.perform("flush")
    assert not fleet.story.marks
    fleet.run()
    fleet.perform("flush")
    assert fleet.story.marks == {"operator:it": 1}
    assert fleet.workers[URLS[0]].engine.cache.size == 0


@pytest.mark.parametrize("what", ["refuse", "hang", "partition", "trickle", "delay"])
def test_conditions_begin_and_end(what: str) -> None:
    fleet = Fleet()
    fleet.perform(what, seconds=0.5)
    bad = fleet.conditions[URLS[0]]
    assert bad != Conditions()
    assert fleet.conditions[URLS[1]] == Conditions()
    fleet.perform(what, seconds=0.5, on=False)
    assert bad == Conditions()


def test_a_reset_breaks_connections_and_is_counted() -> None:
    fleet = Fleet()
    answering = fleet.ask()
    fleet.perform("reset")
    assert answering.pieces[-1] == Cut()
    assert fleet.conditions[URLS[0]].resets == 1
    assert fleet.workers[URLS[0]].alive


def test_a_clock_jump_is_left_to_the_harness() -> None:
    fleet = Fleet()
    jumped: list[float] = []
    fleet.perform("clock_jump", seconds=7.0)
    fleet.operator.on_jump = jumped.append
    fleet.perform("clock_jump", seconds=8.0)
    assert jumped == [8.0]
    assert fleet.story.marks == {"operator:it": 1}


@pytest.mark.parametrize("seed", range(10))
def test_healing_makes_all_good_whatever_has_been_done(seed: int) -> None:
    timeline = drawn(seed)
    fleet = Fleet(timeline)
    fleet.operator.on_add = fleet.operator.on_remove = fleet.joined.append
    answerings = []
    for at, action in timeline[: len(timeline) * 2 // 3]:
        answerings += [fleet.ask(url) for url in URLS]
        fleet.operator.perform(action, at)
    fleet.operator.heal(9.0)
    marks = fleet.story.marks.total()
    fleet.run()
    for at, action in timeline[len(timeline) * 2 // 3 :]:
        fleet.operator.perform(action, at)
    assert fleet.story.marks.total() == marks > 0
    assert all(conditions == Conditions(resets=conditions.resets)
               for conditions in fleet.conditions.values())  # fmt: skip
    latest = _latest([action for _, action in timeline[: len(timeline) * 2 // 3]])
    for worker in fleet.workers.values():
        assert worker.alive
        assert worker.engine.paused is None
        assert worker.version == latest
    for url in URLS:
        assert fleet.joined.count(url) % 2 == 0
    assert all(answering.ended for answering in answerings)


def _latest(actions: list[Action]) -> str:
    """What the trainer meant all to have in the end: its newest weights, or the first again."""
    latest, epoch = "1", 1
    for action in actions:
        if action.what == "start_over":
            latest = "1"
        elif action.version and action.epoch >= epoch:
            latest, epoch = action.version, action.epoch
    return latest


def test_a_trainer_that_starts_over_gives_a_worker_its_first_weights() -> None:
    fleet = Fleet()
    fleet.perform("update", version="5", epoch=5)
    fleet.perform("start_over")
    assert fleet.workers[URLS[0]].version == "1"
    fleet.operator.heal(1.0)
    assert {worker.version for worker in fleet.workers.values()} == {"1"}
    assert fleet.story.marks["operator:it"] == 2


def test_whoever_asks_is_told_of_caches_that_were_emptied() -> None:
    fleet, flushed = Fleet(), list[str]()
    fleet.operator.on_flush = flushed.append
    fleet.perform("flush")
    assert flushed == [URLS[0]]


def test_every_kind_is_performed_somewhere() -> None:
    marks = set()
    for seed in range(12):
        fleet = Fleet(drawn(seed))
        fleet.operator.on_add = fleet.operator.on_remove = fleet.joined.append
        fleet.operator.on_jump = lambda seconds: None
        for at, action in fleet.operator.timeline:
            for url in URLS:
                fleet.ask(url)
            fleet.operator.perform(action, at)
            if fleet.story.ticks % 2:
                fleet.run()
        marks |= set(fleet.story.marks)
    assert {f"operator:{kind}" for kind in (*ACTION_KINDS, *LINK_KINDS)} <= marks
