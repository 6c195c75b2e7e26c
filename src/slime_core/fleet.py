"""The fleet: workers, what occupies them, and whether they may get work.

The number of calls in flight is the size of a set, never a counter of its own, so it cannot drift.
Why a worker gets no work is likewise derived from what is known of it (:attr:`Worker.unfit`):
nobody sets it, so nobody can forget to unset it.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from slime_core.errors import InvariantError
from slime_core.health import JOINING, Condition, Health
from slime_core.logprob_kinds import LogprobKind
from slime_core.prefixes import PrefixMap
from slime_core.types import CallId, WorkerUrl

__all__ = ["KEYS_MOST", "Fleet", "Loads", "Worker", "WorkerKind"]

KEYS_MOST: Final = 2**16
"""Sessions and routing keys whose worker is remembered; those longest unused are forgotten."""
_KEY_BYTES: Final = 16


class WorkerKind(enum.Enum):
    """What a worker does, by the names that registrations use (``worker_type``)."""

    REGULAR = "regular"
    """Whole generations."""
    PREFILL = "prefill"
    """Prompts only; a decode worker goes on."""
    DECODE = "decode"
    """All but the prompt, which a prefill worker has computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """What a worker told of its load (SGLang's ``/v1/loads``, summed over its ranks).

    Requests ``running`` and ``waiting``; ``token_usage``: the part of its KV cache that is in use,
    0 to 1.
    """

    running: int
    waiting: int
    token_usage: float = 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """One worker: how it was registered, and what is known of it since."""

    url: WorkerUrl
    number: int
    """Counts workers in the order in which they joined."""
    id: str
    """Names it to operators; the URL if it was given none."""
    kind: WorkerKind = WorkerKind.REGULAR
    bootstrap_port: int | None = None
    """Of a prefill worker: where decode workers fetch what it computed."""
    extras: bytes = b"{}"
    """The rest of its registration, a JSON object that means nothing here."""
    health: Health = JOINING
    paused: bool = False
    """Whether its generation is paused: no sickness, but no work either."""
    mismatch: str | None = None
    """Why its answers could not be believed: another tokenizer than the router's."""
    leaving: bool = False
    version: str | None = None
    """The weights it was last known to hold."""
    confirmed: int = -1
    """When it told so itself: the fleet's sighting at which the poll began (``-1``: never, or in
    doubt since). See :mod:`slime_core.weights`."""
    stale: bool = False
    """Whether it is confirmed to hold weights too old to work with."""
    logprob_kind: LogprobKind = LogprobKind.UNKNOWN
    """What the logprobs are of that it tells."""
    reported: Loads | None = None
    in_flight: dict[CallId, None] = field(default_factory=dict)
    load_at_report: int = 0
    """Calls in flight when it reported its loads."""
    last_chosen: int = 0
    """When it last got work, on the fleet's own clock."""
    rank: tuple[int, int, int] = (0, 0, 0)
    """Its load, when it last got work, and its number: who has least to do has the least of these.
    Kept as a value because policies compare those of all workers for every call."""

    @property
    def load(self) -> int:
        """Calls in flight."""
        return len(self.in_flight)

    @property
    def unfit(self) -> str | None:
        """Why it gets no new work; ``None``: it does."""
        if self.leaving:
            return "being removed"
        if self.health.condition is Condition.JOINING:
            return "not contacted yet"
        if self.health.condition is Condition.QUARANTINED:
            return "in quarantine"
        if self.mismatch is not None:
            return self.mismatch
        if self.paused:
            return "paused"
        return "holds old weights" if self.stale else None

    @property
    def is_fit(self) -> bool:
        """Whether it may get new work."""
        return self.unfit is None

    @property
    def has_room(self) -> bool:
        """Whether one request more is within the allowance of its trial, if it is on trial."""
        return self.health.allowance is None or self.load < self.health.allowance

    @property
    def may_come(self) -> bool:
        """Whether, as things go, it will get work before long: it is worth waiting for."""
        if self.leaving or self.mismatch is not None:
            return False
        return self.health.condition is not Condition.QUARANTINED


