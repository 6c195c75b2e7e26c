"""What the streams of both dialects have in common: their order, usage, end and errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypedDict, Unpack

import msgspec

from slime_core import sse
from slime_core.errors import InvariantError, SlimeError, as_openai
from slime_core.openai.logprobs import LogprobCursor, ShownToken, TokenBook
from slime_core.openai.params import Request
from slime_core.openai.response import finish_word, usage
from slime_core.sglang import FinishReason, StreamStep
from slime_core.types import unpack_ids

__all__ = ["Framer", "Named"]


class Named(TypedDict):
    """What every object and chunk of an answer begins with, and what reads its tokens."""

    id: str
    created: int
    model: str
    vocabulary: TokenBook


class Framer(ABC):
    """Frames one streamed answer.

    In order: ``first`` once; then for each choice any number of :meth:`delta` and one
    :meth:`finish` (or :meth:`step`, which does both); then :meth:`usage` and :meth:`done`. After
    :meth:`error` nothing more. All return the bytes of whole events, or none. Another order is our
    own bug and raises :class:`InvariantError`.
    """

    object: ClassVar[str]
    """What the dialect calls a chunk."""
    ids_key: ClassVar[str]
    """What it calls a choice's new token ids."""

    def __init__(
        self, request: Request, *, top_logprobs: int | None, **named: Unpack[Named]
    ) -> None:
        """``top_logprobs`` ``None``: the client asked for no logprobs."""
        self._shows_logprobs = top_logprobs is not None
        self._common = request.common
        self._samples = request.samples
        self._frame: dict[str, Any] = {
            "id": named["id"],
            "object": self.object,
            "created": named["created"],
            "model": named["model"],
        }
        skip_special = request.common.skip_special_tokens
        self._cursors = [
            LogprobCursor(named["vocabulary"], top=top_logprobs or 0, skip_special=skip_special)
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
        self._opened(index)
        self._shown[index] += len(text)
        extra: dict[str, Any] = {}
        if self._common.return_token_ids and ids:
            extra[self.ids_key] = list(ids)
        tokens: list[ShownToken] = []
        if self._shows_logprobs:
            self._cursors[index].push(ids, logprobs, top_logprobs)
            tokens = self._cursors[index].take(self._shown[index])
        if not (text or tokens or extra):
            return b""
        told = self._told(tokens) if self._shows_logprobs else None
        return self._chunk(index, self._content(text, tokens), logprobs=told, **extra)

    def finish(self, index: int, reason: FinishReason) -> bytes:
        """The last chunk of a choice. Raises the error that an abort means."""
        word = finish_word(reason)
        self._opened(index).remove(index)
        return self._chunk(index, self._content("", ()), finish_reason=word)

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
    def _content(self, text: str, tokens: Sequence[ShownToken]) -> dict[str, Any]:
        """What a chunk says of new text; ``tokens`` are those whose logprobs it brings."""

    @abstractmethod
    def _told(self, tokens: Sequence[ShownToken]) -> dict[str, Any] | None:
        """A chunk's ``logprobs``, where they were asked for."""

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
