"""A whole answer as the message that a client is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never, final

from slime_core.parsing.events import (
    CallArguments,
    CallBegun,
    CallEnded,
    Content,
    Event,
    Reasoning,
)
from slime_core.parsing.source import SPACE

__all__ = ["ShownCall", "ShownMessage", "assemble"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCall:
    """One tool call; ``arguments`` is the text of a JSON object."""

    name: str
    arguments: str
    model_id: str | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ShownMessage:
    """An assistant message as a client is shown it; ``None`` where there is no such text."""

    reasoning: str | None
    content: str | None
    tool_calls: tuple[ShownCall, ...]


class _Draft:
    """One call while its events come."""

    __slots__ = ("arguments", "begun")

    def __init__(self, begun: CallBegun) -> None:
        self.begun = begun
        self.arguments: list[str] = []

    def shown(self) -> ShownCall:
        return ShownCall(
            name=self.begun.name,
            arguments="".join(self.arguments),
            model_id=self.begun.model_id,
        )


def assemble(text: str, events: Iterable[Event]) -> ShownMessage:
    """The message of a whole answer: its text and all events of it, the last ones included.

    It is what a client that adds up the pieces of a stream has, but for calls with a problem: a
    stream has told the head of such a call and cannot take it back; here it is content, verbatim,
    with the whitespace that was dropped before it.
    """
    reasoning: list[str] = []
    content: list[str] = []
    drafts: dict[int, _Draft] = {}
    calls: list[ShownCall] = []
    said = 0
    """Where the content so far ends in the text, if content was the last thing told."""
    for event in events:
        match event:
            case Reasoning():
                reasoning.append(event.text)
            case Content():
                content.append(event.text)
                said = event.start + len(event.text)
            case CallBegun():
                drafts[event.index] = _Draft(event)
            case CallArguments():
                drafts[event.index].arguments.append(event.text)
            case CallEnded(problem=None):
                calls.append(drafts[event.index].shown())
            case CallEnded():
                is_next = content and not text[said : event.start].strip(SPACE)
                content.append(text[said if is_next else event.start : event.end])
                said = event.end
            case _:
                assert_never(event)
    return ShownMessage(
        reasoning="".join(reasoning) or None,
        content="".join(content) or None,
        tool_calls=tuple(calls),
    )
