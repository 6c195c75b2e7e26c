"""A simulated worker: the embedded worker's engine behind SGLang's paths, without any I/O.

A carrier (one of the two harnesses) gives it requests and takes the pieces of its answers. Time is
an argument. What each sample truly was goes into the story, whatever a fault made the wire say.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slime_core.engine import (
    Emission,
    Engine,
    EngineOptions,
    GenerateCall,
    Generation,
    PauseMode,
    Refusal,
    Role,
    Wording,
    derived_seed,
    fresh_id,
    manager_error,
    parse_generate,
    plan,
)
from slime_core.types import Encoding
from tests.simulate.chance import derive
from tests.simulate.faults import NO_FAULTS, PROBES, STREAMS, WHOLES, Fault, FaultKind, FaultRates
from tests.simulate.story import EXCHANGE, Sampled, Story
from tests.simulate.tokens import Tokens
from tests.simulate.workers.answers import Surroundings, whole_steps
from tests.simulate.workers.calls import Call, refused, refused_stream
from tests.simulate.workers.desk import PATHS, Desk
from tests.simulate.workers.faults import Misdeed
from tests.simulate.workers.information import body_of, inform
from tests.simulate.workers.pieces import (
    Answering,
    Cut,
    Data,
    End,
    Head,
    Piece,
    Raw,
    Request,
    Step,
)
from tests.simulate.workers.says import Says
from tests.simulate.workers.strikes import instead, probe_steps
from tests.simulate.workers.tellers import Teller, make_teller
from tests.simulate.workers.truth import params_of, queue_full, write_down

__all__ = [
    "Answering", "Cut", "Data", "End", "Head", "Piece", "Raw", "Request", "SimWorker",
]  # fmt: skip


@dataclass(slots=True)
class _Live:
    """A sample in the engine. ``call`` is ``None`` once nobody waits for it."""

    sampled: Sampled
    call: Call | None


class SimWorker:
    """One worker. Everything is synchronous; nothing happens but in these calls.

    ``incremental``: streams hold what is new. ``scripts``: how many answers are said on purpose.
    ``seed`` decides what is sampled, ``chance`` which requests are struck by which of ``faults``.
    """

    def __init__(
        self,
        url: str,
        *,
        tokens: Tokens,
        story: Story,
        chance: random.Random,
        options: EngineOptions,
        version: str = "1",
        faults: FaultRates = NO_FAULTS,
        incremental: bool = False,
        scripts: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.url = url
        self.alive = True
        self.story = story
        self._tokens = tokens
        self._vocabulary = tokens.tokenizer.vocabulary
        self._story = story
        self._fault_seed = chance.getrandbits(62)
        self._options = options
        self._faults = faults
        self._incremental = incremental
        self._seed = seed
        self._script = None if not scripts else Says(tokens, scripts, seed)
        self._requests = 0
        self._ids = 0
        self._last_rids = ("another", "another")
        self._live: dict[str, _Live] = {}
        self._open: dict[Answering, None] = {}
        self._late: dict[Answering, None] = {}
        self._changed: dict[Answering, None] = {}
        self.engine = self._fresh_engine(version)
        self.desk = Desk(self)

    @property
    def version(self) -> str:
        """The weights in force."""
        return self.engine.version

    @property
    def next_deadline(self) -> float | None:
        """When :meth:`advance` has something to do; the past: at once; ``None``: not by itself."""
        if self._changed:
            return float("-inf")
        deadlines = [each.next_deadline for each in self._late]
        if self.alive:
            deadlines += (self.engine.next_deadline, self.desk.next_deadline)
        return min((one for one in deadlines if one is not None), default=None)

    # Requests

    def receive(self, request: Request, now: float) -> Answering:
        """Takes a request; the answer's pieces come now or at later calls."""
        answering = Answering()
        if not self.alive:
            answering.cut()
            return answering
        self._requests += 1
        self._open[answering] = None
        try:
            path = request.target.partition("?")[0]
            if path == "/generate":
                self._generate(request, answering, now)
            elif path in PATHS:
                fault = self._fault(PROBES, self._faults.probes)
                self.desk.serve(request, answering, fault, now)
            else:
                self._inform(request, answering, now)
        except Refusal as refusal:
            self.give(answering, refused(refusal), now)
        self._note(answering)
        return answering

    def hang_up(self, answering: Answering, now: float) -> None:
        """The other side has closed the connection: what was being sampled for it is aborted."""
        answering.cut()
        self._changed.pop(answering, None)
        self._note(answering)

    def advance(self, now: float) -> list[Answering]:
        """One step of the engine; the answers that have new pieces since the last call."""
        if self.alive:
            for emission in self.engine.advance(now):
                self._deliver(emission, now)
            self.desk.advance(now)
        for answering in list(self._late):
            if answering.advance(now):
                self._changed[answering] = None
            self._note(answering)
        changed, self._changed = list(self._changed), {}
        return changed

    # Life

    def crash(self, now: float) -> None:
        """The process ends, and with it every connection and everything it knew."""
        self.alive = False
        self._cut(list(self._open))
        self._live.clear()
        self.desk.crashed()

    def reset(self, now: float) -> bool:
        """Every connection breaks; whether there was any. The worker aborts what it did for it."""
        answerings = list(self._open)
        self._cut(answerings)
        return bool(answerings)

    def restart(self, now: float, version: str) -> None:
        """A new process: an empty cache, no requests, these weights."""
        if self.alive:
            self.crash(now)
        self.engine = self._fresh_engine(version)
        self.alive = True

    def heal(self, now: float) -> None:
        """No more faults: what hangs is cut off, what is late comes now, and a pause ends that was
        not asked for over HTTP: whoever asked for one must end it."""
        self._faults = NO_FAULTS
        for live in self._live.values():
            if live.call is not None:
                live.call.heal()
        self._cut([answering for answering in self._open if answering.hanging])
        for answering in self._open:
            answering.hurry()
        if self.desk.paused_by is None:
            self.resume()

    def pause(self, mode: PauseMode) -> None:
        """Shuts the gate."""
        self.engine.pause(mode)

    def resume(self) -> None:
        """Goes on, whoever paused it."""
        self.engine.resume()
        self.desk.resumed()

    def update_version(self, version: str) -> None:
        """New weights, in mid-generation."""
        self.engine.update_version(version)

    def _fresh_engine(self, version: str) -> Engine:
        return Engine(
            model=self._tokens.language,
            vocabulary=self._vocabulary,
            end_ids=self._tokens.end_ids,
            options=self._options,
            version=version,
            script=self._script,
        )

    # Generations

    def _generate(self, request: Request, answering: Answering, now: float) -> None:
        """Raises ``Refusal``."""
        body = body_of(request)
        asked = parse_generate(body, vocabulary_size=len(self._vocabulary))
        fault = self._fault(STREAMS if asked.stream else WHOLES)
        steps = None if fault is None else instead(fault)
        if fault is not None and steps is not None:
            self.mark(fault)
            self.give(answering, steps, now)
            return
        try:
            generations = self._plan(asked)
        except Refusal as refusal:
            if not asked.stream or refusal.wording is not Wording.MANAGER:
                raise
            self.give(answering, refused_stream(refusal), now)
            return
        number = dict(request.headers).get(EXCHANGE)
        exchange = None if number is None else int(number)
        self._begin(asked, body, generations, answering, fault, now, exchange)

    def _plan(self, asked: GenerateCall) -> tuple[Generation, ...]:
        """Raises ``Refusal``."""
        ids: list[Sequence[int]] = [
            self._tokens.tokenizer.encode(prompt.content, encoding=Encoding.RAW, first=True)
            if isinstance(prompt.content, str)
            else prompt.content
            for prompt in asked.prompts
        ]
        generations = plan(
            asked,
            ids,
            context_length=self._options.context_length,
            vocabulary_size=len(self._vocabulary),
            fresh=self._fresh_rid,
            seed=derived_seed(self._seed, f"call {self._requests}"),
            role=self._options.role,
        )
        for generation in generations:
            if generation.rid in self._live:
                raise manager_error(f"Duplicate request ID detected: {generation.rid}")
        return generations

    def _begin(
        self,
        asked: GenerateCall,
        body: Any,
        generations: Sequence[Generation],
        answering: Answering,
        fault: Fault | None,
        now: float,
        exchange: int | None,
    ) -> None:
        samples = [
            Sampled(
                rid=generation.rid,
                worker=self.url,
                arrived_at=self._story.tick(),
                exchange=exchange,
                place=place,
                prompt_ids=generation.prompt_ids,
                params=params_of(body, place // asked.n),
                seed=generation.seed,
                wire=answering.wire,
            )
            for place, generation in enumerate(generations)
        ]
        is_half = self._options.role is Role.PREFILL
        (self._story.prefilled if is_half else self._story.sampled).extend(samples)
        answering.rids = tuple(sampled.rid for sampled in samples)
        streams = asked.stream and (fault is None or fault.kind is not FaultKind.NO_STREAM)
        call = Call(
            asked,
            answering,
            samples,
            self._tellers(asked, generations, incremental=self._incremental and streams),
            misdeed=None if fault is None else self._misdeed(fault, samples),
            stream=streams,
            now=now,
        )
        self._last_rids = (self._last_rids[1], answering.rids[-1])
        if call.open(now):
            self._changed[answering] = None
        if fault is None or fault.kind is not FaultKind.HANG or fault.after % 2:
            self._submit(call, generations, fault, now)

    def _tellers(
        self, asked: GenerateCall, generations: Sequence[Generation], *, incremental: bool
    ) -> list[Teller]:
        return [
            make_teller(
                asked,
                asked.prompts[place // asked.n],
                generation,
                incremental=incremental,
                vocabulary=self._vocabulary,
            )
            for place, generation in enumerate(generations)
        ]

    def _submit(
        self, call: Call, generations: Sequence[Generation], fault: Fault | None, now: float
    ) -> None:
        full = fault is not None and fault.kind is FaultKind.QUEUE_FULL
        for generation, sampled in zip(generations, call.samples, strict=True):
            self._live[generation.rid] = _Live(sampled, call)
            if full:
                self._deliver(queue_full(generation.rid, self.version), now)
                continue
            if generation.params.n > 1:
                self.engine.warm(generation.prompt_ids)
            self.engine.submit(generation)

    def _deliver(self, emission: Emission, now: float) -> None:
        """Writes down what was sampled, then tells it."""
        live = self._live.get(emission.rid)
        if live is None:
            return
        running = self.engine._running.get(emission.rid)
        write_down(live.sampled, emission, emission.spans if running is None else running.spans)
        if emission.finish is not None:
            del self._live[emission.rid]
        if live.call is not None:
            if live.call.take(emission, now):
                self._changed[live.call.answering] = None
            self._note(live.call.answering)

    # Faults

    def _fault(self, possible: frozenset[FaultKind], scale: float = 1.0) -> Fault | None:
        """The fault of the request that came last."""
        if not self._faults.rates or not scale:
            return None
        chance = derive(self._fault_seed, self._requests)
        return self._faults.draw(chance, possible, scale=scale)

    def mark(self, fault: Fault) -> None:
        """A fault strikes."""
        self._story.marks[f"fault:{fault.kind.value}"] += 1

    def _misdeed(self, fault: Fault, samples: Sequence[Sampled]) -> Misdeed:
        if fault.kind in (FaultKind.QUEUE_FULL, FaultKind.NO_STREAM):
            self.mark(fault)
        around = Surroundings(
            story=self._story,
            samples=samples,
            incremental=self._incremental,
            other_rid=self._last_rids[0],
            vocabulary=len(self._vocabulary),
            abort=lambda rid: self.engine.abort(rid),
        )
        return Misdeed(fault, around)

    # Other paths

    def _inform(self, request: Request, answering: Answering, now: float) -> None:
        """Raises ``Refusal``."""
        fault = self._fault(PROBES, self._faults.probes)
        status, body = inform(request, self.engine, self._tokens)
        steps = whole_steps(body, status=status)
        if fault is not None:
            self.mark(fault)
            answering.hanging = fault.kind is FaultKind.HANG
            steps = probe_steps(fault, body)
        self.give(answering, steps, now)

    # Housekeeping

    def _fresh_rid(self) -> str:
        self._ids += 1
        return fresh_id(self._seed, self._ids)

    def give(self, answering: Answering, steps: Sequence[Step], now: float) -> None:
        """An answer's next pieces."""
        for step in steps:
            if answering.give(step, now):
                self._changed[answering] = None

    def _cut(self, answerings: Sequence[Answering]) -> None:
        for answering in answerings:
            answering.cut()
            self._changed[answering] = None
            self._note(answering)

    def _note(self, answering: Answering) -> None:
        """Forgets an answer that is over. A worker that breaks it off aborts what is left of it."""
        if answering.next_deadline is not None:
            self._late[answering] = None
        elif self._late:
            self._late.pop(answering, None)
        if answering.ended:
            self._abandon(answering)
            if answering.next_deadline is None:
                self._open.pop(answering, None)

    def _abandon(self, answering: Answering) -> None:
        """Nobody waits for these samples any more."""
        for rid in answering.rids:
            live = self._live.get(rid)
            if live is None or live.call is None:
                continue
            live.call = None
            held = self.engine.load.held
            self.engine.discard(rid)
            if self.engine.load.held < held:
                del self._live[rid]
