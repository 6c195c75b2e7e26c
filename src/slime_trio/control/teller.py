"""Telling workers what a control call says, as it was said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from slime_core.transitions import Transition
from slime_trio.control.asking import Order, ask, fan_out
from slime_trio.control.outcomes import Outcome, Target
from slime_trio.control.paths import How
from slime_trio.control.requests import ControlCall
from slime_trio.exchange import Headers

if TYPE_CHECKING:
    from slime_trio.shared import Shared

__all__ = ["Teller"]

_JSON: Final = (b"content-type", b"application/json")
_MIB: Final = 2**20


class Teller:
    """The control plane's own way to the workers, and to the state of the fleet."""

    def __init__(self, shared: Shared) -> None:
        self.shared: Final = shared
        self.pool: Final = shared.pool.sibling()

    def order(self, call: ControlCall, how: How, body: bytes | None = None) -> Order:
        """The call as workers are asked, perhaps with another body."""
        data = call.body if body is None else body
        headers = _typed(call.headers, data)
        return Order(
            method=call.method,
            path=how.asked or call.path,
            query=call.passed_query,
            headers=lambda worker: self.shared.worker_headers(worker, headers, readable=True),
            body=data,
            seconds=how.seconds,
            most=self.shared.args.max_answer_mb * _MIB,
        )

    def own_order(self, path: str, body: bytes, *, seconds: float) -> Order:
        """What the router asks by itself."""
        return Order(
            method="POST",
            path=path,
            headers=lambda worker: self.shared.worker_headers(worker, [_JSON]),
            body=body,
            seconds=seconds,
        )

    async def ask(self, target: Target, order: Order) -> Outcome:
        """One worker."""
        return self._counted(order, await ask(self.pool, target, order))

    async def tell(self, order: Order, targets: Sequence[Target]) -> list[Outcome]:
        """All of them, side by side."""
        outcomes = await fan_out(targets, partial(ask, self.pool, order=order))
        return [self._counted(order, outcome) for outcome in outcomes]

    def _counted(self, order: Order, outcome: Outcome) -> Outcome:
        result = "succeeded" if outcome.succeeded else outcome.failure or "refused"
        self.shared.counts.control.add((f"/{order.path}", result))
        return outcome

    def commit(self, facts: Iterable[Transition]) -> None:
        """Make ``facts`` about workers true."""
        self.shared.routers[""].commit(*facts)

    def expect_aborts(self, targets: Sequence[Target]) -> None:
        """What is in flight on these is about to be aborted because somebody asked for that here:
        nothing is to be concluded from it about who waits."""
        urls = {target.url for target in targets}
        for live in self.shared.dispatcher.live.values():
            if not urls.isdisjoint(live.workers):
                live.aborted = True

    def look_again(self) -> None:
        """Have all workers asked which weights they hold, soon."""
        from slime_trio.tending import poll_now  # which knows routers, which know this

        if self.shared.nursery is not None and self.shared.keeper is not None:
            self.shared.nursery.start_soon(poll_now, self.shared)

    @property
    def nursery(self) -> trio.Nursery | None:
        """Where work is done that outlives its caller, while there is one."""
        return self.shared.nursery


def _typed(headers: Headers, body: bytes) -> Headers:
    """SGLang takes a body for JSON only if it is called so; plain curl calls it a form."""
    if not body:
        return headers
    return [one for one in headers if one[0] != b"content-type"] + [_JSON]
