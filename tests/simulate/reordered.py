"""A journal with the commits of concurrent calls in another order, and what the forest then says.

Facts name segments by their number, which counts them in the order of making. Where two captures
change places, the numbers behind them are told anew: the same step makes the same segments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from msgspec import structs

from slime_core.state import RouterState
from slime_core.trajectory import trajectory
from slime_core.transitions import (
    CallCaptured,
    CallOpened,
    Lookup,
    PromptTold,
    SegmentsGone,
    SlotsGiven,
    SlotsTaken,
    Transition,
    VersionSeen,
    WorkerAdded,
    WorkerHealth,
    WorkerRemoved,
)

__all__ = ["swapped", "view"]

_OF_THE_FLEET = (
    SlotsGiven,
    SlotsTaken,
    VersionSeen,
    WorkerAdded,
    WorkerHealth,
    WorkerRemoved,
    Lookup,
)
"""Facts over which a capture may be moved: they know nothing of segments that it makes."""


def swapped(journal: Sequence[Transition], empty: Callable[[], RouterState]) -> RouterState | None:
    """The state after the journal with every pair of neighbouring captures in reverse order.

    ``None`` if no two captures are neighbours. Raises what ``apply`` raises.
    """
    order = _order(journal)
    if order == list(range(len(journal))):
        return None
    made = _numbers(journal, empty())
    state = empty()
    renamed: dict[int, int] = {}
    pending: list[tuple[list[int], list[int]]] = []
    for place, original in enumerate(order):
        fact = _told_anew(journal[original], renamed)
        first = _next_number(state)
        state.apply(fact)
        own = list(range(first, _next_number(state)))
        pending.append((made[original], own))
        if place + 1 == len(order) or max(order[: place + 1]) == place:
            _rename(pending, renamed)
            pending = []
    return state


def _order(journal: Sequence[Transition]) -> list[int]:
    order = list(range(len(journal)))
    place = 0
    while place < len(journal):
        other = _neighbour(journal, place) if isinstance(journal[place], CallCaptured) else None
        if other is None:
            place += 1
            continue
        order[place], order[other] = other, place
        place = other + 1
    return order


def _neighbour(journal: Sequence[Transition], place: int) -> int | None:
    """The capture that follows with nothing but facts of the fleet between."""
    for other in range(place + 1, len(journal)):
        if isinstance(journal[other], CallCaptured):
            return other
        if not isinstance(journal[other], _OF_THE_FLEET):
            return None
    return None


def _next_number(state: RouterState) -> int:
    return state.forest._next


def _numbers(journal: Sequence[Transition], state: RouterState) -> list[list[int]]:
    """The numbers of the segments that each fact made."""
    made = []
    for fact in journal:
        first = _next_number(state)
        state.apply(fact)
        made.append(list(range(first, _next_number(state))))
    return made


def _rename(pending: list[tuple[list[int], list[int]]], renamed: dict[int, int]) -> None:
    """Answers are the last segment of a capture; a prompt is made by whoever comes first."""
    old_prompts, new_prompts = [], []
    for old, new in pending:
        if old and new:
            renamed[old[-1]] = new[-1]
        old_prompts.append(old[:-1])
        new_prompts.append(new[:-1])
    own = all(len(old) == len(new) for old, new in zip(old_prompts, new_prompts, strict=True))
    if own:
        pairs = list(zip(old_prompts, new_prompts, strict=True))
    else:
        pairs = [(list(chain(*old_prompts)), list(chain(*new_prompts)))]
    for olds, news in pairs:
        renamed.update(zip(olds, news, strict=True))


def _told_anew(fact: Transition, renamed: dict[int, int]) -> Transition:
    changes: dict[str, Any] = {}
    if isinstance(fact, CallOpened | CallCaptured) and fact.parent is not None:
        changes["parent"] = renamed.get(fact.parent, fact.parent)
    elif isinstance(fact, Lookup):
        changes["used"] = tuple(renamed.get(one, one) for one in fact.used)
    elif isinstance(fact, PromptTold):
        changes["segment"] = renamed.get(fact.segment, fact.segment)
    elif isinstance(fact, SegmentsGone):
        changes["segments"] = tuple(renamed.get(one, one) for one in fact.segments)
    return structs.replace(fact, **changes) if changes else fact


def view(state: RouterState) -> dict[str, tuple[object, ...]]:
    """The forest as calls: ids, mask, logprobs, versions, the calls above, text, cut."""
    forest, seen = state.forest, dict[str, tuple[object, ...]]()
    for call, segment in forest.calls.items():
        found = trajectory(forest, segment)
        above = [one.answer.call for one in segment.lineage()[:-1] if one.answer is not None]
        text = None
        if segment.text_node is not None:
            text = forest.texts[segment.encoding].key(segment.text_node)
        seen[call] = (
            (found.ids, found.mask, tuple(found.logprobs), tuple(found.versions)),
            (tuple(above), text, found.cut, segment.retrieved),
        )
    return seen
