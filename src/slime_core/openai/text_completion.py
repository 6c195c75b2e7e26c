"""Answers of ``/v1/completions``, whole and streamed.

Objects and chunks are both ``text_completion``. A chunk's logprobs and offsets continue those of
the chunks before it, so that concatenated they equal the whole answer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import msgspec

from slime_core.errors import InvariantError, WorkerError
from slime_core.openai.completions import CompletionRequest
from slime_core.openai.echo import Echo, echo_of, event_scores
from slime_core.openai.finish import finish_word
from slime_core.openai.framing import Framer
from slime_core.openai.logprobs import LogprobCursor, ShownToken, TokenBook, answer_logprobs
from slime_core.openai.response import Named, usage
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
    echoes: Sequence[Echo] = (),
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
    no_echo = Echo(text="")
    choices = [
        _choice(
            request,
            index,
            answer,
            vocabulary,
            echoes[index // request.n] if request.echo else no_echo,
        )
        for index, answer in enumerate(answers)
    ]
    for index, choice in enumerate(choices):
        if request.common.return_prompt_token_ids:
            choice["prompt_token_ids"] = unpack_ids(prompt_ids[index // request.n])
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


class TextChunkFramer(Framer):
    """Frames one streamed completion.

    Between ``first`` and ``usage`` come, for each choice, any number of :meth:`delta` and one
    :meth:`finish` (or :meth:`step`, which does both).
    """

    object = "text_completion"

    def __init__(self, request: CompletionRequest, **named: Unpack[Named]) -> None:
        super().__init__(request, **named)
        self._request = request
        skip = request.common.skip_special_tokens
        self._cursors = [
            LogprobCursor(named["vocabulary"], top=request.logprobs or 0, skip_special=skip)
            for _ in range(request.samples)
        ]
        self._tells_tokens = request.logprobs is not None or request.common.return_token_ids
        self._shown = [0] * request.samples
        self._vocabulary = named["vocabulary"]
        self._prompts: Sequence[PackedIds] = ()
        self._unscored: dict[int, str] = {}
        """The echoes that wait for their tokens' logprobs, by choice."""
        self._echoed = [0] * request.samples

    def first(self, *, echoes: Sequence[str] = (), prompt_ids: Sequence[PackedIds] = ()) -> bytes:
        """The start of every choice: the echo and the prompt's ids, where asked for.

        Where an echo has logprobs, it comes with the choice's first step, which tells them.
        """
        self._prompts = prompt_ids
        chunks = []
        for index in self._begin():
            prompt = index // self._request.n
            extra: dict[str, Any] = {}
            if self._common.return_prompt_token_ids:
                extra["prompt_token_ids"] = unpack_ids(prompt_ids[prompt])
            echo = echoes[prompt] if self._request.echo else ""
            self._echoed[index] = len(echo)
            if self._request.scores_prompts:
                self._unscored[index], echo = echo, ""
            if echo or extra:
                chunks.append(self._chunk(index, {"text": echo}, **extra))
        return b"".join(chunks)

    def step(self, step: StreamStep) -> bytes:
        """As in the base class."""
        sample = self._sample(step)
        shown = self._echo(sample, step) if sample in self._unscored else b""
        shown += self.delta(
            sample,
            text=step.text,
            ids=unpack_ids(step.ids) if self._tells_tokens else (),
            logprobs=step.logprobs,
            top_logprobs=step.top_logprobs,
        )
        if step.finish_reason is None:
            return shown
        return shown + self.finish(sample, step.finish_reason)

    def _echo(self, index: int, step: StreamStep) -> bytes:
        """The echo with its logprobs, out of the choice's first event."""
        top = self._request.logprobs or 0
        ids = self._prompts[index // self._request.n]
        scores = event_scores(step.raw)
        echo = echo_of(self._unscored.pop(index), ids, scores, self._vocabulary, top=top)
        told = _legacy(echo.tokens, top=top)
        return self._chunk(index, {"text": echo.text}, logprobs=told)

    def delta(
        self,
        index: int,
        *,
        text: str,
        ids: Sequence[int] = (),
        logprobs: Sequence[float | None] = (),
        top_logprobs: bytes = b"",
    ) -> bytes:
        """New text of a choice and its new tokens; nothing to show gives no bytes.

        A chunk's logprobs are those of the tokens that begin in the text shown so far.
        """
        self._opened(index)
        self._shown[index] += len(text)
        extra: dict[str, Any] = {}
        if self._common.return_token_ids and ids:
            extra["token_ids"] = list(ids)
        tokens: list[ShownToken] = []
        if self._request.logprobs is not None:
            self._cursors[index].push(ids, logprobs, top_logprobs)
            taken = self._cursors[index].take(self._shown[index])
            tokens = _shifted(taken, self._echoed[index])
        if not (tokens or extra):
            return self._plain_chunk(index, "text", text) if text else b""
        told = _legacy(tokens, top=self._request.logprobs or 0) if tokens else None
        return self._chunk(index, {"text": text}, logprobs=told, **extra)

    def _plain_content(self, key: str, text: str) -> dict[str, Any]:
        return {key: text}

    def finish(self, index: int, reason: FinishReason) -> bytes:
        """The last chunk of a choice. Raises the error that an abort means."""
        word = finish_word(reason)
        self._opened(index).remove(index)
        return self._chunk(index, {"text": ""}, finish_reason=word)


def _choice(
    request: CompletionRequest, index: int, answer: Answer, vocabulary: TokenBook, echo: Echo
) -> dict[str, Any]:
    """A choice without the ids of its prompt."""
    choice: dict[str, Any] = {
        "index": index,
        "text": echo.text + _shown_text(answer),
        "finish_reason": finish_word(answer.finish_reason),
        "logprobs": _whole_logprobs(request, answer, vocabulary, echo),
    }
    if request.common.return_token_ids:
        choice["token_ids"] = unpack_ids(answer.ids)
    return choice


def _shown_text(answer: Answer) -> str:
    """The text of an answer. Raises :class:`WorkerError` where the worker gave none."""
    if answer.text is None:
        raise WorkerError("The worker gave no text; is it running without a tokenizer?")
    return answer.text


def _whole_logprobs(
    request: CompletionRequest, answer: Answer, vocabulary: TokenBook, echo: Echo
) -> dict[str, Any] | None:
    if request.logprobs is None:
        return None
    skip = request.common.skip_special_tokens
    tokens = answer_logprobs(answer, vocabulary, top=request.logprobs, skip_special=skip)
    return _legacy([*echo.tokens, *_shifted(tokens, len(echo.text))], top=request.logprobs)


def _shifted(tokens: Sequence[ShownToken], by: int) -> list[ShownToken]:
    return [msgspec.structs.replace(token, start=token.start + by) for token in tokens]


def _legacy(tokens: Sequence[ShownToken], *, top: int) -> dict[str, Any]:
    """The four parallel lists of the legacy form; offsets count characters of the text."""
    return {
        "tokens": [_word(token.data) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            None if token.logprob is None else {_word(data): p for data, p in token.top}
            for token in tokens
        ]
        if top
        else None,
        "text_offset": [token.start for token in tokens],
    }


def _word(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")
