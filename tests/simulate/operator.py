"""What befalls a fleet: new weights, pauses, crashes, workers that come and go, bad links.

A timeline is drawn before the run, each action from a generator of its own name and number, so
that leaving one out moves no other. Performing an action marks it, provided it changed anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Final

from slime_core.engine import PauseMode
from tests.simulate.chance import derive
from tests.simulate.story import Story
from tests.simulate.workers.desk import epoch_of
from tests.simulate.workers.worker import SimWorker

__all__ = ["ACTION_KINDS", "LINK_KINDS", "Action", "Conditions", "Operator", "Rates", "draw"]

Rates = Sequence[tuple[str, float]]
"""Kinds, each with how often it happens in a run."""

ACTION_KINDS: Final = (
    "update",
    "update_one",
    "update_paused",
    "update_aborting",
    "pause_abort",
    "pause_retract",
    "pause_in_place",
    "crash",
    "crash_old_weights",
    "remove",
    "abort_all",
    "flush",
    "start_over",
    "clock_jump",
)
"""What can be done to workers.

``update``: new weights for all, one after the other, in mid-generation, and sometimes one worker
is left behind for long. ``update_one``: only one worker gets them. ``update_paused``: all are
paused, flushed, updated, continued. ``update_aborting``: what runs is aborted first. ``crash…``: a
worker ends and later starts with an empty cache and the current or its first weights. ``remove``:
it leaves the fleet and joins again. ``start_over``: a new training begins, and all workers hold its
first weights, which are those that they began with.
"""

LINK_KINDS: Final = ("refuse", "hang", "delay", "partition", "trickle", "clog", "reset")
"""What can happen to links. ``clog``: the links stop one after the other, and go on in another
order. ``reset``: every connection of a worker breaks."""

_TIMES: Final = 5
"""What lasts no time is done so often, as it does nothing to a worker that is idle."""

_PAUSES: Final = {
    "pause_abort": PauseMode.ABORT,
    "pause_retract": PauseMode.RETRACT,
    "pause_in_place": PauseMode.IN_PLACE,
}


@dataclass(slots=True, kw_only=True)
class Conditions:
    """A worker's links as they are now; the carriers look whenever it matters.

    ``refuse``: connecting fails at once; ``hang``: connecting takes for ever; ``delay_s``: bytes
    take so long; ``partitioned``: nothing arrives either way, and nothing is lost; ``trickle``: a
    few bytes at a time; ``resets``: how often all connections were broken.
    """

    refuse: bool = False
    hang: bool = False
    delay_s: float = 0.0
    partitioned: bool = False
    trickle: bool = False
    resets: int = 0

    def calm(self) -> None:
        """Everything is good again."""
        for field in fields(self):
            if field.name != "resets":
                setattr(self, field.name, field.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One step. ``kind`` is marked when it changed something; ``what`` is done to ``url``.

    ``version``: the weights of an update, the ``epoch``-th of the run (no worker goes back to an
    earlier one); ``old``: a restart with the first ones; ``seconds``: of a delay or a jump;
    ``mode``: of a pause; ``on``: a condition begins or ends.
    """

    kind: str
    what: str
    url: str = ""
    version: str = ""
    epoch: int = 1
    old: bool = False
    seconds: float = 0.0
    mode: PauseMode = PauseMode.ABORT
    on: bool = True


Timeline = list[tuple[float, Action]]


def draw(
    seed: int, *, urls: Sequence[str], until_s: float, actions: Rates = (), links: Rates = ()
) -> Timeline:
    """What happens up to ``until_s``, in order of time; versions count up from 2.

    Raises ``ValueError`` for a kind there is not.
    """
    timeline: Timeline = []
    for known, kinds in ((ACTION_KINDS, actions), (LINK_KINDS, links)):
        for kind, count in kinds:
            if kind not in known:
                raise ValueError(f"no such action: {kind}")
            for number in range(round(count)):
                chance = derive(seed, "operator", kind, number)
                steps = _steps(kind, chance, urls, until_s)
                timeline += [(min(at, until_s), action) for at, action in steps]
    timeline.sort(key=lambda step: step[0])
    return _numbered(timeline, derive(seed, "operator", "versions"))


def _numbered(timeline: Timeline, chance: Random) -> Timeline:
    """Each update's own mark becomes the next version in the order in which updates begin."""
    names: dict[str, tuple[str, int]] = {}
    numbered: Timeline = []
    for at, action in timeline:
        if action.version:
            if action.version not in names:
                epoch = len(names) + 2
                name = f"step-{epoch}" if chance.random() < 0.1 else str(epoch)
                names[action.version] = name, epoch
            name, epoch = names[action.version]
            action = replace(action, version=name, epoch=epoch)
        numbered.append((at, action))
    return numbered


