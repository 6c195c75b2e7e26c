"""Bugs of the fleet on purpose; see :mod:`tests.simulate.planted`, whose list they join."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import structs

from slime_core import placing, state, weights
from slime_core.fleet import Fleet, Worker
from slime_core.prefixes import PrefixMap
from slime_core.weights import VersionWish
from tests.simulate.planted import bug, patched

__all__: list[str] = []


@bug("workers with old weights work on")
def _stale_workers_chosen() -> Iterator[None]:
    with patched(weights, "_judge_one", lambda worker, versions: None):
        yield


@bug("an answer with older weights is believed at once")
def _answers_confirm() -> Iterator[None]:
    see = weights.see

    def believing(fleet: Any, versions: Any, fact: Any) -> None:
        see(fleet, versions, structs.replace(fact, sighting=versions.sighting))

    with patched(state, "see", believing):
        yield


@bug("a stale worker works again as soon as the others get newer weights")
def _stale_for_one_version() -> Iterator[None]:
    judge = weights.judge

    def forgiving(fleet: Any, versions: Any) -> None:
        for worker in fleet.workers.values():
            worker.stale = False
        judge(fleet, versions)

    with patched(weights, "judge", forgiving):
        yield


@bug("a trainer that starts over is never followed", "core")
def _never_falls_back() -> Iterator[None]:
    with patched(weights, "_heir", lambda state: None):
        yield


@bug("a worker on trial gets as much as any")
def _no_trial() -> Iterator[None]:
    with patched(Worker, "has_room", property(lambda self: True)):
        yield


@bug("calls go home whoever lives there")
def _home_at_any_price() -> Iterator[None]:
    def home(state: Any, key: str, candidates: Any) -> Worker | None:
        worker: Worker | None = state.fleet.workers.get(state.fleet.home(key))
        return worker

    with patched(placing, "_home", home):
        yield


@bug("a worker that a request names is a mere hint")
def _targets_ignored() -> Iterator[None]:
    place = placing.place

    def anywhere(state: Any, policy: Any, placement: Any) -> Worker:
        return place(state, policy, structs.replace(placement, target=None))

    from slime_trio.dispatch import place as dispatch_place
    from tests.simulate.core import router

    with patched(router, "place", anywhere), patched(dispatch_place, "place", anywhere):
        yield


@bug("weights that a request asks for are not looked at")
def _wishes_ignored() -> Iterator[None]:
    with patched(VersionWish, "admits", lambda *_: True):
        yield


@bug("prefixes are believed to outlive new weights")
def _prefixes_outlive_weights() -> Iterator[None]:
    with patched(PrefixMap, "forget", lambda *_: None):
        yield


@bug("a worker that was paused works on")
def _pauses_ignored() -> Iterator[None]:
    with patched(Fleet, "set_paused", lambda *_: None):
        yield
