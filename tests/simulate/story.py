"""What happened in one run, in one order: the common ground of world, harnesses and oracles.

Nothing here knows a rule. Agents fill :class:`Exchange`, workers :class:`Sampled`, the router's
observer :class:`Committed`, trainers :class:`Delivered`; every entry has a number from
:meth:`Story.tick`, so that "before" and "after" mean the same whoever noted it.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from slime_core.transitions import Transition
from tests.simulate.control.records import Asked, Served

__all__ = [
    "EXCHANGE",
    "Ask",
    "Chat",
    "Committed",
    "Conduct",
    "Delivered",
    "Ending",
    "Exchange",
    "Got",
    "Kind",
    "Sampled",
    "Story",
]

EXCHANGE: Final = "x-sim-exchange"
"""The header field in which an agent's request carries the number of its exchange, so that what
was sampled can be told without believing any id."""


class Kind(enum.Enum):
    """How a prompt relates to what its agent held before."""

    ROOT = "root"
    """Nothing was held."""
    APPEND = "append"
    """All that was held, as the agent saw it, and more."""
    CUT = "cut"
    """It leaves the last answer midway."""
    EDITED = "edited"
    """History was echoed altered: compacted, dropped, re-spelled."""
    REPEAT = "repeat"
    """The very request again, as a retry sends it."""
    IDS = "ids"
    """Token ids instead of text."""


class Ending(enum.Enum):
    """How an exchange ended, as its agent saw it."""

    OPEN = "open"
    """It has not."""
    COMPLETE = "complete"
    """The message came to its proper end, and the status was 200."""
    ERROR = "error"
    """Another status, or an error event in the stream, properly ended."""
    BROKEN = "broken"
    """The connection ended before the message did."""
    LEFT = "left"
    """The agent itself went away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How an agent behaves while it is answered."""

    leave_after_pieces: int | None = None
    """It closes its connection once so many pieces of the body have come (0: after the head)."""
    leave_after_s: float | None = None
    """It closes its connection after so long, whatever has come."""
    read_pause_s: float = 0.0
    """It waits so long before each read: a slow reader."""
    half_close: bool = False
    """It ends its sending side after the request, and waits for the answer."""
    upload_pieces: int = 1
    """Its request is sent in so many pieces, with pauses between them."""
    delay_s: float = 0.0
    """It sends its request so long after the others of the same step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation as it is sent."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)
    """For the chat template."""
    continues: bool = False
    """The last message, an assistant's, is to be gone on with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request as an agent means it. ``body`` is what is sent, as JSON.

    ``text`` is the whole prompt as raw text, ``ids`` the whole prompt where ids are sent, ``chat``
    the conversation of a chat; exactly one is given. ``after`` and ``after_sample`` name the
    exchange and sample whose trajectory is continued or left; ``appended`` is what an ``APPEND``
    adds to a text.
    """

    path: str
    body: dict[str, Any]
    raw: bytes | None = None
    """The very bytes to send in place of ``body``: another spelling of it, or no JSON at all."""
    headers: tuple[tuple[str, str], ...] = ()
    kind: Kind
    text: str | None = None
    ids: tuple[int, ...] | None = None
    after: int | None = None
    after_sample: int = 0
    appended: str = ""
    stream: bool = False
    samples: int = 1
    session: str | None = None
    parent: str | None = None
    """The call or alias that the request names as its parent."""
    chat: Chat | None = None
    original: Kind | None = None
    """Of a ``REPEAT``: the kind that the request had when it was sent first."""
    others: tuple[Ask, ...] = ()
    """Of a list of unlike prompts: all but the first, each told as if it had been sent alone."""
    malformed: str | None = None
    """What is wrong with it, in a word: it must be refused with a 4xx."""
    conduct: Conduct = field(default_factory=Conduct)

    def of(self, sample: int) -> Ask:
        """What was asked for that sample: this, or one of ``others``."""
        place = sample // (self.samples // (1 + len(self.others)))
        return self.others[place - 1] if place else self

    @property
    def meant(self) -> Kind:
        """How the prompt relates to what was held, also where the request is a repeated one."""
        return self.original or self.kind


