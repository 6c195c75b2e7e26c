"""OpenAI's ``POST /v1/chat/completions`` over a worker's ``/generate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Unpack

from msgspec.structs import replace

from slime_core import openai, sglang
from slime_core.calls import Calls
from slime_core.chat.places import Shown
from slime_core.chat.plans import ChatAsk, ChatPlan
from slime_core.errors import ClientError
from slime_core.parsing.families import HARMONY
from slime_core.types import ID_BYTES, PackedIds, unpack_ids
from slime_trio.chatting import Chatting
from slime_trio.dialects.openai_base import OpenAIDialect, Serving
from slime_trio.dialects.openai_usage import prompt_usage
from slime_trio.exchange import Inbound
from slime_trio.offload import RENDERING_COSTS, off_loop

__all__ = ["ChatDialect"]

_PROMPT_END: Final = 64
"""How many tokens at the end of a prompt tell whether it begins the reasoning. The beginning of a
message that is gone on with may be of any length."""


class ChatDialect(OpenAIDialect[openai.ChatRequest, openai.ChunkFramer]):
    """One chat completion.

    ``ask`` is the conversation; ``None`` where the client sent ids instead. What is kept of an
    answer is its whole text, special tokens shown, and the message that the client was given.
    """

    _id_prefix = "chatcmpl"

    def __init__(
        self,
        request: openai.ChatRequest,
        inbound: Inbound,
        *,
        ask: ChatAsk | None,
        chatting: Chatting,
        **serving: Unpack[Serving],
    ) -> None:
        super().__init__(request, inbound, **serving)
        self._ask = ask
        self._plan: ChatPlan | None = None
        self._size = len(inbound.body)
        self._chatting = chatting
        self._readers: Sequence[openai.AnswerReader] = ()
        self._kept: dict[int, sglang.Answer] = {}
        self.by_text = ask is not None
        self.reads_logprobs = request.logprobs
        self.prompt_param = request.prompt_param

    async def prepare(self, capture: Calls) -> None:
        """Render the conversation."""
        if self._ask is not None:
            self._plan = capture.plan_chat(self._chatting.template, self._ask)
            await off_loop(RENDERING_COSTS * self._size, self._plan.render)

    def read(self, answers: Sequence[sglang.Answer]) -> None:
        """Parse the answers."""
        for reader, answer in zip(self._readers, answers, strict=True):
            reader.whole(answer)

    def captured(self, sample: int, answer: sglang.Answer) -> tuple[sglang.Answer, Shown | None]:
        """With all of its text, and as the message that the client was given."""
        reader = self._readers[sample]
        reader.close()
        kept = self._kept[sample] = replace(self._as_named(answer), text=reader.text)
        if self._ask is None:
            return kept, None
        shown = Shown(
            message=openai.message_of(reader),
            model_ids=tuple(call.model_id for call in reader.message.tool_calls),
        )
        return kept, shown

    def step(self, step: sglang.StreamStep) -> bytes:
        """What the event makes safe to show, but for the finish."""
        if step.done:
            return b""
        if step.error is not None:
            raise step.error
        self._usage.note(step)
        assert step.sample is not None
        pieces = self._readers[step.sample].step(step)
        ids = unpack_ids(step.ids) if self._request.common.return_token_ids else ()
        return self._begun.show(step.sample, pieces, ids=ids)

    def finish(self, sample: int) -> bytes:
        """The finish chunk. Raises the error that an abort means."""
        return self._begun.finish(sample, self._kept[sample])

    def whole(self, body: bytes, answers: Sequence[sglang.Answer]) -> bytes:
        """The ``chat.completion`` object."""
        return openai.completion(
            self._request,
            answers=list(map(self._as_named, answers)),
            readers=self._readers,
            prompt_ids=self._prompts[0],
            **self._named(),
            **prompt_usage(self._prompts, [answer.cached_tokens for answer in answers]),
        )

    def _as_named(self, answer: sglang.Answer) -> sglang.Answer:
        """``answer`` under its client's id, where a worker knew it by another."""
        rid = self._request.common.rid
        if rid is None or rid == self._sent_rid or self._request.n > 1:
            return answer
        return replace(answer, id=rid)

    def _open(self, capture: Calls) -> None:
        """One prompt, ``n`` calls."""
        if self._ask is not None:
            template, samples = self._chatting.template, self._request.n
            capture.open_chat(template, self._ask, samples, plan=self._plan)
        else:
            assert self._request.input_ids is not None
            capture.open_ids(self._request.input_ids, self._request.n)

    def _body(self, capture: Calls) -> bytes:
        reading = openai.Reading(
            chat=self._request,
            vocabulary=self._vocabulary,
            parsers=self._chatting.parsers,
            in_reasoning=self._starts_in_reasoning(),
        )
        self._readers = [
            openai.AnswerReader(reading, call_id=f"call_{call}_{{}}".format)
            for call in capture.calls
        ]
        return openai.generate_body(
            self._request,
            input_ids=self._prompts[0],
            rid=self._sent_rid or capture.calls[0],
            context_length=self._context_length,
            require_reasoning=self._waits_for_reasoning(reading),
            write_ids=capture.write_ids,
        )

    def _waits_for_reasoning(self, reading: openai.Reading) -> bool:
        """Whether a grammar must wait for the end of reasoning. Raises ``ClientError`` where no
        worker's can."""
        if not (self._request.constrained and reading.in_reasoning):
            return False
        if self._can_constrain_behind_reasoning:
            return True
        raise ClientError(
            "this model begins with reasoning, and its workers cannot constrain what follows that "
            "(SGLang: --reasoning-parser)",
            code="unsupported_value",
            param="tool_choice" if self._request.forced else "response_format",
        )

    def _starts_in_reasoning(self) -> bool:
        """Whether the prompt has begun the answer's reasoning."""
        prompt, ask = self._prompts[0], self._ask
        if ask is not None and ask.continues and self._chatting.parsers.reasoning == HARMONY:
            # Its channels are parsed, not found behind the last turn's marker.
            return _is_thinking(ask.conversation.messages[-1])
        if ask is None or not ask.continues:
            prompt = PackedIds(prompt[-_PROMPT_END * ID_BYTES :])
        end = unpack_ids(prompt)
        text = self._vocabulary.decode(end, skip_special=False, at_start=False)
        return self._chatting.template.starts_in_reasoning(text)

    def _begin(self) -> tuple[openai.ChunkFramer, bytes]:
        framer = openai.ChunkFramer(self._request, readers=self._readers, **self._named())
        return framer, framer.first(prompt_ids=self._prompts[0])


def _is_thinking(message: Mapping[str, Any]) -> bool:
    """Whether a message that is to be gone on with ends within its reasoning."""
    said = message.get("content") or message.get("tool_calls")
    return bool(message.get("reasoning_content")) and not said
