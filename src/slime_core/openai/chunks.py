"""A chat completion as a stream of events, as the official SDKs accumulate it.

The SDKs concatenate strings and index choices by position. So ``role`` comes once per choice, and
``id``, ``type`` and ``name`` once per tool call; the choices first appear in the order 0, 1, 2;
nothing follows a choice's finish; usage, if asked for, is one last chunk without choices, and
``null`` in all others. The logprobs of all chunks add up to the list of a whole answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, assert_never

from slime_core.openai.chat import ChatRequest
from slime_core.openai.framing import Framer
from slime_core.openai.pieces import (
    CallHead,
    CallPiece,
    ContentPiece,
    Piece,
    ReasoningPiece,
    joined,
)
from slime_core.openai.reader import AnswerReader
from slime_core.openai.response import Named, chat_logprobs, meta_info
from slime_core.sglang import Answer, StreamStep
from slime_core.types import PackedIds, unpack_ids

__all__ = ["ChunkFramer"]


class ChunkFramer(Framer):
    """Frames one streamed chat completion: what ``readers``, one per choice, have read.

    Between ``first`` and ``usage`` come, for each choice, any number of :meth:`show` and one
    :meth:`finish`, which asks the reader for its finish word; or :meth:`step`, which reads too.
    """

    object = "chat.completion.chunk"

    def __init__(
        self, chat: ChatRequest, *, readers: Sequence[AnswerReader], **named: Unpack[Named]
    ) -> None:
        super().__init__(chat, **named)
        self._readers = readers
        self._shows_logprobs = chat.logprobs
        self._shows_meta_info = chat.return_meta_info

    def first(self, *, prompt_ids: PackedIds | None = None) -> bytes:
        """The first chunk of every choice, with its role."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        extra: dict[str, Any] = {}
        if self._common.return_prompt_token_ids and prompt_ids is not None:
            extra["prompt_token_ids"] = unpack_ids(prompt_ids)
        return b"".join(self._chunk(index, {"delta": delta}, **extra) for index in self._begin())

    def step(self, step: StreamStep, answer: Answer | None = None) -> bytes:
        """Read one worker event of a sample, and frame what it brought.

        ``answer`` is all that has come of the sample, as for :meth:`finish`. Raises the error that
        the event reports, or that an aborted generation means; say it with :meth:`error`.
        """
        sample = self._sample(step)
        shown = self.show(sample, self._readers[sample].step(step), ids=unpack_ids(step.ids))
        return shown if step.finish_reason is None else shown + self.finish(sample, answer)

    def show(self, index: int, pieces: Sequence[Piece], *, ids: Sequence[int] = ()) -> bytes:
        """The chunks of what was read, and of the new token ids where the client wants them.

        The ids of a step ride on its first chunk; where nothing can be shown yet, on one that says
        nothing else.
        """
        self._opened(index)
        extra: dict[str, Any] = {}
        if self._common.return_token_ids and ids:
            extra["response_token_ids"] = list(ids)
        chunks = []
        for piece in joined(pieces):
            chunks.append(self._piece(index, piece, extra))
            extra = {}
        if extra:
            chunks.append(self._chunk(index, {"delta": {}}, **extra))
        return b"".join(chunks)

    def finish(self, index: int, answer: Answer | None = None) -> bytes:
        """The last chunk of a choice. Raises the error that an abort means.

        ``answer`` is needed where the client asked for ``meta_info``.
        """
        word = self._readers[index].finish_word
        self._opened(index).remove(index)
        extra: dict[str, Any] = {}
        if self._shows_meta_info and answer is not None:
            extra["meta_info"] = meta_info(answer, logprobs=self._shows_logprobs)
        return self._chunk(index, {"delta": {}}, finish_reason=word, **extra)

    def _plain_content(self, key: str, text: str) -> dict[str, Any]:
        return {"delta": {key: text}}

    def _piece(self, index: int, piece: Piece, extra: dict[str, Any]) -> bytes:
        if not extra and isinstance(piece, ContentPiece) and not self._shows_logprobs:
            return self._plain_chunk(index, "content", piece.text)
        if not extra and isinstance(piece, ReasoningPiece):
            return self._plain_chunk(index, "reasoning_content", piece.text)
        logprobs = None
        delta: dict[str, Any]
        match piece:
            case ReasoningPiece():
                delta = {"reasoning_content": piece.text}
            case ContentPiece():
                delta = {"content": piece.text}
                logprobs = chat_logprobs(piece.tokens) if self._shows_logprobs else None
            case CallHead():
                function = {"name": piece.name, "arguments": ""}
                call = {"id": piece.id, "type": "function", "function": function}
                delta = {"tool_calls": [{"index": piece.index, **call}]}
            case CallPiece():
                function = {"arguments": piece.text}
                delta = {"tool_calls": [{"index": piece.index, "function": function}]}
            case _:
                assert_never(piece)
        return self._chunk(index, {"delta": delta}, logprobs=logprobs, **extra)
