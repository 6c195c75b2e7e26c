"""OpenAI's ``POST /v1/completions`` over a worker's ``/generate``."""

from __future__ import annotations

from collections.abc import Sequence

from slime_core import openai, sglang
from slime_core.errors import SlimeError
from slime_core.types import Encoding, PackedIds, unpack_ids
from slime_core.vocabulary import Vocabulary
from slime_trio.capture import Capture
from slime_trio.dialects.openai_usage import StreamedUsage, json_headers, prompt_usage
from slime_trio.exchange import Headers, Inbound

__all__ = ["CompletionsDialect"]


class CompletionsDialect:
    """One text completion, of one prompt or several. Text prompts are raw text, as for workers."""

    verbatim = False

    def __init__(
        self,
        request: openai.CompletionRequest,
        inbound: Inbound,
        *,
        vocabulary: Vocabulary,
        model: str,
        created: int,
        context_length: int | None,
    ) -> None:
        self._request = request
        self._vocabulary = vocabulary
        self._model = model
        self._created = created
        self._context_length = context_length
        self.asked: sglang.Asked = request
        self.streams = request.stream
        self.by_text = any(isinstance(one, sglang.TextPrompt) for one in request.prompts)
        self.names_calls = request.n == 1 and request.common.rid is None
        self.parent = inbound.header(b"x-slime-parent-id")
        self._id = ""
        self._prompts: Sequence[PackedIds] = ()
        self._usage = StreamedUsage(request.samples)
        self._framer: openai.TextChunkFramer | None = None

    def open(self, capture: Capture) -> None:
        """Prompts × ``n`` calls."""
        for prompt in self._request.prompts:
            match prompt:
                case sglang.TextPrompt(text=text):
                    capture.open_text(text, Encoding.RAW, self._request.n)
                case sglang.IdsPrompt(ids=ids):
                    capture.open_ids(ids, self._request.n)
        self._id = f"cmpl-{capture.calls[0]}"

    def worker_body(self, prompts: Sequence[PackedIds], capture: Capture) -> bytes:
        """A native request with every prompt as ids."""
        self._prompts = prompts
        rids = [str(call) for call in capture.calls[:: self._request.n]]
        given = self._request.common.rid
        return openai.completions_body(
            self._request,
            input_ids=prompts,
            rids=given or (rids if self._request.batch else rids[0]),
            context_length=self._context_length,
        )

    def aliases(self, sample: int) -> tuple[str, ...]:
        """The completion's id, and the choice's own."""
        return (self._id, f"{self._id}:{sample}")

    def whole(self, body: bytes, answers: Sequence[sglang.Answer]) -> bytes:
        """The ``text_completion`` object."""
        return openai.text_completion(
            self._request,
            id=self._id,
            created=self._created,
            model=self._model,
            answers=answers,
            vocabulary=self._vocabulary,
            prompt_ids=self._prompts,
            echoes=self._echoes(),
            **prompt_usage(self._prompts, [answer.cached_tokens for answer in answers]),
        )

    def _echoes(self) -> list[str]:
        if not self._request.echo:
            return []
        return [
            one.text
            if isinstance(one, sglang.TextPrompt)
            else self._vocabulary.decode(unpack_ids(one.ids), skip_special=False)
            for one in self._request.prompts
        ]

    def headers(self) -> Headers:
        """Of JSON or of an event stream."""
        return json_headers(streams=self.streams)

    def begin(self) -> bytes:
        """The first chunk of every choice."""
        self._framer = openai.TextChunkFramer(
            self._request,
            id=self._id,
            created=self._created,
            model=self._model,
            vocabulary=self._vocabulary,
        )
        return self._framer.first(echoes=self._echoes(), prompt_ids=self._prompts)

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
        counted = self._usage.counts(self._prompts)
        return self._framer.usage(**counted) + self._framer.done()

    def error(self, error: SlimeError) -> bytes:
        """An error event."""
        assert self._framer is not None
        return self._framer.error(error)
