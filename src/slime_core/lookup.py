"""The longest captured prefix of a text or of token ids, and where it may be cut.

What may be reused without changing an id:

* all tokens up to the end of a *sampled* segment, since whatever follows it is encoded on its own;
* where a text leaves a sampled answer midway, the tokens wholly before that place (a *cut*);
* within the unsampled run that follows, the tokens of an earlier, equal run: the whole of it if
  the run ends there too, else up to an added token that splits hard (:mod:`boundaries`). The end
  of a mere prompt is never a place to cut: the next character could have changed its last tokens.

Matching is not believing. A look-up reads; mask, logprobs and versions come from the segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from slime_core.alignment import TokenBytes, tokens_before
from slime_core.boundaries import HardTokens, token_index
from slime_core.forest import Forest
from slime_core.radix import Match, Node
from slime_core.segments import Outcome, Segment
from slime_core.types import ID_BYTES, CallId, Encoding, PackedIds, unpack_ids

__all__ = ["IdsFound", "TextFound", "TokenizerFacts", "Wish", "find_ids", "find_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """What a look-up must know of the tokenizer at hand.

    ``raw_prefix`` is how many ids (BOS) it puts before raw text. ``vocabulary`` is ``None`` where
    its decoder cannot be told byte by byte: then no answer is ever left midway.
    """

    vocabulary: TokenBytes | None
    hard_tokens: HardTokens
    raw_prefix: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Which of several equal answers the client means: its session's own, or one by name."""

    session: str | None = None
    parent_call: CallId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFound:
    """What is known of a text.

    The first ``token_start`` tokens of ``parent`` stand for ``text[:run_start]``; ``joint``
    characters before ``run_start`` repeat what those tokens hold already. ``run_ids`` are the
    tokens of ``text[run_start:encode_from]``; the rest must be encoded. ``text_start`` is where
    the new text begins (``run_start - joint``). ``matched`` characters are known at all.
    """

    parent: Segment | None
    token_start: int
    text_start: int
    joint: int
    run_ids: PackedIds
    encode_from: int
    matched: int
    cut: bool
    ambiguous: bool
    used: tuple[int, ...]

    @property
    def run_start(self) -> int:
        """Where the unsampled run begins."""
        return self.text_start + self.joint


@dataclass(frozen=True, slots=True, kw_only=True)
class IdsFound:
    """What is known of token ids: the first ``token_start`` of them are ``parent``'s."""

    parent: Segment | None
    token_start: int
    matched: int
    cut: bool
    ambiguous: bool


@dataclass(frozen=True, slots=True)
class _Base:
    """Where the sampled history of a text ends."""

    parent: Segment | None
    token_start: int
    text_start: int
    joint: int = 0
    cut: bool = False
    ambiguous: bool = False


def find_text(
    forest: Forest,
    text: str,
    encoding: Encoding,
    facts: TokenizerFacts,
    *,
    wish: Wish | None = None,
) -> TextFound:
    """The longest captured prefix of ``text``, and what is left to encode."""
    found = forest.texts[encoding].match(text)
    base = _text_base(forest, text, found, facts.vocabulary, wish or Wish())
    run_start = base.text_start + base.joint
    source, run_ids, encode_from = _equal_run(forest, text, found, run_start, facts)
    used = tuple(one.number for one in (base.parent, source) if one is not None)
    return TextFound(
        parent=base.parent,
        token_start=base.token_start,
        text_start=base.text_start,
        joint=base.joint,
        run_ids=run_ids,
        encode_from=encode_from,
        matched=found.length,
        cut=base.cut,
        ambiguous=base.ambiguous,
        used=used,
    )


def _text_base(
    forest: Forest, text: str, found: Match[str], vocabulary: TokenBytes | None, wish: Wish
) -> _Base:
    """The deeper of two: the end of a sampled segment, or a place inside one."""
    whole = _Base(None, 0, 0)
    for node in found.node.lineage():
        ended = _choose(node, lambda one: _may_follow(one, text, wish), wish)
        if ended is not None:
            whole = _after(forest, ended[0], text, ended[1], vocabulary)
            break
    inside = _covering(found.below, lambda one: one.text_start < found.length)
    if inside is None or vocabulary is None or inside.text_end <= found.length:
        return whole
    cut = _cut(forest, inside, found.length - inside.text_start, vocabulary)
    deeper = cut is not None and cut.text_start > whole.text_start + whole.joint
    return cut if cut is not None and deeper else whole


def _may_follow(segment: Segment, text: str, wish: Wish) -> bool:
    """Whether ``text`` may be the continuation of this answer.

    An answer without text (a stop token alone) cannot be told from its prompt by text: it is
    meant only if its ending follows or the client names it.
    """
    answer = segment.answer
    if answer is None:
        return False
    if segment.text_end > segment.text_start or answer.call == wish.parent_call:
        return True
    return _joint(segment, text) > 0


def _joint(segment: Segment, text: str) -> int:
    """How many characters of ``text`` repeat what the ids of this answer hold behind its text."""
    answer = segment.answer
    assert answer is not None
    for ending in answer.endings:
        if text.startswith(ending, segment.text_end):
            return len(ending)
    return 0


