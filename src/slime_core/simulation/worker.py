"""A worker that computes lengths: a queue, serial prefill, and a batch that decodes.

The rules are those of :class:`slime_core.engine.Engine`: requests are admitted in order while the
batch has room and no prompt is being computed; the first token comes one decoding step after the
prefill. Instead of stepping through tokens, the worker counts on a clock of its own how many tokens
each member of the batch has had (all get theirs at one pace), and notes at which count each has its
first and its last: so a request costs a few heap operations, however long it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from math import inf
from typing import Final

from slime_core.engine.generation import PauseMode
from slime_core.simulation.agenda import Agenda
from slime_core.simulation.prefix_cache import PassageCache
from slime_core.simulation.scenario import WorkerSpeed
from slime_core.simulation.workload import Call

__all__ = ["Attempt", "Books", "Line", "Worker"]

_SLACK: Final = 1e-6  # of a token: what rounding may have taken from a count that is whole


class Line:
    """Work done one piece after the other at ``rate`` units a second (0: in no time)."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._free_at = 0.0

    def done_at(self, now: float, units: float) -> float:
        """When ``units`` that come now will be done."""
        if not self.rate:
            return now
        self._free_at = max(self._free_at, now) + units / self.rate
        return self._free_at

    def reset(self) -> None:
        """Forgets what waits."""
        self._free_at = 0.0


@dataclass(slots=True, eq=False)
class Attempt:
    """One try at a call. ``number`` is its own; ``sampled``: tokens it had when it last stopped.

    ``base``: the worker's count when its decoding began. ``lost``: the worker threw it away.
    """

    number: int
    call: Call
    worker: int = -1
    admitted: bool = False
    first_token_at: float = -1.0
    sampled: int = 0
    base: float = 0.0
    lost: bool = False


@dataclass(slots=True)
class Books:
    """What a worker did: counts, tokens, seconds."""

    attempts: int = 0
    failures: int = 0
    busy_s: float = 0.0
    prefill_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    lost_tokens: int = 0


