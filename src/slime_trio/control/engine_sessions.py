"""SGLang's own sessions (``open_session``), each of which lives on one worker.

They are not the router's sessions: a worker keeps the tokens of one, and generations go on in it by
``session_params``. So one worker opens it, named by the caller or the one with the fewest calls in
flight; the router remembers which, and has that one close it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import msgspec

from slime_core.strict_json import BAD_JSON
from slime_core.types import WorkerUrl
from slime_trio.control.outcomes import Outcome, Target
from slime_trio.control.paths import How
from slime_trio.control.requests import ControlCall, object_of, text_in
from slime_trio.control.teller import Teller

__all__ = ["EngineSessions"]

_MOST: Final = 65_536
"""Sessions whose worker is remembered; the oldest are forgotten first."""
_ID: Final = msgspec.json.Decoder(str)


class EngineSessions:
    """Which worker holds which session."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self._workers: OrderedDict[str, WorkerUrl] = OrderedDict()

    def worker_of(self, session: str) -> WorkerUrl | None:
        """The worker that opened it, if it was opened through this router."""
        return self._workers.get(session)

    async def open(self, call: ControlCall, how: How, targets: Sequence[Target]) -> list[Outcome]:
        """One worker opens it, a fit one if there is any."""
        order = self._teller.order(call, how)
        outcome = await self._teller.ask(self._chosen(targets), order)
        session = _id_in(outcome)
        if outcome.succeeded and session is not None:
            self._workers[session] = outcome.target.url
            while len(self._workers) > _MOST:
                self._workers.popitem(last=False)
        return [outcome]

    def _chosen(self, targets: Sequence[Target]) -> Target:
        workers = self._teller.shared.fleet.workers

        def cost(target: Target) -> tuple[bool, int]:
            worker = workers[target.url]
            return (not worker.is_fit, worker.load)

        return min(targets, key=cost)

    async def close(self, call: ControlCall, how: How, targets: Sequence[Target]) -> list[Outcome]:
        """The worker that holds it closes it; all are told of one that is not known."""
        session = text_in(object_of(call.body), "session_id") or ""
        home = self._workers.get(session)
        holding = [one for one in targets if one.url == home] or targets
        outcomes = await self._teller.tell(self._teller.order(call, how), holding)
        if any(one.succeeded for one in outcomes):
            self._workers.pop(session, None)
        return outcomes


def _id_in(outcome: Outcome) -> str | None:
    try:
        return _ID.decode(outcome.body)
    except BAD_JSON:
        return None
