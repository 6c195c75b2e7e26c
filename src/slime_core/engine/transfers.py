"""Prompts that change hands between two engines: prefill computes one, decode goes on from it.

SGLang moves KV caches between two processes; here the prompt is known to both anyway, so what moves
is only what the other cannot know: the first token, which was sampled where the prompt was
computed, with all that is reported of it. The room names the transfer on both sides.

An engine knows nothing of the way between them. Its driver asks the one for what is
:meth:`~Transfers.offered`, brings it to the other's :meth:`~Transfers.wanted`, and tells both how
it went; a transfer that nobody concludes fails after a while on either side.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from slime_core.engine.generation import Generation, Handover, Room, RoomKey
from slime_core.engine.run import Run

__all__ = ["Role", "Transfers"]

_DEAD_MAX: Final = 4096


class Role(enum.Enum):
    """What part of a generation an engine does; the values are SGLang's words."""

    REGULAR = "null"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(slots=True)
class _Moving:
    run: Run
    handover: Handover | None = None
    due: float | None = None
    """When it fails; set at the next look at the clock."""


class Transfers:
    """The runs of one engine that wait for the other side. ``timeout_s``: for how long."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._moving: dict[RoomKey, _Moving] = {}
        self._dead: deque[RoomKey] = deque(maxlen=_DEAD_MAX)

    def __len__(self) -> int:
        return len(self._moving)

    @property
    def runs(self) -> list[Run]:
        """What waits, in the order in which it began to."""
        return [moving.run for moving in self._moving.values()]

    @property
    def next_deadline(self) -> float | None:
        """When the next transfer fails; in the past if there are new ones."""
        dues = (float("-inf") if one.due is None else one.due for one in self._moving.values())
        return min(dues, default=None)

    def add(self, run: Run, room: Room, handover: Handover | None = None) -> bool:
        """``run`` waits: to be fetched, with a ``handover``; or for one. False: the room is in use,
        and it does not."""
        if room.key in self._moving:
            return False
        self._moving[room.key] = _Moving(run, handover)
        return True

    def offered(self, key: RoomKey) -> Handover | None:
        """What waits to be fetched under this name."""
        moving = self._moving.get(key)
        return moving.handover if moving is not None else None

    def is_dead(self, key: RoomKey) -> bool:
        """Whether a transfer of this name has failed, or what it was for was aborted."""
        return key in self._dead

    def wanted(self) -> Iterator[Generation]:
        """What waits for its prompt."""
        for moving in self._moving.values():
            if moving.handover is None:
                yield moving.run.generation

    def take(self, key: RoomKey) -> Run | None:
        """No longer moving: it arrived."""
        moving = self._moving.pop(key, None)
        return moving.run if moving is not None else None

    def forget(self, run: Run) -> None:
        """A request was aborted or failed: what waits for it elsewhere waits in vain."""
        room = run.generation.room
        if room is None:
            return
        moving = self._moving.get(room.key)
        if moving is None or moving.run is run:
            self._moving.pop(room.key, None)
            self._dead.append(room.key)

    def bury(self, key: RoomKey) -> None:
        """The other side has gone before there was anything to give."""
        self._dead.append(key)

    def expired(self, now: float) -> list[Run]:
        """Those that waited too long, which are dropped with that."""
        late = []
        for key, moving in list(self._moving.items()):
            if moving.due is None:
                moving.due = now + self._timeout_s
            elif moving.due <= now:
                del self._moving[key]
                late.append(moving.run)
        return late
