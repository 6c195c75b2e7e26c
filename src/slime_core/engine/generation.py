"""The words of the engine: what is asked, what comes out step by step, what is remembered."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from slime_core.engine.sampling_params import SamplingParams

__all__ = [
    "Abort",
    "Emission",
    "Finish",
    "Generation",
    "Handover",
    "Length",
    "PauseMode",
    "Record",
    "Room",
    "RoomKey",
    "Score",
    "Span",
    "Stop",
    "finish_json",
]


class PauseMode(enum.Enum):
    """What a pause does to the requests that run (SGLang, ``/pause_generation``)."""

    ABORT = "abort"
    """They are aborted."""
    RETRACT = "retract"
    """They go back to the queue and are computed again later."""
    IN_PLACE = "in_place"
    """They stay where they are and wait."""


RoomKey = tuple[int, int]
"""A room's number, and which of the samples that share it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where the prompt of a generation changes hands: ``host`` and ``port`` are the prefill
    worker's; port ``None``: the usual one."""

    number: int
    sample: int = 0
    host: str = ""
    port: int | None = None

    @property
    def key(self) -> RoomKey:
        """Its name on both sides."""
        return self.number, self.sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One sample that is asked for.

    ``prompt_ids``: not empty. ``seed``: with the prompt, the position and the weight version, it
    determines every token. ``prompt_scores_from``: the first prompt position whose logprob is
    wanted, ``None`` for none. ``top``: how many alternatives to report per position. ``watched``:
    ids whose logprobs are wanted at every position. ``room``: of a pair of engines, where the
    prompt changes hands; an engine that is no part of a pair does not look at it.
    """

    rid: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    prompt_scores_from: int | None = None
    top: int = 0
    watched: tuple[int, ...] = ()
    room: Room | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One token and its logprob: the natural logarithm, rounded to single precision.

    ``logprob`` is ``None`` for the first token of a prompt, which nothing predicts, and for ids
    that cannot occur. ``top`` and ``watched`` hold (id, logprob) pairs.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float | None], ...] = ()
    watched: tuple[tuple[int, float | None], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What the decode side is told of a computed prompt: its first token, and the weight version
    that sampled it."""

    first: Score
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The output tokens ``start`` … ``end - 1`` were sampled under one weight version."""

    version: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Stop:
    """An end or stop token (an id), or a stop string or expression (its text)."""

    matched: int | str | None


@dataclass(frozen=True, slots=True)
class Length:
    """The limit of new tokens was reached."""

    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Aborted while it ran, while it waited (``queued``), or refused by the scheduler (with a
    ``status``, an HTTP code)."""

    message: str = "Aborted"
    queued: bool = False
    status: int | None = None
    kind: str | None = None


Finish = Stop | Length | Abort


def finish_json(finish: Finish) -> dict[str, Any]:
    """``meta_info.finish_reason`` as SGLang words it."""
    match finish:
        case Stop(matched):
            return {"type": "stop", "matched": matched}
        case Length(length):
            return {"type": "length", "length": length}
        case Abort(queued=True, message=message):
            return {"type": "abort", "message": message}
        case Abort(message=message, status=status, kind=kind):
            return {"type": "abort", "message": message, "status_code": status, "err_type": kind}


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """What one step of one request brought: the new tokens and the text that may be shown now.

    ``text`` is new text; the concatenation of all is the answer's text. ``prompt_scores`` come
    with the first emission only. ``spans`` and ``finish`` come with the last one.
    """

    rid: str
    tokens: tuple[Score, ...]
    text: str
    version: str
    cached_tokens: int
    retractions: int = 0
    prompt_scores: tuple[Score, ...] = ()
    finish: Finish | None = None
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What was sampled for a finished request, whether or not anybody asked to see it."""

    rid: str
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    spans: tuple[Span, ...]
    text: str
    finish: Finish
    seed: int
    params: SamplingParams
    cached_tokens: int
    scripted: bool

    @property
    def versions(self) -> tuple[str, ...]:
        """The weight version of every output token."""
        return tuple(span.version for span in self.spans for _ in range(span.start, span.end))
