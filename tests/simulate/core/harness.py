"""The core alone in a discrete-event loop: thousands of runs a minute, and nothing but the core.

One agenda orders everything: agents, links, workers, the operator, the router's polls. The clock is
the agenda's; every generator of chance is derived from the seed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Final

from slime_core.errors import InvariantError, SlimeError, as_sglang
from slime_core.fleet import Loads
from slime_core.simulation.agenda import Agenda
from slime_core.state import RouterState
from slime_core.transitions import (
    Transition,
    VersionFellBack,
    VersionSeen,
    WorkerFlushed,
    WorkerHealth,
    WorkerPaused,
    WorkerRemoved,
)
from slime_core.types import WorkerUrl
from slime_core.weights import unsettled
from tests.simulate.agents import Agent, Retrieve, Send
from tests.simulate.chance import derive
from tests.simulate.control.core import CoreErrands
from tests.simulate.core.exchange import CoreExchange
from tests.simulate.core.router import CoreRouter, Told
from tests.simulate.knobs import Knobs
from tests.simulate.operator import Action
from tests.simulate.run import Run, facts_of, trace_of
from tests.simulate.story import Ask, Delivered, Exchange
from tests.simulate.watch import Watch
from tests.simulate.workers.pieces import Answering, Cut, Data, End, Piece, Raw, Request
from tests.simulate.workers.worker import SimWorker
from tests.simulate.world import World

__all__ = ["CoreHarness", "run"]

_CONTACT_S: Final = 1.0
_WAKING: Final = (VersionSeen, VersionFellBack, WorkerHealth, WorkerPaused, WorkerRemoved)
_TOO_MANY: Final = 2_000_000
"""Events after which a run is taken for one that never ends."""


@dataclass(slots=True)
class _Wire:
    """One request's way to its worker and back."""

    url: str
    answering: Answering
    exchange: CoreExchange | None
    """``None`` where nobody reads the answer."""
    last_s: float = 0.0
    parts: deque[Piece] = field(default_factory=deque)