class Fleet:
    """Workers by the very URL they were registered with, in the order of joining.

    ``homes``: which worker the calls of a session or routing key went to. ``prefixes``: what the
    workers are believed to hold in their caches.
    """

    def __init__(self, *, keys_most: int = KEYS_MOST) -> None:
        self.workers: Final[dict[WorkerUrl, Worker]] = {}
        self.prefixes: Final = PrefixMap()
        self.clock = 0
        self._homes: OrderedDict[bytes, WorkerUrl] = OrderedDict()
        self._keys_most = keys_most
        self._next = 1
        self._ready: dict[WorkerKind, tuple[Worker, ...]] = {}
        self._kinds: frozenset[WorkerKind] | None = None
        self._has_halves: bool | None = None

    @property
    def total_in_flight(self) -> int:
        """Calls in flight on all workers."""
        return sum(worker.load for worker in self.workers.values())

    def listed(self) -> list[Worker]:
        """The workers that have not been removed."""
        return [worker for worker in self.workers.values() if not worker.leaving]

    def fit(self) -> list[Worker]:
        """The workers that may get new work, in the order of joining."""
        return [worker for worker in self.workers.values() if worker.is_fit]

    def ready(self, kind: WorkerKind) -> tuple[Worker, ...]:
        """The workers of that kind that may get new work, in the order of joining; none while any
        of them is on trial, for then it depends on what each carries.

        Looked for only after something became known of a worker (:meth:`revised`).
        """
        found = self._ready.get(kind)
        if found is None:
            fit = [one for one in self.workers.values() if one.kind is kind and one.is_fit]
            on_trial = any(one.health.allowance is not None for one in fit)
            found = self._ready[kind] = () if on_trial else tuple(fit)
        return found

    @property
    def kinds(self) -> frozenset[WorkerKind]:
        """The kinds of workers that have not been removed; remembered likewise."""
        if self._kinds is None:
            self._kinds = frozenset(one.kind for one in self.listed())
        return self._kinds

    @property
    def has_halves(self) -> bool:
        """Whether any of them is half of a pair; remembered likewise."""
        if self._has_halves is None:
            self._has_halves = not self.kinds <= {WorkerKind.REGULAR}
        return self._has_halves

    def revised(self) -> None:
        """Something that decides who may get work is another: said by whoever changes a worker."""
        self._ready, self._kinds, self._has_halves = {}, None, None

    def get(self, url: WorkerUrl) -> Worker:
        """The worker of that URL. Raises ``InvariantError``."""
        worker = self.workers.get(url)
        if worker is None:
            raise InvariantError(f"no such worker: {url}")
        return worker

    def named(self, name: str) -> Worker | None:
        """The worker of that id or URL that has not been removed, if there is one."""
        return next((one for one in self.listed() if name in (one.id, one.url)), None)

    def home(self, key: str) -> WorkerUrl | None:
        """Where the last call of that session or routing key went, if it is remembered."""
        return self._homes.get(_short(key))

    def add(
        self,
        url: WorkerUrl,
        *,
        id: str = "",
        kind: WorkerKind = WorkerKind.REGULAR,
        bootstrap_port: int | None = None,
        extras: bytes = b"{}",
    ) -> None:
        """A worker joins, or is registered anew: then all but its id and its state is replaced.

        One that was leaving stays after all. Raises ``InvariantError`` if another has that id.
        """
        worker = self.workers.get(url)
        if worker is None:
            name = id or url
            if any(one.id == name for one in self.workers.values()):
                raise InvariantError(f"two workers with one id: {name}")
            worker = self.workers[url] = Worker(url=url, number=self._next, id=name)
            worker.rank = (0, 0, self._next)
            self._next += 1
        worker.leaving = False
        worker.kind, worker.bootstrap_port, worker.extras = kind, bootstrap_port, extras
        self.revised()

    def remove(self, url: WorkerUrl) -> None:
        """A worker leaves: at once if idle, else with its last call."""
        worker = self.workers.get(url)
        if worker is not None:
            worker.leaving = True
            self.revised()
            self.prefixes.forget(url)
            self._drop_if_done(worker)

    def set_health(self, url: WorkerUrl, health: Health) -> None:
        """A worker's health is another; one that is gone stays gone.

        What is put into quarantine may be another process when it returns.
        """
        worker = self.workers.get(url)
        if worker is None:
            return
        worker.health = health
        self.revised()
        if health.condition is Condition.QUARANTINED:
            worker.reported, worker.confirmed = None, -1
            worker.logprob_kind = LogprobKind.UNKNOWN
            self.prefixes.forget(url)

    def set_paused(self, url: WorkerUrl, paused: bool) -> None:
        """A worker's generation was paused, or goes on."""
        worker = self.workers.get(url)
        if worker is not None:
            worker.paused = paused
            self.revised()

    def set_mismatch(self, url: WorkerUrl, mismatch: str | None) -> None:
        """A worker was found to be none of ours, or one of ours."""
        worker = self.workers.get(url)
        if worker is not None:
            worker.mismatch = mismatch
            self.revised()

    def set_logprob_kind(self, url: WorkerUrl, kind: LogprobKind) -> None:
        """It was found out what a worker's logprobs are of."""
        worker = self.workers.get(url)
        if worker is not None:
            worker.logprob_kind = kind

    def set_loads(self, url: WorkerUrl, loads: Loads) -> None:
        """A worker told of its load."""
        worker = self.workers.get(url)
        if worker is not None:
            worker.reported, worker.load_at_report = loads, worker.load

    def flushed(self, url: WorkerUrl) -> None:
        """A worker's prefix cache is empty."""
        self.prefixes.forget(url)

    def take(
        self,
        url: WorkerUrl,
        calls: tuple[CallId, ...],
        key: str | None = None,
        pages: tuple[bytes, ...] = (),
    ) -> None:
        """``calls`` occupy the worker from now on; ``key`` is at home there, ``pages`` in its
        cache."""
        worker = self.get(url)
        for call in calls:
            if call in worker.in_flight:
                raise InvariantError("a call takes its slot once")
            worker.in_flight[call] = None
        self.clock += 1
        worker.last_chosen = self.clock
        worker.rank = (len(worker.in_flight), self.clock, worker.number)
        self.prefixes.note(url, pages)
        if key is not None:
            self._settle(_short(key), url)

    def _settle(self, key: bytes, url: WorkerUrl) -> None:
        self._homes[key] = url
        self._homes.move_to_end(key)
        if len(self._homes) > self._keys_most:
            self._homes.popitem(last=False)

    def give(self, url: WorkerUrl, calls: tuple[CallId, ...]) -> None:
        """``calls`` occupy the worker no longer."""
        worker = self.get(url)
        for call in calls:
            if call not in worker.in_flight:
                raise InvariantError("a slot that was not taken cannot be given back")
            del worker.in_flight[call]
        worker.rank = (len(worker.in_flight), worker.last_chosen, worker.number)
        self._drop_if_done(worker)

    def _drop_if_done(self, worker: Worker) -> None:
        if worker.leaving and not worker.in_flight:
            del self.workers[worker.url]
            self.revised()

    def facts(self) -> tuple[object, ...]:
        """What a digest of the state includes."""
        return (
            tuple(_facts_of(self.workers.values())),
            tuple(self._homes.items()),
            self.prefixes.facts(),
        )


def _facts_of(workers: Iterable[Worker]) -> Iterable[object]:
    for one in workers:
        registered = (one.url, one.number, one.id, one.kind.value, one.bootstrap_port, one.extras)
        state = one.health
        times = (state.failures, state.quarantines, state.until, state.allowance)
        weights = (one.version, one.confirmed, one.stale)
        judged = (one.paused, one.mismatch, one.leaving, one.logprob_kind.value)
        loads = (one.reported, one.load_at_report, tuple(one.in_flight), one.last_chosen)
        yield registered, state.condition.value, times, weights, judged, loads


def _short(key: str) -> bytes:
    """Keys are the clients' own and of any length."""
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()
