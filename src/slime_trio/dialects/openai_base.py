"""What the two OpenAI dialects share: one request whose answers are put into OpenAI's words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, TypedDict, TypeVar, Unpack

from slime_core import openai, sglang
from slime_core.calls import Calls
from slime_core.chat.places import Shown
from slime_core.errors import SlimeError
from slime_core.types import PackedIds
from slime_core.vocabulary import Vocabulary
from slime_trio.dialects.openai_usage import StreamedUsage
from slime_trio.exchange import Headers, Inbound

__all__ = ["OpenAIDialect", "Serving"]

R = TypeVar("R", bound=openai.Request)
F = TypeVar("F", bound=openai.Framer)

_JSON: Headers = [(b"content-type", b"application/json")]
_EVENTS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]


class Serving(TypedDict):
    """What the router brings to a request. ``created`` is in Unix seconds."""

    vocabulary: Vocabulary
    created: int
    context_length: int | None
    can_constrain_behind_reasoning: bool


class OpenAIDialect(ABC, Generic[R, F]):
    """One request; :class:`~slime_trio.dialects.Dialect` says what is called when.

    ``R`` is the request, ``F`` what frames its stream.
    """

    verbatim = False
    shows_events = False
    prompt_param: str | None = None
    by_text: bool
    reads_logprobs: bool
    _id_prefix: ClassVar[str]

    def __init__(self, request: R, inbound: Inbound, **serving: Unpack[Serving]) -> None:
        self._request = request
        self._vocabulary = serving["vocabulary"]
        self._created = serving["created"]
        self._context_length = serving["context_length"]
        self._can_constrain_behind_reasoning = serving["can_constrain_behind_reasoning"]
        self.asked: sglang.Asked = request
        self.streams = request.stream
        # Aborting by a client's own id could end others' calls too: workers match by prefix.
        rid = request.common.rid
        self.names_calls = request.n == 1 and (inbound.own_ids or rid is None)
        self._sent_rid = None if inbound.own_ids else rid
        """The client's id, where workers are to know it."""
        self.parent = request.common.parent_id or inbound.header(b"x-slime-parent-id")
        self._id = ""
        self._prompts: Sequence[PackedIds] = ()
        self._usage = StreamedUsage(request.samples)
        self._framer: F | None = None

    async def prepare(self, capture: Calls) -> None:
        """Nothing."""

    def open(self, capture: Calls) -> None:
        """Open the calls, the first of which names the answer."""
        self._open(capture)
        self._id = f"{self._id_prefix}-{capture.calls[0]}"

    def worker_body(self, prompts: Sequence[PackedIds], capture: Calls) -> bytes:
        """A native request with every prompt as ids and every sampling key that matters."""
        self._prompts = prompts
        return self._body(capture)

    def aliases(self, sample: int) -> tuple[str, ...]:
        """The completion's id, the choice's own, and the id that the client gave."""
        rid = self._request.common.rid
        return (self._id, f"{self._id}:{sample}", *(() if rid is None else (rid,)))

    def read(self, answers: Sequence[sglang.Answer]) -> None:
        """Nothing beyond what :meth:`whole` reads."""

    def captured(self, sample: int, answer: sglang.Answer) -> tuple[sglang.Answer, Shown | None]:
        """The answer as it came."""
        return answer, None

    @abstractmethod
    def whole(self, body: bytes, answers: Sequence[sglang.Answer]) -> bytes:
        """The completion as one object."""

    def headers(self) -> Headers:
        """Of JSON or of an event stream."""
        return list(_EVENTS if self.streams else _JSON)

    def begin(self) -> bytes:
        """The first chunk of every choice."""
        self._framer, first = self._begin()
        return first

    def step(self, step: sglang.StreamStep) -> bytes:
        """The chunks of one worker event; the worker's end of stream is not passed on."""
        if step.done:
            return b""
        self._usage.note(step)
        return self._begun.step(step)

    def finish(self, sample: int) -> bytes:
        """Nothing: the last event's view says it."""
        return b""

    def end(self) -> bytes:
        """Usage, if asked for, and ``[DONE]``."""
        counted = self._usage.counts(self._prompts)
        return self._begun.usage(**counted) + self._begun.done()

    def error(self, error: SlimeError) -> bytes:
        """An error event."""
        return self._begun.error(error)

    @abstractmethod
    def _open(self, capture: Calls) -> None:
        """Look the prompts up and open the calls."""

    @abstractmethod
    def _body(self, capture: Calls) -> bytes:
        """The body for the worker."""

    @abstractmethod
    def _begin(self) -> tuple[F, bytes]:
        """What frames the stream, and what that begins with."""

    @property
    def _begun(self) -> F:
        assert self._framer is not None
        return self._framer

    def _named(self) -> openai.Named:
        return {
            "id": self._id,
            "created": self._created,
            "model": self._request.model,
            "vocabulary": self._vocabulary,
        }