class Worker:
    """``ended`` is called with each attempt that is complete or lost.

    ``encodes``: prompts come as text, which the worker must encode.
    """

    def __init__(
        self,
        agenda: Agenda,
        speed: WorkerSpeed,
        *,
        encodes: bool,
        ended: Callable[[Attempt], None],
    ) -> None:
        self.speed = speed
        self.books = Books()
        self.cache = PassageCache(speed.prefix_cache_tokens)
        self.up = True
        self._agenda = agenda
        self._ended = ended
        self._encoding = Line(speed.encode_tokens_per_s if encodes else 0.0)
        self._paused = False
        self._present: dict[int, Attempt] = {}
        self._queue: deque[Attempt] = deque()
        self._prefilling: Attempt | None = None
        self._prefill_end = inf
        self._batch: dict[int, Attempt] = {}
        self._milestones: list[tuple[float, int, Attempt]] = []
        self._count = 0.0
        self._period = inf
        self._milestone_at = inf
        self._since = 0.0
        self._alarm = inf

    @property
    def waiting(self) -> tuple[int, int]:
        """How many wait to be admitted, and the tokens that they have from before a pause."""
        return len(self._queue), sum(attempt.sampled for attempt in self._queue)

    # -- what comes from outside -------------------------------------------------------------

    def take(self, attempt: Attempt) -> None:
        """An attempt arrives."""
        if not self.up:
            self._lose(attempt)
            return
        self.books.attempts += 1
        self._present[attempt.number] = attempt
        done_at = self._encoding.done_at(self._agenda.now, attempt.call.prompt_tokens)
        if done_at > self._agenda.now:
            self._agenda.at(done_at, partial(self._encoded, attempt))
        else:
            self._encoded(attempt)

    def pause(self, mode: PauseMode) -> None:
        """Nothing is computed from now on; what becomes of the requests is the mode's matter."""
        self._catch_up()
        if mode is PauseMode.ABORT:
            self._lose_all()
        elif mode is PauseMode.RETRACT:
            self._retract()
        if mode is not PauseMode.IN_PLACE:
            self.cache.clear()
        self._paused = True
        self._prefill_end -= self._agenda.now  # what remains of it
        self._plan()

    def resume(self) -> None:
        """Ends a pause."""
        self._catch_up()
        self._paused = False
        self._prefill_end += self._agenda.now
        self._go_on()

    def crash(self) -> None:
        """The worker dies, with all that it ran and held."""
        self._catch_up()
        self.up = False
        self.books.failures += 1
        self._lose_all()
        self.cache.clear()
        self._plan()

    def repair(self) -> None:
        """It is back, empty."""
        self._catch_up()
        self.up = True

    # -- the way of a request ----------------------------------------------------------------

    def _encoded(self, attempt: Attempt) -> None:
        if attempt.lost:
            return
        self._catch_up()
        self._queue.append(attempt)
        self._go_on()

    def _go_on(self) -> None:
        """Does all that is due now, and plans the next time."""
        if not self._paused:
            self._reach_milestones()
            if self._prefill_end <= self._agenda.now:
                self._decode()
            while self._queue and self._has_room:
                self._prefill(self._queue.popleft())
        self._plan()

    @property
    def _has_room(self) -> bool:
        return self._prefilling is None and len(self._batch) < self.speed.max_running

    def _prefill(self, attempt: Attempt) -> None:
        call = attempt.call
        prompt = call.prompt_tokens
        # The last token is always computed: the first sampled one is drawn from it.
        length = prompt + attempt.sampled
        cached = min(length - 1, self.cache.match(call.prompt))
        # Whoever is admitted next begins after this prefill, so he may find all of it already.
        self.cache.add(call.prompt)
        if not attempt.admitted:
            attempt.admitted = True
            self.books.prompt_tokens += prompt
            self.books.cached_tokens += cached
        rate = self.speed.prefill_tokens_per_s
        self._prefilling = attempt
        self._prefill_end = self._agenda.now + ((length - cached) / rate if rate else 0.0)
        if self._prefill_end <= self._agenda.now:
            self._decode()

    def _decode(self) -> None:
        """The prompt that was being computed is done."""
        attempt = self._prefilling
        assert attempt is not None
        self._prefilling, self._prefill_end = None, inf
        self._batch[attempt.number] = attempt
        attempt.base = self._count - attempt.sampled
        self._expect(attempt)

    def _expect(self, attempt: Attempt) -> None:
        """Notes the count at which the attempt has its first token, or its last."""
        told = attempt.first_token_at >= 0
        tokens = attempt.call.answer_tokens if told else 1
        heappush(self._milestones, (attempt.base + tokens, attempt.number, attempt))

    def _reach_milestones(self) -> None:
        while self._milestones and self._milestones[0][0] <= self._count:
            attempt = heappop(self._milestones)[2]
            if attempt.first_token_at < 0:
                attempt.first_token_at = self._agenda.now
                if attempt.call.answer_tokens > 1:
                    self._expect(attempt)
                    continue
            self._finish(attempt)

    def _finish(self, attempt: Attempt) -> None:
        del self._batch[attempt.number], self._present[attempt.number]
        call = attempt.call
        self.books.output_tokens += call.answer_tokens
        # What was sampled last was never computed.
        self.cache.add(call.answer, call.answer.tokens - 1)
        self._ended(attempt)

    # -- losses -------------------------------------------------------------------------------

    def _retract(self) -> None:
        """Back to the front of the queue, in the order of admission."""
        running = self._empty_batch()
        if self._prefilling is not None:
            running.append(self._prefilling)
        self._prefilling, self._prefill_end = None, inf
        self._queue.extendleft(reversed(running))

    def _lose_all(self) -> None:
        self._empty_batch()
        self._prefilling, self._prefill_end = None, inf
        self._queue.clear()
        self._encoding.reset()
        present, self._present = self._present, {}
        for attempt in present.values():
            self._lose(attempt)

    def _empty_batch(self) -> list[Attempt]:
        """Ends the batch; its members, who know what they have, in the order of admission."""
        batch = list(self._batch.values())
        for attempt in batch:
            attempt.sampled = int(self._count - attempt.base + _SLACK)
        self._batch.clear()
        self._milestones.clear()
        return batch

    def _lose(self, attempt: Attempt) -> None:
        attempt.lost = True
        self.books.lost_tokens += attempt.sampled
        self._ended(attempt)

    # -- time -----------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Brings count and books up to now. Must come before any change."""
        now = self._agenda.now
        passed = now - self._since
        self._since = now
        if self._paused:
            return
        if self._prefilling is not None:
            self.books.prefill_s += passed
        if self._prefilling is not None or self._batch:
            self.books.busy_s += passed
        self._count += passed / self._period
        if now >= self._milestone_at:
            # Rounding must not hide what was planned for this very moment.
            self._count = max(self._count, self._milestones[0][0])

    def _plan(self) -> None:
        """Sets pace and alarm. Must come after any change."""
        self._period, self._milestone_at = self._pace(), inf
        if self._milestones and self._period < inf:
            left = self._milestones[0][0] - self._count
            self._milestone_at = self._agenda.now + left * self._period
        alarm = inf if self._paused else min(self._prefill_end, self._milestone_at)
        if alarm != self._alarm:
            self._alarm = alarm
            if alarm < inf:
                self._agenda.at(alarm, partial(self._ring, alarm))

    def _pace(self) -> float:
        """Seconds per token of each member of the batch; infinity while it stands still."""
        speed = self.speed
        stalled = self._prefilling is not None and speed.prefill_stops_decode
        if self._paused or stalled or not self._batch:
            return inf
        return speed.s_per_token + speed.s_per_token_per_other * (len(self._batch) - 1)

    def _ring(self, alarm: float) -> None:
        if alarm == self._alarm:
            self._alarm = inf
            self._catch_up()
            self._go_on()
