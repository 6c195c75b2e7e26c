"""Answers in the making: events, heads, bodies, and what a fault must know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from slime_core import sse
from tests.simulate.story import Sampled, Story
from tests.simulate.workers.pieces import Account, Cut, Data, End, Head, Step

__all__ = [
    "CUT", "DONE", "END", "STREAM", "Event", "Surroundings", "data", "head_of", "whole",
    "whole_steps",
]  # fmt: skip

STREAM: Final = Head(200, (("content-type", "text/event-stream; charset=utf-8"),), streams=True)
"""The head of a stream."""
CUT: Final = Step(Cut())
END: Final = Step(End())
DONE: Final = Step(Data(sse.DONE))


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What the worker has to say of one sample: ``json``, the item's JSON, tells ``count`` tokens.

    ``number`` counts the events of the answer, from 0; ``last``: no other will follow.
    """

    json: bytes
    sampled: Sampled
    count: int
    finish: dict[str, Any] | None
    number: int
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a fault must know of its answer. ``abort`` aborts a request at the engine."""

    story: Story
    samples: Sequence[Sampled]
    incremental: bool
    other_rid: str
    vocabulary: int
    abort: Callable[[str], None]


def data(json: bytes) -> Data:
    """An event of a stream."""
    return Data(b"data: " + json + b"\n\n")


def head_of(status: int, size: int, kind: str = "application/json") -> Head:
    """The head of a whole answer."""
    headers = (("content-type", kind), ("content-length", str(size)))
    return Head(status, headers, streams=False)


def whole(items: Sequence[bytes], *, many: bool) -> bytes:
    """The body of an answer that is given at once."""
    return b"[" + b",".join(items) + b"]" if many else items[0]


def whole_steps(
    body: bytes,
    accounts: tuple[Account, ...] = (),
    *,
    status: int = 200,
    kind: str = "application/json",
) -> list[Step]:
    """A whole answer, its body in one piece."""
    head = Step(head_of(status, len(body), kind))
    return [head, Step(Data(body), accounts), END] if body else [head, END]
