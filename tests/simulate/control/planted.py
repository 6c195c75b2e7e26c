"""Bugs of the control plane on purpose: some of those of :mod:`tests.simulate.planted`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from slime_trio.control import updating
from slime_trio.control.lease_keeper import LeaseKeeper
from slime_trio.control.outcomes import Outcome
from slime_trio.control.pauses import Pause, Pauses
from slime_trio.control.requests import ControlCall
from slime_trio.control.service import Control
from slime_trio.control.updating import Updating
from slime_trio.dispatch.dispatcher import Dispatcher
from tests.simulate.planted import bug, patched

__all__: list[str] = []


@bug("a worker that was paused through the router gets work as before", "shell")
def _pause_not_committed() -> Iterator[None]:
    note = Control._note_paused

    def forgetful(self: Control, worker: Any, paused: bool) -> None:
        if not paused:
            note(self, worker, paused)

    with patched(Control, "_note_paused", forgetful):
        yield


@bug("an update does not hold new dispatches up", "shell")
def _gate_not_taken() -> Iterator[None]:
    @asynccontextmanager
    async def open_gate(*_args: Any, **_more: Any) -> AsyncIterator[None]:
        yield

    with patched(updating, "exclusive", open_gate):
        yield


@bug("an update that waits for calls in flight does not wait", "shell")
def _drain_not_waited_for() -> Iterator[None]:
    async def at_once(*_args: Any) -> None:
        return None

    with patched(Updating, "_drained", at_once):
        yield


@bug("the lease of a pause never ends", "shell")
def _lease_never_ends() -> Iterator[None]:
    hold = Pauses.hold

    def endless(self: Pauses, pause: Pause, _now: float) -> None:
        hold(self, pause, math.inf)

    with patched(Pauses, "hold", endless):
        yield


@bug("a pause whose caller goes away is kept", "shell")
def _pause_of_who_left_kept() -> Iterator[None]:
    with patched(LeaseKeeper, "abandon", lambda *_: None):
        yield


@bug("an abort of everything leaves alone what waits in the router", "shell")
def _abort_skips_the_queue() -> Iterator[None]:
    with patched(Dispatcher, "abort_waiting", lambda *_: 0):
        yield


@bug("a worker that refuses counts as one that did what was asked", "shell")
def _refusals_count_as_done() -> Iterator[None]:
    with patched(Outcome, "succeeded", property(lambda self: self.is_answered)):
        yield


@bug("a new label aborts what is in flight", "shell")
def _label_aborts() -> Iterator[None]:
    async def as_it_came(self: Updating, call: ControlCall, how: Any, targets: Any) -> Any:
        return await self.update(call, how, targets, flushes=False)

    with patched(Updating, "update_version", as_it_came):
        yield
