"""From chat messages to a prompt: the recorded tokens, and what was appended to them.

Where the conversation extends a captured answer, that answer's ids stand as they are; only what was
appended is rendered and encoded, provided that the template's bridge proves it. Everything else is
rendered as a whole and looked up as text, which finds at least the beginning that it shares with
other prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from slime_core.capture import Prompt, prompt_flags, prompt_of_text
from slime_core.chat.canonical import Conversation, Message, reasoning_of
from slime_core.chat.index import TurnFound, find_turn
from slime_core.chat.places import ChatPlace
from slime_core.chat.turn import BRANCH, SPELLED, Turn
from slime_core.lookup import TokenizerFacts, Wish, history_flags
from slime_core.segments import Segment
from slime_core.state import RouterState
from slime_core.types import (
    ID_BYTES,
    NO_IDS,
    Encoding,
    PackedIds,
    pack_ids,
    unpack_ids,
)

if TYPE_CHECKING:
    from slime_core.chat.bridge import Delta
    from slime_core.chat.rendering import Rendered

__all__ = ["ChatAsk", "ChatTemplate", "History", "prompt_of_chat"]

History = Literal["exact", "template"]
"""``exact``: what was sampled stays in the context. ``template``: the context is what the template
renders now; where it renders an earlier turn otherwise, a branch begins."""


class ChatTemplate(Protocol):
    """A chat template as prompts need it."""

    @property
    def turn_ends(self) -> frozenset[int]:
        """The ids that end an assistant's turn."""

    def rendered(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]],
        arguments: Mapping[str, Any],
        add_generation_prompt: bool,
        continue_final: bool = False,
    ) -> Rendered:
        """The whole conversation. Raises ``ClientError``."""

    def delta(
        self,
        history: Sequence[Message],
        appended: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]],
        arguments: Mapping[str, Any],
        add_generation_prompt: bool,
    ) -> Delta | None:
        """What stands behind ``history`` when ``appended`` follows; ``None`` if not proved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatAsk:
    """A chat as it was asked for. ``continues``: its last message is to be gone on with.

    ``arguments`` are the template's for this answer only; they are no part of the conversation's
    identity.
    """

    conversation: Conversation
    arguments: Mapping[str, Any] = field(default_factory=dict)
    history: History = "exact"
    continues: bool = False
    add_generation_prompt: bool = True


def prompt_of_chat(
    state: RouterState, facts: TokenizerFacts, template: ChatTemplate, ask: ChatAsk, wish: Wish
) -> Prompt:
    """What the chat extends, and what of it must be encoded. Raises ``ClientError``."""
    found = find_turn(
        state.forest.turns,
        ask.conversation,
        owners={} if wish.session is None else state.forest.sessions.get(wish.session, {}),
        parent_call=wish.parent_call,
    )
    chat = _Chat(state, facts, template, ask)
    extended = None if found is None else chat.extended(found)
    prompt = extended or chat.rendered(found, wish)
    return replace(prompt, flags=(*prompt.flags, SPELLED)) if prompt.plain else prompt


class _Chat:
    """One chat on its way to a prompt."""

    def __init__(
        self, state: RouterState, facts: TokenizerFacts, template: ChatTemplate, ask: ChatAsk
    ) -> None:
        self._state = state
        self._facts = facts
        self._template = template
        self._ask = ask
        self._told = ask.conversation
        self._arguments = {**ask.conversation.arguments, **ask.arguments}

    # -- behind recorded tokens ----------------------------------------------------------

    def extended(self, found: TurnFound) -> Prompt | None:
        """The prompt that goes on behind a captured answer, or ``None`` if none provably does."""
        last = len(self._told.messages) - 1
        if self._ask.continues:
            return self._continued(found) if found.place == last else None
        messages = _with_model_ids(self._told.messages, found.segment)
        delta = self._delta(messages, found.place)
        if delta is None:
            return None
        if self._ask.history == "template" and not self._is_stable(messages, found, delta):
            return None
        return self._behind(found, delta)

    def _delta(self, messages: Sequence[Message], place: int) -> Delta | None:
        return self._template.delta(
            messages[: place + 1],
            messages[place + 1 :],
            tools=self._told.tools,
            arguments=self._arguments,
            add_generation_prompt=self._ask.add_generation_prompt,
        )

    def _continued(self, found: TurnFound) -> Prompt:
        """Go on within the last answer: without the token that ended it, if one did."""
        segment = found.segment
        last = self._last_id(segment)
        is_ended = last in self._template.turn_ends
        end = segment.token_end - (1 if is_ended else 0)
        place = ChatPlace(conversation=self._told, start=found.place, continues=True, extends=True)
        prompt = self._prompt(found, place, token_start=end, joint="", text="")
        if not is_ended or _ending(segment):
            return prompt
        # Its end was shown, too (``no_stop_trim``), and is left out of the text with the token.
        spelled = self._spelled(last)
        return replace(prompt, text_start=segment.text_end - len(spelled))

    def _last_id(self, segment: Segment) -> int | None:
        """The last token of an answer; ``None`` for an empty one."""
        own = self._state.forest.own_ids(segment)
        return unpack_ids(own[-ID_BYTES:])[0] if own else None

    def _spelled(self, token: int | None) -> str:
        added = self._facts.hard_tokens.added
        return next((content for content, id in added.items() if id == token), "")

    def _behind(self, found: TurnFound, delta: Delta) -> Prompt | None:
        """``delta`` behind an answer, with its turn closed exactly once."""
        segment = found.segment
        place = ChatPlace(conversation=self._told, start=found.place + 1)
        ending = _ending(segment)
        last = self._last_id(segment)
        opener = self._token(delta.opener)
        if opener is not None and last == opener:
            skipped = len(delta.opener or "")
            return self._prompt(
                found,
                place,
                token_start=segment.token_end,
                joint=ending,
                text=delta.text[skipped:],
                plain=_shifted(delta.plain, -skipped),
            )
        is_open = last not in self._template.turn_ends
        close_ids = self._close_ids(delta.close) if is_open else NO_IDS
        if close_ids is None:
            return None
        return self._prompt(
            found,
            place,
            token_start=segment.token_end,
            joint=ending,
            text=delta.text,
            plain=delta.plain,
            close=delta.close if close_ids else "",
            close_ids=close_ids,
        )

    def _prompt(
        self,
        found: TurnFound,
        place: ChatPlace,
        *,
        token_start: int,
        joint: str,
        text: str,
        plain: tuple[tuple[int, int], ...] = (),
        close: str = "",
        close_ids: PackedIds = NO_IDS,
    ) -> Prompt:
        segment = found.segment
        is_cut = token_start < segment.token_end
        before = "" if close_ids else joint
        flags = prompt_flags(is_cut, found.ambiguous) + history_flags(segment)
        last = _last_assistant(self._told, place)
        return Prompt(
            parent=segment.number,
            encoding=segment.encoding,
            token_start=token_start,
            text_start=segment.text_end,
            joint=len(joint),
            text=before + text,
            held=PackedIds(self._ids(segment)[: token_start * ID_BYTES]),
            known=NO_IDS,
            encode_from=len(before),
            used=(segment.number,),
            flags=flags if last <= found.place else (*flags, BRANCH),
            plain=plain,
            close_ids=close_ids,
            close_text=joint + close if close_ids else "",
            place=place,
        )

    def _ids(self, segment: Segment) -> PackedIds:
        return PackedIds(self._state.forest.ids.key(segment.id_node))

    def _token(self, content: str | None) -> int | None:
        return None if content is None else self._facts.hard_tokens.added.get(content)

    def _close_ids(self, close: str) -> PackedIds | None:
        """The ids of what closes a turn: added tokens, or it cannot be supplied."""
        if not close:
            return NO_IDS
        token = self._token(close)
        return None if token is None else pack_ids((token,))

    def _is_stable(self, messages: Sequence[Message], found: TurnFound, delta: Delta) -> bool:
        """Whether the template writes all earlier turns as it wrote them before."""
        restored = _with_reasoning(messages, found.segment)
        held = restored[: found.place + 1]
        before = self._render(held, add_generation_prompt=False).text
        if reasoning_of(held[-1]):
            bare = [*held[:-1], _without_reasoning(held[-1])]
            if self._render(bare, add_generation_prompt=False).text == before:
                return False
        now = self._render(restored, self._ask.add_generation_prompt).text
        kept = now.removesuffix(delta.text)
        return now.endswith(delta.text) and before.startswith(kept)

    # -- as a whole ----------------------------------------------------------------------

    def rendered(self, found: TurnFound | None, wish: Wish) -> Prompt:
        """The prompt as the template renders the whole conversation."""
        messages: Sequence[Message] = self._told.messages
        if found is not None:
            messages = _with_reasoning(_with_model_ids(messages, found.segment), found.segment)
        whole = self._render(
            messages,
            self._ask.add_generation_prompt and not self._ask.continues,
            continues=self._ask.continues,
        )
        prompt = prompt_of_text(
            self._state, self._facts, whole.text, Encoding.RENDERED, wish, whole.plain
        )
        place = ChatPlace(conversation=self._told, start=0, continues=self._ask.continues)
        flags = prompt.flags
        if self._branches(prompt, found, place):
            flags = (*flags, BRANCH)
        return replace(prompt, place=place, flags=flags)

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool, *, continues: bool = False
    ) -> Rendered:
        return self._template.rendered(
            messages,
            tools=self._told.tools,
            arguments=self._arguments,
            add_generation_prompt=add_generation_prompt,
            continue_final=continues,
        )

    def _branches(self, prompt: Prompt, found: TurnFound | None, place: ChatPlace) -> bool:
        if _last_assistant(self._told, place) < 0:
            return False
        parent = self._state.forest.find(prompt.parent)
        if parent is None or not parent.is_sampled or prompt.token_start < parent.token_end:
            return True
        return found is not None and parent is not found.segment


def _last_assistant(told: Conversation, place: ChatPlace) -> int:
    """The place of the last assistant message that the answer is no part of; -1 without any."""
    return max((at for at in range(place.end) if told.is_assistant(at)), default=-1)


def _ending(segment: Segment) -> str:
    """What the answer's ids hold behind its text."""
    return "" if segment.answer is None else next(iter(segment.answer.endings), "")


