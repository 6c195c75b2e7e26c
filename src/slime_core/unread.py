"""Answers that were kept with their logprobs unread: what has to be read, and what comes of it.

The logprobs of a long answer take longer to read than all else that its capture needs, and its
client does not wait for them: the worker's words are kept as they are and read later, in between or
because somebody looks. When that is makes no difference to anybody. Nothing extends an unread
answer and nothing is told of one: whoever looks anything up has all of them read first
(:meth:`slime_core.calls.Calls.open_ids` and the like do so themselves). So an answer that turns out
wrong is a leaf that nobody knows of, and withdrawing it leaves what losing it at once would have:
its call is known as ``corrupt``, and so is what goes on from its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from slime_core.sglang.tokens import read_logprobs
from slime_core.state import RouterState
from slime_core.transitions import AnswerWithdrawn, LogprobsRead
from slime_core.types import CallId, PackedIds

__all__ = ["UNREAD_FROM", "Unread", "next_unread", "read_unread"]

UNREAD_FROM: Final = 16 * 1024
"""Logprobs that are written in fewer bytes (of some 500 tokens) are read at once: it takes less
time than coming back to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """An answer whose logprobs are to be read: all that :func:`read_unread` needs."""

    call: CallId
    ids: PackedIds
    triples: bytes


def next_unread(state: RouterState) -> Unread | None:
    """The answer that has been unread for longest, or ``None``."""
    call = next(iter(state.forest.unread), None)
    if call is None:
        return None
    segment = state.forest.calls[call]
    assert segment.answer is not None
    ids = PackedIds(state.forest.own_ids(segment))
    return Unread(call=call, ids=ids, triples=segment.answer.unread)


def read_unread(unread: Unread) -> LogprobsRead | AnswerWithdrawn:
    """What becomes true once it is read. Looks at no state, so that a thread may do it."""
    logprobs, problem = read_logprobs(unread.triples, unread.ids)
    if problem is not None:
        return AnswerWithdrawn(call=unread.call, problem=problem)
    return LogprobsRead(call=unread.call, logprobs=logprobs)
