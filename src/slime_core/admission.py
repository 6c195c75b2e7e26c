"""Who may begin, and who waits: a bounded queue that is fair.

Requests that *run* are bounded in number. Those that *wait* are let in one by one, in this order:

1. those that ran already and lost their worker: they keep their place and are not counted twice;
2. by priority, so that of many that wait high ones get 16 turns for 4 normal ones and 1 low one,
   and none starves (stride scheduling: Waldspurger and Weihl, 1995);
3. within a priority tenants take turns, within a tenant what is needed, and then its sessions,
   so that whoever sends a thousand requests at once delays its own and nobody else's;
4. within a session in order of arrival.

A request that needs something that is not to be had (a certain worker, certain weights) is passed
over: whoever asks :meth:`Queue.next` names the needs that cannot be met now. What that costs
depends on how many tenants there are and how many different needs, of which only so many may wait,
and never on how many requests do.

Where too many wait, the latest request is refused of whoever has most places: a tenant, and of it
a session. So nobody can fill the queue against others.

Nothing here waits or knows why a request cannot be placed; time is an argument.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Container, Hashable
from heapq import heapify, heappop, heappush
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from slime_core.errors import ClientError, InvariantError

__all__ = ["PRIORITY_HEADER", "Priority", "Queue", "Ticket", "parse_priority"]

PRIORITY_HEADER: Final = "x-slime-priority"


class Priority(enum.Enum):
    """How urgent a request is, by the words of the header."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


_MOST_NEEDS: Final = 64
"""How many different needs may wait at once: all are tried whenever the fleet changes."""
_SLACK: Final = 64
"""How many deadlines of those that wait no more are kept before they are cleared away."""

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


class Ticket(Struct, frozen=True, kw_only=True):
    """A request's place. ``number`` counts arrivals; it waits until ``deadline`` at most."""

    number: int
    tenant: str
    session: str
    priority: Priority
    needs: Hashable
    deadline: float = math.inf


class _Turns:
    """The requests of one priority: by tenant, needs, session and number.

    Each mapping is in the order of turns.
    """

    def __init__(self, stride: int) -> None:
        self.stride: Final = stride
        self.passed = 0
        """What its turns have cost so far."""
        self.tenants: Final[dict[Hashable, dict[Hashable, Any]]] = {}

    def add(self, ticket: Ticket) -> None:
        level: dict[Hashable, Any] = self.tenants
        for key in _path(ticket):
            level = level.setdefault(key, {})
        level[ticket.number] = ticket

    def first(self, blocked: Container[Hashable]) -> Ticket | None:
        """Whose turn it is among those whose needs are not ``blocked``."""
        for groups in self.tenants.values():
            for needs, sessions in groups.items():
                if needs not in blocked:
                    ticket: Ticket = _first(_first(sessions))
                    return ticket
        return None

    def remove(self, ticket: Ticket, *, had_its_turn: bool) -> None:
        """It waits no longer; if it had its turn, whatever it is of comes last from now on."""
        _take_out(self.tenants, (*_path(ticket), ticket.number), had_its_turn)


def _path(ticket: Ticket) -> tuple[Hashable, ...]:
    return ticket.tenant, ticket.needs, ticket.session


def _first(level: dict[Hashable, Any]) -> Any:
    return next(iter(level.values()))


def _take_out(level: dict[Hashable, Any], path: tuple[Hashable, ...], turns: bool) -> None:
    """Remove what is at the end of ``path``, and what is left empty; move the rest last."""
    key, *rest = path
    inner = level.pop(key) if turns or not rest else level[key]
    if not rest:
        return
    _take_out(inner, tuple(rest), turns)
    if inner and turns:
        level[key] = inner
    elif not inner and not turns:
        del level[key]


class _Crowd:
    """Who has how many, and who has most; every change takes the same short time."""

    def __init__(self) -> None:
        self._counts: Final[dict[str, int]] = {}
        self._by_count: Final[dict[int, dict[str, None]]] = {}
        self._most = 0

    @property
    def largest(self) -> str:
        """Who has most; of several the one that came to so many last."""
        return next(reversed(self._by_count[self._most]))

    def add(self, name: str, by: int) -> None:
        """One more, or one less."""
        before = self._counts.pop(name, 0)
        now = before + by
        if before:
            del self._by_count[before][name]
            if not self._by_count[before]:
                del self._by_count[before]
        if now:
            self._counts[name] = now
            self._by_count.setdefault(now, {})[name] = None
        if now > self._most or self._most not in self._by_count:
            # Counts change by one, so the next lower count has somebody, or nobody is left.
            self._most = now

    def __bool__(self) -> bool:
        return bool(self._counts)


class _Places:
    """Who has which places in the queue."""

    def __init__(self) -> None:
        self._tenants: Final = _Crowd()
        self._sessions: Final[dict[str, _Crowd]] = {}
        self._tickets: Final[dict[tuple[str, str], dict[int, Ticket]]] = {}

    def add(self, ticket: Ticket) -> None:
        self._tenants.add(ticket.tenant, 1)
        self._sessions.setdefault(ticket.tenant, _Crowd()).add(ticket.session, 1)
        self._tickets.setdefault((ticket.tenant, ticket.session), {})[ticket.number] = ticket

    def remove(self, ticket: Ticket) -> None:
        tenant, session = ticket.tenant, ticket.session
        self._tenants.add(tenant, -1)
        self._sessions[tenant].add(session, -1)
        if not self._sessions[tenant]:
            del self._sessions[tenant]
        held = self._tickets[tenant, session]
        del held[ticket.number]
        if not held:
            del self._tickets[tenant, session]

    def latest_of_most(self) -> Ticket:
        """The latest request of the session that has most places, of the tenant that has most."""
        tenant = self._tenants.largest
        held = self._tickets[tenant, self._sessions[tenant].largest]
        return next(reversed(held.values()))


