"""A chat completion as a stream of events, as the official SDKs accumulate it.

The SDKs concatenate strings and index choices by position. So ``role`` comes once per choice; the
choices first appear in the order 0, 1, 2; nothing follows a choice's finish; usage, if asked for,
is one last chunk without choices, and ``null`` in all others. A chunk's logprobs are those of the
tokens that begin in the text shown so far, so they add up to the list of a whole answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from slime_core.openai.chat import ChatRequest
from slime_core.openai.framing import Framer, Named
from slime_core.openai.logprobs import ShownToken
from slime_core.openai.response import chat_logprobs
from slime_core.types import PackedIds, unpack_ids

__all__ = ["ChunkFramer"]


class ChunkFramer(Framer):
    """Frames one streamed chat completion, in the order that its base class says."""

    object = "chat.completion.chunk"
    ids_key = "response_token_ids"

    def __init__(self, chat: ChatRequest, **named: Unpack[Named]) -> None:
        super().__init__(chat, top_logprobs=chat.top_logprobs if chat.logprobs else None, **named)

    def first(self, *, prompt_ids: PackedIds | None = None) -> bytes:
        """The first chunk of every choice, with its role."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        extra: dict[str, Any] = {}
        if self._common.return_prompt_token_ids and prompt_ids is not None:
            extra["prompt_token_ids"] = unpack_ids(prompt_ids)
        return b"".join(self._chunk(index, {"delta": delta}, **extra) for index in self._begin())

    def _content(self, text: str, tokens: Sequence[ShownToken]) -> dict[str, Any]:
        return {"delta": {"content": text} if text or tokens else {}}

    def _told(self, tokens: Sequence[ShownToken]) -> dict[str, Any]:
        return chat_logprobs(tokens)