class CoreHarness:
    """See the module; :meth:`run` once."""

    def __init__(self, knobs: Knobs) -> None:
        self.world: Final = World(knobs)
        self._agenda: Final = Agenda()
        self.router: Final = CoreRouter(
            knobs,
            self.world.tokens,
            self.world.story,
            derive(knobs.seed, "policy"),
            lambda: self._agenda.now,
        )
        self._watch: Final = Watch(
            self.world.story,
            knobs.limits(),
            facts_of(self.world.tokens),
            tolerated=knobs.max_staleness,
            grace_s=knobs.grace_s,
        )
        self.router.watchers.extend((self._watch, self._notice))
        self._asking: Final[dict[str, None]] = {}
        self._is_woken = False
        self._chance: Final = derive(knobs.seed, "links")
        self._wires: Final[list[_Wire]] = []
        self._planned: Final[dict[str, float]] = {}
        self._busy = 0
        """Agents that have not done all they meant to do."""
        self._events = 0
        self._jumped_s = 0.0
        self.delay_s: Final = knobs.delay_s
        """Of the links between agents and the router."""

    @property
    def now(self) -> float:
        """Virtual seconds."""
        return self._agenda.now

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something later."""
        self._agenda.after(delay_s, action)

    # -- the whole run -------------------------------------------------------------------

    def run(self) -> Run:
        """Safety, healing, liveness, and the trainer's last round."""
        world, knobs = self.world, self.world.knobs
        world.operator.on_add = self.join
        world.operator.on_remove = self.router.remove_worker
        world.operator.on_jump = self._jump
        world.operator.on_flush = self._flushed
        for url in world.workers:
            self.join(url)
        self._poll()
        for moment, action in world.operator.timeline:
            self._agenda.at(moment, partial(self._perform, action))
        CoreErrands(self).schedule()
        for agent in world.agents:
            self._busy += 1
            self._agenda.at(0.0, partial(self._go_on, agent))
        self._agenda.at(knobs.heal_s, self._heal)
        self._until(knobs.heal_s + knobs.liveness_s)
        self._recover()
        self._at_rest()
        self._retrieve_everything()
        story = world.story
        return Run(
            knobs=knobs,
            world=world,
            state=self.router.state,
            watch=self._watch,
            events=self._events + len(story.journal),
            digest=f"{self.router.state.digest()} {trace_of(story)} {self._events}",
        )

    def _until(self, end_s: float) -> None:
        """Go on until every agent is done and everything is healed, at most to ``end_s``."""
        agenda, heal_s = self._agenda, self.world.knobs.heal_s
        while agenda.next_time <= end_s + self._jumped_s:
            if not self._busy and agenda.now >= heal_s and self._is_quiet:
                return
            agenda.step()
            self._events += 1
            if self._events > _TOO_MANY:
                self.world.story.complaints.append("the run does not come to an end")
                return
        self._complain_of_the_unfinished()

    def _recover(self) -> None:
        """What is healed serves again, all of it, and before long."""
        agenda, fleet = self._agenda, self.router.state.fleet
        end_s = self.now + self.world.knobs.recovery_s
        while not all(one.is_fit for one in fleet.listed()):
            if agenda.next_time > end_s:
                unfit = {one.url: one.unfit for one in fleet.listed()}
                self.world.story.complaints.append(f"not all recovered in time: {unfit}")
                return
            agenda.step()
            self._events += 1

    @property
    def _is_quiet(self) -> bool:
        state = self.router.state
        return not state.open_calls and not state.fleet.total_in_flight and not self._wires

    def _complain_of_the_unfinished(self) -> None:
        story = self.world.story
        if self._busy:
            story.complaints.append(f"{self._busy} agents were never done")

    def _at_rest(self) -> None:
        """What must be true when nothing moves any more."""
        story, state = self.world.story, self.router.state
        if state.open_calls:
            story.complaints.append(f"calls still open: {', '.join(state.open_calls)}")
        for worker in state.fleet.workers.values():
            if worker.in_flight:
                story.complaints.append(
                    f"{worker.url} is still occupied by {list(worker.in_flight)}"
                )
        try:
            state.check()
        except InvariantError as error:
            story.complaints.append(f"the state's books are off: {error.message}")

    def _retrieve_everything(self) -> None:
        """The trainer's last round: every captured call by its id, and by its text."""
        for call in list(self.router.state.forest.calls):
            told = self._retrieve(f"/trajectories/{call}", {})
            text = told.body.get("response")
            if told.status == 200 and text:
                self._retrieve("/retrieve_from_text", {"text": text, "id": call})

    # -- agents --------------------------------------------------------------------------

    def _go_on(self, agent: Agent) -> None:
        step = agent.next()
        if step is None:
            self._busy -= 1
        elif isinstance(step, Send):
            self.after(step.think_s, partial(self._send, agent, step.asks))
        else:
            self.after(step.think_s, partial(self._let_retrieve, agent, step))

    def _send(self, agent: Agent, asks: Sequence[Ask]) -> None:
        waiting = len(asks)

        def ended(exchange: Exchange) -> None:
            nonlocal waiting
            waiting -= 1
            agent.ended(exchange)
            if not waiting:
                self._agenda.after(0.0, partial(self._go_on, agent))

        story = self.world.story
        begun = []
        for ask in asks:
            exchange = Exchange(
                number=len(story.exchanges),
                agent=agent.name,
                ask=ask,
                asked_at=story.tick(),
                started_s=self.now,
            )
            story.exchanges.append(exchange)
            begun.append(CoreExchange(self, exchange, ended))
        for one in begun:
            one.start()

    def _let_retrieve(self, agent: Agent, step: Retrieve) -> None:
        agent.delivered(self._retrieve(step.path, step.body))
        self._agenda.after(0.0, partial(self._go_on, agent))

    def _retrieve(self, path: str, asked: dict[str, object]) -> Delivered:
        story = self.world.story
        begun_at = story.tick()
        try:
            status, body = 200, self.router.retrieve(path, asked)
        except SlimeError as error:
            status, body = error.status, as_sglang(error)
        told = Delivered(
            at=story.tick(),
            begun_at=begun_at,
            now=self.now,
            path=path,
            asked=asked,
            status=status,
            body=body,
        )
        story.delivered.append(told)
        story.marks[f"delivered:{status}"] += 1
        return told

    # -- workers and links ----------------------------------------------------------------

    def connect(self, url: WorkerUrl, request: Request, exchange: CoreExchange) -> None:
        """Send a request to a worker; ``exchange`` hears of what comes."""
        link, worker = self.world.conditions[url], self.world.workers[url]
        if link.hang or link.partitioned:
            patience = self.world.knobs.connect_timeout_s
            self.after(patience, lambda: exchange.unreachable("connect_timeout"))
        elif link.refuse or not worker.alive:
            self.after(link.delay_s, lambda: exchange.unreachable("connect_failed"))
        else:
            self.after(link.delay_s, partial(self._reach, url, request, exchange))

    def _reach(self, url: str, request: Request, exchange: CoreExchange | None) -> None:
        worker = self.world.workers[url]
        if not worker.alive:
            if exchange is not None:
                exchange.unreachable("connect_failed")
            return
        answering = worker.receive(request, self.now)
        self._wires.append(_Wire(url, answering, exchange, self.now))
        if exchange is not None:
            exchange.connected(answering)
        self._carry(url)

    def send_aside(self, url: WorkerUrl, request: Request) -> None:
        """Tell a worker something without waiting for its answer."""
        link = self.world.conditions[url]
        if not (link.refuse or link.hang or link.partitioned):
            self.after(link.delay_s, partial(self._reach, url, request, None))

    def hang_up(self, url: WorkerUrl | None, answering: Answering) -> None:
        """The router closes a connection: its worker aborts what it was doing for it."""
        left = [wire for wire in self._wires if wire.answering is answering]
        if url is None or not left:
            return
        for wire in left:
            self._wires.remove(wire)
        self.world.workers[url].hang_up(answering, self.now)
        self._carry(url)

    def _carry(self, url: str) -> None:
        """Take what a worker has to say on its way, and wake it when it next has something."""
        worker, link = self.world.workers[url], self.world.conditions[url]
        if not link.partitioned:
            for wire in [wire for wire in self._wires if wire.url == url]:
                self._take_pieces(wire, link.delay_s, trickles=link.trickle)
        due = worker.next_deadline
        if due is not None:
            due = max(due, self.now)
            if due < self._planned.get(url, inf):
                self._planned[url] = due
                self._agenda.at(due, partial(self._advance, url, due))

    def _advance(self, url: str, due: float) -> None:
        if self._planned.get(url) == due:
            del self._planned[url]
            self.world.workers[url].advance(self.now)
            self._carry(url)

    def _take_pieces(self, wire: _Wire, delay_s: float, *, trickles: bool) -> None:
        pieces = wire.answering.pieces
        while pieces:
            piece = pieces.popleft()
            if isinstance(piece, End | Cut | Raw):
                self._wires.remove(wire)
            if wire.exchange is not None:
                for part in self._in_parts(piece, trickles=trickles):
                    # A link keeps the order of what it carries, even if it becomes faster.
                    wire.last_s = max(wire.last_s, self.now + delay_s)
                    self._agenda.at(wire.last_s, partial(wire.exchange.receive, part))
            if isinstance(piece, Cut | Raw):
                pieces.clear()

    def _in_parts(self, piece: Piece, *, trickles: bool) -> list[Piece]:
        """Data as a link re-chunks it."""
        most = 3 if trickles else self.world.knobs.chunk_bytes
        if not isinstance(piece, Data) or len(piece.data) <= most:
            return [piece]
        parts: list[Piece] = []
        at = 0
        while at < len(piece.data):
            size = self._chance.randint(1, most)
            parts.append(Data(piece.data[at : at + size]))
            at += size
        return parts

    # -- the fleet's life ------------------------------------------------------------------

    def join(self, url: str) -> None:
        """A worker is registered."""
        self.router.add_worker(url)
        self._contact(url)

    def _contact(self, url: str) -> None:
        """A probe, there and back; of each worker one at a time."""
        if url in self._asking or not self.router.is_due(url):
            return
        self._asking[url] = None
        link, worker = self.world.conditions[url], self.world.workers[url]
        sighting = self.router.state.versions.sighting

        def told(answer: Told | None) -> None:
            del self._asking[url]
            self.router.contacted(url, answer, sighting)

        def answered() -> None:
            told(_told(worker) if worker.alive and not link.refuse else None)

        if link.hang or link.partitioned:
            self.after(10.0, partial(told, None))
        else:
            self.after(2 * link.delay_s, answered)

    def _poll(self) -> None:
        for worker in self.router.state.fleet.listed():
            if worker.url in self.world.workers:
                self._contact(worker.url)
        self.after(min(_CONTACT_S, self.world.knobs.poll_interval_s), self._poll)

    def _notice(self, fact: Transition, _state: RouterState) -> None:
        """What the router's keeper is woken by."""
        if isinstance(fact, _WAKING) and not self._is_woken:
            self._is_woken = True
            self._agenda.after(0.0, self._look_around)

    def _look_around(self) -> None:
        self._is_woken = False
        for worker in unsettled(self.router.state):
            self._contact(worker.url)
        again = self.router.fall_back()
        if again is not None:
            self._agenda.at(max(again, self.now), self._fall_back)

    def _fall_back(self) -> None:
        self.router.fall_back()

    def _flushed(self, url: str) -> None:
        """As if it had been asked for through the router."""
        self.router.commit(WorkerFlushed(worker=WorkerUrl(url)))

    def _perform(self, action: Action) -> None:
        self.world.operator.perform(action, self.now)
        self.carry_all()

    def _jump(self, seconds: float) -> None:
        """The clock goes on; what was promised to happen within a time gets that much more."""
        self._agenda.jump(seconds)
        self._jumped_s += seconds

    def _heal(self) -> None:
        self.world.operator.heal(self.now)
        self.carry_all()

    def carry_all(self) -> None:
        """Workers were changed: take what they have to say on its way."""
        for url in self.world.workers:
            self._carry(url)


def _told(worker: SimWorker) -> Told:
    """What a worker that answers says of itself."""
    load = worker.engine.load
    return Told(
        version=worker.version,
        paused=worker.engine.paused is not None,
        loads=Loads(running=load.running, waiting=load.waiting),
    )


def run(knobs: Knobs) -> Run:
    """One run of the core."""
    return CoreHarness(knobs).run()
