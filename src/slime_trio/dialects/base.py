"""What the relay asks of a dialect: the client's words in, the client's words out.

A dialect object serves one request. It does no I/O and knows nothing of slots or workers; the
relay calls its methods in the order in which they stand here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from slime_core.calls import Calls
from slime_core.chat.places import Shown
from slime_core.errors import SlimeError
from slime_core.sglang import Answer, Asked, StreamStep
from slime_core.types import PackedIds
from slime_trio.exchange import Headers

__all__ = ["Dialect"]


class Dialect(Protocol):
    """One request in one dialect."""

    asked: Asked
    """The form of the worker's answer."""
    streams: bool
    """Whether the client wants a stream."""
    by_text: bool
    """Whether prompts are looked up by text."""
    names_calls: bool
    """Whether the worker knows each call by the router's own id, by which it may be aborted."""
    parent: str | None
    """The call that the client says it extends."""
    prompt_param: str | None
    """The field that the prompt came in, for errors that are about it."""
    reads_logprobs: bool
    """Whether the client's view is made of the logprobs, which must be known for it."""
    verbatim: bool
    """Whether the client speaks the worker's dialect: refusals and header fields pass untouched,
    and a stream's head need not wait for its first event."""

    @property
    def shows_events(self) -> bool:
        """Whether the client is shown the worker's events as they are, but for those that end a
        sample; asked once a stream begins."""

    async def prepare(self, capture: Calls) -> None:
        """What takes long before anything is opened. Raises ``SlimeError``."""

    def open(self, capture: Calls) -> None:
        """Look the prompts up and open the calls."""

    def worker_body(self, prompts: Sequence[PackedIds], capture: Calls) -> bytes:
        """The body for the worker. Raises ``ClientError``."""

    def aliases(self, sample: int) -> tuple[str, ...]:
        """Other names by which the client knows this sample."""

    def read(self, answers: Sequence[Answer]) -> None:
        """Read whole answers for what follows; may take long and touches nothing shared."""

    def captured(self, sample: int, answer: Answer) -> tuple[Answer, Shown | None]:
        """The answer as it is kept, and the message that the client is given, if it is a chat's.

        Of a stream ``answer`` is what has come so far, all of which :meth:`step` has seen.
        """

    def whole(self, body: bytes, answers: Sequence[Answer]) -> bytes:
        """The client's view of a whole answer; ``body`` itself if nothing changes.

        Raises ``SlimeError`` where the answer is one that this dialect cannot express.
        """

    def headers(self) -> Headers:
        """Header fields of an answer that is not verbatim."""

    def begin(self) -> bytes:
        """What a stream begins with."""

    def step(self, step: StreamStep) -> bytes:
        """The client's view of one worker event. Raises ``SlimeError``."""

    def finish(self, sample: int) -> bytes:
        """What follows once a sample has ended and is kept. Raises ``SlimeError``."""

    def end(self) -> bytes:
        """What a stream that came to its end ends with."""

    def error(self, error: SlimeError) -> bytes:
        """An error after the status has gone out; the stream ends with it."""
