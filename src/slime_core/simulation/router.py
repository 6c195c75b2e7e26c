"""The router: its real fleet and policies, and what encoding and keeping cost, by lengths."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Final

from slime_core.decide import place
from slime_core.errors import WorkerError
from slime_core.health import READY, Condition, Event, Health
from slime_core.policies import Placement, Policy, reads_prefixes
from slime_core.prefixes import page_ends
from slime_core.simulation.agenda import Agenda
from slime_core.simulation.lengths import Chance
from slime_core.simulation.measure import Balance, Tally
from slime_core.simulation.prefix_cache import Passage, PassageCache
from slime_core.simulation.scenario import Fleet, Router
from slime_core.simulation.worker import Attempt, Line, Worker
from slime_core.simulation.workload import Call, Session
from slime_core.state import RouterState
from slime_core.transitions import SlotsGiven, SlotsTaken, VersionSeen, WorkerAdded, WorkerHealth
from slime_core.types import CallId, WorkerUrl

__all__ = ["SimulatedRouter"]

_DEAD: Final = Health(condition=Condition.QUARANTINED)


class SimulatedRouter:
    """``ended`` is called with each attempt that is complete or lost, ``refused`` with those that
    found no worker."""

    def __init__(
        self,
        agenda: Agenda,
        options: Router,
        fleet: Fleet,
        *,
        policy: Policy,
        chance: Chance,
        tally: Tally,
        ended: Callable[[Attempt], None],
        refused: Callable[[Attempt], None],
    ) -> None:
        self.state = RouterState()
        self.balance = Balance(len(fleet.workers))
        self.urls = tuple(WorkerUrl(f"worker-{n}") for n in range(1, len(fleet.workers) + 1))
        self.workers = tuple(
            Worker(agenda, speed, encodes=not options.capture, ended=self._returned)
            for speed in fleet.workers
        )
        self._agenda = agenda
        self._options = options
        self._policy = policy
        self._chance = chance
        self._tally = tally
        self._ended = ended
        self._refused = refused
        self._places = {url: place for place, url in enumerate(self.urls)}
        self._numbers = count(1)
        self._process = Line(1 / options.overhead_s if options.overhead_s else 0.0)
        self._encoder = Line(options.encode_tokens_per_s)
        self._kept = PassageCache(options.reuse_tokens)
        for url in self.urls:
            self.state.apply(WorkerAdded(worker=url))
            self._set_health(url, READY, Event.PROBE_PASSED)

    # -- the way of a request ------------------------------------------------------------------

    def send(self, call: Call) -> None:
        """A client asks, for the first time or again."""
        attempt = Attempt(next(self._numbers), call)
        self._wait(self._process, 1, self._prepare, attempt)

    def _prepare(self, attempt: Attempt) -> None:
        """Encodes what is new of the prompt, if that is the router's matter."""
        tokens = attempt.call.prompt_tokens
        self._tally.prompt_tokens += tokens
        if not self._options.capture:
            self._dispatch(attempt)
            return
        new = tokens - self._kept.match(attempt.call.prompt)
        self._tally.encoded_tokens += new
        self._wait(self._encoder, new, self._encoded, attempt)

    def _encoded(self, attempt: Attempt) -> None:
        self._keep(attempt.call.session, attempt.call.prompt)
        self._dispatch(attempt)

    def _wait(
        self, line: Line, units: int, then: Callable[[Attempt], None], attempt: Attempt
    ) -> None:
        now = self._agenda.now
        done_at = line.done_at(now, units)
        if done_at > now:
            self._agenda.at(done_at, partial(then, attempt))
        else:
            then(attempt)

    def _dispatch(self, attempt: Attempt) -> None:
        pages = _pages(attempt.call.prompt) if reads_prefixes(self._policy) else ()
        name, chance = attempt.call.session.name, self._chance.random()
        placement = Placement(key=name, sticky=False, chance=chance, pages=pages)
        try:
            url = place(self.state, self._policy, placement).url
        except WorkerError:
            self._refused(attempt)
            return
        self.state.apply(SlotsTaken(worker=url, calls=(_id(attempt),), pages=pages))
        attempt.worker = self._places[url]
        self.balance.change(attempt.worker, 1, self._agenda.now)
        worker = self.workers[attempt.worker]
        self._agenda.after(self._options.network_s, partial(worker.take, attempt))

    def _returned(self, attempt: Attempt) -> None:
        """A worker is done with it; the news travels."""
        self._agenda.after(self._options.network_s, partial(self._end, attempt))

    def _end(self, attempt: Attempt) -> None:
        url = self.urls[attempt.worker]
        self.state.apply(SlotsGiven(worker=url, calls=(_id(attempt),)))
        self.balance.change(attempt.worker, -1, self._agenda.now)
        if self._options.capture and not attempt.lost:
            self._keep(attempt.call.session, attempt.call.answer)
        self._ended(attempt)

    # -- what is kept ------------------------------------------------------------------------------

    def _keep(self, session: Session, text: Passage) -> None:
        """Until the session's samples are fetched at its end, nothing of them is given up."""
        self._kept.want(text)
        session.texts.append(text)

    def forget(self, session: Session) -> None:
        """A session is over: what it said is kept for others to reuse, if there is room."""
        for text in session.texts:
            self._kept.release(text)
        session.texts.clear()

    # -- what happens to workers ---------------------------------------------------------------

    def crash(self, place: int) -> None:
        """A worker dies; the router knows at once, as its connections break."""
        self.workers[place].crash()
        self._note_health(place, _DEAD, Event.UNREACHABLE)

    def repair(self, place: int) -> None:
        """A worker is back."""
        self.workers[place].repair()
        self._note_health(place, READY, Event.PROBE_PASSED)

    def _note_health(self, place: int, health: Health, event: Event) -> None:
        self._set_health(self.urls[place], health, event)
        self.balance.set_up(sum(worker.up for worker in self.workers), self._agenda.now)

    def _set_health(self, url: WorkerUrl, health: Health, event: Event) -> None:
        self.state.apply(WorkerHealth(worker=url, health=health, event=event))

    def note_version(self, version: str) -> None:
        """All workers hold these weights."""
        for url in self.urls:
            self.state.apply(VersionSeen(worker=url, version=version))


def _pages(prompt: Passage) -> tuple[bytes, ...]:
    """The pages of a prompt that is known by its passages: each by where it ends in which one."""
    passages: list[Passage] = []
    above: Passage | None = prompt
    while above is not None:
        passages.append(above)
        above = above.parent
    pages: list[bytes] = []
    for end in page_ends(prompt.end):
        while passages[-1].end < end:
            passages.pop()
        pages.append(b"%d/%d" % (passages[-1].number, end))
    return tuple(pages)


def _id(attempt: Attempt) -> CallId:
    return CallId(str(attempt.number))
