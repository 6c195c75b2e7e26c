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

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from slime_core.alignment import TokenBytes
from slime_core.boundaries import HardTokens, token_index
from slime_core.forest import Forest
from slime_core.history import ids_history, near_marks, text_history
from slime_core.history_looks import History, Wish
from slime_core.radix import Match
from slime_core.segments import Segment
from slime_core.types import ID_BYTES, Encoding, PackedIds

__all__ = [
    "IdsFound",
    "TextFound",
    "TokenizerFacts",
    "Wish",
    "find_ids",
    "find_text",
    "history_flags",
]

_HISTORY: Final = "history_"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """What a look-up must know of the tokenizer at hand.

    ``raw_prefix`` is how many ids (BOS) it puts before raw text. ``vocabulary`` is ``None`` where
    its decoder cannot be told byte by byte: then no answer is ever left midway.
    """

    vocabulary: TokenBytes | None
    hard_tokens: HardTokens
    raw_prefix: int = 0


class TextFound(Struct, frozen=True, kw_only=True):
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
    gone: tuple[tuple[int, str], ...]
    """Where behind the history answers ended that are gone, in characters, and why."""
    history_flags: tuple[str, ...]
    """``history_evicted`` and the like: what is missing from the history, all of it."""

    @property
    def run_start(self) -> int:
        """Where the unsampled run begins."""
        return self.text_start + self.joint


class IdsFound(Struct, frozen=True, kw_only=True):
    """What is known of token ids: the first ``token_start`` of them are ``parent``'s."""

    parent: Segment | None
    token_start: int
    matched: int
    cut: bool
    ambiguous: bool
    history_flags: tuple[str, ...]
    """As in :class:`TextFound`."""


def find_text(
    forest: Forest,
    text: str,
    encoding: Encoding,
    facts: TokenizerFacts,
    *,
    wish: Wish | None = None,
    is_whole: bool = True,
) -> TextFound:
    """The longest captured prefix of ``text``, and what is left to encode.

    ``is_whole`` says that the run ends where ``text`` does; otherwise it goes on in a way that is
    not looked up.
    """
    found = forest.texts[encoding].match(text)
    base = text_history(forest, text, found, facts.vocabulary, wish or Wish())
    source, run_ids, encode_from = _equal_run(forest, text, found, base, facts, is_whole)
    used = tuple(one.number for one in (base.parent, source) if one is not None)
    # An answer that is left midway is none that ended there.
    gone = forest.gone.texts.within(text, base.text_start - (1 if base.cut else 0))
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
        gone=tuple(gone.items()),
        history_flags=history_flags(base.parent, gone.values()),
    )


def history_flags(parent: Segment | None, gone: Iterable[str] = ()) -> tuple[str, ...]:
    """Words for answers that are missing from a history: its own, and those of its parent.

    What an answer's own history lacks was found when its call began; only what follows it has to be
    looked at again.
    """
    inherited: tuple[str, ...] = ()
    if parent is not None and parent.answer is not None:
        inherited = tuple(one for one in parent.answer.flags if one.startswith(_HISTORY))
    return tuple(dict.fromkeys((*inherited, *(_HISTORY + reason for reason in gone))))


def _equal_run(
    forest: Forest,
    text: str,
    found: Match[str],
    base: History,
    facts: TokenizerFacts,
    is_whole: bool,
) -> tuple[Segment | None, PackedIds, int]:
    """Tokens of an earlier run that began at the same place: their segment, they, their end."""
    run_start = base.text_start + base.joint
    nothing = (None, PackedIds(b""), run_start)
    source = _run_source(found, base, run_start) if found.length > run_start else None
    if source is None:
        return nothing
    ids = PackedIds(forest.own_ids(source))
    if is_whole and source.text_end == found.length == len(text):
        return source, ids, len(text)
    cut = facts.hard_tokens.last_cut(text, run_start, min(found.length, source.text_end))
    if cut is None:
        return nothing
    begins_raw = source.parent is None and source.encoding is Encoding.RAW
    index = token_index(ids, cut, skip=facts.raw_prefix if begins_raw else 0)
    if index is None:
        return nothing
    return source, PackedIds(ids[: index * ID_BYTES]), cut.position


def _run_source(found: Match[str], base: History, run_start: int) -> Segment | None:
    """A prompt on the matched path whose run began at ``run_start``, encoded as this one would be.

    A run that begins the text may be encoded differently from a later one (BOS, a leading space).
    What came as ids is no encoding of its text: a client may spell as it likes.
    """
    seen: set[int] = set()
    for mark in near_marks(found.below):
        one: Segment | None = mark
        while one is not None and one.number not in seen:
            seen.add(one.number)
            fits = not one.is_sampled and not one.from_ids and one.run_text_start == run_start
            if fits and (one.parent is None) == (base.parent is None):
                return one
            one = one.parent
    return None


def find_ids(forest: Forest, ids: PackedIds, *, wish: Wish | None = None) -> IdsFound:
    """The longest captured prefix of ``ids``. Ids may be cut anywhere."""
    found = forest.ids.match(ids)
    matched = found.length // ID_BYTES
    base = ids_history(forest, found, matched, wish or Wish())
    gone = forest.gone.ids.within(ids, base.token_start * ID_BYTES - (1 if base.cut else 0))
    return IdsFound(
        parent=base.parent,
        token_start=base.token_start,
        matched=matched,
        cut=base.cut,
        ambiguous=base.ambiguous,
        history_flags=history_flags(base.parent, gone.values()),
    )
