"""What a worker can do wrong, and how one request comes by its fault.

A request has one fault at most. It is drawn for the number that the request has at its worker,
with one roll per kind whether or not the kind is live, so that switching a kind off changes only
the requests that it would have struck. What each kind does is in :mod:`tests.simulate.workers`.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["GENERATIONS", "NO_FAULTS", "PROBES", "STREAMS", "WHOLES", "Fault", "FaultKind",
           "FaultRates"]  # fmt: skip


class FaultKind(enum.Enum):
    """Every kind. "Strikes at event k": the k-th event, or the last one if there are fewer."""

    # Instead of a generation
    REFUSE = "refuse"
    """A 503, a 429 or a 502 in one of SGLang's wordings."""
    FAIL = "fail"
    """A 500, whose body may be JSON of three forms, HTML, empty, or no text at all."""
    QUEUE_FULL = "queue_full"
    """What SGLang says when its queue is full: a 503, or in a stream an aborted answer."""
    NO_HTTP = "no_http"
    """Bytes that are no HTTP response."""
    # The connection
    HANG = "hang"
    """No answer at all; the worker may be sampling."""
    HANG_DURING = "hang_during"
    """Nothing after k events; a whole answer: nothing after its head."""
    SLOW = "slow"
    """Every piece is late, or one of them very late."""
    DIE_BEFORE = "die_before"
    """The connection breaks before the head, after some sampling."""
    DIE_DURING = "die_during"
    """The connection breaks after k whole events; a whole answer: after a part of it."""
    DIE_MID_EVENT = "die_mid_event"
    """… in the middle of an event."""
    DIE_MID_CHARACTER = "die_mid_character"
    """… in the middle of a character of several bytes."""
    DIE_AFTER = "die_after"
    """… after the last event and before ``[DONE]``."""
    BAD_FRAMING = "bad_framing"
    """A content-length or a chunk size that is not true, or no number."""
    # A message that ends properly and is not whole
    END_EARLY = "end_early"
    """The stream ends properly after k events."""
    TRUNCATED = "truncated"
    """Half an event, or half the JSON, and a proper end."""
    NO_DONE = "no_done"
    """All events, no ``[DONE]``, and a proper end."""
    EMPTY_BODY = "empty_body"
    """A 200 without a body."""
    # The kind of message
    WRONG_STATUS = "wrong_status"
    """A good answer under a 500, a 404 or a 202."""
    WRONG_TYPE = "wrong_type"
    """Events called JSON, or JSON called an event stream."""
    NO_STREAM = "no_stream"
    """One JSON where a stream was asked for."""
    # The events of a stream
    DUPLICATED = "duplicated"
    """An event twice."""
    REORDERED = "reordered"
    """Two events in the wrong order."""
    DROPPED = "dropped"
    """An event is missing."""
    GARBAGE_EVENT = "garbage_event"
    """An event that is no JSON."""
    GARBAGE_BYTES = "garbage_bytes"
    """Bytes that are no event; a whole answer: no JSON."""
    COMMENTS = "comments"
    """Keep-alive comments before, between and behind events, which mean nothing."""
    HUGE = "huge"
    """An event, or answer, with much more in it than anybody asked for."""
    ERROR_EVENT = "error_event"
    """An error event after k events, then a proper end."""
    AFTER_DONE = "after_done"
    """An event behind ``[DONE]``."""
    # The JSON
    WRONG_JSON = "wrong_json"
    """Valid JSON of another shape."""
    NO_TEXT = "no_text"
    """``text`` is null, as from a worker that does not detokenise."""
    NO_IDS = "no_ids"
    """``output_ids`` is missing; the logprobs name the ids."""
    NO_LOGPROBS = "no_logprobs"
    """The logprobs are null, or missing."""
    NULL_LOGPROB = "null_logprob"
    """One logprob is null."""
    NAN_LOGPROB = "nan_logprob"
    """One logprob is a bare ``NaN``."""
    WRONG_LENGTHS = "wrong_lengths"
    """An id, or a logprob, too few or too many, or a count that is not theirs."""
    OTHER_IDS = "other_ids"
    """``output_ids`` and the logprobs do not name the same ids."""
    OUTSIDE_VOCABULARY = "outside_vocabulary"
    """An id that no token has; some of them no id can be."""
    NO_VERSION = "no_version"
    """No weight version is told."""
    WRONG_VERSION = "wrong_version"
    """Another weight version is told, throughout."""
    WRONG_SPANS = "wrong_spans"
    """The spans of the versions do not fit the tokens."""
    OTHER_RID = "other_rid"
    """The answer names another request."""
    OTHER_INDEX = "other_index"
    """An event names a sample that nobody asked for."""
    # The finish
    NO_FINISH = "no_finish"
    """The last event does not say that it is the last."""
    FINISH_TWICE = "finish_twice"
    """The last event comes twice."""
    FINISH_EARLY = "finish_early"
    """An event claims to be the last while the worker samples on, untold."""
    AFTER_FINISH = "after_finish"
    """An event claims to be the last, and tokens follow."""
    ABORTED = "aborted"
    """The worker aborts a generation after k events, and says so."""


