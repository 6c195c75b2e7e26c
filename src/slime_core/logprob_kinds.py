"""Which logprobs a worker tells: of the very distribution it draws from, or of another.

Importance ratios need the logprob under which a token was drawn. At temperature 1 without any cut
all kinds are one; elsewhere engines differ, by version and by switches of their own, and none says
which it is. So it is found out: a worker is asked for single tokens under settings in which the
kinds must differ, and what cannot be told apart stays *unknown*. Nothing is guessed.

Three askings with the same prompt are one experiment: *plain* (temperature 1, nothing cut), *warm*
(temperature 2) and *cut* (so small a ``top_p`` that one token is left). With temperature 2 the gap
between the two likeliest tokens is halved where the temperature counts; with one token left its
logprob is 0 where the cut counts.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from slime_core.errors import WorkerError

__all__ = [
    "EXPERIMENTS",
    "LogprobKind",
    "Seen",
    "experiment",
    "judge",
    "parse_probe",
    "together",
]


class LogprobKind(enum.Enum):
    """What a worker's logprobs are of."""

    SAMPLING = "sampling"
    """The very distribution that tokens are drawn from."""
    TEMPERED = "tempered"
    """The model's with the temperature, before top-k, top-p and min-p cut its tail."""
    RAW = "raw"
    """The model's, at temperature 1, whatever the request says."""
    UNKNOWN = "unknown"
    """It could not be told, or nobody asked."""


_PROMPTS: Final = ("The", "Once upon a time", "1, 2, 3,", "What")
EXPERIMENTS: Final = len(_PROMPTS)
"""How many experiments there are; the first that tells anything is enough."""

_WARM: Final = 2.0
_CUT: Final = 1e-4
_GAP_LEAST: Final = 0.3
"""Gaps below it drown in what a batch or a lower precision does to logits."""
_DOUBT_LEAST: Final = 0.1
"""A token more certain than this has a logprob near 0 with and without the cut."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One token: its logprob, and those of the two likeliest tokens, likeliest first."""

    logprob: float
    first: float
    second: float


def experiment(number: int) -> tuple[bytes, bytes, bytes]:
    """The bodies of ``POST /generate`` of one experiment: plain, warm and cut."""
    prompt = _PROMPTS[number]
    return (_body(prompt), _body(prompt, temperature=_WARM), _body(prompt, top_p=_CUT))


def _body(prompt: str, **more: float) -> bytes:
    params = {"max_new_tokens": 1, "temperature": 1.0, "top_p": 1.0, "ignore_eos": True} | more
    body = {
        "text": prompt,
        "sampling_params": params,
        "return_logprob": True,
        "top_logprobs_num": 2,
    }
    return msgspec.json.encode(body)


class _Meta(msgspec.Struct):
    output_token_logprobs: list[tuple[float | None, Any, Any]]
    output_top_logprobs: list[list[tuple[float | None, Any, Any]] | None]


class _Answer(msgspec.Struct):
    meta_info: _Meta


def parse_probe(body: bytes) -> Seen:
    """What one asking was answered with. Raises ``WorkerError`` if it does not tell.

    Behind a cut there may be one token only; its second is infinitely unlikely.
    """
    try:
        meta = msgspec.json.decode(body, type=_Answer).meta_info
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WorkerError("the worker tells no logprobs of likely tokens") from error
    own = [triple[0] for triple in meta.output_token_logprobs[:1]]
    top = [triple[0] for triples in meta.output_top_logprobs[:1] for triple in triples or ()]
    if not own or own[0] is None or not top or top[0] is None:
        raise WorkerError("the worker tells no logprobs of likely tokens")
    second = top[1] if len(top) > 1 else None
    return Seen(own[0], top[0], float("-inf") if second is None else second)


def judge(plain: Seen, warm: Seen, cut: Seen) -> LogprobKind:
    """What one experiment shows."""
    gap, warm_gap = plain.first - plain.second, warm.first - warm.second
    if not _GAP_LEAST <= gap < float("inf") or plain.first > -_DOUBT_LEAST:
        return LogprobKind.UNKNOWN
    is_raw = _is_near(warm_gap, gap, within=gap / 8)
    is_tempered = _is_near(warm_gap, gap / _WARM, within=gap / 8)
    is_whole = _is_near(cut.logprob, plain.first, within=-plain.first / 4)
    is_cut = _is_near(cut.logprob, 0.0, within=-plain.first / 4)
    if is_raw and is_whole:
        return LogprobKind.RAW
    if is_tempered and is_whole:
        return LogprobKind.TEMPERED
    return LogprobKind.SAMPLING if is_tempered and is_cut else LogprobKind.UNKNOWN


def _is_near(value: float, wanted: float, *, within: float) -> bool:
    return abs(value - wanted) <= within


def together(kinds: Sequence[LogprobKind]) -> str | None:
    """One word for the answers of a trajectory: ``mixed`` if they differ, ``None`` without any."""
    words = {kind.value for kind in kinds}
    if len(words) > 1:
        return "mixed"
    return words.pop() if words else None
