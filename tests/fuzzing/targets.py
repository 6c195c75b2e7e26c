"""What a target is, and how rounds of it are run and told."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from tests.simulate.chance import derive

__all__ = ["Register", "Target", "given", "run_round", "run_rounds"]

Target = Callable[[random.Random], None]
"""Makes one input from the generator, and raises whatever is not as it must be."""

_SHOWN: Final = 2000


class Register:
    """Targets by name, in the order in which they were written."""

    def __init__(self) -> None:
        self._targets: dict[str, Target] = {}

    @property
    def targets(self) -> Mapping[str, Target]:
        """All of them."""
        return MappingProxyType(self._targets)

    def __call__(self, target: Target) -> Target:
        """Note a target under its function's name."""
        self._targets[target.__name__] = target
        return target


@contextmanager
def given(**inputs: object) -> Iterator[None]:
    """Have what goes wrong in here tell what it was given."""
    try:
        yield
    except BaseException as error:  # a library's panic is no Exception
        for name, value in inputs.items():
            error.add_note(f"{name}: {_shown(value)}")
        raise


def _shown(value: object) -> str:
    words = repr(value)
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}… ({len(words)} characters)"


def run_round(name: str, target: Target, seed: int, number: int) -> None:
    """One round. What it raises names the command that repeats it."""
    try:
        target(derive(seed, name, number))
    except BaseException as error:
        error.add_note(
            f"again: python -m tests.fuzzing --target {name} --seed {seed} --round {number}"
        )
        raise


def run_rounds(name: str, target: Target, *, seed: int, rounds: int) -> None:
    """Rounds 0, 1, … of one target."""
    for number in range(rounds):
        run_round(name, target, seed, number)
