"""Retrieval by messages: the trajectory that a conversation stands for."""

from __future__ import annotations

from slime_core.chat.plans import ChatAsk, ChatPlan, ChatTemplate, plan_chat
from slime_core.chat.prompts import prompt_of_chat
from slime_core.decide import Retrieval, check_named, gone_error
from slime_core.gone import UNKNOWN
from slime_core.lookup import TokenizerFacts, Wish
from slime_core.state import RouterState
from slime_core.trajectory import count_other_answers
from slime_core.transitions import Retrieved
from slime_core.types import CallId, PackedIds

__all__ = ["plan_chat_retrieval"]


def plan_chat_retrieval(
    state: RouterState,
    facts: TokenizerFacts,
    template: ChatTemplate,
    ask: ChatAsk,
    call: CallId | None,
    *,
    plan: ChatPlan | None = None,
) -> Retrieval | None:
    """What the messages stand for, if they are a captured conversation or extend one exactly.

    ``None``: they are not known as messages, and may be by their text. What content spells of
    special tokens is no such text, and is told as it would be sent. ``plan`` may have been made
    before. Raises ``ClientError`` where
    ``call`` is named and does not lie on the way.
    """
    wish = Wish(parent_call=call)
    prompt = prompt_of_chat(state, facts, plan or plan_chat(state, template, ask, wish), wish)
    place = prompt.place
    assert place is not None
    if place.start == 0 and not prompt.plain:
        return None
    parent = state.forest.find(prompt.parent)
    if parent is None or parent.answer is None:
        raise gone_error(UNKNOWN, "messages")
    check_named(parent, call)
    twins = count_other_answers(parent)
    return Retrieval(
        parent=parent,
        token_start=prompt.token_start,
        known=PackedIds(prompt.close_ids + prompt.known),
        rest=prompt.rest or "",
        plain=prompt.plain,
        call=parent.answer.call,
        ambiguous=max(twins, 1 if "parent_ambiguous" in prompt.flags else 0),
        delivered=Retrieved(call=parent.answer.call),
        flags=tuple(flag for flag in prompt.flags if flag.startswith("history_")),
    )
