"""Answers of ``/v1/completions``, whole and streamed.

Objects and chunks are both ``text_completion``. A chunk's logprobs and offsets continue those of
the chunks before it, so that concatenated they equal the whole answer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import msgspec

from slime_core.errors import InvariantError
from slime_core.openai.completions import CompletionRequest
from slime_core.openai.framing import Framer, Named
from slime_core.openai.logprobs import ShownToken, TokenBook, answer_logprobs
from slime_core.openai.response import finish_word, shown_text, usage
from slime_core.sglang import Answer
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
    choices = [_choice(request, index, answer, vocabulary) for index, answer in enumerate(answers)]
    for index, choice in enumerate(choices):
        if request.echo:
            choice["text"] = echoes[index // request.n] + choice["text"]
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
    """Frames one streamed completion, in the order that its base class says."""

    object = "text_completion"
    ids_key = "token_ids"

    def __init__(self, request: CompletionRequest, **named: Unpack[Named]) -> None:
        super().__init__(request, top_logprobs=request.logprobs, **named)
        self._request = request

    def first(self, *, echoes: Sequence[str] = (), prompt_ids: Sequence[PackedIds] = ()) -> bytes:
        """The start of every choice: the echo and the prompt's ids, where asked for."""
        chunks = []
        for index in self._begin():
            prompt = index // self._request.n
            extra: dict[str, Any] = {}
            if self._common.return_prompt_token_ids:
                extra["prompt_token_ids"] = unpack_ids(prompt_ids[prompt])
            echo = echoes[prompt] if self._request.echo else ""
            if echo or extra:
                chunks.append(self._chunk(index, {"text": echo}, **extra))
        return b"".join(chunks)

    def _content(self, text: str, tokens: Sequence[ShownToken]) -> dict[str, Any]:
        return {"text": text}

    def _told(self, tokens: Sequence[ShownToken]) -> dict[str, Any] | None:
        return _legacy(tokens, top=self._request.logprobs or 0) if tokens else None


def _choice(
    request: CompletionRequest, index: int, answer: Answer, vocabulary: TokenBook
) -> dict[str, Any]:
    """A choice without what it shows of its prompt."""
    choice: dict[str, Any] = {
        "index": index,
        "text": shown_text(answer),
        "finish_reason": finish_word(answer.finish_reason),
        "logprobs": _whole_logprobs(request, answer, vocabulary),
    }
    if request.common.return_token_ids:
        choice["token_ids"] = unpack_ids(answer.ids)
    return choice


def _whole_logprobs(
    request: CompletionRequest, answer: Answer, vocabulary: TokenBook
) -> dict[str, Any] | None:
    if request.logprobs is None:
        return None
    skip = request.common.skip_special_tokens
    tokens = answer_logprobs(answer, vocabulary, top=request.logprobs, skip_special=skip)
    return _legacy(tokens, top=request.logprobs)


def _legacy(tokens: Sequence[ShownToken], *, top: int) -> dict[str, Any]:
    """The four parallel lists of the legacy form; offsets count characters of the text."""
    return {
        "tokens": [_word(token.data) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{_word(data): p for data, p in token.top} for token in tokens]
        if top
        else None,
        "text_offset": [token.start for token in tokens],
    }


def _word(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")
