"""What the streams of both dialects have in common: their order, usage, end and errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from slime_core import sse
from slime_core.errors import InvariantError, SlimeError, as_openai
from slime_core.openai.logprobs import LogprobCursor, ShownToken, TokenBook
from slime_core.openai.params import Request
from slime_core.openai.response import finish_word, usage
from slime_core.sglang import FinishReason, StreamStep
from slime_core.types import unpack_ids

__all__ = ["Framer"]


class Framer(ABC):
    """Frames one streamed answer.

    In order: ``first`` once; then for each choice any number of :meth:`delta` and one
    :meth:`finish` (or :meth:`step`, which does both); then :meth:`usage` and :meth:`done`. After
    :meth:`error` nothing more. All return the bytes of whole events, or none. Another order is our
    own bug and raises :class:`InvariantError`.
    """

    object: ClassVar[str]
    """What the dialect calls a chunk."""

    def __init__(
        self,
        request: Request,
        *,
        id: str,
        created: int,
        model: str,
        vocabulary: TokenBook,
        top_logprobs: int,
    ) -> None:
        self._common = request.common
        self._samples = request.samples
        self._frame: dict[str, Any] = {
            "id": id,
            "object": self.object,
            "created": created,
            "model": model,
        }
        skip_special = request.common.skip_special_tokens
        self._cursors = [
            LogprobCursor(vocabulary, top=top_logprobs, skip_special=skip_special)
            for _ in range(request.samples)
        ]
        self._shown = [0] * request.samples
        self._open: set[int] | None = None

    def step(self, step: StreamStep) -> bytes:
        """The chunks of one worker event of a sample.

        Raises the error that the event reports, or that an aborted generation means; say it with
        :meth:`error`.
        """
        if step.error is not None:
            raise step.error
        if step.sample is None:
            raise InvariantError("the end of a stream is no step of a sample")
        brought = self.delta(
            step.sample,
            text=step.text,
            ids=unpack_ids(step.ids),
            logprobs=step.logprobs,
            top_logprobs=step.top_logprobs,
        )
        if step.finish_reason is None:
            return brought
        return brought + self.finish(step.sample, step.finish_reason)

    @abstractmethod
    def delta(
        self,
        index: int,
        *,
        text: str,
        ids: Sequence[int] = (),
        logprobs: Sequence[float | None] = (),
        top_logprobs: bytes = b"",
    ) -> bytes:
        """New text of a choice and its new tokens; nothing to show gives no bytes."""

    def finish(self, index: int, reason: FinishReason) -> bytes:
        """The last chunk of a choice. Raises the error that an abort means."""
        word = finish_word(reason)
        self._opened(index).remove(index)
        return self._chunk(index, self._last(), finish_reason=word)

    def usage(
        self,
        *,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> bytes:
        """The usage chunk, if the client asked for one."""
        if not self._common.include_usage:
            return b""
        told = usage(prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens)
        return _event({**self._frame, "choices": [], "usage": told})

    def done(self) -> bytes:
        """The end of the stream."""
        if self._open != set():
            raise InvariantError("a stream ends when every choice has finished")
        return sse.DONE

    def error(self, error: SlimeError) -> bytes:
        """An error after the status has gone out; the stream ends with it."""
        return _event(as_openai(error))

    @abstractmethod
    def _last(self) -> dict[str, Any]:
        """What a chunk says that brings nothing but the finish reason."""

    def _begin(self) -> range:
        """Open every choice; their indices."""
        if self._open is not None:
            raise InvariantError("a stream starts once")
        self._open = set(range(self._samples))
        return range(self._samples)

    def _opened(self, index: int) -> set[int]:
        """The open choices, of which this must be one."""
        if self._open is None or index not in self._open:
            raise InvariantError(f"choice {index} has not begun or has finished")
        return self._open

    def _begun_before(
        self,
        index: int,
        ids: Sequence[int],
        logprobs: Sequence[float | None],
        top_logprobs: bytes,
    ) -> list[ShownToken]:
        """These tokens and those that wait, as far as they begin in the text shown so far."""
        self._cursors[index].push(ids, logprobs, top_logprobs)
        return self._cursors[index].take(self._shown[index])

    def _chunk(
        self,
        index: int,
        content: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        **extra: Any,
    ) -> bytes:
        told = {"logprobs": logprobs, "finish_reason": finish_reason}
        chunk = {**self._frame, "choices": [{"index": index, **content, **told, **extra}]}
        if self._common.include_usage:
            chunk["usage"] = None
        return _event(chunk)


def _event(value: dict[str, Any]) -> bytes:
    return sse.encode(msgspec.json.encode(value))
