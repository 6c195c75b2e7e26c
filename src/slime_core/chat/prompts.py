"""From chat messages to a prompt: the recorded tokens, and what was appended to them.

Where the conversation extends a captured answer, that answer's ids stand as they are; only what was
appended is rendered and encoded, provided that the template's bridge proves it. Everything else is
rendered as a whole and looked up as text, which finds at least the beginning that it shares with
other prompts.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from msgspec import structs

from slime_core.capture import Prompt, prompt_flags, prompt_of_text
from slime_core.chat.index import TurnFound
from slime_core.chat.places import ChatPlace, told_of
from slime_core.chat.plans import ChatPlan, plan_chat
from slime_core.chat.turn import BRANCH, SPELLED, Turn
from slime_core.errors import ClientError
from slime_core.lookup import TokenizerFacts, Wish, history_flags
from slime_core.segments import Segment
from slime_core.state import RouterState
from slime_core.types import ID_BYTES, NO_IDS, Encoding, PackedIds, pack_ids, unpack_ids

if TYPE_CHECKING:
    from slime_core.chat.bridge import Delta

__all__ = ["prompt_of_chat"]


def prompt_of_chat(state: RouterState, facts: TokenizerFacts, plan: ChatPlan, wish: Wish) -> Prompt:
    """What the chat extends, and what of it must be encoded. Raises ``ClientError``.

    Where the state has changed since the plan was made, another one takes its place.
    """
    now = plan_chat(state, plan.template, plan.ask, wish)
    if now.found == plan.found:
        now = plan
    now.render()
    chat = _Chat(state, facts, now)
    prompt = chat.extended()
    if prompt is None:
        prompt = chat.rendered(wish)
    elif now.may_lie_deeper:
        # Answers that came by text or ids are known by text only; so is a part of an answer.
        with suppress(ClientError):
            by_text = chat.rendered(wish)
            prompt = by_text if by_text.token_start > prompt.token_start else prompt
    return structs.replace(prompt, flags=(*prompt.flags, SPELLED)) if prompt.plain else prompt


class _Chat:
    """One chat on its way to a prompt."""

    def __init__(self, state: RouterState, facts: TokenizerFacts, plan: ChatPlan) -> None:
        self._state: Final = state
        self._facts: Final = facts
        self._plan: Final = plan
        self._told: Final = plan.ask.conversation
        self._turn_ends: Final = plan.template.turn_ends

    # -- behind recorded tokens ----------------------------------------------------------

    def extended(self) -> Prompt | None:
        """The prompt that goes on behind a captured answer, or ``None`` if none provably does."""
        found, delta = self._plan.found, self._plan.delta
        if found is None:
            return None
        if self._plan.continues_answer:
            return self._continued(found)
        return None if delta is None else self._behind(found, delta)

    def _continued(self, found: TurnFound) -> Prompt:
        """Go on within the last answer: without the token that ended it, if one did."""
        segment = found.segment
        last = self._last_id(segment)
        is_ended = last in self._turn_ends
        end = segment.token_end - (1 if is_ended else 0)
        place = self._place(found.place, found, continues=True, extends=True)
        prompt = self._prompt(found, place, token_start=end)
        if not is_ended or _ending(segment):
            return prompt
        # Its end was shown, too (``no_stop_trim``), and is left out of the text with the token.
        return structs.replace(prompt, text_start=segment.text_end - len(self._spelled(last)))

    def _behind(self, found: TurnFound, delta: Delta) -> Prompt | None:
        """``delta`` behind an answer, with its turn closed exactly once."""
        segment = found.segment
        end = segment.token_end
        place = self._place(found.place + 1, found, continues=self._plan.ask.continues)
        ending = _ending(segment)
        last = self._last_id(segment)
        opener = self._token(delta.opener)
        if opener is not None and last == opener:
            rest = replace(delta, text=delta.text[len(delta.opener or "") :])
            rest = replace(rest, plain=_shifted(delta.plain, -len(delta.opener or "")))
            return self._prompt(found, place, token_start=end, joint=ending, delta=rest)
        if last in self._turn_ends or not delta.close:
            return self._prompt(found, place, token_start=end, joint=ending, delta=delta)
        close = self._token(delta.close)
        if close is None:
            return None
        prompt = self._prompt(found, place, token_start=end, delta=delta)
        return structs.replace(
            prompt,
            joint=len(ending),
            close_ids=pack_ids((close,)),
            close_text=ending + delta.close,
        )

    def _prompt(
        self,
        found: TurnFound,
        place: ChatPlace,
        *,
        token_start: int,
        joint: str = "",
        delta: Delta | None = None,
    ) -> Prompt:
        segment = found.segment
        is_cut = token_start < segment.token_end
        flags = prompt_flags(is_cut, found.ambiguous) + history_flags(segment)
        if self._plan.branches:
            flags = (*flags, BRANCH)
        held = self._state.forest.ids.key(segment.id_node)
        return Prompt(
            parent=segment.number,
            encoding=segment.encoding,
            token_start=token_start,
            text_start=segment.text_end,
            joint=len(joint),
            text=joint + ("" if delta is None else delta.text),
            held=PackedIds(held[: token_start * ID_BYTES]),
            known=NO_IDS,
            encode_from=len(joint),
            used=(segment.number,),
            flags=flags,
            plain=() if delta is None else delta.plain,
            place=place,
        )

    def _place(
        self, start: int, found: TurnFound | None, *, continues: bool = False, extends: bool = False
    ) -> ChatPlace:
        """A place whose messages up to the found answer are known by that."""
        first = 0 if found is None else found.place + (0 if extends else 1)
        end = len(self._told.messages) - (1 if continues else 0)
        behind = None if found is None else found.segment
        told = told_of(
            self._told,
            first,
            end,
            behind=0 if behind is None else behind.number,
            before=None if behind is None else _turn(behind),
        )
        known = self._state.forest.turns.told(told.key)
        return ChatPlace(
            conversation=self._told,
            start=start,
            told=known or told,
            shares=known is not None,
            continues=continues,
            extends=extends,
        )

    def _last_id(self, segment: Segment) -> int | None:
        """The last token of an answer; ``None`` for an empty one."""
        own = self._state.forest.own_ids(segment)
        return unpack_ids(own[-ID_BYTES:])[0] if own else None

    def _spelled(self, token: int | None) -> str:
        added = self._facts.hard_tokens.added
        return next((content for content, id in added.items() if id == token), "")

    def _token(self, content: str | None) -> int | None:
        return None if content is None else self._facts.hard_tokens.added.get(content)

    # -- as a whole ----------------------------------------------------------------------

    def rendered(self, wish: Wish) -> Prompt:
        """The prompt as the template renders the whole conversation."""
        whole, found = self._plan.whole(), self._plan.found
        prompt = prompt_of_text(
            self._state, self._facts, whole.text, Encoding.RENDERED, wish, whole.plain
        )
        place = self._place(0, found, continues=self._plan.ask.continues)
        flags = prompt.flags
        if self._branches(prompt):
            flags = (*flags, BRANCH)
        return structs.replace(prompt, place=place, flags=flags)

    def _branches(self, prompt: Prompt) -> bool:
        """Whether assistant turns of a prompt that was looked up as text are not as sampled."""
        found = self._plan.found
        if found is None and not self._plan.branches:
            return False
        parent = self._state.forest.find(prompt.parent)
        if parent is None or not parent.is_sampled or prompt.token_start < parent.token_end:
            return True
        return found is not None and found.segment not in parent.lineage()


def _turn(segment: Segment) -> Turn | None:
    return None if segment.answer is None else segment.answer.turn


def _ending(segment: Segment) -> str:
    """What the answer's ids hold behind its text."""
    return "" if segment.answer is None else next(iter(segment.answer.endings), "")


def _shifted(ranges: tuple[tuple[int, int], ...], by: int) -> tuple[tuple[int, int], ...]:
    return tuple((start + by, end + by) for start, end in ranges)
