"""Where a chat call stands in its conversation, and the turn that its answer becomes there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from slime_core.chat.canonical import Conversation, digest, written
from slime_core.chat.turn import Told, Turn

__all__ = ["ChatPlace", "Shown", "told_of", "turn_of"]

_READ: Final = (
    *("role", "content", "name", "refusal", "reasoning_content", "reasoning", "thinking"),
    *("tool_calls", "tool_call_id", "function_call"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPlace:
    """A call's prompt added the messages from ``start`` on to the turn that its parent answer is.

    0: it began a branch of its own. ``continues``: its answer goes on with the last message instead
    of following it; ``extends`` then says that the last message is the parent's own. ``shares``:
    another turn's books hold what ``told`` weighs.
    """

    conversation: Conversation
    start: int
    told: Told
    shares: bool = False
    continues: bool = False
    extends: bool = False

    @property
    def end(self) -> int:
        """The place of the message that the answer is, or becomes a part of."""
        return len(self.conversation.messages) - (1 if self.continues else 0)


def told_of(told: Conversation, first: int, end: int, behind: int, before: Turn | None) -> Told:
    """What a prompt tells with ``messages[first:end]``, behind what ``before`` knows.

    ``behind`` is the number of the answer that ``before`` is, 0 for none: turns that look alike are
    not the same, and what one client told is not shown to another.
    """
    messages = msgspec.json.encode([_kept(message) for message in told.messages[first:end]])
    tools = msgspec.json.encode(told.tools) if not first and told.tools else b"null"
    key = digest(b"%d" % behind, messages, tools)
    return Told(key=key, first=first, messages=messages, tools=tools, before=before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The assistant's message as its client was given it.

    ``message`` in OpenAI's form, with ``tool_calls`` under ids made by the router; ``model_ids``
    are the model's own, where its format has some.
    """

    message: Mapping[str, Any]
    model_ids: tuple[str | None, ...] = ()


def turn_of(place: ChatPlace, shown: Shown) -> Turn:
    """What the answer is in its conversation, if its client was given ``shown``."""
    told, end = place.conversation, place.end
    whole = _joined(told.messages[end], shown.message) if place.continues else shown.message
    told = told.with_assistant(end, whole)
    return Turn(
        chain=told.chains[end],
        start=place.start,
        end=end,
        written=written(told, place.start, end),
        reasoning=told.reasonings[end],
        continues=place.continues and place.extends,
        call_ids=told.call_ids[end],
        model_ids=shown.model_ids,
        told=place.told,
        shares=place.shares,
        own=msgspec.json.encode(_kept(whole)),
    )


def _kept(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what no template and no trainer reads, of whatever size that is."""
    return {name: message[name] for name in _READ if name in message}


def _joined(begun: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """A message that was begun, and what was sampled behind that."""
    whole = dict(rest)
    for name in ("content", "reasoning_content"):
        text = (_string(begun.get(name)) or "") + (_string(rest.get(name)) or "")
        if text:
            whole[name] = text
    return whole


def _string(value: Any) -> str | None:
    if isinstance(value, list):
        return "".join(str(part.get("text", "")) for part in value if isinstance(part, Mapping))
    return value if isinstance(value, str) else None
