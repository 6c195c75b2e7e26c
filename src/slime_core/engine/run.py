"""One request inside the engine: what it has sampled, shown and waited for."""

from __future__ import annotations

from collections.abc import Sequence

from slime_core.detokenize import IncrementalDetokenizer
from slime_core.engine.generation import Finish, Generation, Handover, Record, Score, Span
from slime_core.engine.script import Reply
from slime_core.engine.stops import may_be_stopping, shown_text
from slime_core.errors import InvariantError
from slime_core.vocabulary import Vocabulary

__all__ = ["Run"]


class Run:
    """The mutable part of a request; it belongs to the engine and never leaves it."""

    def __init__(self, generation: Generation, vocabulary: Vocabulary) -> None:
        self.generation = generation
        self.rid = generation.rid
        self.output_ids: list[int] = []
        self.logprobs: list[float] = []
        self.spans: list[Span] = []
        self.reply: Reply | None = None
        self.handover: Handover | None = None
        """What another engine found when it computed the prompt."""
        self.unshown: tuple[Score, ...] = ()
        """A token that is told when its transfer has ended."""
        self.due = 0.0
        self.started = False
        self.told = False
        self.aborted = False
        self.cached_tokens = 0
        self.retractions = 0
        self._vocabulary = vocabulary
        self._shown = 0
        self._held: list[Score] = []
        self._held_text = ""
        self._detokenizer = IncrementalDetokenizer(
            vocabulary,
            skip_special=generation.params.skip_special_tokens,
            stop=generation.params.stop,
            at_start=False,
        )

    @property
    def sequence(self) -> list[int]:
        """Prompt and output."""
        return [*self.generation.prompt_ids, *self.output_ids]

    def __len__(self) -> int:
        """The number of tokens of the sequence."""
        return len(self.generation.prompt_ids) + len(self.output_ids)

    def tail(self, length: int) -> Sequence[int]:
        """At least the last ``length`` tokens of the sequence, or all of it."""
        missing = length - len(self.output_ids)
        if missing <= 0:
            return self.output_ids[-length:]
        return [*self.generation.prompt_ids[-missing:], *self.output_ids]

    def take(self, token: int, logprob: float, version: str) -> None:
        """Appends a sampled token; the spans stay contiguous and as few as possible."""
        place = len(self.output_ids)
        self.output_ids.append(token)
        self.logprobs.append(logprob)
        start = place
        if self.spans and self.spans[-1].version == version:
            start = self.spans.pop().start
        self.spans.append(Span(version=version, start=start, end=place + 1))

    def show(self, token: Score) -> tuple[tuple[Score, ...], str]:
        """The tokens and the text that may be told after one that did not end the answer.

        Nothing while the output ends with what may become a stop string: SGLang holds the chunk.
        """
        text = self._detokenizer.push([token.token])
        self._shown += len(text)
        self._held.append(token)
        self._held_text += text
        if may_be_stopping(self.output_ids, self.generation.params, self._vocabulary):
            return (), ""
        return self._released()

    def close(self, tokens: tuple[Score, ...], finish: Finish) -> tuple[tuple[Score, ...], str]:
        """The tokens and the text that remain to be told when the answer is over.

        Incomplete characters become U+FFFD now, and a tail that was held back because it might
        have become a stop string is let go.
        """
        self._held += tokens
        self._held_text += self._text(finish)[self._shown :]
        return self._released()

    def _released(self) -> tuple[tuple[Score, ...], str]:
        released = tuple(self._held), self._held_text
        self._held, self._held_text = [], ""
        return released

    def record(self, finish: Finish) -> Record:
        """What to remember of the finished request."""
        return Record(
            rid=self.rid,
            prompt_ids=self.generation.prompt_ids,
            output_ids=tuple(self.output_ids),
            logprobs=tuple(self.logprobs),
            spans=tuple(self.spans),
            text=self._text(finish),
            finish=finish,
            seed=self.generation.seed,
            params=self.generation.params,
            cached_tokens=self.cached_tokens,
            scripted=self.reply is not None,
        )

    def retract(self) -> None:
        """Back to the queue: the tokens stay, the work is done again."""
        self.retractions += 1

    def _text(self, finish: Finish) -> str:
        text = shown_text(self.output_ids, finish, self.generation.params, self._vocabulary)
        if len(text) < self._shown:
            raise InvariantError(f"request {self.rid} was shown more text than it has")
        return text
