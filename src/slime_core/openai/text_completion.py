"""Answers of ``/v1/completions``, whole and streamed.

Objects and chunks are both ``text_completion``. A chunk's logprobs and offsets continue those of
the chunks before it, so that concatenated they equal the whole answer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from slime_core import sse
from slime_core.errors import InvariantError, SlimeError, as_openai
from slime_core.openai.completions import CompletionRequest
from slime_core.openai.logprobs import LogprobCursor, ShownToken, TokenBook, answer_logprobs
from slime_core.openai.response import finish_word, shown_text, usage
from slime_core.sglang import Answer, FinishReason, StreamStep
from slime_core.types import PackedIds, unpack_ids

__all__ = ["TextChunkFramer", "text_completion"]


def text_completion(
    request: CompletionRequest,
    *,
    id: str,
    created: int,
    model: str,
    answers: Sequence[Answer],
    vocabulary: TokenBook,
    prompt_ids: Sequence[PackedIds] = (),
    echoes: Sequence[str] = (),
    prompt_tokens: int,
    cached_tokens: int = 0,
) -> bytes:
    """The ``text_completion`` object as JSON.

    ``answers`` come in the order of the choices; ``echoes`` and ``prompt_ids``, one per prompt,
    are needed where the client asked for them. ``prompt_tokens`` counts every prompt once. Raises
    as :func:`~slime_core.openai.completion` does.
    """
    if len(answers) != request.samples:
        raise InvariantError(f"{len(answers)} answers for {request.samples} choices")
    choices = []
    for index, answer in enumerate(answers):
        text = shown_text(answer)
        choice: dict[str, Any] = {
            "index": index,
            "text": (echoes[index // request.n] if request.echo else "") + text,
            "finish_reason": finish_word(answer.finish_reason),
            "logprobs": _whole_logprobs(request, answer, vocabulary),
        }
        if request.common.return_token_ids:
            choice["token_ids"] = unpack_ids(answer.ids)
        if request.common.return_prompt_token_ids:
            choice["prompt_token_ids"] = unpack_ids(prompt_ids[index // request.n])
        choices.append(choice)
    return msgspec.json.encode(
        {
            "id": id,
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": choices,
            "usage": usage(
                prompt_tokens,
                sum(answer.completion_tokens for answer in answers),
                cached_tokens,
                sum(answer.reasoning_tokens for answer in answers),
            ),
        }
    )


class TextChunkFramer:
    """Frames one streamed completion; used like :class:`~slime_core.openai.ChunkFramer`."""

    def __init__(
        self,
        request: CompletionRequest,
        *,
        id: str,
        created: int,
        model: str,
        vocabulary: TokenBook,
    ) -> None:
        self._request = request
        self._frame: dict[str, Any] = {
            "id": id,
            "object": "text_completion",
            "created": created,
            "model": model,
        }
        self._cursors = [
            LogprobCursor(
                vocabulary,
                top=request.logprobs or 0,
                skip_special=request.common.skip_special_tokens,
            )
            for _ in range(request.samples)
        ]
        self._shown = [0] * request.samples
        self._open: set[int] | None = None

    def first(self, *, echoes: Sequence[str] = (), prompt_ids: Sequence[PackedIds] = ()) -> bytes:
        """The start of every choice: the echo and the prompt's ids, where asked for."""
        if self._open is not None:
            raise InvariantError("a stream starts once")
        self._open = set(range(self._request.samples))
        chunks = []
        for index in range(self._request.samples):
            prompt = index // self._request.n
            extra: dict[str, Any] = {}
            if self._request.common.return_prompt_token_ids:
                extra["prompt_token_ids"] = unpack_ids(prompt_ids[prompt])
            echo = echoes[prompt] if self._request.echo else ""
            if echo or extra:
                chunks.append(self._chunk(index, echo, **extra))
        return b"".join(chunks)

    def step(self, step: StreamStep) -> bytes:
        """The chunks of one worker event of a sample; raises as the chat framer does."""
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
        if self._request.common.return_token_ids and ids:
            extra["token_ids"] = list(ids)
        if self._request.logprobs is not None:
            self._cursors[index].push(ids, logprobs, top_logprobs)
            shown = self._cursors[index].take(self._shown[index])
            if shown:
                extra["logprobs"] = _legacy(shown, top=self._request.logprobs)
        return self._chunk(index, text, **extra) if text or extra else b""

    def finish(self, index: int, reason: FinishReason) -> bytes:
        """The last chunk of a choice. Raises the error that an abort means."""
        word = finish_word(reason)
        self._check_open(index)
        assert self._open is not None
        self._open.remove(index)
        return self._chunk(index, "", finish_reason=word)

    def usage(
        self,
        *,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> bytes:
        """The usage chunk, if the client asked for one."""
        if not self._request.common.include_usage:
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

    def _chunk(self, index: int, text: str, **extra: Any) -> bytes:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None, **extra}
        chunk = {**self._frame, "choices": [choice]}
        if self._request.common.include_usage:
            chunk["usage"] = None
        return _event(chunk)


def _whole_logprobs(
    request: CompletionRequest, answer: Answer, vocabulary: TokenBook
) -> dict[str, Any] | None:
    if request.logprobs is None:
        return None
    skip = request.common.skip_special_tokens
    tokens = answer_logprobs(answer, vocabulary, top=request.logprobs, skip_special=skip)
    return _legacy(tokens, top=request.logprobs)


def _legacy(tokens: Iterable[ShownToken], *, top: int) -> dict[str, Any]:
    """The four parallel lists of the legacy form; offsets count characters of the text."""
    listed = list(tokens)
    return {
        "tokens": [_word(token.data) for token in listed],
        "token_logprobs": [token.logprob for token in listed],
        "top_logprobs": [{_word(data): p for data, p in token.top} for token in listed]
        if top
        else None,
        "text_offset": [token.start for token in listed],
    }


def _word(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")


def _event(value: dict[str, Any]) -> bytes:
    return sse.encode(msgspec.json.encode(value))
