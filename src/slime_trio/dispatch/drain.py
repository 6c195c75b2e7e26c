"""Whether workers were told behind the router's back to abort all that they have.

How generations end is told to :class:`~slime_core.mass_aborts.AbortWatch`, worker by worker; once
it finds that everything was aborted, what waited when that began is aborted too. It is asked
nothing while nobody waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from slime_core.mass_aborts import AbortWatch, Emptied, Ending
from slime_core.types import WorkerUrl
from slime_trio.dispatch.asking import Asking

if TYPE_CHECKING:
    from slime_trio.shared import Shared

__all__ = ["Drain"]


class Drain:
    """The generations that are in flight at each worker, and how they end.

    ``is_needed`` says whether anybody waits, ``drain`` ends who was meant of them, and
    ``let_in`` is called when places are no longer kept free.
    """

    def __init__(
        self,
        shared: Shared,
        *,
        is_needed: Callable[[], bool],
        drain: Callable[[Emptied], None],
        let_in: Callable[[], None],
    ) -> None:
        self._shared: Final = shared
        self._is_needed: Final = is_needed
        self._drain: Final = drain
        self._let_in: Final = let_in
        self._watch: Final = AbortWatch()
        self._at: Final[dict[WorkerUrl, dict[Asking, None]]] = {}
        self._is_timing = False

    def kept_free(self) -> int:
        """How many places had better not be given to anybody yet."""
        return self._watch.kept_free

    def sent(self, asking: Asking) -> None:
        """It is in flight at its workers from now on."""
        for url in asking.entry.urls:
            self._at.setdefault(url, {})[asking] = None

    def ended(self, asking: Asking) -> None:
        """It is in flight no longer: perhaps the last of all that were aborted at once."""
        for url in asking.entry.urls:
            there = self._at.get(url, {})
            if asking not in there:
                continue
            del there[asking]
            if not there:
                del self._at[url]
            if self._shared.nursery is not None and (self._is_timing or self._is_needed()):
                tenant, now = asking.entry.router.tenant, trio.current_time()
                ending = _ending(asking)
                emptied = self._watch.ended(url, asking, ending, there, now, tenant=tenant)
                if emptied is not None:
                    self._drain(emptied)
                self._start_timing()

    def _start_timing(self) -> None:
        nursery = self._shared.nursery
        if not self._is_timing and self._watch.next_deadline < math.inf and nursery is not None:
            self._is_timing = True
            nursery.start_soon(self._time)

    async def _time(self) -> None:
        """Let suspicions end in time, and then those in who were kept waiting by them."""
        try:
            while (deadline := self._watch.next_deadline) < math.inf:
                await trio.sleep_until(deadline)
                self._watch.expire(trio.current_time())
                self._let_in()
        finally:
            self._is_timing = False
            self._watch.expire(math.inf)


def _ending(asking: Asking) -> Ending:
    if asking.answered is not None and asking.answered.is_aborted:
        was_asked_for = any(live.aborted for live in asking.entry.lives)
        return Ending.UNTOLD if was_asked_for else Ending.ABORTED
    return Ending.BY_ITSELF if asking.is_complete else Ending.UNTOLD
