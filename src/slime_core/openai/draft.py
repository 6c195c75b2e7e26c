"""An assistant message while it is told: a parser's events as pieces for a client.

What is told and what is kept are one: :attr:`Draft.message` is the sum of the pieces.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import assert_never

from slime_core.openai.content_tokens import ContentTokens
from slime_core.openai.logprobs import ShownToken
from slime_core.openai.pieces import CallHead, CallPiece, ContentPiece, Piece, ReasoningPiece
from slime_core.parsing import (
    CallArguments,
    CallBegun,
    CallEnded,
    Content,
    Event,
    Mark,
    Reasoning,
    ShownCall,
    ShownMessage,
)
from slime_core.parsing.source import SPACE

__all__ = ["Draft", "mended"]


class Draft:
    """Tells one message.

    ``call_id`` gives the id of each tool call by its index. ``tokens`` are the answer's, where
    logprobs were asked for. ``whole_reasoning``: reasoning is told in one piece. The characters of
    ``hidden``, marks in order, to which more may be added, are left out of reasoning and content.
    """

    def __init__(
        self,
        *,
        call_id: Callable[[int], str],
        tokens: ContentTokens | None,
        hidden: Sequence[Mark],
        whole_reasoning: bool,
    ) -> None:
        self._call_id = call_id
        self._tokens = tokens
        self._hidden = hidden
        self._whole_reasoning = whole_reasoning
        self._held: list[str] = []
        """Reasoning that is not told yet."""
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._heads: list[CallBegun] = []
        self._arguments: list[list[str]] = []
        self.call_ids: list[str] = []
        """The ids that the client was given."""
        self.shown_tokens: list[ShownToken] = []
        """The tokens of the content so far."""

    @property
    def message(self) -> ShownMessage:
        """What has been told, as a message; reasoning that is held for later among it."""
        calls = (
            ShownCall(name=head.name, arguments="".join(pieces), model_id=head.model_id)
            for head, pieces in zip(self._heads, self._arguments, strict=True)
        )
        return ShownMessage(
            reasoning="".join(self._reasoning) or None,
            content="".join(self._content) or None,
            tool_calls=tuple(calls),
        )

    def tell(self, event: Event) -> list[Piece]:
        """What an event brings."""
        if isinstance(event, Reasoning):
            return self._think(event)
        pieces = self._release()
        match event:
            case Content():
                pieces.extend(self._say(event))
            case CallBegun():
                pieces.append(self._begin(event))
            case CallArguments():
                self._arguments[event.index].append(event.text)
                pieces.append(CallPiece(index=event.index, text=event.text))
            case CallEnded():
                pass
            case _:
                assert_never(event)
        return pieces

    def finish(self) -> list[Piece]:
        """What is left when the answer has ended."""
        pieces = self._release()
        left = self._tokens.finish() if self._tokens is not None else []
        if left:
            self.shown_tokens += left
            pieces.append(ContentPiece(text="", tokens=tuple(left)))
        return pieces

    def _think(self, event: Reasoning) -> list[Piece]:
        text = "".join(text for _, text in self._visible(event))
        self._reasoning.append(text)
        self._held.append(text)
        return [] if self._whole_reasoning else self._release()

    def _release(self) -> list[Piece]:
        if not self._held:
            return []
        text = "".join(self._held)
        self._held.clear()
        return [ReasoningPiece(text=text)] if text else []

    def _say(self, event: Content) -> list[Piece]:
        said: list[str] = []
        tokens: list[ShownToken] = []
        for start, text in self._visible(event):
            said.append(text)
            if self._tokens is not None:
                tokens += self._tokens.show(start, start + len(text))
        text = "".join(said)
        self._content.append(text)
        self.shown_tokens += tokens
        return [ContentPiece(text=text, tokens=tuple(tokens))] if text or tokens else []

    def _begin(self, event: CallBegun) -> CallHead:
        self._heads.append(event)
        self._arguments.append([])
        self.call_ids.append(self._call_id(event.index))
        return CallHead(index=event.index, id=self.call_ids[-1], name=event.name)

    def _visible(self, event: Reasoning | Content) -> Iterable[tuple[int, str]]:
        """The parts of an event's text that are shown, each with its place."""
        if not self._hidden or self._hidden[-1].end <= event.start:
            return ((event.start, event.text),)
        return self._between_hidden(event)

    def _between_hidden(self, event: Reasoning | Content) -> Iterator[tuple[int, str]]:
        at, end = event.start, event.start + len(event.text)
        first = bisect_left(self._hidden, at + 1, key=lambda mark: mark.end)
        for place in range(first, len(self._hidden)):
            mark = self._hidden[place]
            if mark.start >= end:
                break
            if at < mark.start:
                yield at, event.text[at - event.start : mark.start - event.start]
            at = mark.end
        if at < end:
            yield at, event.text[at - event.start :]


def mended(text: str, events: Sequence[Event]) -> list[Event]:
    """All events of a whole answer, with every call that has a problem as content.

    It is verbatim, with the whitespace that was dropped before it, as
    :func:`slime_core.parsing.assemble` has it; the calls that remain are counted anew.
    """
    broken = {one.index for one in events if isinstance(one, CallEnded) and one.problem is not None}
    numbers: dict[int, int] = {}
    told: list[Event] = []
    said: int | None = None
    for event in events:
        match event:
            case CallEnded() if event.index in broken:
                before = event.start if said is None else said
                is_next = not text[before : event.start].strip(SPACE)
                start = before if is_next else event.start
                told.append(Content(text=text[start : event.end], start=start))
                said = event.end
            case CallBegun() | CallArguments() | CallEnded():
                if event.index not in broken:
                    number = numbers.setdefault(event.index, len(numbers))
                    told.append(_counted(event, number))
            case Content():
                told.append(event)
                said = event.start + len(event.text)
            case Reasoning():
                told.append(event)
            case _:
                assert_never(event)
    return told


def _counted(event: CallBegun | CallArguments | CallEnded, index: int) -> Event:
    match event:
        case CallBegun():
            return CallBegun(index=index, name=event.name, model_id=event.model_id)
        case CallArguments():
            return CallArguments(index=index, text=event.text)
        case CallEnded():
            return CallEnded(index=index, start=event.start, end=event.end, problem=event.problem)
        case _:
            assert_never(event)
