"""What every generation endpoint shares: planning a call, running it, shaping its answers."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import trio

from slime_core.engine import (
    Abort,
    AnswerBuilder,
    Emission,
    GenerateCall,
    Generation,
    Refusal,
    Role,
    Wording,
    derived_seed,
    fresh_id,
    manager_error,
    parse_generate,
    plan,
)
from slime_core.engine.generation import Finish
from slime_trio.chat_template import ChatTemplate, load_chat_template
from slime_trio.worker.faults import Faults
from slime_trio.worker.host import EngineHost, Subscription
from slime_trio.worker.model import load_engine, load_model
from slime_trio.worker.options import WorkerOptions

__all__ = ["Chunk", "Planned", "Worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A checked call with its samples, in the order of the answer."""

    call: GenerateCall
    generations: tuple[Generation, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The native answer of sample ``index`` so far, and whether it is the last one."""

    index: int
    answer: dict[str, Any]
    finish: Finish | None


class Worker:
    """One embedded worker: its model, its engine, and the counters that make ids and seeds."""

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self.seed = secrets.randbits(63) if options.seed is None else options.seed
        self.model = load_model(options.hf_checkpoint)
        self.engine = load_engine(options, self.model)
        self.faults = Faults(options.faults)
        self.host = EngineHost(self.engine, self.faults)
        self.started_at = time.time()
        self.served_name = str(options.hf_checkpoint)
        self.updating = trio.Lock()
        self.is_updating = False
        """Between ``begin_weight_update`` and ``end_weight_update``."""
        self.groups: set[str] = set()
        self.released: set[str] = set()
        """Parts of the memory that were given back."""
        self.adapters: dict[str, str] = {}
        self.sessions: set[str] = set()
        self.bootstrap_port: int | None = None
        """Where a prefill worker gives prompts away, once it does."""
        self._template: ChatTemplate | None = None
        self._template_lock = trio.Lock()
        self._ids = 0
        self._calls = 0

    def fresh(self) -> str:
        """A request id that this worker never gave before."""
        self._ids += 1
        return fresh_id(self.seed, self._ids)

    def computed_from(self, asked: Generation) -> int:
        """The first token of a sequence that is computed here: a decode worker gets its prompts."""
        is_decode = self.options.role is Role.DECODE and asked.room is not None
        return len(asked.prompt_ids) if is_decode else 0

    async def template(self) -> ChatTemplate:
        """The checkpoint's chat template, loaded when it is first needed: it takes seconds."""
        async with self._template_lock:
            if self._template is None:
                self._template = await trio.to_thread.run_sync(
                    load_chat_template, self.options.hf_checkpoint
                )
        return self._template

    def parse(self, body: object) -> GenerateCall:
        """Checks a native body. Raises ``Refusal``."""
        return parse_generate(body, vocabulary_size=len(self.model.vocabulary))

    def plan(self, call: GenerateCall) -> Planned:
        """Tokenises and plans a call. Raises ``Refusal`` for what does not fit or is not new."""
        ids = [
            self.model.encode(prompt.content, add_special_tokens=True)
            if isinstance(prompt.content, str)
            else prompt.content
            for prompt in call.prompts
        ]
        self._calls += 1
        generations = plan(
            call,
            ids,
            context_length=self.options.context_length,
            vocabulary_size=len(self.model.vocabulary),
            fresh=self.fresh,
            seed=derived_seed(self.seed, f"call {self._calls}"),
            role=self.options.role,
        )
        for generation in generations:
            if self.engine.is_live(generation.rid):
                raise manager_error(f"Duplicate request ID detected: {generation.rid}")
        return Planned(call=call, generations=generations)

    async def chunks(self, planned: Planned, *, incremental: bool) -> AsyncGenerator[Chunk, None]:
        """Runs a call: a chunk per emission, interleaved, until every sample has finished.

        Close it (``contextlib.aclosing``): that aborts what has not finished.
        """
        start, first = trio.current_time(), True
        collected = _Collected(self, planned, incremental=incremental)
        with self._running(planned) as emissions:
            while collected.waiting:
                emission = await emissions.receive()
                place = collected.take(emission)
                timing = self._timing(emission, start, first)
                first = False
                answer = collected.builders[place].chunk(emission, timing)
                yield Chunk(index=place, answer=answer, finish=emission.finish)

    async def answers(self, planned: Planned) -> list[dict[str, Any]]:
        """Runs a call to its end: the native answers, in order.

        Raises ``Refusal`` if the scheduler refused one of them, as that fails the whole batch.
        """
        start = trio.current_time()
        collected = _Collected(self, planned, incremental=False)
        done: dict[int, dict[str, Any]] = {}
        with self._running(planned) as emissions:
            while collected.waiting:
                emission = await emissions.receive()
                place = collected.take(emission)
                if emission.finish is not None:
                    _raise_if_refused(emission.finish)
                    timing = self._timing(emission, start, True)
                    done[place] = collected.builders[place].chunk(emission, timing)
        return [done[place] for place in sorted(done)]

    def _running(self, planned: Planned) -> Subscription:
        if planned.call.n > 1:
            for asked in planned.generations:
                self.engine.warm(asked.prompt_ids)
        return self.host.subscribe(planned.generations)

    def piece(self, token: int) -> str:
        """The text of one id, as ``return_text_in_logprobs`` shows it."""
        return self.model.vocabulary.decode([token], skip_special=False, at_start=False)

    def _timing(self, emission: Emission, start: float, first: bool) -> dict[str, float]:
        timing: dict[str, float] = {}
        if emission.finish is not None:
            timing["e2e_latency"] = trio.current_time() - start
        if first:
            timing["response_sent_to_client_ts"] = time.time()
        return timing


class _Collected:
    """One builder per sample, and how many samples have not finished."""

    def __init__(self, worker: Worker, planned: Planned, *, incremental: bool) -> None:
        self._places = {asked.rid: place for place, asked in enumerate(planned.generations)}
        self.waiting = len(self._places)
        self.builders = [
            AnswerBuilder(
                planned.call,
                planned.call.prompts[place // planned.call.n],
                asked,
                incremental=incremental,
                experts=worker.options.experts,
                computed_from=worker.computed_from(asked),
                piece=worker.piece,
            )
            for place, asked in enumerate(planned.generations)
        ]

    def take(self, emission: Emission) -> int:
        """Adds an emission; the place of its sample in the answer."""
        place = self._places[emission.rid]
        self.builders[place].add(emission)
        self.waiting -= emission.finish is not None
        return place


def _raise_if_refused(finish: Finish) -> None:
    if isinstance(finish, Abort) and finish.status is not None:
        wording = Wording.MANAGER if finish.status == 400 else Wording.FRAMEWORK
        raise Refusal(finish.message, wording=wording, status=finish.status)