_KINDS: Final = tuple(FaultKind)
_PLACES: Final = {kind: place for place, kind in enumerate(_KINDS)}
_ONLY_STREAMS: Final = frozenset(
    {
        FaultKind.DIE_AFTER, FaultKind.END_EARLY, FaultKind.NO_DONE, FaultKind.NO_STREAM,
        FaultKind.DUPLICATED, FaultKind.REORDERED, FaultKind.DROPPED, FaultKind.GARBAGE_EVENT,
        FaultKind.COMMENTS, FaultKind.ERROR_EVENT, FaultKind.AFTER_DONE, FaultKind.OTHER_INDEX,
        FaultKind.FINISH_TWICE, FaultKind.FINISH_EARLY, FaultKind.AFTER_FINISH,
    }
)  # fmt: skip
_ONLY_WHOLES: Final = frozenset({FaultKind.EMPTY_BODY})

GENERATIONS: Final = frozenset(FaultKind)
STREAMS: Final = GENERATIONS - _ONLY_WHOLES
"""What can happen to a streamed generation."""
WHOLES: Final = GENERATIONS - _ONLY_STREAMS
"""What can happen to a generation that is answered at once."""
PROBES: Final = frozenset(
    {
        FaultKind.REFUSE, FaultKind.FAIL, FaultKind.NO_HTTP, FaultKind.HANG, FaultKind.SLOW,
        FaultKind.DIE_BEFORE, FaultKind.DIE_DURING, FaultKind.BAD_FRAMING, FaultKind.TRUNCATED,
        FaultKind.EMPTY_BODY, FaultKind.GARBAGE_BYTES, FaultKind.WRONG_JSON,
    }
)  # fmt: skip
"""What can happen to a question about the worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One request's fault: its kind, and where and how it strikes.

    ``after`` is the number of events before it, ``fraction`` in [0, 1) the place within one,
    ``variant`` any number, of which each kind takes what it needs, ``delay_s`` a time.
    """

    kind: FaultKind
    after: int = 0
    fraction: float = 0.5
    variant: int = 0
    delay_s: float = 1.0


@dataclass(frozen=True, slots=True)
class FaultRates:
    """How probable each kind is; kinds not named do not occur.

    ``probes`` scales the probabilities for questions about the worker (0: those go well).
    """

    rates: Mapping[FaultKind, float] = field(default_factory=dict)
    probes: float = 0.0

    @property
    def live(self) -> tuple[FaultKind, ...]:
        """The kinds that can occur, in the order of the enumeration."""
        return tuple(kind for kind in FaultKind if self.rates.get(kind, 0.0) > 0.0)

    @classmethod
    def drawn(
        cls,
        chance: random.Random,
        *,
        live: float = 0.2,
        rate: tuple[float, float] = (0.02, 0.3),
        among: Iterable[FaultKind] = FaultKind,
    ) -> FaultRates:
        """First which kinds are live (each with probability ``live``), then how probable each is.

        Every kind of the enumeration takes two numbers, so leaving one out changes no other.
        """
        allowed = frozenset(among)
        rates: dict[FaultKind, float] = {}
        for kind in FaultKind:
            is_live, share = chance.random() < live, chance.random()
            if is_live and kind in allowed:
                rates[kind] = rate[0] + share * share * (rate[1] - rate[0])
        return cls(rates, probes=chance.random() ** 3)

    def draw(
        self, chance: random.Random, possible: frozenset[FaultKind], *, scale: float = 1.0
    ) -> Fault | None:
        """The fault of one request, or ``None``. ``possible`` are the kinds that apply to it."""
        rolls = [chance.random() for _ in _KINDS]
        after = min(int(chance.expovariate(0.35)), 40)
        fraction, variant = chance.random(), chance.randrange(1 << 16)
        delay_s = 0.05 * 2000.0 ** chance.random()
        struck = [
            place
            for kind, rate in self.rates.items()
            if rolls[place := _PLACES[kind]] < scale * rate and kind in possible
        ]
        if not struck:
            return None
        return Fault(
            kind=_KINDS[min(struck)],
            after=after,
            fraction=fraction,
            variant=variant,
            delay_s=delay_s,
        )


NO_FAULTS: Final = FaultRates()
