"""Reading what was sampled: from a worker's tokens to what a chat client is shown.

One code path for streams and whole answers: text is decoded from the sampled ids
(:mod:`slime_core.openai.answer_text`) and parsed (:mod:`slime_core.parsing`), and special tokens
are left out only behind the parser, which looks for them. The one difference: a stream has told the
head of a tool call before its end is known, and tells a call that turns out broken to its end; in a
whole answer that is content.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache

from slime_core.errors import WorkerError
from slime_core.openai.answer_text import AnswerText
from slime_core.openai.chat import ChatRequest
from slime_core.openai.content_tokens import ContentTokens
from slime_core.openai.draft import Draft, mended
from slime_core.openai.finish import finish_word
from slime_core.openai.logprobs import ShownToken
from slime_core.openai.pieces import Piece
from slime_core.parsing import AnswerParser, Event, Mark, ParserChoice, ShownMessage
from slime_core.sglang import Answer, FinishReason, StreamStep
from slime_core.types import unpack_ids, unpack_logprobs
from slime_core.vocabulary import Vocabulary

__all__ = ["NO_PARSERS", "AnswerReader", "Reading", "added_texts"]

NO_PARSERS = ParserChoice(reasoning=None, tool_calls=None)
"""All of an answer is content."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the answers of one request are read, the same for each of its samples."""

    chat: ChatRequest
    vocabulary: Vocabulary
    parsers: ParserChoice = NO_PARSERS
    """Those of the model; the request may want less."""
    in_reasoning: bool = False
    """The prompt has opened a block of reasoning."""

    @property
    def choice(self) -> ParserChoice:
        """The parsers that this request wants.

        Without tools, or where none may be called, what looks like a call is content; where
        reasoning is not to be separated, it stays in the content with its tags (SGLang's
        ``separate_reasoning``).
        """
        chat = self.chat
        return ParserChoice(
            reasoning=self.parsers.reasoning if chat.separate_reasoning else None,
            tool_calls=self.parsers.tool_calls if chat.calls_tools else None,
        )


class AnswerReader:
    """Reads one sample.

    Call :meth:`push` (or :meth:`step`) for what a worker sends, in order; what comes with a finish
    reason is the last. :meth:`whole` does it for a whole answer, :meth:`close` ends what broke off.
    ``call_id`` makes the id of each tool call out of its index; it is called once for each.
    """

    def __init__(self, reading: Reading, *, call_id: Callable[[int], str]) -> None:
        chat, common = reading.chat, reading.chat.common
        self._streams = chat.stream
        self._trims = not common.no_stop_trim
        self._text = AnswerText(reading.vocabulary, stop=common.stop, holds=common.stop_regex)
        self._tokens = (
            ContentTokens(reading.vocabulary, top=chat.top_logprobs) if chat.logprobs else None
        )
        self._parser = AnswerParser(
            reading.choice,
            tools=chat.tools if chat.calls_tools else (),
            marks=added_texts(reading.vocabulary),
            in_reasoning=reading.in_reasoning,
            forced=chat.forced,
            parallel=chat.parallel_tool_calls,
        )
        self._draft = Draft(
            call_id=call_id,
            tokens=self._tokens,
            hidden=self._text.specials if common.skip_special_tokens else (),
            whole_reasoning=not chat.stream_reasoning,
        )
        self._events: list[Event] = []
        self._reason: FinishReason | None = None
        self._ended = False

    @property
    def text(self) -> str:
        """The text of the answer so far, special tokens shown, without what stopped it."""
        return self._text.text

    @property
    def message(self) -> ShownMessage:
        """The message as the client is shown it: all of it, once the answer has ended."""
        return self._draft.message

    @property
    def call_ids(self) -> tuple[str, ...]:
        """The ids that the client is given for the message's tool calls."""
        return tuple(self._draft.call_ids)

    @property
    def shown_tokens(self) -> Sequence[ShownToken]:
        """The tokens of the message's content, where logprobs were asked for."""
        return self._draft.shown_tokens

    @property
    def finish_word(self) -> str:
        """The finish reason in OpenAI's words. Raises for an abort, and where there is none."""
        word = finish_word(self._reason)
        return "tool_calls" if word == "stop" and self._draft.call_ids else word

    def step(self, step: StreamStep) -> list[Piece]:
        """What one event of a worker's stream brings."""
        ids = unpack_ids(step.ids)
        return self.push(ids, step.logprobs, step.top_logprobs, reason=step.finish_reason)

    def whole(self, answer: Answer) -> None:
        """Read a whole answer. Raises :class:`WorkerError` where it is text without tokens."""
        ids = unpack_ids(answer.ids)
        if answer.text and not ids:
            raise WorkerError("The worker gave text without the tokens that it stands for.")
        known = unpack_logprobs(answer.logprobs, len(ids)) if answer.logprobs else ()
        self.push(ids, known, answer.top_logprobs, reason=answer.finish_reason)
        self.close()

    def push(
        self,
        ids: Sequence[int],
        logprobs: Sequence[float | None] = (),
        top_logprobs: bytes = b"",
        *,
        reason: FinishReason | None = None,
    ) -> list[Piece]:
        """What more tokens bring; a ``reason`` says that they are the last.

        Raises :class:`WorkerError` where the client wants logprobs and there is not one for each.
        """
        if self._tokens is not None:
            self._tokens.push(ids, logprobs, top_logprobs)
        if reason is None:
            return self._read(*self._text.push(ids))
        self._reason = reason
        stop = _stop_tokens(ids, reason) if self._trims else 0
        return self._read(*self._text.push(ids[: len(ids) - stop])) + self.close()

    def close(self) -> list[Piece]:
        """The answer has ended, for a reason or without one. Again, nothing."""
        if self._ended:
            return []
        self._ended = True
        if self._tokens is not None:
            self._tokens.close()
        matched = self._reason.matched if self._reason is not None and self._trims else None
        pieces = self._read(*self._text.finish(matched if isinstance(matched, str) else None))
        pieces += self._tell(self._parser.finish())
        if not self._streams:
            events = mended(self.text, self._events)
            pieces = [piece for event in events for piece in self._draft.tell(event)]
        return pieces + self._draft.finish()

    def _read(self, text: str, marks: Sequence[Mark]) -> list[Piece]:
        return self._tell(self._parser.push(text, marks)) if text else []

    def _tell(self, events: Sequence[Event]) -> list[Piece]:
        if self._streams:
            return [piece for event in events for piece in self._draft.tell(event)]
        self._events += events
        return []


@lru_cache(maxsize=4)
def added_texts(vocabulary: Vocabulary) -> Collection[str]:
    """What the added tokens of a vocabulary write."""
    return frozenset(
        vocabulary.bytes_of(token).decode("utf-8", "replace") for token in vocabulary.added
    )


def _stop_tokens(ids: Sequence[int], reason: FinishReason) -> int:
    """How many ids at the end are what stopped the answer and not part of its text."""
    matched = reason.matched
    stop = [matched] if isinstance(matched, int) else list(matched or ())
    if isinstance(matched, str) or list(ids[len(ids) - len(stop) :]) != stop:
        return 0
    return len(stop)
