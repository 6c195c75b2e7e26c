"""Decisions about the shared state: queries that return what to do and change nothing."""

from __future__ import annotations

from dataclasses import dataclass

from slime_core.alignment import TokenBytes
from slime_core.errors import ClientError
from slime_core.forest import Forest
from slime_core.gone import UNKNOWN
from slime_core.lookup import TextFound, TokenizerFacts, Wish, find_text
from slime_core.placing import NoWorker, health_change, pages_for, place, target_worker
from slime_core.segments import Segment
from slime_core.sessions import is_delivered
from slime_core.state import RouterState
from slime_core.trajectory import Trajectory, count_other_answers, trajectory
from slime_core.transitions import PromptTold, Retrieved, SegmentsGone
from slime_core.types import (
    ID_BYTES,
    CallId,
    Encoding,
    PackedIds,
    token_count,
    unpack_ids,
)

__all__ = [
    "Limits",
    "NoWorker",
    "Retrieval",
    "Untold",
    "check_named",
    "find_call",
    "gone_error",
    "health_change",
    "next_gone",
    "next_untold",
    "pages_for",
    "place",
    "plan_retrieval",
    "target_worker",
    "tell",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is kept.

    ``reuse_tokens``: tokens kept only for reuse; ``data_bytes``: captured and not yet retrieved;
    ``epochs``: how many versions of the weights anything may go unused.
    """

    reuse_tokens: int = 10_000
    data_bytes: int = 4096 * 2**20
    epochs: int = 5


def next_gone(state: RouterState, limits: Limits) -> SegmentsGone | None:
    """What must leave memory next, if anything must. Ask again after applying it."""
    forest = state.forest
    oldest = state.versions.epoch - limits.epochs
    if oldest > 0:  # epochs count from 0
        for segment in (forest.oldest_reusable(), forest.oldest_wanted()):
            if segment is not None and segment.epoch < oldest:
                return _gone(state, segment, "collected")
    # Every commit asks; what is within its bounds is not looked through.
    if forest.reuse_tokens > limits.reuse_tokens:
        reusable = forest.oldest_reusable()
        if reusable is not None:
            return _gone(state, reusable, "evicted")
    if forest.data_bytes > limits.data_bytes:
        wanted = forest.oldest_wanted()
        if wanted is not None:
            return _gone(state, wanted, "evicted")
    return None


def _gone(state: RouterState, segment: Segment, reason: str) -> SegmentsGone:
    unretrieved = 1 if segment.is_sampled and not is_delivered(state, segment) else 0
    return SegmentsGone(segments=(segment.number,), reason=reason, unretrieved=unretrieved)


def find_call(state: RouterState, name: str) -> CallId:
    """The call of that id, or of that alias.

    Raises ``ClientError``: 409 with the candidates if several calls share the alias, 410 with
    what became of it if it is gone, 404 if nothing is known of it.
    """
    call = CallId(name)
    if call in state.forest.calls:
        return call
    if call in state.open_calls:
        raise ClientError("this call has not ended yet", status=409, code="in_flight", param="id")
    shared = state.forest.aliases.get(name, ())
    if len(shared) == 1:
        return shared[0]
    if shared:
        raise ClientError(
            f"several calls share this id: {', '.join(shared)}",
            status=409,
            code="ambiguous_id",
            param="id",
        )
    raise gone_error(state.forest.gone.call(call), "id")


def gone_error(reason: str, param: str) -> ClientError:
    """The answer for what is not kept: 410 with the reason if it is remembered, else 404."""
    if reason == UNKNOWN:
        return ClientError(
            "nothing captured is known for this: it never was, or it was evicted long ago",
            status=404,
            code=UNKNOWN,
            param=param,
        )
    went = reason in ("evicted", "collected", "deleted", "expired")
    return ClientError(
        f"this was captured and is no longer kept: {reason}"
        if went
        else f"this call ended without a capture: {reason}",
        status=410,
        code=reason,
        param=param,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """How to answer a retrieval.

    The trajectory are the first ``token_start`` tokens of ``parent``, then ``known``, then ``rest``
    once it is encoded (its ``plain`` ranges as plain text). ``delivered`` is the fact to apply once
    the answer is made.
    """

    parent: Segment
    token_start: int
    known: PackedIds
    rest: str
    plain: tuple[tuple[int, int], ...] = ()
    call: CallId
    ambiguous: int
    delivered: Retrieved
    flags: tuple[str, ...]
    """Words for what is missing from the history: ``history_evicted`` and the like."""

    @property
    def matched_length(self) -> int:
        """How many tokens came from the forest."""
        return self.token_start + token_count(self.known)

    def result(self, forest: Forest, tail: PackedIds) -> Trajectory:
        """The trajectory, with ``tail`` for :attr:`rest`."""
        return trajectory(
            forest,
            self.parent,
            token_end=self.token_start,
            tail=PackedIds(self.known + tail),
        )


def plan_retrieval(
    state: RouterState, facts: TokenizerFacts, text: str, call: CallId | None
) -> Retrieval:
    """What a text stands for. ``call`` names an answer that it ends in or continues.

    Raises ``ClientError``: 410 if the text goes on to an answer that was captured and is gone (a
    ``call`` that is named is given nevertheless, with a flag), 404
    if nothing sampled is known of it, 400 if ``call`` does not lie on its path.
    """
    forest = state.forest
    wish = Wish(parent_call=call, is_retrieval=True)
    known = [
        find_text(forest, text, encoding, facts, wish=wish)
        for encoding, tree in forest.texts.items()
        if encoding is Encoding.RENDERED or tree is not forest.texts[Encoding.RENDERED]
    ]
    found = max(known, key=lambda one: _retrieval_rank(one, call))
    if call is None:
        _refuse_what_is_gone(forest, text, found)
    parent = found.parent
    if parent is None or parent.answer is None:
        raise gone_error(UNKNOWN, "text")
    check_named(parent, call)
    others = [one.parent for one in known if one is not found and one.run_start == found.run_start]
    left = found.token_start if found.token_start < parent.token_end else None
    ambiguous = count_other_answers(parent)
    ambiguous += sum(1 + count_other_answers(one) for one in others if one is not None)
    return Retrieval(
        parent=parent,
        token_start=found.token_start,
        known=found.run_ids,
        rest=text[found.encode_from :],
        flags=found.history_flags,
        call=parent.answer.call,
        # Of answers left midway it is known that there are several, not how many.
        ambiguous=max(ambiguous, 1 if found.cut and found.ambiguous else 0),
        delivered=Retrieved(call=parent.answer.call, token_end=left),
    )


def _refuse_what_is_gone(forest: Forest, text: str, found: TextFound) -> None:
    """Raise if ``text`` goes on to an answer that is gone, or ends with one that had no text."""
    if found.gone:
        raise gone_error(found.gone[-1][1], "text")
    if found.text_start < len(text):
        silent = forest.gone.silent.within(text, len(text) - 1)
        if silent:
            raise gone_error(silent[len(text)], "text")


def _retrieval_rank(found: TextFound, call: CallId | None) -> tuple[int, bool, int]:
    """Raw and rendered text may both be known: the longer history, the named one, the latest."""
    if found.parent is None:
        return (-1, False, 0)
    named = call is not None and _passes(found.parent, call)
    return (found.run_start, named, found.parent.number)


def check_named(parent: Segment, call: CallId | None) -> None:
    """Raise ``ClientError`` if ``call`` is named and the way to ``parent`` leads past it."""
    if call is not None and not _passes(parent, call):
        raise ClientError(
            "this does not end in, or continue, the call named by `id`",
            param="id",
            code="id_mismatch",
        )


def _passes(segment: Segment, call: CallId) -> bool:
    """Whether the way to ``segment`` leads through the answer of ``call``."""
    return any(one.answer is not None and one.answer.call == call for one in segment.lineage())


@dataclass(frozen=True, slots=True, kw_only=True)
class Untold:
    """A prompt that came as ids and can be given its text: all that :func:`tell` needs.

    ``held`` are the ids of a sampled parent up to the place where the prompt leaves it, and
    ``held_text`` that parent's text; both empty where the prompt begins at its parent's end.
    """

    segment: int
    is_root: bool
    ids: PackedIds
    text_start: int
    ending: str
    held: PackedIds
    held_text: str


def next_untold(state: RouterState) -> Untold | None:
    """The next prompt that came as ids and can be given its text, or ``None``.

    Text look-ups must find what was captured from ids as well; decoding is put off until someone
    looks.
    """
    forest = state.forest
    segment = next(iter(forest.untold.values()), None)
    if segment is None:
        return None
    parent = segment.parent
    start = 0 if parent is None else parent.text_end
    ending, held, held_text = "", PackedIds(b""), ""
    if parent is not None and parent.answer is not None:
        if segment.token_start == parent.token_end:
            ending = next(iter(parent.answer.endings), "")
        else:
            kept = (segment.token_start - parent.token_start) * ID_BYTES
            held, held_text = PackedIds(forest.own_ids(parent)[:kept]), forest.own_text(parent)
            start = parent.text_start
    return Untold(
        segment=segment.number,
        is_root=parent is None,
        ids=PackedIds(forest.own_ids(segment)),
        text_start=start,
        ending=ending,
        held=held,
        held_text=held_text,
    )


def tell(untold: Untold, vocabulary: TokenBytes | None) -> PromptTold:
    """The text of a prompt that came as ids. Reads no state, so that a thread may do it.

    A cut that does not fall on the parent's text (inside a character) cannot be told.
    """
    cannot = PromptTold(segment=untold.segment, text=None)
    if vocabulary is None:
        return cannot
    try:
        text = vocabulary.decode(
            unpack_ids(untold.ids), skip_special=False, at_start=untold.is_root
        )
        shown = vocabulary.decode(unpack_ids(untold.held), skip_special=False, at_start=False)
    except KeyError:
        return cannot
    if not untold.held_text.startswith(shown):
        return cannot
    return PromptTold(
        segment=untold.segment,
        text_start=untold.text_start + len(shown),
        joint=len(untold.ending),
        text=untold.ending + text,
    )
