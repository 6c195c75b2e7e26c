"""What can be chosen about the demonstration."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["DemoOptions", "add_arguments", "options_from"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Sizes of the demonstration. A group is one question, asked by ``siblings`` rollouts at
    once, as GRPO does; ``seed`` chooses questions and samples."""

    groups: int = 6
    siblings: int = 4
    turns: int = 3
    max_tokens: int = 48
    seed: int = 0
    keep_running: bool = False

    @property
    def rollouts(self) -> int:
        """How many there are in all."""
        return self.groups * self.siblings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``slime-router demo`` to a parser."""
    standard = DemoOptions()
    add = parser.add_argument
    add("--groups", type=_between(1, 64), default=standard.groups, help="questions asked")
    add(
        "--siblings",
        type=_between(1, 32),
        default=standard.siblings,
        help="rollouts that sample the same question at once",
    )
    add("--turns", type=_between(1, 16), default=standard.turns, help="turns of a rollout")
    add(
        "--max-tokens",
        type=_between(1, 512),
        default=standard.max_tokens,
        metavar="N",
        help="longest answer",
    )
    add(
        "--seed",
        type=_between(0, 2**31 - 1),
        default=standard.seed,
        help="chooses questions and samples",
    )
    add(
        "--keep-running",
        action="store_true",
        help="leave the servers up afterwards and print requests to try, until Ctrl-C",
    )


def options_from(args: argparse.Namespace) -> DemoOptions:
    """The parsed arguments as a value."""
    return DemoOptions(**{name: getattr(args, name) for name in DemoOptions.__dataclass_fields__})


def _between(least: int, most: int) -> Callable[[str], int]:
    def number(word: str) -> int:
        value = int(word)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {least} to {most}")
        return value

    return number
