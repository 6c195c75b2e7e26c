"""OpenAI's ``POST /v1/chat/completions`` over a worker's ``/generate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from slime_core import openai, sglang
from slime_core.calls import Calls
from slime_core.types import Encoding
from slime_trio.dialects.openai_base import OpenAIDialect, Serving
from slime_trio.dialects.openai_usage import prompt_usage
from slime_trio.exchange import Inbound

__all__ = ["ChatDialect"]


class ChatDialect(OpenAIDialect[openai.ChatRequest, openai.ChunkFramer]):
    """One chat completion. ``rendered`` is the conversation through the chat template.

    The key of a turn is the rendered text plus the content that the client was given: what it
    sends back is that content, so the next rendering begins with it.
    """

    _id_prefix = "chatcmpl"

    def __init__(
        self,
        request: openai.ChatRequest,
        inbound: Inbound,
        *,
        rendered: str | None,
        **serving: Unpack[Serving],
    ) -> None:
        super().__init__(request, inbound, **serving)
        self._rendered = rendered
        self.by_text = rendered is not None

    def whole(self, body: bytes, answers: Sequence[sglang.Answer]) -> bytes:
        """The ``chat.completion`` object."""
        readers = self._readers()
        for reader, answer in zip(readers, answers, strict=True):
            reader.whole(answer)
        return openai.completion(
            self._request,
            answers=answers,
            readers=readers,
            prompt_ids=self._prompts[0],
            **self._named(),
            **prompt_usage(self._prompts, [answer.cached_tokens for answer in answers]),
        )

    def _open(self, capture: Calls) -> None:
        """One prompt, ``n`` calls."""
        if self._rendered is not None:
            capture.open_text(self._rendered, Encoding.RENDERED, self._request.n)
        else:
            assert self._request.input_ids is not None
            capture.open_ids(self._request.input_ids, self._request.n)

    def _body(self, capture: Calls) -> bytes:
        return openai.generate_body(
            self._request,
            input_ids=self._prompts[0],
            rid=self._request.common.rid or capture.calls[0],
            context_length=self._context_length,
        )

    def _begin(self) -> tuple[openai.ChunkFramer, bytes]:
        framer = openai.ChunkFramer(self._request, readers=self._readers(), **self._named())
        return framer, framer.first(prompt_ids=self._prompts[0])

    def _readers(self) -> list[openai.AnswerReader]:
        reading = openai.Reading(chat=self._request, vocabulary=self._vocabulary)
        return [
            openai.AnswerReader(reading, call_id=f"call_{self._id}_{sample}_{{}}".format)
            for sample in range(self._request.n)
        ]
