"""An inference engine without a GPU, a clock or a thread: SGLang's scheduler as a step machine.

Requests are submitted, wait in a queue, are admitted to the running batch up to a limit, pay for
their prefill, and then sample one token per step until they stop. Prefill is serial: a worker
computes so many prompt tokens a second whoever they belong to, so the next request is admitted when
the prompt before it is done. Time is an argument: the caller
asks :attr:`Engine.next_deadline`, waits, and calls :meth:`Engine.advance`, which returns what came
out. Everything a request will ever sample is a function of its prompt, its seed and the weight
version in force when each token is drawn; the batch around it does not matter.

Who may call what, when: ``submit``, ``abort``, ``pause`` and the rest are single synchronous
steps; what they bring out (an aborted queue, say) appears at the next ``advance``.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from slime_core.engine.distribution import Sampler
from slime_core.engine.drawing import draw, finish_of, token_limit
from slime_core.engine.generation import (
    Abort,
    Emission,
    Finish,
    Generation,
    Handover,
    Length,
    PauseMode,
    Record,
    RoomKey,
    Score,
)
from slime_core.engine.language_model import LanguageModel
from slime_core.engine.options import EngineOptions, Load
from slime_core.engine.prefix_cache import PrefixCache
from slime_core.engine.run import Run
from slime_core.engine.scoring import prompt_scores
from slime_core.engine.script import Script
from slime_core.engine.transfers import Role, Transfers
from slime_core.vocabulary import Vocabulary

__all__ = ["Engine"]

_ABORTED_IN_QUEUE: Final = Abort(message="Abort in waiting queue", queued=True)
_NEVER_TRANSFERRED: Final = Abort(
    message="KV transfer failed: the other worker did not come, or has gone.",
    status=500,
    kind="500",
)
_ROOM_IN_USE: Final = Abort(
    message="KV transfer failed: another request uses this bootstrap room.", status=500, kind="500"
)


class Engine:
    """See the module. ``end_ids`` (SGLang's EOS ids) end an answer unless ``ignore_eos``."""

    def __init__(
        self,
        *,
        model: LanguageModel,
        vocabulary: Vocabulary,
        end_ids: frozenset[int],
        options: EngineOptions | None = None,
        version: str = "default",
        script: Script | None = None,
    ) -> None:
        self.options = options or EngineOptions()
        self.vocabulary = vocabulary
        self.end_ids = end_ids
        self.version = version
        self.sampler = Sampler(model, end_ids=end_ids)
        self.script = script
        self.cache = PrefixCache(self.options.prefix_cache_tokens)
        self.records: deque[Record] = deque(maxlen=self.options.records_max)
        self._held: deque[Generation] = deque()
        self._waiting: deque[Run] = deque()
        self._running: dict[str, Run] = {}
        self._prefill_end = float("-inf")
        self._out: list[Emission] = []
        self._transfers = Transfers(self.options.transfer_timeout_s)
        self._paused: PauseMode | None = None
        self._updating = False

    # Queries

    @property
    def paused(self) -> PauseMode | None:
        """The mode of the pause in force."""
        return self._paused

    @property
    def idle(self) -> bool:
        """Nothing runs, waits, or remains to be told. Requests held at the gate do not count."""
        return not (self._running or self._waiting or self._out or self._transfers)

    def is_live(self, rid: str) -> bool:
        """Whether a request of exactly this id is held, waits or runs."""
        return (
            rid in self._running
            or any(run.rid == rid for run in (*self._waiting, *self._transfers.runs))
            or any(generation.rid == rid for generation in self._held)
        )

    @property
    def load(self) -> Load:
        """What runs and waits now."""
        return Load(
            running=len(self._running),
            waiting=len(self._waiting) + len(self._transfers),
            held=len(self._held),
            waiting_uncached_tokens=sum(map(len, self._waiting)),
            used_tokens=sum(map(len, self._running.values())),
        )

    @property
    def next_deadline(self) -> float | None:
        """When :meth:`advance` next has something to do; in the past: at once; ``None``: not
        before something else happens."""
        if self._out:
            return float("-inf")
        if self._frozen:
            return None
        due = [run.due for run in self._running.values()]
        if self._has_room:
            due.append(self._prefill_end)
        if self._transfers.next_deadline is not None:
            due.append(self._transfers.next_deadline)
        return min(due, default=None)

    # Requests

    def submit(self, generation: Generation) -> None:
        """Takes a request: to the queue, or to the gate while the engine is paused.

        The caller has checked that no live request has its id and that the prompt fits.
        """
        if self._paused is not None or self._updating:
            self._held.append(generation)
        else:
            self._enqueue(generation)

    def warm(self, prompt_ids: tuple[int, ...]) -> None:
        """Caches a prompt, as SGLang's hidden request does before ``n > 1`` samples of it."""
        if self._paused is None:
            self.cache.add(prompt_ids)

    def abort(self, rid: str = "", *, everything: bool = False) -> None:
        """Aborts the requests whose ids begin with ``rid``, provided one has exactly this id.

        Waiting ones end at once, running ones after one more token; held ones are out of reach.
        An empty ``rid`` without ``everything`` does nothing. All of it is SGLang's behaviour.
        """
        waiting = [*self._waiting, *self._transfers.runs]
        live = rid in self._running or any(run.rid == rid for run in waiting)
        if not everything and not (rid and live):
            return
        prefix = "" if everything else rid
        for run in [run for run in waiting if run.rid.startswith(prefix)]:
            if run in self._waiting:
                self._waiting.remove(run)
            computed = bool(run.unshown)
            self._finish(run, run.unshown, Abort() if computed else _ABORTED_IN_QUEUE)
        for run in self._running.values():
            if run.rid.startswith(prefix):
                run.aborted = True
                run.due = float("-inf")

    def discard(self, rid: str) -> None:
        """Forgets a held request whose client has gone; anything else is aborted."""
        for generation in self._held:
            if generation.rid == rid:
                self._held.remove(generation)
                return
        self.abort(rid)

    # Pairs of engines: what the driver of both brings from one to the other

    def offered(self, key: RoomKey) -> Handover | None:
        """What this prefill engine has to give under this name; it stays until it is
        :meth:`given`."""
        return self._transfers.offered(key)

    def wanted(self) -> tuple[Generation, ...]:
        """What this decode engine waits for, to be :meth:`received`."""
        return tuple(self._transfers.wanted())

    def given(self, key: RoomKey) -> None:
        """The other engine has it: prefill's part is done. Of nothing known, nothing happens."""
        run = self._transfers.take(key)
        if run is not None:
            self._finish(run, run.unshown, Length(0))

    def received(self, key: RoomKey, handover: Handover) -> None:
        """A prompt has come, and its request goes to the queue."""
        run = self._transfers.take(key)
        if run is not None:
            run.handover = handover
            self._waiting.append(run)

    def transfer_failed(self, key: RoomKey, message: str) -> None:
        """It will not come, or not be fetched: the request fails as SGLang's do, with a 500; one
        that has still to be computed fails then."""
        run = self._transfers.take(key)
        if run is None:
            self._transfers.bury(key)
        else:
            self._finish(run, run.unshown, Abort(message=message, status=500, kind="500"))

    def is_over(self, key: RoomKey) -> bool:
        """Whether nothing will ever be :meth:`offered` under this name any more."""
        return self._transfers.is_dead(key)

    # Control

    def pause(self, mode: PauseMode) -> None:
        """Shuts the gate for new requests; what happens to the others is the mode's matter."""
        self._paused = mode
        if mode is PauseMode.ABORT:
            self.abort(everything=True)
        if mode is PauseMode.RETRACT:
            for run in reversed(self._running.values()):
                run.retract()
                self._waiting.appendleft(run)
            self._running.clear()
            self._prefill_end = float("-inf")

    def resume(self) -> None:
        """Ends a pause: whatever was held enters the queue in its order of arrival."""
        self._paused = None
        self._open_gate()

    def flush(self) -> bool:
        """Empties the prefix cache; refused (False) while requests run, or wait without a pause."""
        if self._running or (self._waiting and self._paused is None):
            return False
        self.cache.clear()
        return True

    def hold(self) -> None:
        """Shuts the gate for a weight update that waits for the requests in flight to finish."""
        self._updating = True

    def release(self) -> None:
        """Ends :meth:`hold`."""
        self._updating = False
        self._open_gate()

    def update_version(self, version: str) -> None:
        """Tokens from now on are drawn from this version, in running requests as well."""
        self.version = version

    # Steps

    def advance(self, now: float) -> list[Emission]:
        """Admits what may run and takes one step of every request that is due.

        One call gives a request at most one token, so that a caller with other work to do gets a
        turn between tokens; call again while :attr:`next_deadline` is not in the future.
        """
        for run in self._transfers.expired(now):
            self._finish(run, run.unshown, _NEVER_TRANSFERRED)
        if not self._frozen:
            self._admit(now)
            for run in [run for run in self._running.values() if run.due <= now]:
                self._step(run, now)
        out, self._out = self._out, []
        return out

    @property
    def _frozen(self) -> bool:
        return self._paused in (PauseMode.RETRACT, PauseMode.IN_PLACE)

    def _open_gate(self) -> None:
        if self._paused is None and not self._updating:
            while self._held:
                self._enqueue(self._held.popleft())

    def _enqueue(self, generation: Generation) -> None:
        run = Run(generation, self.vocabulary)
        limit = self.options.queue_max
        if limit and len(self._waiting) >= limit:
            full = Abort(message="The request queue is full.", status=503, kind="503")
            self._finish(run, (), full)
        elif generation.room is not None and self.options.role is Role.DECODE:
            if not self._transfers.add(run, generation.room):
                self._finish(run, (), _ROOM_IN_USE)
        else:
            self._waiting.append(run)

    @property
    def _has_room(self) -> bool:
        """Whether a request waits that could run but for the prompt that is being computed."""
        return bool(self._waiting) and len(self._running) < self.options.max_running_requests

    def _admit(self, now: float) -> None:
        while self._has_room and self._prefill_end <= now:
            run = self._waiting.popleft()
            if self.script is not None and not run.started:
                run.reply = self.script(run.generation.prompt_ids)
            cached = self._cached(run)
            if not run.started:
                run.cached_tokens = cached
                run.started = True
            # What is admitted next begins after this prefill, and so may find all of this already.
            self.cache.add(run.generation.prompt_ids)
            computed = 0 if run.handover is not None else len(run) - cached
            self._prefill_end = now + self._prefill_s(computed)
            run.due = self._prefill_end + (self.options.s_per_token if run.handover is None else 0)
            self._running[run.rid] = run

    def _cached(self, run: Run) -> int:
        """How much of a request need not be computed; the last token always is."""
        bound = len(run) - 1
        if run.generation.prompt_scores_from is not None:
            bound = min(bound, run.generation.prompt_scores_from)
        return min(bound, self.cache.match(run.sequence))

    def _prefill_s(self, tokens: int) -> float:
        rate = self.options.prefill_tokens_per_s
        return tokens / rate if rate else 0.0

    def _step(self, run: Run, now: float) -> None:
        limit = token_limit(run, self.options.context_length)
        if limit == 0 and self.options.role is not Role.PREFILL:
            self._finish(run, (), Length(0))
            return
        token, version = self._next(run)
        run.take(token.token, token.logprob or 0.0, version)
        if self.options.role is Role.PREFILL:
            self._hand_over(run, Handover(first=token, version=version))
            return
        finish = finish_of(run, limit, self.end_ids, self.vocabulary)
        if finish is not None:
            self._finish(run, (token,), finish)
            return
        run.due = max(run.due + self.options.s_per_token, now)
        shown, text = run.show(token)
        if shown:
            self._emit(run, shown, text)

    def _next(self, run: Run) -> tuple[Score, str]:
        """The next token and the version it was sampled under: the prefill engine's, where that
        had the first."""
        if run.handover is not None and not run.output_ids:
            return run.handover.first, run.handover.version
        return draw(self.sampler, run, self.version), self.version

    def _hand_over(self, run: Run, handover: Handover) -> None:
        """The prompt is computed. Without a room (a health probe) nobody comes for it."""
        room = run.generation.room
        if run.aborted:
            self._finish(run, (handover.first,), Abort())
        elif room is None:
            self._finish(run, (handover.first,), Length(0))
        elif self._transfers.is_dead(room.key):
            self._finish(run, (handover.first,), _NEVER_TRANSFERRED)
        elif self._transfers.add(run, room, handover):
            del self._running[run.rid]
            run.unshown = (handover.first,)
        else:
            self._finish(run, (handover.first,), _ROOM_IN_USE)

    def _finish(self, run: Run, tokens: tuple[Score, ...], finish: Finish) -> None:
        self._running.pop(run.rid, None)
        if isinstance(finish, Abort):
            self._transfers.forget(run)
        if run.output_ids:
            self.cache.add(run.sequence[:-1])
        shown, text = run.close(tokens, finish)
        self._emit(run, shown, text, finish)
        self.records.append(run.record(finish))

    def _emit(
        self, run: Run, tokens: tuple[Score, ...], text: str, finish: Finish | None = None
    ) -> None:
        scores: tuple[Score, ...] = ()
        if not run.told and run.started and run.handover is None:
            scores = prompt_scores(self.sampler.model, run.generation, self.version)
        run.told = True
        self._out.append(
            Emission(
                rid=run.rid,
                tokens=tokens,
                text=text,
                version=run.spans[-1].version if run.spans else self.version,
                cached_tokens=run.cached_tokens,
                retractions=run.retractions,
                prompt_scores=scores,
                finish=finish,
                spans=tuple(run.spans) if finish else (),
            )
        )
