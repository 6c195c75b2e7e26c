"""Misbehaviour on demand: what a router has to survive, spelt ``kind`` or ``kind:N``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

__all__ = ["KINDS", "Fault", "Faults", "parse_fault"]

KINDS: Final = {
    "refuse": False,
    "fail-first": True,
    "hang": False,
    "cut-stream": True,
    "truncate-json": False,
    "garbage": False,
    "abort": True,
}
"""Every kind, and whether it takes a number.

``refuse``: 503 to every generation. ``fail-first:N``: 500 to the first N. ``hang``: no answer,
ever. ``cut-stream:N``: the connection breaks after N events, without the end of the message.
``truncate-json``: a complete message with half a JSON value in it. ``garbage``: bytes that are no
JSON at all. ``abort:N``: the worker aborts each request once it has N tokens; one more follows, as
after any abort of a running request.
"""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of misbehaviour; ``number`` is 0 where the kind takes none."""

    kind: str
    number: int = 0


def parse_fault(text: str) -> Fault:
    """``kind`` or ``kind:N``. Raises ``argparse.ArgumentTypeError``, which is no ``ValueError``."""
    kind, _, number = text.partition(":")
    if kind not in KINDS:
        raise argparse.ArgumentTypeError(f"no such fault: {kind} (there are {', '.join(KINDS)})")
    if KINDS[kind] and not (number.isascii() and number.isdigit() and len(number) < 10):
        raise argparse.ArgumentTypeError(f"{kind} takes a number, as in {kind}:3")
    if not KINDS[kind] and number:
        raise argparse.ArgumentTypeError(f"{kind} takes no number")
    return Fault(kind, int(number or 0))


class Faults:
    """The faults in force, and how many generations have failed on purpose."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._faults: dict[str, int] = {}
        self._failures_left = 0
        self.replace(faults)

    def replace(self, faults: Iterable[Fault]) -> None:
        """From now on these and no others."""
        self._faults = {fault.kind: fault.number for fault in faults}
        self._failures_left = self._faults.get("fail-first", 0)

    def active(self, kind: str) -> bool:
        return kind in self._faults

    def number(self, kind: str) -> int | None:
        """The number of a fault in force, else ``None``."""
        return self._faults.get(kind)

    def take_failure(self) -> bool:
        """Whether this generation is one of the first N that fail; counts it if so."""
        if not self._failures_left:
            return False
        self._failures_left -= 1
        return True

    def spelt(self) -> list[str]:
        """The faults in force as they were given."""
        return [
            f"{kind}:{number}" if KINDS[kind] else kind for kind, number in self._faults.items()
        ]
