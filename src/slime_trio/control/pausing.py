"""Pausing workers and having them go on, whatever becomes of whoever asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from slime_trio.control.asking import fan_out
from slime_trio.control.lease_keeper import LeaseKeeper
from slime_trio.control.outcomes import Outcome, Target
from slime_trio.control.outliving import outliving
from slime_trio.control.paths import How
from slime_trio.control.pauses import Pause, Pauses
from slime_trio.control.requests import ControlCall, object_of, text_in, with_fields
from slime_trio.control.teller import Teller

__all__ = ["Pausing"]


class Pausing:
    """``pause_generation`` and ``continue_generation``."""

    def __init__(self, teller: Teller, pauses: Pauses, keeper: LeaseKeeper) -> None:
        self._teller = teller
        self._pauses = pauses
        self._keeper = keeper

    async def pause(self, call: ControlCall, how: How, targets: Sequence[Target]) -> list[Outcome]:
        """Each worker gets no new work from before it is told.

        When the caller leaves meanwhile, all that it began is ended, each as soon as it has
        answered: told to go on before that, a worker might pause after it.
        """
        fields = object_of(call.body)
        lease_s = call.lease_s(fields)
        fields.pop("lease_s", None)
        aborts = (text_in(fields, "mode") or "abort") == "abort"
        order = self._teller.order(call, how, with_fields(fields))
        begun: list[Pause] = []
        is_left = False

        def left() -> None:
            nonlocal is_left
            is_left = True
            self._keeper.abandon(begun)

        async def one(target: Target) -> Outcome:
            await self._keeper.until_free(target.url)
            pause = self._pauses.begin(target.url, 0.0 if is_left else lease_s)
            begun.append(pause)
            if aborts:
                self._teller.expect_aborts([target])
            outcome = await self._teller.ask(target, order)
            self._settle(pause, outcome)
            return outcome

        return await outliving(self._teller.nursery, partial(fan_out, targets, one), left=left)

    def _settle(self, pause: Pause, outcome: Outcome) -> None:
        if outcome.is_answered and not outcome.succeeded:
            self._pauses.withdraw(pause)
            return
        if not outcome.is_answered:
            # Perhaps it has paused. Nobody relies on that, so it is told to go on.
            pause.lease_s = 0.0
        self._keeper.hold(pause)

    async def go_on(self, call: ControlCall, how: How, targets: Sequence[Target]) -> list[Outcome]:
        """A worker that does not say that it goes on stays paused, and its lease goes on."""
        given = replace(call, body=call.body if call.body.strip() else b"{}")
        order = self._teller.order(given, how)

        async def one(target: Target) -> Outcome:
            outcome = await self._teller.ask(target, order)
            if outcome.succeeded:
                self._pauses.end(target.url)
            return outcome

        return await outliving(self._teller.nursery, partial(fan_out, targets, one))
