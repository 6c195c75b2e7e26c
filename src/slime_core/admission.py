"""Who may begin, and who waits: a bounded queue that is fair.

Requests that *run* are bounded in number. Those that *wait* are let in one by one, in this order:

1. those that ran already and lost their worker: they keep their place and are not counted twice;
2. by priority, so that of many that wait high ones get 16 turns for 4 normal ones and 1 low one,
   and none starves (stride scheduling: Waldspurger and Weihl, 1995);
3. within a priority tenants take turns, and within a tenant its sessions, so that whoever sends
   a thousand requests at once delays its own and nobody else's;
4. within a session in order of arrival.

A request that needs something that is not to be had (a certain worker, certain weights) is passed
over: whoever asks :meth:`Queue.next` names the needs that cannot be met now.

Nothing here waits or knows why a request cannot be placed; time is an argument.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Container, Hashable
from dataclasses import dataclass, replace
from typing import Final

from slime_core.errors import ClientError, InvariantError

__all__ = ["PRIORITY_HEADER", "Priority", "Queue", "Ticket", "parse_priority"]

PRIORITY_HEADER: Final = "x-slime-priority"


class Priority(enum.Enum):
    """How urgent a request is, by the words of the header."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


_STRIDES: Final = {Priority.HIGH: 1, Priority.NORMAL: 4, Priority.LOW: 16}
"""What a turn costs: shares are as one over it."""


def parse_priority(word: str | None) -> Priority:
    """The header's ``high | normal | low``; ``None``: normal. Raises ``ClientError``."""
    if word is None:
        return Priority.NORMAL
    try:
        return Priority(word.strip().lower())
    except ValueError:
        raise ClientError(
            f"{PRIORITY_HEADER} must be high, normal or low", param=PRIORITY_HEADER
        ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A request's place. ``number`` counts arrivals; it waits until ``deadline`` at most."""

    number: int
    tenant: str
    session: str
    priority: Priority
    needs: Hashable
    deadline: float = math.inf


class _Turns:
    """The requests of one priority, by tenant and session; each mapping is in order of turns."""

    def __init__(self, stride: int) -> None:
        self.stride: Final = stride
        self.passed = 0
        """What its turns have cost so far."""
        self.tenants: Final[dict[str, dict[str, dict[int, Ticket]]]] = {}

    def add(self, ticket: Ticket) -> None:
        sessions = self.tenants.setdefault(ticket.tenant, {})
        sessions.setdefault(ticket.session, {})[ticket.number] = ticket

    def first(self, blocked: Container[Hashable]) -> Ticket | None:
        """Whose turn it is among those whose needs are not ``blocked``."""
        for sessions in self.tenants.values():
            for tickets in sessions.values():
                for ticket in tickets.values():
                    if ticket.needs not in blocked:
                        return ticket
        return None

    def remove(self, ticket: Ticket, *, had_its_turn: bool) -> None:
        """It waits no longer; if it had its turn, its session and tenant come last from now on."""
        sessions = self.tenants[ticket.tenant]
        tickets = sessions[ticket.session]
        del tickets[ticket.number]
        if had_its_turn or not tickets:
            del sessions[ticket.session]
        if had_its_turn and tickets:
            sessions[ticket.session] = tickets
        if had_its_turn or not sessions:
            del self.tenants[ticket.tenant]
        if had_its_turn and sessions:
            self.tenants[ticket.tenant] = sessions


class Queue:
    """Requests that run, at most ``limit``, and those that wait; ``places`` may."""

    def __init__(self, *, limit: int, places: int) -> None:
        self._limit: Final = limit
        self._places: Final = places
        self._turns: Final = {one: _Turns(_STRIDES[one]) for one in Priority}
        self._waiting: Final[dict[int, Ticket]] = {}
        self._again: Final[dict[int, Ticket]] = {}
        self._running: Final[dict[int, Ticket]] = {}
        self._passed = 0  # where the turns of all priorities stand
        self._needs: Final[dict[Hashable, int]] = {}
        self._next = 1

    @property
    def running(self) -> int:
        """How many run, those that wait to be tried again included."""
        return len(self._running) + len(self._again)

    @property
    def waiting(self) -> int:
        """How many wait to be let in for the first time."""
        return len(self._waiting)

    @property
    def is_overfull(self) -> bool:
        """Whether more wait than may."""
        return len(self._waiting) > self._places

    def join(
        self,
        *,
        tenant: str,
        session: str,
        priority: Priority,
        needs: Hashable,
        deadline: float = math.inf,
    ) -> Ticket:
        """A new request waits. Whoever finds the queue overfull then must have one leave."""
        ticket = Ticket(
            number=self._next,
            tenant=tenant,
            session=session,
            priority=priority,
            needs=needs,
            deadline=deadline,
        )
        self._next += 1
        turns = self._turns[priority]
        if not turns.tenants:
            turns.passed = max(turns.passed, self._passed)  # nobody saves up turns
        turns.add(ticket)
        self._waiting[ticket.number] = ticket
        self._count(ticket.needs, 1)
        return ticket

    def rejoin(self, ticket: Ticket, *, needs: Hashable) -> Ticket:
        """A request that ran waits again, before all others, now with these ``needs``."""
        if self._running.pop(ticket.number, None) is None:
            raise InvariantError("only what ran can wait again")
        ticket = replace(ticket, needs=needs)
        self._again[ticket.number] = ticket
        self._count(needs, 1)
        return ticket

    def next(self, blocked: Container[Hashable] = (), *, kept_free: int = 0) -> Ticket | None:
        """Who is to be let in now, among those whose needs are not ``blocked``.

        ``kept_free`` places are not given to anybody. Changes nothing; :meth:`admit` follows.
        """
        if all(needs in blocked for needs in self._needs):
            return None
        for ticket in self._again.values():
            if ticket.needs not in blocked:
                return ticket
        if self.running + kept_free >= self._limit:
            return None
        for turns in sorted(self._turns.values(), key=lambda turns: turns.passed + turns.stride):
            if (found := turns.first(blocked)) is not None:
                return found
        return None

    def admit(self, ticket: Ticket) -> None:
        """It waits no longer but runs."""
        if self._again.pop(ticket.number, None) is None:
            turns = self._turns[ticket.priority]
            self._passed = max(self._passed, turns.passed)
            turns.passed += turns.stride
            del self._waiting[ticket.number]
            turns.remove(ticket, had_its_turn=True)
        self._count(ticket.needs, -1)
        self._running[ticket.number] = ticket

    def leave(self, ticket: Ticket) -> None:
        """It neither waits nor runs any more."""
        number = ticket.number
        if self._running.pop(number, None) is not None:
            return
        if self._again.pop(number, None) is None:
            if self._waiting.pop(number, None) is None:
                raise InvariantError("a request leaves once")
            self._turns[ticket.priority].remove(ticket, had_its_turn=False)
        self._count(ticket.needs, -1)

    def expire(self, now: float) -> list[Ticket]:
        """Those that have waited for too long leave, in the order of arrival."""
        everybody = (*self._again.values(), *self._waiting.values())
        due = sorted((one for one in everybody if one.deadline <= now), key=lambda one: one.number)
        for ticket in due:
            self.leave(ticket)
        return due

    def next_deadline(self) -> float:
        """When somebody will have waited for too long; infinity: never."""
        waiting = (*self._again.values(), *self._waiting.values())
        return min((one.deadline for one in waiting), default=math.inf)

    def _count(self, needs: Hashable, by: int) -> None:
        left = self._needs.get(needs, 0) + by
        if left:
            self._needs[needs] = left
        else:
            del self._needs[needs]
