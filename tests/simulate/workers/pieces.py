"""The seam between a simulated worker and whoever carries its bytes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from tests.simulate.story import Sampled

__all__ = ["Account", "Answering", "Cut", "Data", "End", "Head", "Piece", "Raw", "Request", "Step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the worker reads it, whole. Header names are lower case."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


class Head(msgspec.Struct, frozen=True):
    """The head. Without ``streams`` it has the content-length of the whole body; with it, the
    body is to be sent in chunks."""

    status: int
    headers: tuple[tuple[str, str], ...]
    streams: bool


class Data(msgspec.Struct, frozen=True):
    """Bytes of the body; never empty."""

    data: bytes


class End(msgspec.Struct, frozen=True):
    """The message ends properly."""


class Cut(msgspec.Struct, frozen=True):
    """The connection breaks here."""


class Raw(msgspec.Struct, frozen=True):
    """Bytes for the connection as they are, which break HTTP's framing. A ``Cut`` follows."""

    data: bytes


Piece: TypeAlias = Head | Data | End | Cut | Raw


class Account(msgspec.Struct, frozen=True):
    """What a piece tells: of a sample, so many tokens in all, and perhaps its finish."""

    sampled: Sampled
    told: int
    finish: dict[str, Any] | None = None


class Step(msgspec.Struct, frozen=True):
    """A piece, what it tells, and how much later than now it goes out."""

    piece: Piece
    accounts: tuple[Account, ...] = ()
    delay_s: float = 0.0


class Answering:
    """One request being answered. The carrier takes ``pieces`` from the left."""

    __slots__ = ("_later", "ended", "hanging", "pieces", "rids", "wire")

    def __init__(self, wire: bytearray | None = None) -> None:
        self.pieces: deque[Piece] = deque()
        self.rids: tuple[str, ...] = ()
        self.wire = bytearray() if wire is None else wire
        """Every byte of the body that went out."""
        self.ended = False
        """The last piece is decided; nothing can be added."""
        self.hanging = False
        """A fault keeps it from ever ending."""
        self._later: deque[tuple[float, Step]] = deque()

    @property
    def next_deadline(self) -> float | None:
        """When the next late piece is due."""
        return self._later[0][0] if self._later else None

    def give(self, step: Step, now: float) -> bool:
        """Adds a piece behind all others; whether something can be taken now that could not."""
        if self.ended:
            return False
        self.ended = isinstance(step.piece, End | Cut)
        if self._later or step.delay_s:
            due = now + step.delay_s
            self._later.append((max(due, self._later[-1][0]) if self._later else due, step))
            return False
        self._out(step)
        return True

    def advance(self, now: float) -> bool:
        """Lets out what is due; whether anything was."""
        before = len(self._later)
        while self._later and self._later[0][0] <= now:
            self._out(self._later.popleft()[1])
        return len(self._later) < before

    def hurry(self) -> None:
        """Late pieces are due now."""
        self._later = deque((float("-inf"), step) for _, step in self._later)

    def cut(self) -> None:
        """The connection breaks now: what has not gone out is lost."""
        if self.ended and not self._later:
            return
        self._later.clear()
        self.ended = True
        self.pieces.append(Cut())

    def _out(self, step: Step) -> None:
        piece = step.piece
        self.pieces.append(piece)
        if isinstance(piece, Data):
            self.wire += piece.data
        for account in step.accounts:
            sampled = account.sampled
            sampled.told = max(sampled.told, account.told)
            if sampled.told_finish is None:
                sampled.told_finish = account.finish