def _steps(kind: str, chance: Random, urls: Sequence[str], until_s: float) -> Timeline:
    """One occurrence of a kind."""
    start, lasts = chance.uniform(0, until_s), until_s * chance.uniform(0.02, 0.4)
    url = chance.choice(urls)
    if kind.startswith("update"):
        return list(_update(kind, chance, urls, start, lasts))
    if kind in _PAUSES:
        pause = Action(kind=kind, what="pause", url=url, mode=_PAUSES[kind])
        return [(start, pause), (start + lasts, Action(kind="continue", what="continue", url=url))]
    if kind.startswith("crash"):
        old = kind == "crash_old_weights"
        restart = Action(kind="restart", what="restart", url=url, old=old)
        return [(start, Action(kind=kind, what="crash", url=url)), (start + lasts, restart)]
    if kind == "remove":
        return [
            (start, Action(kind=kind, what="remove", url=url)),
            (start + lasts, Action(kind="add", what="add", url=url)),
        ]
    if kind == "start_over":
        again = [Action(kind=kind, what=kind, url=one) for one in urls]
        return [(start + lasts * place / 20, one) for place, one in enumerate(again)]
    if kind == "clog":
        return list(_clog(chance, urls, start, lasts))
    if kind == "clock_jump":
        return [(start, Action(kind=kind, what=kind, seconds=10.0 ** chance.uniform(0, 3)))]
    if kind in ("abort_all", "flush", "reset"):
        once = Action(kind=kind, what=kind, url=url)
        return [(start + lasts * time / _TIMES, once) for time in range(_TIMES)]
    seconds = 0.01 * 500.0 ** chance.random()
    begin = Action(kind=kind, what=kind, url=url, seconds=seconds)
    return [(start, begin), (start + lasts, replace(begin, kind=f"{kind}_ends", on=False))]


def _update(
    kind: str, chance: Random, urls: Sequence[str], start: float, lasts: float
) -> Iterator[tuple[float, Action]]:
    """``start`` also names the version until it gets its number."""
    own, mode = f"{kind} {start}", chance.choice(list(PauseMode))
    order = chance.sample(list(urls), len(urls))
    late = chance.random() < 0.3
    for place, url in enumerate(order[:1] if kind == "update_one" else order):
        at = start + place * lasts / 20
        if late and place and place == len(order) - 1:
            at = start + lasts
        if kind == "update_paused":
            yield start, Action(kind="pause_for_update", what="pause", url=url, mode=mode)
            yield at, Action(kind="flush", what="flush", url=url)
            yield start + lasts, Action(kind="continue", what="continue", url=url)
        if kind == "update_aborting":
            yield at, Action(kind="abort_all", what="abort_all", url=url)
        yield at, Action(kind=kind, what="update", url=url, version=own)


def _clog(
    chance: Random, urls: Sequence[str], start: float, lasts: float
) -> Iterator[tuple[float, Action]]:
    count = chance.randint(1, len(urls))
    first = chance.sample(list(urls), count)
    second = chance.sample(first, count)
    for place, url in enumerate(first):
        at = start + lasts * place / (2 * count)
        yield at, Action(kind="clog", what="partition", url=url)
    for place, url in enumerate(second):
        at = start + lasts * (0.5 + (place + 1) / (2 * count))
        yield at, Action(kind="unclog", what="partition", url=url, on=False)


