"""What the streams of both dialects have in common: their order, usage, end and errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final, Unpack

import msgspec

from slime_core import sse
from slime_core.errors import InvariantError, SlimeError, as_openai
from slime_core.openai.params import Request
from slime_core.openai.response import Named, usage
from slime_core.sglang import StreamStep

__all__ = ["Framer"]

_TEXT: Final = "\x00"
"""Stands for a text. Only what is the same for all chunks stands behind the real one."""


class Framer(ABC):
    """Frames one streamed answer.

    In order: ``first`` once; then what each choice brings, up to its finish; then :meth:`usage` and
    :meth:`done`. After :meth:`error` nothing more. All return the bytes of whole events, or none.
    Another order is our own bug and raises :class:`InvariantError`.
    """

    object: ClassVar[str]
    """What the dialect calls a chunk."""

    def __init__(self, request: Request, **named: Unpack[Named]) -> None:
        self._common = request.common
        self._samples = request.samples
        self._frame: dict[str, Any] = {
            "id": named["id"],
            "object": self.object,
            "created": named["created"],
            "model": named["model"],
        }
        self._open: set[int] | None = None
        self._plain: dict[tuple[int, str], tuple[bytes, bytes]] = {}
        """What stands before and behind the text of a plain chunk."""

    @abstractmethod
    def step(self, step: StreamStep) -> bytes:
        """The chunks of one worker event of a sample.

        Raises the error that the event reports, or that an aborted generation means; say it with
        :meth:`error`.
        """

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

    @staticmethod
    def _sample(step: StreamStep) -> int:
        """The sample of a step. Raises the error that the step reports."""
        if step.error is not None:
            raise step.error
        if step.sample is None:
            raise InvariantError("the end of a stream is no step of a sample")
        return step.sample

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

    def _plain_chunk(self, index: int, key: str, text: str) -> bytes:
        """A chunk that holds nothing but new text: nearly all of them do, and encode only that."""
        around = self._plain.get((index, key))
        if around is None:
            framed = self._chunk(index, self._plain_content(key, _TEXT))
            before, _, behind = framed.rpartition(msgspec.json.encode(_TEXT))
            around = self._plain[index, key] = before, behind
        return b"%b%b%b" % (around[0], msgspec.json.encode(text), around[1])

    @abstractmethod
    def _plain_content(self, key: str, text: str) -> dict[str, Any]:
        """What a choice's chunk tells of new text."""

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
