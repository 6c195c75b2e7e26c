"""The book of pauses against a list of what was told and answered."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from slime_core.types import WorkerUrl
from slime_trio.control.pauses import Pause, Pauses

WORKER: Final = WorkerUrl("w")
LEASES: Final = st.sampled_from([5.0, 10.0, 20.0])
STEPS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), LEASES),
        st.tuples(st.sampled_from(["hold", "refuse", "leave"]), st.integers(0, 5)),
        st.tuples(st.sampled_from(["continue", "release", "resume", "wait"]), st.just(0)),
    ),
    max_size=25,
)


@dataclass
class Told:
    """One pause that was told: ``until`` is infinite while it is not answered."""

    entry: Pause
    lease_s: float
    until: float = math.inf
    is_left: bool = False


@dataclass
class Model:
    """The pauses since the worker last went on, oldest first; the last one that counts decides."""

    now: float = 0.0
    told: list[Told] = field(default_factory=list)
    released: bool = False

    @property
    def is_paused(self) -> bool:
        return bool(self.told)

    @property
    def until(self) -> float:
        return self.told[-1].until if self.told else math.inf

    def answered(self, one: Told) -> None:
        """A pause that nobody wants counts only where no other is below it."""
        if one not in self.told:
            return
        one.until = self.now + (0.0 if one.is_left else one.lease_s)
        if one.is_left and self.told[0] is not one:
            self.told.remove(one)

    def left(self, one: Told) -> None:
        one.is_left = True
        if one.until != math.inf:
            self.answered(one)


def _step(book: Pauses, model: Model, every: list[Told], what: str, which: float) -> None:
    now = model.now
    match what:
        case "begin":
            one = Told(book.begin(WORKER, which), which)
            every.append(one)
            model.told.append(one)
        case "continue":
            book.end(WORKER)
            model.told.clear()
        case "release":
            book.release(WORKER, ["weights"])
            model.released = True
        case "resume":
            book.resume(WORKER, ["weights"])
            model.released = False
        case "wait":
            model.now += 1.0
        case _:
            if not every:
                return
            one = every[int(which) % len(every)]
            if what == "leave":
                book.abandon([one.entry], now)
                model.left(one)
            elif one.until == math.inf and what == "hold":
                book.hold(one.entry, now)
                model.answered(one)
            elif one.until == math.inf:
                book.withdraw(one.entry)
                one.until = now
                model.told = [other for other in model.told if other is not one]


@given(STEPS)
def test_the_book_is_what_was_told_and_answered(steps: list[tuple[str, float]]) -> None:
    said: list[bool] = [False]
    book, model = Pauses(lambda _, paused: said.append(paused)), Model()
    every: list[Told] = []
    for what, which in steps:
        _step(book, model, every, what, which)
        assert book.is_stopped(WORKER) == (model.is_paused or model.released)
        assert said[-1] == book.is_stopped(WORKER)
        assert bool(book.paused) == model.is_paused
        assert book.next_deadline == model.until
        assert bool(book.due(model.now)) == (model.until <= model.now)


def test_pauses_that_were_refused_in_any_order_leave_nothing() -> None:
    for order in itertools.permutations(range(4)):
        book = Pauses(lambda _worker, _paused: None)
        told = [book.begin(WORKER, 5.0) for _ in range(4)]
        for number in order:
            book.withdraw(told[number])
        assert not book.is_stopped(WORKER)
