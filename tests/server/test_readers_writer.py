"""The readers–writer lock against a model of lists, cancelled anywhere, in any order."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from slime_trio.readers_writer import ReadersWriterLock
from tests.server.relay_support import AtStep, sweep

Kind = Literal["read", "write", "drain"]
KINDS: Final[tuple[Kind, ...]] = ("read", "write", "drain")


@dataclass
class Model:
    """Who waits and who is inside, by the rules as they are told, from lists."""

    kinds: dict[int, Kind] = field(default_factory=dict)
    queue: list[int] = field(default_factory=list)
    """Those that wait for their turn, in order of arrival."""
    turn: int | None = None
    """The writer whose turn it is."""
    inside: list[int] = field(default_factory=list)

    def comes(self, name: int, kind: Kind) -> None:
        self.kinds[name] = kind
        self.queue.append(name)
        self._settle()

    def goes(self, name: int) -> None:
        """It leaves, or is cancelled while it waits."""
        self.queue = [one for one in self.queue if one != name]
        self.inside = [one for one in self.inside if one != name]
        if self.turn == name:
            self.turn = None
        self._settle()

    def _settle(self) -> None:
        if self.turn is None:
            self.inside += [one for one in self.queue if self.kinds[one] == "read"]
            writers = [one for one in self.queue if self.kinds[one] != "read"]
            self.turn = writers[0] if writers else None
            self.queue = writers[1:]
        if self.turn is not None and self.turn not in self.inside:
            readers = [one for one in self.inside if self.kinds[one] == "read"]
            if self.kinds[self.turn] == "write" or not readers:
                self.inside.append(self.turn)


class Crowd:
    """Tasks that take a lock, and leave when told to."""

    def __init__(self, lock: ReadersWriterLock, nursery: trio.Nursery) -> None:
        self._lock = lock
        self._nursery = nursery
        self._leave: dict[int, trio.Event] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self.inside: list[int] = []

    def comes(self, name: int, kind: Kind) -> None:
        self._leave[name], self._scopes[name] = trio.Event(), trio.CancelScope()
        self._nursery.start_soon(self._visit, name, kind)

    def leaves(self, name: int) -> None:
        self._leave[name].set()

    def is_cancelled(self, name: int) -> None:
        self._scopes[name].cancel()

    async def _visit(self, name: int, kind: Kind) -> None:
        with self._scopes[name]:
            async with entering(self._lock, kind):
                self.inside.append(name)
                try:
                    await self._leave[name].wait()
                finally:
                    self.inside.remove(name)


def entering(lock: ReadersWriterLock, kind: Kind) -> Any:
    return lock.read() if kind == "read" else lock.write(drain=kind == "drain")


Step = tuple[Literal["come"], Kind] | tuple[Literal["leave", "cancel"], int]
STEPS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.sampled_from(KINDS)),
        st.tuples(st.sampled_from(["leave", "cancel"]), st.integers(0, 7)),
    ),
    max_size=30,
)


async def _played(steps: list[Step]) -> None:
    lock, model = ReadersWriterLock(), Model()
    async with trio.open_nursery() as nursery:
        crowd = Crowd(lock, nursery)
        for number, (what, which) in enumerate(steps):
            if isinstance(which, str):
                crowd.comes(number, which)
                await wait_all_tasks_blocked()
                model.comes(number, which)
            else:
                present = model.queue + model.inside
                if model.turn is not None and model.turn not in present:
                    present.append(model.turn)
                chosen = present[which % len(present)] if present else None
                if chosen is None or (what == "leave" and chosen not in model.inside):
                    continue
                (crowd.leaves if what == "leave" else crowd.is_cancelled)(chosen)
                await wait_all_tasks_blocked()
                model.goes(chosen)
            assert sorted(crowd.inside) == sorted(model.inside)
            assert lock.is_written == (model.turn is not None)
            assert lock.readers == sum(model.kinds[one] == "read" for one in model.inside)
        nursery.cancel_scope.cancel()
    assert (lock.readers, lock.is_written, lock.waiting) == (0, False, 0)


@given(steps=STEPS)
def test_it_lets_in_whom_the_model_lets_in(steps: list[Step]) -> None:
    trio.run(_played, steps)


# -- many tasks at once, without waiting for each other --------------------------------------


@dataclass(frozen=True)
class Visit:
    """Comes after ``before`` checkpoints, stays for ``within``, is cancelled after ``until``."""

    kind: Kind
    before: int
    within: int
    until: int | None


VISITS: Final = st.lists(
    st.builds(
        Visit,
        kind=st.sampled_from(KINDS),
        before=st.integers(0, 4),
        within=st.integers(0, 3),
        until=st.none() | st.integers(0, 6),
    ),
    max_size=12,
)


class Witness:
    """Sees who is inside, and that nobody is who must not be."""

    def __init__(self) -> None:
        self.inside: list[Kind] = []
        self.entered = 0

    def enters(self, kind: Kind) -> None:
        writers = [one for one in self.inside if one != "read"]
        if kind == "read" or kind == "write":
            assert not writers
        else:
            assert not self.inside
        self.inside.append(kind)
        self.entered += 1


async def _steps(number: int) -> None:
    for _ in range(number):
        await trio.lowlevel.checkpoint()


async def _visits(lock: ReadersWriterLock, visit: Visit, witness: Witness) -> None:
    await _steps(visit.before)
    async with entering(lock, visit.kind):
        witness.enters(visit.kind)
        try:
            await _steps(visit.within)
        finally:
            witness.inside.remove(visit.kind)


async def _crowded(visits: list[Visit]) -> None:
    lock, witness = ReadersWriterLock(), Witness()

    async def cancel_after(scope: trio.CancelScope, steps: int) -> None:
        await _steps(steps)
        scope.cancel()

    async def one(visit: Visit) -> None:
        async with trio.open_nursery() as nursery:
            if visit.until is not None:
                nursery.start_soon(cancel_after, nursery.cancel_scope, visit.until)
            await _visits(lock, visit, witness)
            nursery.cancel_scope.cancel()

    # A lost wake-up hangs, which ends the virtual time.
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            for visit in visits:
                nursery.start_soon(one, visit)
    assert witness.entered >= sum(visit.until is None for visit in visits)
    assert (lock.readers, lock.is_written, lock.waiting) == (0, False, 0)


@given(visits=VISITS)
def test_whoever_is_not_cancelled_gets_in_and_none_beside_whom_they_exclude(
    visits: list[Visit],
) -> None:
    trio.run(_crowded, visits, clock=MockClock(autojump_threshold=0))


# -- cancelled at each step --------------------------------------------------------------------


async def _one_cancelled(kind: Kind, beside: tuple[Kind, ...], at: int) -> AtStep:
    lock, witness = ReadersWriterLock(), Witness()
    scope = trio.CancelScope()
    instrument = AtStep(at, scope.cancel)

    async def victim() -> None:
        instrument.task = trio.lowlevel.current_task()
        with scope:
            await _visits(lock, Visit(kind, before=1, within=2, until=None), witness)

    with instrument.watching(), trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            for before, other in enumerate(beside):
                visit = Visit(other, before=before, within=3, until=None)
                nursery.start_soon(_visits, lock, visit, witness)
            nursery.start_soon(victim)
    assert witness.entered >= len(beside)
    assert (lock.readers, lock.is_written, lock.waiting) == (0, False, 0)
    return instrument


@pytest.mark.parametrize(
    "beside",
    [(), ("read",), ("drain",), ("write", "read"), ("read", "drain", "read"), ("drain",) * 3],
)
@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_at_any_step_it_keeps_nobody_out(kind: Kind, beside: tuple[Kind, ...]) -> None:
    assert sweep(functools.partial(_one_cancelled, kind, beside)) > 3


# -- single rules ------------------------------------------------------------------------------


async def test_a_writer_that_does_not_drain_is_inside_beside_readers() -> None:
    lock = ReadersWriterLock()
    async with lock.read(), lock.write(drain=False):
        assert (lock.readers, lock.is_written) == (1, True)


async def test_a_writer_may_bound_its_wait_for_readers(autojump_clock: MockClock) -> None:
    lock = ReadersWriterLock()
    async with lock.read(), lock.write(drain=False):
        with trio.move_on_after(1) as scope:
            await lock.drained()
        assert scope.cancelled_caught
    async with lock.write(drain=True):
        assert lock.readers == 0


async def test_entering_is_a_checkpoint_for_readers_and_writers() -> None:
    lock = ReadersWriterLock()
    for kind in KINDS:
        with trio.testing.assert_checkpoints():
            async with entering(lock, kind):
                pass


async def test_it_tells_how_many_wait_and_what_it_is() -> None:
    lock = ReadersWriterLock()
    async with trio.open_nursery() as nursery:
        async with lock.write(drain=False):
            crowd = Crowd(lock, nursery)
            for name, kind in enumerate(KINDS):
                crowd.comes(name, kind)
            await wait_all_tasks_blocked()
            assert lock.waiting == 3
            assert repr(lock) == "<ReadersWriterLock written readers=0 waiting=3>"
        nursery.cancel_scope.cancel()


# -- readers that wait elsewhere ---------------------------------------------------------------


class Queue:
    """Readers that get in synchronously, and otherwise wait until the lock calls."""

    def __init__(self, lock: ReadersWriterLock) -> None:
        self._lock = lock
        self.waiting = self.inside = 0
        lock.opened = self._opened

    def comes(self) -> None:
        self.waiting += 1
        self._opened()

    def leaves(self) -> None:
        self.inside -= 1
        self._lock.end_reading()

    def _opened(self) -> None:
        while self.waiting and self._lock.begin_reading():
            self.waiting -= 1
            self.inside += 1


async def test_readers_that_wait_elsewhere_get_in_before_the_next_writer() -> None:
    lock = ReadersWriterLock()
    queue = Queue(lock)
    async with trio.open_nursery() as nursery:
        crowd = Crowd(lock, nursery)
        async with lock.write(drain=False):
            crowd.comes(1, "drain")
            await wait_all_tasks_blocked()
            queue.comes()
            assert (queue.waiting, queue.inside) == (1, 0)
        assert (queue.waiting, queue.inside) == (0, 1)
        await wait_all_tasks_blocked()
        queue.comes()
        assert (queue.waiting, crowd.inside) == (1, [])
        queue.leaves()
        await wait_all_tasks_blocked()
        assert crowd.inside == [1]
        crowd.leaves(1)
    assert (queue.waiting, queue.inside) == (0, 1)


async def test_a_writer_cancelled_while_others_enter_leaves_nobody_waiting() -> None:
    lock = ReadersWriterLock()
    queue = Queue(lock)
    async with trio.open_nursery() as nursery:
        crowd = Crowd(lock, nursery)
        async with lock.write(drain=False):
            crowd.comes(1, "read")
            crowd.comes(2, "write")
            await wait_all_tasks_blocked()
        # The reader is let in, and has not begun: the writer still waits.
        queue.comes()
        assert (queue.waiting, queue.inside) == (1, 0)
        crowd.is_cancelled(2)
        await wait_all_tasks_blocked()
        assert (queue.waiting, queue.inside, crowd.inside) == (0, 1, [1])
        crowd.leaves(1)
