"""OpenAI's ``POST /v1/completions`` over a worker's ``/generate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from slime_core import openai, sglang
from slime_core.calls import Calls
from slime_core.types import Encoding, unpack_ids
from slime_trio.dialects.openai_base import OpenAIDialect, Serving
from slime_trio.dialects.openai_usage import prompt_usage
from slime_trio.exchange import Inbound

__all__ = ["CompletionsDialect"]


class CompletionsDialect(OpenAIDialect[openai.CompletionRequest, openai.TextChunkFramer]):
    """One text completion, of one prompt or several. Text prompts are raw text, as for workers."""

    _id_prefix = "cmpl"
    prompt_param: str | None = "prompt"

    def __init__(
        self,
        request: openai.CompletionRequest,
        inbound: Inbound,
        **serving: Unpack[Serving],
    ) -> None:
        super().__init__(request, inbound, **serving)
        self.reads_logprobs = request.logprobs is not None
        self.by_text = any(isinstance(one, sglang.TextPrompt) for one in request.prompts)

    def whole(self, body: bytes, answers: Sequence[sglang.Answer]) -> bytes:
        """The ``text_completion`` object."""
        return openai.text_completion(
            self._request,
            answers=answers,
            prompt_ids=self._prompts,
            echoes=self._scored_echoes(body),
            **self._named(),
            **prompt_usage(self._prompts, [answer.cached_tokens for answer in answers]),
        )

    def _open(self, capture: Calls) -> None:
        """Prompts × ``n`` calls."""
        for prompt in self._request.prompts:
            match prompt:
                case sglang.TextPrompt(text=text):
                    capture.open_text(text, Encoding.RAW, self._request.n)
                case sglang.IdsPrompt(ids=ids):
                    capture.open_ids(ids, self._request.n)

    def _body(self, capture: Calls) -> bytes:
        rids = [str(call) for call in capture.calls[:: self._request.n]]
        return openai.completions_body(
            self._request,
            input_ids=self._prompts,
            rids=self._sent_rid or (rids if self._request.batch else rids[0]),
            context_length=self._context_length,
            write_ids=capture.write_ids,
        )

    def _begin(self) -> tuple[openai.TextChunkFramer, bytes]:
        framer = openai.TextChunkFramer(self._request, **self._named())
        return framer, framer.first(echoes=self._echoes(), prompt_ids=self._prompts)

    def _scored_echoes(self, body: bytes) -> list[openai.Echo]:
        echoes = self._echoes()
        if not self._request.scores_prompts:
            return [openai.Echo(text=text) for text in echoes]
        scores = openai.prompt_scores(body, self._request)
        top = self._request.logprobs or 0
        return [
            openai.echo_of(text, ids, told, self._vocabulary, top=top)
            for text, ids, told in zip(echoes, self._prompts, scores, strict=True)
        ]

    def _echoes(self) -> list[str]:
        if not self._request.echo:
            return []
        return [
            one.text
            if isinstance(one, sglang.TextPrompt)
            else self._vocabulary.decode(unpack_ids(one.ids), skip_special=False)
            for one in self._request.prompts
        ]
