"""A chat completion as a stream of events, as the official SDKs accumulate it.

The SDKs concatenate strings and index choices by position. So ``role`` comes once per choice; the
choices first appear in the order 0, 1, 2; nothing follows a choice's finish; usage, if asked for,
is one last chunk without choices, and ``null`` in all others. A chunk's logprobs are those of the
tokens that begin in the text shown so far, so they add up to the list of a whole answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from slime_core import sse
from slime_core.errors import InvariantError, SlimeError, as_openai
from slime_core.openai.chat import ChatRequest
from slime_core.openai.logprobs import LogprobCursor, TokenBook
from slime_core.openai.response import chat_logprobs, finish_word, usage
from slime_core.sglang import FinishReason, StreamStep
from slime_core.types import PackedIds, unpack_ids

__all__ = ["ChunkFramer"]


class ChunkFramer:
    """Frames one streamed chat completion.

    In order: :meth:`first` once; then for each choice any number of :meth:`delta` and one
    :meth:`finish` (or :meth:`step`, which does both); then :meth:`usage` and :meth:`done`. After
    :meth:`error` nothing more. All return the bytes of whole events, or none. Another order is our
    own bug and raises :class:`InvariantError`.
    """

    def __init__(
        self, chat: ChatRequest, *, id: str, created: int, model: str, vocabulary: TokenBook
    ) -> None:
        self._chat = chat
        self._frame: dict[str, Any] = {
            "id": id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._cursors = [
            LogprobCursor(
                vocabulary,
                top=chat.top_logprobs,
                skip_special=chat.common.skip_special_tokens,
            )
            for _ in range(chat.n)
        ]
        self._shown = [0] * chat.n
        self._open: set[int] | None = None

    def first(self, *, prompt_ids: PackedIds | None = None) -> bytes:
        """The first chunk of every choice, with its role."""
        if self._open is not None:
            raise InvariantError("a stream starts once")
        self._open = set(range(self._chat.n))
        delta = {"role": "assistant", "content": "", "refusal": None}
        extra: dict[str, Any] = {}
        if self._chat.common.return_prompt_token_ids and prompt_ids is not None:
            extra["prompt_token_ids"] = unpack_ids(prompt_ids)
        return b"".join(self._chunk(index, delta, **extra) for index in range(self._chat.n))

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
        self._check_open(index)
        self._shown[index] += len(text)
        extra: dict[str, Any] = {}
        if self._chat.common.return_token_ids and ids:
            extra["response_token_ids"] = list(ids)
        entries = []
        if self._chat.logprobs:
            self._cursors[index].push(ids, logprobs, top_logprobs)
            entries = self._cursors[index].take(self._shown[index])
        if not text and not entries and not extra:
            return b""
        delta = {"content": text} if text or entries else {}
        told = chat_logprobs(entries) if self._chat.logprobs else None
        return self._chunk(index, delta, logprobs=told, **extra)

    def finish(self, index: int, reason: FinishReason) -> bytes:
        """The last chunk of a choice. Raises the error that an abort means."""
        word = finish_word(reason)
        self._check_open(index)
        assert self._open is not None
        self._open.remove(index)
        return self._chunk(index, {}, finish_reason=word)

    def usage(
        self,
        *,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> bytes:
        """The usage chunk, if the client asked for one."""
        if not self._chat.common.include_usage:
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

    def _check_open(self, index: int) -> None:
        if self._open is None or index not in self._open:
            raise InvariantError(f"choice {index} has not begun or has finished")

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        **extra: Any,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
            **extra,
        }
        chunk = {**self._frame, "choices": [choice]}
        if self._chat.common.include_usage:
            chunk["usage"] = None
        return _event(chunk)


def _event(value: dict[str, Any]) -> bytes:
    return sse.encode(msgspec.json.encode(value))
