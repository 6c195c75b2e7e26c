"""The clients: when each call is made, made again, and given up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from slime_core.simulation.agenda import Agenda
from slime_core.simulation.measure import Tally
from slime_core.simulation.scenario import Retries
from slime_core.simulation.worker import Attempt
from slime_core.simulation.workload import Call, Session

__all__ = ["Clients"]


class Clients:
    """Makes the calls of sessions, each after the one that it follows.

    ``send`` gives a call to the router; ``forget`` is told when the last call of a session has
    ended. An answer takes ``network_s`` from its worker.
    """

    def __init__(
        self,
        agenda: Agenda,
        retries: Retries,
        tally: Tally,
        *,
        network_s: float,
        send: Callable[[Call], None],
        forget: Callable[[Session], None],
    ) -> None:
        self._agenda = agenda
        self._retries = retries
        self._tally = tally
        self._network_s = network_s
        self._send = send
        self._forget = forget
        self._sessions: Iterator[Call] = iter(())
        self._arrivals: Iterator[tuple[float, Call]] = iter(())
        self._pending = 0

    @property
    def done(self) -> bool:
        """Whether every call has ended, and none is to come."""
        return not self._pending

    def start(self, sessions: Iterator[Call], concurrency: int) -> None:
        """So many sessions at once, told by their first calls; the next begins when one ends."""
        self._sessions = sessions
        self._next_sessions(concurrency)

    def start_timed(self, arrivals: Iterator[tuple[float, Call]]) -> None:
        """Each first call at its time, however many are under way; times never fall."""
        self._arrivals = arrivals
        self._next_arrival()

    def returned(self, attempt: Attempt) -> None:
        """An attempt has ended, one way or the other."""
        if attempt.lost:
            self._tally.attempts_lost += 1
            self._try_again(attempt.call)
        else:
            self._complete(attempt)

    def refused(self, attempt: Attempt) -> None:
        """The router had no worker for it."""
        self._tally.attempts_refused += 1
        self._try_again(attempt.call)

    # -- beginnings --------------------------------------------------------------------------

    def _next_sessions(self, count: int) -> None:
        for call in islice(self._sessions, count):
            self._plan(call, call.at_s)

    def _next_arrival(self) -> None:
        for at_s, call in islice(self._arrivals, 1):
            self._pending += 1
            self._agenda.at(at_s, partial(self._arrive, call))

    def _arrive(self, call: Call) -> None:
        self._next_arrival()
        self._begin(call)

    def _plan(self, call: Call, at_s: float) -> None:
        self._pending += 1
        self._agenda.at(at_s, partial(self._begin, call))

    def _begin(self, call: Call) -> None:
        self._tally.requests += 1
        call.begun_at = self._agenda.now
        self._send(call)

    # -- endings -------------------------------------------------------------------------------

    def _complete(self, attempt: Attempt) -> None:
        call, now = attempt.call, self._agenda.now
        first_token_s = attempt.first_token_at + self._network_s - call.begun_at
        self._tally.complete(call.turn, now - call.begun_at, first_token_s)
        self._tally.output_tokens += call.answer_tokens
        for follower in call.then:
            self._plan(follower, max(follower.at_s, now + follower.think_s))
        self._end(call)

    def _try_again(self, call: Call) -> None:
        if call.retries >= self._retries.most:
            self._give_up(call)
            return
        call.retries += 1
        self._tally.retries += 1
        self._agenda.after(self._retries.after_s, partial(self._send, call))

    def _give_up(self, call: Call) -> None:
        """What would have followed it is never asked."""
        self._tally.failed += 1
        call.session.failed = True
        never = list(call.then)
        for follower in never:
            never += follower.then
        for follower in never:
            self._tally.not_asked += 1
            follower.session.failed = True
            self._leave(follower.session)
        self._end(call)

    def _end(self, call: Call) -> None:
        self._tally.ended_at = self._agenda.now
        self._leave(call.session)
        self._pending -= 1

    def _leave(self, session: Session) -> None:
        """One call of the session less; the next session begins when none is left."""
        session.left -= 1
        if not session.left:
            self._tally.sessions += 1
            self._tally.sessions_failed += session.failed
            self._forget(session)
            self._next_sessions(1)