@dataclass(slots=True, kw_only=True)
class Got:
    """One sample as the agent saw it. ``ids`` only where the dialect shows them."""

    text: str = ""

    message: dict[str, Any] | None = None
    """Of chat: the assistant's message."""
    ids: list[int] | None = None
    finish: dict[str, Any] | None = None
    told_at: int | None = None
    """The story's number when the agent learnt that this sample is complete."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and what came back."""

    number: int
    agent: str
    ask: Ask
    asked_at: int
    started_s: float = 0.0
    ended_s: float | None = None
    ending: Ending = Ending.OPEN
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    """Everything of the body that the agent has read."""
    error: dict[str, Any] | None = None
    """The JSON of a refusal, or of an error event."""
    samples: list[Got] = field(default_factory=list)
    last_byte_at: int | None = None

    @property
    def calls(self) -> tuple[str, ...]:
        """The router's call ids, sample by sample, as its head names them."""
        return tuple(filter(None, self.headers.get("x-slime-call-id", "").split(",")))

    @property
    def retry(self) -> str | None:
        """How it shares another attempt's answer, if it does: ``joined`` or ``replayed``."""
        return self.headers.get("x-slime-retry")

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(filter(None, self.headers.get("x-slime-flags", "").split(",")))


@dataclass(slots=True, kw_only=True)
class Sampled:
    """What one worker did for one request id: the truth, whatever it told.

    ``prompt_ids`` as they arrived; ``ids``, ``logprobs`` and ``versions`` have one length and grow
    while it samples. ``wire`` is every byte of the body that it gave to the network (of a batch or
    ``n`` > 1, shared by its samples). ``lies`` names the fault that made the wire untrue or
    unreadable. Whatever it is, what was kept of this sample is the beginning of the ``told_…``
    lists, and complete only if ``told_finish`` is known; with ``lies``, nothing need be kept.
    """

    rid: str
    worker: str
    arrived_at: int
    exchange: int | None = None
    """The exchange it was sampled for, as a header field that routers pass on tells, and …"""
    place: int = 0
    """… which of the request's samples it is, prompts × samples."""
    prompt_ids: tuple[int, ...]
    params: dict[str, Any]
    seed: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    text: str = ""
    finish: dict[str, Any] | None = None
    wire: bytearray = field(default_factory=bytearray)
    lies: str | None = None
    told: int = 0
    """How many of the ids the wire carried in complete events, as far as they can be believed: the
    most that an honest reader can have kept."""
    told_finish: dict[str, Any] | None = None
    """The finish reason that the wire carried in a complete event."""
    claimed_ids: dict[int, int] = field(default_factory=dict)
    """Ids that the wire consistently names in place of the true ones, by position."""
    claimed_rid: str | None = None
    """Another request's id, which the wire names in place of the true one."""
    claimed_versions: tuple[str | None] | None = None
    """The one version that the wire consistently names for every token; ``(None,)``: none."""

    @property
    def told_ids(self) -> list[int]:
        """What a reader of the wire can know of the ids."""
        told = self.ids[: self.told]
        return [self.claimed_ids.get(place, token) for place, token in enumerate(told)]

    @property
    def told_logprobs(self) -> list[float]:
        """… of the logprobs."""
        return self.logprobs[: self.told]

    @property
    def told_versions(self) -> list[str | None]:
        """… of the versions."""
        if self.claimed_versions is not None:
            return list(self.claimed_versions) * self.told
        return list(self.versions[: self.told])


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """One transition of the router's state."""

    at: int
    now: float
    fact: Transition


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """One retrieval. ``status`` 200: ``body`` has the columns; else it is the error's JSON."""

    at: int
    begun_at: int = 0
    """The story's number when it was asked for; what was gone by then must be said to be gone."""
    now: float
    path: str
    asked: dict[str, Any]
    status: int
    body: dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Story:
    """One run. Lists are in the order of their numbers."""

    exchanges: list[Exchange] = field(default_factory=list)
    sampled: list[Sampled] = field(default_factory=list)
    prefilled: list[Sampled] = field(default_factory=list)
    """What prefill workers did: of each sample at most its first token, which counts as the decode
    worker's."""
    journal: list[Committed] = field(default_factory=list)
    delivered: list[Delivered] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    """What was asked of the control plane."""
    served: list[Served] = field(default_factory=list)
    """What workers were told to do, and did."""
    marks: Counter[str] = field(default_factory=Counter)
    """Situations that occurred, and how often: ``fault:cut_stream``, ``transition:CallLost``."""
    complaints: list[str] = field(default_factory=list)
    """What a harness found wrong while it ran: a task that did not end, a check that failed."""
    read_ahead: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By exchange: how many bytes the router went on reading of the worker's answer, at most, while
    the agent's connection was full, the latest read left out; and the longest piece of it."""
    ticks: int = 0

    def tick(self) -> int:
        """The next number."""
        self.ticks += 1
        return self.ticks