def _choose(
    node: Node[Any], eligible: Callable[[Segment], bool], wish: Wish
) -> tuple[Segment, bool] | None:
    """The answer at ``node`` that is meant, and whether others could have been.

    The session's own call, else the one named, else the latest.
    """
    candidates = (one for one in reversed(node.marks or ()) if eligible(one))
    latest = next(candidates, None)
    if latest is None:
        return None
    second = next(candidates, None)
    if second is None:
        return latest, False
    rest = (latest, second, *candidates)
    own = _owned(rest, lambda one: wish.session is not None and one.session == wish.session)
    if own is not None:
        return own
    named = _owned(rest, lambda one: one.call == wish.parent_call)
    return named or (latest, True)


def _owned(
    candidates: Iterable[Segment], is_meant: Callable[[Any], bool]
) -> tuple[Segment, bool] | None:
    meant = [one for one in candidates if is_meant(one.answer)]
    return (meant[0], len(meant) > 1) if meant else None


def _after(
    forest: Forest,
    segment: Segment,
    text: str,
    ambiguous: bool,
    vocabulary: TokenBytes | None,
) -> _Base:
    """The history that ends with ``segment``.

    Of an answer that broke off, the client may have been shown less than was sampled. If its
    text does not go on with the rest, the client never saw it: that is a cut.
    """
    joint = _joint(segment, text)
    answer = segment.answer
    assert answer is not None
    unseen = answer.outcome is Outcome.PARTIAL and bool(answer.endings) and not joint
    if unseen and vocabulary is not None:
        shown = segment.text_end - segment.text_start
        cut = _cut(forest, segment, shown, vocabulary)
        if cut is not None:
            return cut
    return _Base(segment, segment.token_end, segment.text_end, joint, ambiguous=ambiguous)


def _covering(below: Node[Any], begins_before: Callable[[Segment], bool]) -> Segment | None:
    """The sampled segment that spans the point just above or at ``below``, if one does."""
    one = _some_mark(below)
    while one is not None and not begins_before(one):
        one = one.parent
    return one if one is not None and one.is_sampled else None


def _some_mark(node: Node[Any]) -> Segment | None:
    """A segment at or below ``node``; ``None`` in an empty tree."""
    while not node.marks:
        if not node.children:
            return None
        node = next(iter(node.children.values()))
    mark: Segment = node.marks[-1]
    return mark


def _cut(forest: Forest, segment: Segment, chars: int, vocabulary: TokenBytes) -> _Base | None:
    """Leave ``segment`` after its tokens wholly before ``chars`` of its text."""
    ids = unpack_ids(forest.own_ids(segment))
    place = tokens_before(ids, forest.own_text(segment), chars, vocabulary)
    if not place.tokens:
        return None
    return _Base(
        segment,
        segment.token_start + place.tokens,
        segment.text_start + place.chars,
        cut=place.tokens < segment.tokens,
    )


def _equal_run(
    forest: Forest, text: str, found: Match[str], run_start: int, facts: TokenizerFacts
) -> tuple[Segment | None, PackedIds, int]:
    """Tokens of an earlier run that began at the same place: their segment, they, their end."""
    nothing = (None, PackedIds(b""), run_start)
    if found.length <= run_start:
        return nothing
    source = _some_mark(found.below)
    while source is not None and (source.is_sampled or source.run_text_start != run_start):
        source = source.parent
    if source is None:
        return nothing
    ids = PackedIds(forest.own_ids(source))
    if source.text_end == found.length == len(text):
        return source, ids, len(text)
    cut = facts.hard_tokens.last_cut(text, run_start, min(found.length, source.text_end))
    if cut is None:
        return nothing
    begins_raw = source.parent is None and source.encoding is Encoding.RAW
    index = token_index(ids, cut, skip=facts.raw_prefix if begins_raw else 0)
    if index is None:
        return nothing
    return source, PackedIds(ids[: index * ID_BYTES]), cut.position


def find_ids(forest: Forest, ids: PackedIds, *, wish: Wish | None = None) -> IdsFound:
    """The longest captured prefix of ``ids``. Ids may be cut anywhere."""
    wish = wish or Wish()
    found = forest.ids.match(ids)
    matched = found.length // ID_BYTES
    whole = IdsFound(parent=None, token_start=0, matched=matched, cut=False, ambiguous=False)
    for node in found.node.lineage():
        ended = _choose(node, lambda one: one.is_sampled and one.tokens > 0, wish)
        if ended is not None:
            parent, ambiguous = ended
            whole = IdsFound(
                parent=parent,
                token_start=parent.token_end,
                matched=matched,
                cut=False,
                ambiguous=ambiguous,
            )
            break
    inside = _covering(found.below, lambda one: one.token_start < matched)
    if inside is None or inside.token_end <= matched or matched <= whole.token_start:
        return whole
    return IdsFound(parent=inside, token_start=matched, matched=matched, cut=True, ambiguous=False)