def _shifted(ranges: tuple[tuple[int, int], ...], by: int) -> tuple[tuple[int, int], ...]:
    return tuple((start + by, end + by) for start, end in ranges)


def _turns(segment: Segment) -> list[Turn]:
    """The turns on the way to ``segment``, the latest first."""
    answers = (one.answer for one in reversed(segment.lineage()))
    return [one.turn for one in answers if one is not None and one.turn is not None]


def _with_model_ids(messages: Sequence[Message], segment: Segment) -> Sequence[Message]:
    """The messages with the model's own ids of its tool calls, for templates that write them."""
    names = {
        ours: theirs
        for turn in _turns(segment)
        for ours, theirs in zip(turn.call_ids, turn.model_ids, strict=False)
        if theirs is not None
    }
    return [_renamed(message, names) for message in messages] if names else messages


def _renamed(message: Message, names: Mapping[str, str]) -> Message:
    named = message.get("tool_call_id")
    if isinstance(named, str) and named in names:
        return {**message, "tool_call_id": names[named]}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [{**call, "id": _id_of(call, names)} for call in calls]}


def _id_of(call: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    given = call.get("id")
    return names.get(given, given) if isinstance(given, str) else given


def _with_reasoning(messages: Sequence[Message], segment: Segment) -> list[Message]:
    """The messages with the reasoning that was sampled for them, where a client dropped it."""
    restored = list(messages)
    for turn in _turns(segment):
        if turn.reasonings[-1:] in ((), (None,)) or turn.end >= len(restored):
            continue
        kept = reasoning_of(turn.message(turn.end))
        if reasoning_of(restored[turn.end]) != kept:
            restored[turn.end] = {**restored[turn.end], "reasoning_content": kept}
    return restored


def _without_reasoning(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "reasoning_content"}
