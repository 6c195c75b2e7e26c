"""What a chat extends, and the renderings that this takes.

Rendering a long message takes many times longer than everything else, so it is apart: a plan is
made where the state is, may be rendered in another thread, and is used where the state is again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from slime_core.chat.bridge import Delta
from slime_core.chat.canonical import Conversation, Message, reasoning_of
from slime_core.chat.index import TurnFound, find_turn
from slime_core.chat.turn import Turn
from slime_core.errors import ClientError
from slime_core.lookup import Wish
from slime_core.segments import Segment
from slime_core.state import RouterState

if TYPE_CHECKING:
    from slime_core.chat.rendering import Rendered

__all__ = ["ChatAsk", "ChatPlan", "ChatTemplate", "History", "plan_chat"]

History = Literal["exact", "template"]
"""``exact``: what was sampled stays in the context. ``template``: the context is what the template
renders now; where it renders an earlier turn otherwise, a branch begins."""


class ChatTemplate(Protocol):
    """A chat template as prompts need it. Its methods may be called from any thread."""

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
        continue_final: bool = False,
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


def plan_chat(state: RouterState, template: ChatTemplate, ask: ChatAsk, wish: Wish) -> ChatPlan:
    """Find the captured answer that the chat extends; nothing is rendered yet."""
    owners = {} if wish.session is None else state.forest.sessions.get(wish.session, {})
    found = find_turn(state.forest.turns, ask.conversation, owners=owners, wish=wish)
    return ChatPlan(template, ask, found)


class ChatPlan:
    """The captured answer that a chat extends (``found``), and what follows it.

    ``delta`` is that, where it is proved; otherwise the conversation is to be taken as a whole
    (:meth:`whole`). :meth:`render` makes whichever is needed, and reads nothing that changes.
    """

    def __init__(self, template: ChatTemplate, ask: ChatAsk, found: TurnFound | None) -> None:
        self.template: Final = template
        self.ask: Final = ask
        self.found: Final = found
        self._turns: Final = [] if found is None else _turns(found.segment)
        self._told: Final = ask.conversation
        self._arguments: Final = {**ask.conversation.arguments, **ask.arguments}
        self._rendered = False
        self._whole: Rendered | None = None
        self.delta: Delta | None = None

    @property
    def continues_answer(self) -> bool:
        """Whether the message that is to be gone on with is the captured answer itself."""
        messages, found = self._told.messages, self.found
        is_last = found is not None and found.place == len(messages) - 1
        return self.ask.continues and is_last and not messages[-1].get("tool_calls")

    @property
    def branches(self) -> bool:
        """Whether an assistant's message follows the captured answer."""
        after = 0 if self.found is None else self.found.place + 1
        end = len(self._told.messages) - (1 if self.ask.continues else 0)
        return any(map(self._told.is_assistant, range(after, end)))

    @property
    def may_lie_deeper(self) -> bool:
        """Whether an assistant's message, or the beginning of one, follows the captured answer."""
        return self.branches or (self.ask.continues and not self.continues_answer)

    def render(self) -> None:
        """Make the renderings; once. Raises ``ClientError``."""
        if self._rendered:
            return
        self._rendered = True
        if self.continues_answer:
            return
        if self.found is not None:
            self.delta = self._proved(self.found)
        if self.delta is None:
            self.whole()
        elif self.may_lie_deeper:
            with suppress(ClientError):  # it is one more chance, and not needed
                self.whole()

    def whole(self) -> Rendered:
        """The whole conversation, as the template renders it. Raises ``ClientError``."""
        if self._whole is None:
            ask = self.ask
            self._whole = self._render(
                self._restored(self._told.messages),
                ask.add_generation_prompt and not ask.continues,
                continues=ask.continues,
            )
        return self._whole

    def _proved(self, found: TurnFound) -> Delta | None:
        messages = self._with_model_ids(self._told.messages)
        appended = messages[found.place + 1 :]
        if not appended and self.ask.continues:
            return None
        delta = self.template.delta(
            messages[: found.place + 1],
            appended,
            tools=self._told.tools,
            arguments=self._arguments,
            add_generation_prompt=self.ask.add_generation_prompt,
            continue_final=self.ask.continues,
        )
        if delta is None and not appended and not self.ask.add_generation_prompt:
            return Delta(close="", text="")  # what is held is all that was asked for
        if delta is None or self.ask.history == "exact":
            return delta
        return delta if self._is_stable(found, delta) else None

    def _is_stable(self, found: TurnFound, delta: Delta) -> bool:
        """Whether the template writes all earlier turns as it wrote them before.

        Reasoning that it never writes is not as it was sampled either.
        """
        restored = self._restored(self._told.messages)
        held = restored[: found.place + 1]
        before = self._render(held, False).text
        if reasoning_of(held[-1]):
            bare = [*held[:-1], _without_reasoning(held[-1])]
            if self._render(bare, False).text == before:
                return False
        prompted = self.ask.add_generation_prompt and not self.ask.continues
        now = self._render(restored, prompted, continues=self.ask.continues).text
        return now.endswith(delta.text) and before.startswith(now.removesuffix(delta.text))

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool, *, continues: bool = False
    ) -> Rendered:
        return self.template.rendered(
            messages,
            tools=self._told.tools,
            arguments=self._arguments,
            add_generation_prompt=add_generation_prompt,
            continue_final=continues,
        )

    # -- messages as they were sampled -----------------------------------------------------

    def _with_model_ids(self, messages: Sequence[Message]) -> Sequence[Message]:
        """With the model's own ids of its tool calls, for templates that write them."""
        names = {
            ours: theirs
            for turn in self._turns
            for ours, theirs in zip(turn.call_ids, turn.model_ids, strict=False)
            if theirs is not None
        }
        return [_renamed(message, names) for message in messages] if names else messages

    def _restored(self, messages: Sequence[Message]) -> Sequence[Message]:
        """With the turns as they were sampled, whatever a client dropped or spelled otherwise."""
        restored = list(messages)
        seen: set[int] = set()
        for turn in self._turns:
            # Of turns that go on with one message the latest knows all of it.
            if turn.end not in seen and turn.end < len(restored):
                restored[turn.end] = turn.message(turn.end)
            seen.add(turn.end)
        return self._with_model_ids(restored)


def _turns(segment: Segment) -> list[Turn]:
    """The turns on the way to ``segment``, the latest first."""
    answers = (one.answer for one in reversed(segment.lineage()))
    return [one.turn for one in answers if one is not None and one.turn is not None]


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


def _without_reasoning(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "reasoning_content"}
