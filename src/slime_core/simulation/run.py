"""One simulation from beginning to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from slime_core.errors import ClientError, InvariantError
from slime_core.policies import POLICIES
from slime_core.simulation.agenda import Agenda
from slime_core.simulation.clients import Clients
from slime_core.simulation.events import Failures, WeightUpdates
from slime_core.simulation.lengths import Chances
from slime_core.simulation.measure import Tally
from slime_core.simulation.result import Result, Spread, TurnResult, WorkerResult
from slime_core.simulation.router import SimulatedRouter
from slime_core.simulation.scenario import Scenario, Trace
from slime_core.simulation.workload import arrivals, generated, traced

__all__ = ["Progress", "simulate"]

Progress = Callable[[int, int], None]
"""Is told now and then how many calls have ended, and how many of them were completed."""

_PROGRESS_STEP: Final = 1000


def simulate(
    scenario: Scenario, policy: str, chances: Chances, progress: Progress | None = None
) -> Result:
    """Runs ``scenario`` under the policy of that name, until every request has ended.

    The generators that it asks of ``chances`` are named by what they decide (``workload/turns``,
    ``arrivals``, ``policy``, ``failures/worker-1``, …), so that every policy gets the same work and
    the same failures. Raises ``ClientError`` for an unknown policy, for a session of too many
    turns, and if weights are updated so often that nothing can be computed; an exception of
    ``progress`` ends the simulation.
    """
    if policy not in POLICIES:
        raise ClientError(f"no such policy: {policy}", param="policy")
    return _Run(scenario, policy, chances).run(progress)


class _Run:
    def __init__(self, scenario: Scenario, policy: str, chances: Chances) -> None:
        self._scenario = scenario
        self._policy = policy
        self._tally = Tally()
        self._agenda = agenda = Agenda()
        self._router = SimulatedRouter(
            agenda,
            scenario.router,
            scenario.fleet,
            policy=POLICIES[policy],
            chance=chances("policy"),
            tally=self._tally,
            ended=lambda attempt: self._clients.returned(attempt),
            refused=lambda attempt: self._clients.refused(attempt),
        )
        self._clients = Clients(
            agenda,
            scenario.retries,
            self._tally,
            network_s=scenario.router.network_s,
            send=self._router.send,
            forget=self._router.forget,
        )
        Failures(agenda, scenario.faults, self._router, chances).start()
        WeightUpdates(agenda, scenario.updates, self._router, self._tally).start()
        self._start_clients(chances)

    def _start_clients(self, chances: Chances) -> None:
        work = self._scenario.workload
        if isinstance(work, Trace):
            self._clients.start_timed((call.at_s, call) for call in traced(work))
            return
        sessions = generated(work, chances, exact=self._scenario.router.capture)
        if work.sessions_per_s is None:
            self._clients.start(sessions, work.concurrency)
        else:
            self._clients.start_timed(arrivals(work, sessions, chances("arrivals")))

    def run(self, progress: Progress | None) -> Result:
        """See :func:`simulate`."""
        step, clients, tally = self._agenda.step, self._clients, self._tally
        told = 0
        while not clients.done:
            if not step():
                raise InvariantError("calls are under way, and nothing will end them")
            ended = tally.completed + tally.failed
            if progress is not None and ended - told >= _PROGRESS_STEP:
                told = ended
                progress(ended, tally.completed)
        if self._router.balance.total or self._router.state.fleet.total_in_flight:
            raise InvariantError("a slot was not given back")
        return self._result()

    # -- what came of it -----------------------------------------------------------------------

    def _result(self) -> Result:
        tally, router = self._tally, self._router
        span = tally.ended_at
        books = [worker.books for worker in router.workers]
        prompt_tokens = sum(one.prompt_tokens for one in books)
        cached_tokens = sum(one.cached_tokens for one in books)
        return Result(
            policy=self._policy,
            requests=tally.requests,
            completed=tally.completed,
            failed=tally.failed,
            not_asked=tally.not_asked,
            sessions=tally.sessions,
            sessions_failed=tally.sessions_failed,
            retries=tally.retries,
            attempts_lost=tally.attempts_lost,
            attempts_refused=tally.attempts_refused,
            makespan_s=span,
            requests_per_s=_per(tally.completed, span),
            output_tokens=tally.output_tokens,
            output_tokens_per_s=_per(tally.output_tokens, span),
            latency_s=Spread.of([one for turn in tally.latency.values() for one in turn]),
            first_token_s=Spread.of([one for turn in tally.first_token.values() for one in turn]),
            turns=tuple(self._turn(turn) for turn in sorted(tally.latency)),
            prompt_tokens=tally.prompt_tokens,
            encoded_tokens=tally.encoded_tokens,
            cache_hit_rate=_per(cached_tokens, prompt_tokens),
            imbalance=router.balance.imbalance(span),
            lost_tokens=sum(one.lost_tokens for one in books),
            worker_failures=sum(one.failures for one in books),
            weight_updates=tally.weight_updates,
            workers=tuple(self._worker(place) for place in range(len(router.workers))),
        )

    def _turn(self, turn: int) -> TurnResult:
        latency = self._tally.latency[turn]
        return TurnResult(
            turn=turn,
            requests_per_s=_per(len(latency), self._tally.ended_at),
            latency_s=Spread.of(latency),
            first_token_s=Spread.of(self._tally.first_token[turn]),
        )

    def _worker(self, place: int) -> WorkerResult:
        books, span = self._router.workers[place].books, self._tally.ended_at
        return WorkerResult(
            url=self._router.urls[place],
            attempts=books.attempts,
            failures=books.failures,
            utilisation=_per(books.busy_s, span),
            prefill_share=_per(books.prefill_s, span),
            mean_in_flight=self._router.balance.mean_load(place, span),
            prompt_tokens=books.prompt_tokens,
            cached_tokens=books.cached_tokens,
            output_tokens=books.output_tokens,
        )


def _per(amount: float, of: float) -> float:
    return amount / of if of else 0.0
