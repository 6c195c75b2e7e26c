"""A chat completion as a stream of events, as the official SDKs accumulate it.

The SDKs concatenate strings and index choices by position. So ``role`` comes once per choice; the
choices first appear in the order 0, 1, 2; nothing follows a choice's finish; usage, if asked for,
is one last chunk without choices, and ``null`` in all others. A chunk's logprobs are those of the
tokens that begin in the text shown so far, so they add up to the list of a whole answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slime_core.openai.chat import ChatRequest
from slime_core.openai.framing import Framer
from slime_core.openai.logprobs import TokenBook
from slime_core.openai.response import chat_logprobs
from slime_core.types import PackedIds, unpack_ids

__all__ = ["ChunkFramer"]


class ChunkFramer(Framer):
    """Frames one streamed chat completion, in the order that its base class says."""

    object = "chat.completion.chunk"

    def __init__(
        self, chat: ChatRequest, *, id: str, created: int, model: str, vocabulary: TokenBook
    ) -> None:
        super().__init__(
            chat,
            id=id,
            created=created,
            model=model,
            vocabulary=vocabulary,
            top_logprobs=chat.top_logprobs,
        )
        self._logprobs = chat.logprobs

    def first(self, *, prompt_ids: PackedIds | None = None) -> bytes:
        """The first chunk of every choice, with its role."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        extra: dict[str, Any] = {}
        if self._common.return_prompt_token_ids and prompt_ids is not None:
            extra["prompt_token_ids"] = unpack_ids(prompt_ids)
        return b"".join(self._chunk(index, {"delta": delta}, **extra) for index in self._begin())

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
        self._opened(index)
        self._shown[index] += len(text)
        extra: dict[str, Any] = {}
        if self._common.return_token_ids and ids:
            extra["response_token_ids"] = list(ids)
        entries = []
        if self._logprobs:
            entries = self._begun_before(index, ids, logprobs, top_logprobs)
        if not text and not entries and not extra:
            return b""
        delta = {"content": text} if text or entries else {}
        told = chat_logprobs(entries) if self._logprobs else None
        return self._chunk(index, {"delta": delta}, logprobs=told, **extra)

    def _last(self) -> dict[str, Any]:
        return {"delta": {}}