class Operator:
    """Performs a timeline on workers and the conditions of their links.

    The harness sets ``on_add`` and ``on_remove`` (a worker joins or leaves the router's fleet) and
    ``on_jump`` (the clock goes on by seconds, in which nobody did anything); actions that need one
    which is not set are left out. ``on_flush`` may be set to learn of caches that were
    emptied. Nothing happens after :meth:`heal`.
    """

    def __init__(
        self,
        workers: Mapping[str, SimWorker],
        conditions: Mapping[str, Conditions],
        *,
        story: Story,
        timeline: Timeline,
    ) -> None:
        self.workers = workers
        self.conditions = conditions
        self.timeline = timeline
        self.on_add: Callable[[str], None] | None = None
        self.on_remove: Callable[[str], None] | None = None
        self.on_jump: Callable[[float], None] | None = None
        self.on_flush: Callable[[str], None] | None = None
        self._story = story
        self._first = {url: worker.version for url, worker in workers.items()}
        self._current = dict(self._first)
        self._epochs = dict.fromkeys(workers, 1)
        self._latest = next(iter(self._first.values()))
        self._latest_epoch = 1
        self._removed: dict[str, None] = {}
        self._healed = False

    def perform(self, action: Action, now: float) -> None:
        """Does one step, and marks it if that changed anything."""
        if not self._healed and _DOES[action.what](self, action, now):
            self._story.marks[f"operator:{action.kind}"] += 1

    def heal(self, now: float) -> None:
        """All workers live and are in the fleet, faultless and up to date; all links are good."""
        self._healed = True
        for conditions in self.conditions.values():
            conditions.calm()
        for worker in self.workers.values():
            if not worker.alive:
                worker.restart(now, self._latest)
            worker.update_version(self._latest)
            worker.heal(now)
        for url in self._removed:
            if self.on_add is not None:
                self.on_add(url)
        self._removed.clear()

    def next_version(self) -> str:
        """A name for weights that are newer than all that were given out."""
        return str(1 + max(self._latest_epoch, *self._epochs.values()))

    def level(self) -> None:
        """All workers get the newest weights."""
        for url, worker in self.workers.items():
            worker.update_version(self._latest)
            self._current[url] = self._latest

    def learn(self, url: str, version: str) -> None:
        """A worker was given weights by somebody else."""
        epoch = epoch_of(version)
        self._epochs[url] = max(self._epochs[url], epoch)
        self._current[url] = version
        if epoch >= self._latest_epoch:
            self._latest, self._latest_epoch = version, epoch

    # What can be done

    def _update(self, action: Action, now: float) -> bool:
        worker = self.workers[action.url]
        if action.epoch <= self._epochs[action.url]:
            return False
        self._epochs[action.url], self._current[action.url] = action.epoch, action.version
        if action.epoch >= self._latest_epoch:
            self._latest, self._latest_epoch = action.version, action.epoch
        if not worker.alive:
            return False
        worker.update_version(action.version)
        return True

    def _start_over(self, action: Action, now: float) -> bool:
        worker, first = self.workers[action.url], self._first[action.url]
        self._latest = self._current[action.url] = first
        changes = worker.alive and worker.version != first
        if changes:
            worker.update_version(first)
        return changes

    def _pause(self, action: Action, now: float) -> bool:
        worker = self.workers[action.url]
        if worker.alive:
            worker.pause(action.mode)
        return worker.alive

    def _continue(self, action: Action, now: float) -> bool:
        worker = self.workers[action.url]
        paused = worker.alive and worker.engine.paused is not None
        if paused:
            worker.resume()
        return paused

    def _crash(self, action: Action, now: float) -> bool:
        worker = self.workers[action.url]
        alive = worker.alive
        if alive:
            worker.crash(now)
        return alive

    def _restart(self, action: Action, now: float) -> bool:
        worker = self.workers[action.url]
        if worker.alive:
            return False
        versions = self._first if action.old else self._current
        worker.restart(now, versions[action.url])
        return True

    def _remove(self, action: Action, now: float) -> bool:
        if self.on_remove is None or action.url in self._removed:
            return False
        self._removed[action.url] = None
        self.on_remove(action.url)
        return True

    def _add(self, action: Action, now: float) -> bool:
        if self.on_add is None or action.url not in self._removed:
            return False
        del self._removed[action.url]
        self.on_add(action.url)
        return True

    def _abort_all(self, action: Action, now: float) -> bool:
        worker = self.workers[action.url]
        busy = worker.alive and not worker.engine.idle
        if busy:
            worker.engine.abort(everything=True)
        return busy

    def _flush(self, action: Action, now: float) -> bool:
        worker = self.workers[action.url]
        flushed = worker.alive and worker.engine.flush()
        if flushed and self.on_flush is not None:
            self.on_flush(action.url)
        return flushed

    def _reset(self, action: Action, now: float) -> bool:
        self.conditions[action.url].resets += 1
        return self.workers[action.url].reset(now)

    def _refuse(self, action: Action, now: float) -> bool:
        self.conditions[action.url].refuse = action.on
        return True

    def _hang(self, action: Action, now: float) -> bool:
        self.conditions[action.url].hang = action.on
        return True

    def _delay(self, action: Action, now: float) -> bool:
        self.conditions[action.url].delay_s = action.seconds if action.on else 0.0
        return True

    def _partition(self, action: Action, now: float) -> bool:
        self.conditions[action.url].partitioned = action.on
        return True

    def _trickle(self, action: Action, now: float) -> bool:
        self.conditions[action.url].trickle = action.on
        return True

    def _jump(self, action: Action, now: float) -> bool:
        if self.on_jump is None:
            return False
        self.on_jump(action.seconds)
        return True


_DOES: Final[Mapping[str, Callable[[Operator, Action, float], bool]]] = {
    "update": Operator._update,
    "pause": Operator._pause,
    "continue": Operator._continue,
    "crash": Operator._crash,
    "restart": Operator._restart,
    "remove": Operator._remove,
    "add": Operator._add,
    "abort_all": Operator._abort_all,
    "flush": Operator._flush,
    "start_over": Operator._start_over,
    "reset": Operator._reset,
    "refuse": Operator._refuse,
    "hang": Operator._hang,
    "delay": Operator._delay,
    "partition": Operator._partition,
    "trickle": Operator._trickle,
    "clock_jump": Operator._jump,
}
