"""The seeded scheduler: the order of tasks is the seed's, and nothing stays switched."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import trio
from trio._core import _run

from tests.simulate.shell.scheduling import seeded


def _order(seed: int) -> list[int]:
    """In which order a crowd of tasks gets its turns."""
    turns: list[int] = []

    async def task(number: int) -> None:
        for _ in range(4):
            turns.append(number)
            await trio.lowlevel.checkpoint()

    async def crowd() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(task, number)

    with seeded(random.Random(seed)):
        trio.run(crowd)
    return turns


def test_one_seed_gives_one_order() -> None:
    assert _order(1) == _order(1)


def test_other_seeds_give_other_orders() -> None:
    assert len({tuple(_order(seed)) for seed in range(20)}) == 20


def test_afterwards_the_scheduler_is_as_before() -> None:
    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    _order(3)
    assert (_run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()) == before


@pytest.mark.parametrize(
    "moved",
    [
        SimpleNamespace(_r=random.Random()),
        SimpleNamespace(_ALLOW_DETERMINISTIC_SCHEDULING=False),
        SimpleNamespace(_ALLOW_DETERMINISTIC_SCHEDULING=False, _r=random),
    ],
    ids=["switch", "generator", "another generator"],
)
def test_names_that_have_moved_are_named(moved: SimpleNamespace) -> None:
    with (
        pytest.raises(RuntimeError, match="_ALLOW_DETERMINISTIC_SCHEDULING and _r"),
        seeded(random.Random(1), internals=moved),
    ):
        raise AssertionError("must not get here")
