"""OpenAI's ``POST /v1/chat/completions`` over a worker's ``/generate``."""

from __future__ import annotations

from collections.abc import Sequence

from slime_core import openai, sglang
from slime_core.errors import SlimeError
from slime_core.types import Encoding, PackedIds
from slime_core.vocabulary import Vocabulary
from slime_trio.capture import Capture
from slime_trio.dialects.openai_usage import StreamedUsage, json_headers, prompt_usage
from slime_trio.exchange import Headers, Inbound

__all__ = ["ChatDialect"]


class ChatDialect:
    """One chat completion. ``rendered`` is the conversation through the chat template.

    The key of a turn is the rendered text plus the content that the client was given: what it
    sends back is that content, so the next rendering begins with it.
    """

    verbatim = False
    names_calls = True

    def __init__(
        self,
        chat: openai.ChatRequest,
        inbound: Inbound,
        *,
        rendered: str | None,
        vocabulary: Vocabulary,
        model: str,
        created: int,
        context_length: int | None,
    ) -> None:
        self._chat = chat
        self._rendered = rendered
        self._vocabulary = vocabulary
        self._model = model
        self._created = created
        self._context_length = context_length
        self.asked: sglang.Asked = chat
        self.streams = chat.stream
        self.by_text = rendered is not None
        self.names_calls = chat.n == 1 and chat.common.rid is None
        self.parent = inbound.header(b"x-slime-parent-id")
        self._id = ""
        self._prompt = PackedIds(b"")
        self._usage = StreamedUsage(chat.n)
        self._framer: openai.ChunkFramer | None = None

    def open(self, capture: Capture) -> None:
        """One prompt, ``n`` calls."""
        if self._rendered is not None:
            capture.open_text(self._rendered, Encoding.RENDERED, self._chat.n)
        else:
            assert self._chat.input_ids is not None
            capture.open_ids(self._chat.input_ids, self._chat.n)
        self._id = f"chatcmpl-{capture.calls[0]}"

    def worker_body(self, prompts: Sequence[PackedIds], capture: Capture) -> bytes:
        """A native request with every sampling key that matters."""
        (self._prompt,) = prompts
        return openai.generate_body(
            self._chat,
            input_ids=self._prompt,
            rid=self._chat.common.rid or capture.calls[0],
            context_length=self._context_length,
        )

    def aliases(self, sample: int) -> tuple[str, ...]:
        """The completion's id, and the choice's own."""
        return (self._id, f"{self._id}:{sample}")

    def whole(self, body: bytes, answers: Sequence[sglang.Answer]) -> bytes:
        """The ``chat.completion`` object."""
        return openai.completion(
            self._chat,
            id=self._id,
            created=self._created,
            model=self._model,
            answers=answers,
            vocabulary=self._vocabulary,
            prompt_ids=self._prompt,
            **prompt_usage([self._prompt], [answer.cached_tokens for answer in answers]),
        )

    def headers(self) -> Headers:
        """Of JSON or of an event stream."""
        return json_headers(streams=self.streams)

    def begin(self) -> bytes:
        """The first chunk of every choice."""
        self._framer = openai.ChunkFramer(
            self._chat,
            id=self._id,
            created=self._created,
            model=self._model,
            vocabulary=self._vocabulary,
        )
        return self._framer.first(prompt_ids=self._prompt)

    def step(self, step: sglang.StreamStep) -> bytes:
        """The chunks of one worker event; the worker's end of stream is not passed on."""
        assert self._framer is not None
        if step.done:
            return b""
        self._usage.note(step)
        return self._framer.step(step)

    def end(self) -> bytes:
        """Usage, if asked for, and ``[DONE]``."""
        assert self._framer is not None
        counted = self._usage.counts([self._prompt])
        return self._framer.usage(**counted) + self._framer.done()

    def error(self, error: SlimeError) -> bytes:
        """An error event."""
        assert self._framer is not None
        return self._framer.error(error)
