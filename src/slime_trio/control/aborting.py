"""Aborts: to those who hold the call, to those who wait in the router, to everybody."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from slime_trio.control.aborts import AbortWish, LiveCall, Notice, meant, notices, parse_abort
from slime_trio.control.asking import fan_out
from slime_trio.control.outcomes import Outcome, Target
from slime_trio.control.outliving import outliving
from slime_trio.control.paths import How
from slime_trio.control.requests import ControlCall
from slime_trio.control.targets import target_of
from slime_trio.control.teller import Teller

__all__ = ["Aborting"]


class Aborting:
    """``abort_request``: never waits for a generation to end, and goes on without its caller."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller

    async def abort(self, call: ControlCall, how: How, tenant: str | None) -> list[Outcome]:
        """Abort what the body means; ``tenant`` ``None`` may reach everybody's.

        The calls that are meant are found, and those that wait ended, in one step.
        """
        wish = parse_abort(call.body)
        if wish.is_empty:
            return []
        calls = self._end(wish, tenant)
        if tenant is None and (wish.everything or (wish.rids and not calls)):
            return await self._tell_all(call, how)
        return await self._notify(how, notices(calls, self._names))

    def _end(self, wish: AbortWish, tenant: str | None) -> list[LiveCall]:
        """The calls that are meant; those of them that wait have been answered."""
        dispatcher = self._teller.shared.dispatcher
        calls = meant(dispatcher.live.values(), wish, tenant)
        for one in calls:
            one.aborted = one.aborted or bool(one.workers)
        chosen = {one.call for one in calls}
        dispatcher.abort_waiting(lambda one: one.call in chosen)
        return calls

    def _names(self, live: LiveCall) -> tuple[str, ...]:
        """By which names its worker knows it: under keys by the router's alone. Those made of that
        one are told to clients only."""
        given = (name for name in live.rids if live.call not in name)
        return (live.call,) if self._teller.shared.own_ids else (live.call, *given)

    async def _tell_all(self, call: ControlCall, how: How) -> list[Outcome]:
        targets = [target_of(one) for one in self._teller.shared.fleet.listed()]
        order = self._teller.order(call, how)

        async def tell() -> list[Outcome]:
            return await self._teller.tell(order, targets)

        return await outliving(self._teller.nursery, tell)

    async def _notify(self, how: How, told: Sequence[Notice]) -> list[Outcome]:
        """One outcome for each worker: the first that failed, else the last."""
        workers = self._teller.shared.fleet.workers
        targets = {one: target_of(workers[one.worker]) for one in told if one.worker in workers}

        async def tell(notice: Notice) -> Outcome:
            body = msgspec.json.encode({"rid": notice.rid})
            order = self._teller.own_order("abort_request", body, seconds=how.seconds)
            return await self._teller.ask(targets[notice], order)

        async def tell_each() -> list[Outcome]:
            return await fan_out(list(targets), tell)

        outcomes: dict[Target, Outcome] = {}
        for outcome in await outliving(self._teller.nursery, tell_each):
            known = outcomes.get(outcome.target)
            if known is None or known.succeeded:
                outcomes[outcome.target] = outcome
        return list(outcomes.values())