class Queue:
    """Requests that run, at most ``limit``, and those that wait; ``places`` may."""

    def __init__(self, *, limit: int, places: int) -> None:
        self._limit: Final = limit
        self._most: Final = places
        self._turns: Final = {one: _Turns(_STRIDES[one]) for one in Priority}
        self._waiting: Final[dict[int, Ticket]] = {}
        self._again: Final[dict[int, Ticket]] = {}
        self._running: Final[dict[int, Ticket]] = {}
        self._places: Final = _Places()
        self._passed = 0  # where the turns of all priorities stand
        self._needs: Final[dict[Hashable, int]] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._next = 1

    @property
    def running(self) -> int:
        """How many run, those that wait to be tried again included."""
        return len(self._running) + len(self._again)

    @property
    def waits(self) -> bool:
        """Whether anybody waits, be it to be tried again."""
        return bool(self._waiting or self._again)

    @property
    def waiting(self) -> int:
        """How many wait to be let in for the first time."""
        return len(self._waiting)

    def surplus(self, newcomer: Ticket) -> Ticket | None:
        """Who must leave because ``newcomer`` came and waits: nobody, itself, or another."""
        if len(self._needs) > _MOST_NEEDS and self._needs[newcomer.needs] == 1:
            return newcomer
        return self._places.latest_of_most() if len(self._waiting) > self._most else None

    def has_room(self, *, kept_free: int = 0) -> bool:
        """Whether nobody waits and one more may run: a newcomer need not join, but may :meth:`run`
        if it can be placed. That decides as joining and being admitted at once would."""
        if self._waiting or self._again:
            return False
        return len(self._running) + kept_free < self._limit

    def run(self, *, tenant: str, session: str, priority: Priority) -> Ticket:
        """A new request runs at once, for which there must be room."""
        ticket = self._ticket(tenant, session, priority, None, math.inf)
        turns = self._turns[priority]
        if turns.passed > self._passed:
            self._passed = turns.passed
        turns.passed = self._passed + turns.stride
        self._running[ticket.number] = ticket
        return ticket

    def _ticket(
        self, tenant: str, session: str, priority: Priority, needs: Hashable, deadline: float
    ) -> Ticket:
        number = self._next
        self._next += 1
        return Ticket(
            number=number,
            tenant=tenant,
            session=session,
            priority=priority,
            needs=needs,
            deadline=deadline,
        )

    def join(
        self,
        *,
        tenant: str,
        session: str,
        priority: Priority,
        needs: Hashable,
        deadline: float = math.inf,
    ) -> Ticket:
        """A new request waits. Ask :meth:`surplus` then, if it could not be admitted at once."""
        ticket = self._ticket(tenant, session, priority, needs, deadline)
        turns = self._turns[priority]
        if not turns.tenants:
            turns.passed = max(turns.passed, self._passed)  # nobody saves up turns
        turns.add(ticket)
        self._waiting[ticket.number] = ticket
        self._places.add(ticket)
        self._count(ticket.needs, 1)
        self._watch(ticket)
        return ticket

    def rejoin(self, ticket: Ticket, *, needs: Hashable, deadline: float = math.inf) -> Ticket:
        """A request that ran waits again, before all others, now with these."""
        if self._running.pop(ticket.number, None) is None:
            raise InvariantError("only what ran can wait again")
        ticket = replace(ticket, needs=needs, deadline=deadline)
        self._again[ticket.number] = ticket
        self._count(needs, 1)
        self._watch(ticket)
        return ticket

    def next(self, blocked: Container[Hashable] = (), *, kept_free: int = 0) -> Ticket | None:
        """Who is to be let in now, among those whose needs are not ``blocked``.

        ``kept_free`` places are not given to anybody. Changes nothing; :meth:`admit` follows.
        """
        if not self._needs or all(needs in blocked for needs in self._needs):
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
            self._places.remove(ticket)
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
            self._places.remove(ticket)
            self._turns[ticket.priority].remove(ticket, had_its_turn=False)
        self._count(ticket.needs, -1)

    def expire(self, now: float) -> list[Ticket]:
        """Those that have waited for too long leave, in the order of arrival."""
        due = []
        while (ticket := self._first_due()) is not None and ticket.deadline <= now:
            self.leave(ticket)
            due.append(ticket)
        return sorted(due, key=lambda one: one.number)

    def next_deadline(self) -> float:
        """When somebody will have waited for too long; infinity: never."""
        ticket = self._first_due()
        return math.inf if ticket is None else ticket.deadline

    def _watch(self, ticket: Ticket) -> None:
        if ticket.deadline < math.inf:
            heappush(self._deadlines, (ticket.deadline, ticket.number))
        waiting = len(self._waiting) + len(self._again)
        if len(self._deadlines) > 2 * waiting + _SLACK:
            everybody = (*self._again.values(), *self._waiting.values())
            self._deadlines = [(one.deadline, one.number) for one in everybody]
            heapify(self._deadlines)

    def _first_due(self) -> Ticket | None:
        """Whose deadline is the next; what does not wait any more is forgotten on the way."""
        while self._deadlines:
            deadline, number = self._deadlines[0]
            ticket = self._again.get(number) or self._waiting.get(number)
            if ticket is not None and ticket.deadline == deadline:
                return ticket
            heappop(self._deadlines)
        return None

    def _count(self, needs: Hashable, by: int) -> None:
        left = self._needs.get(needs, 0) + by
        if left:
            self._needs[needs] = left
        else:
            del self._needs[needs]
