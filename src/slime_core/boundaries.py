"""Where an unsampled run of text may be cut so that both parts keep the ids of the whole.

A run of prompt text is encoded as one piece, and reuse must never change its ids. In general a
tokenizer may merge across any position, so a known prefix of the text is no known prefix of the
ids. Added tokens (``<|im_end|>`` and the like) are the exception: they are found in the text
*before* normalisation, pre-tokenisation and merging, and everything between two of them is
encoded by itself. The text right after such a token is therefore a place to cut, under conditions
that this module makes explicit:

* the token is **hard**: a start-up probe found that it is one id wherever it stands, that it takes
  no neighbouring blanks along, and that the rest encodes as if it stood alone;
* the occurrence is **certain**: the matcher finds it there however the text goes on.

How occurrences are found is the matching rule of the ``tokenizers`` library (its
``AddedVocabulary``): two passes, each leftmost-longest and without overlap. The first pass looks
for tokens in the text as it is; the second looks for those flagged ``normalized`` in what the
first left over, after normalisation. Only a normaliser that changes nothing lets plain text
predict the second pass, so tokens of that pass take part only where the caller knows this.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from .types import ID_BYTES, PackedIds, pack_ids

__all__ = ["Cut", "HardTokens", "Span", "token_index"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A place where a run may be cut, in characters, and how to find the same place in its ids."""

    position: int
    """Absolute index into the text; everything before it keeps its ids whatever follows."""
    token_id: int
    """The hard token that ends here."""
    occurrence: int
    """Which occurrence of ``token_id`` in the run's ids it is, counted from 1."""


def token_index(ids: PackedIds | Sequence[int], cut: Cut, *, skip: int = 0) -> int | None:
    """The index in the run's ``ids`` right after the token that ends at ``cut``.

    ``ids`` are those of the whole run (or of any part that reaches from its beginning past the
    cut); ``skip`` is how many ids at their beginning stand for no text (the BOS that a tokenizer
    adds to raw text). ``None`` when the ids do not hold that many occurrences: then text and ids
    disagree, and nothing may be reused.

    A hard token's id comes from its text and from nothing else, so the n-th occurrence in the text
    is the n-th in the ids; no other token has to be looked at, and the search runs over the packed
    bytes at the speed of ``memchr``.
    """
    packed = ids if isinstance(ids, bytes) else pack_ids(ids)
    needle = pack_ids((cut.token_id,))
    seen, at = 0, packed.find(needle, skip * ID_BYTES)
    while at >= 0:
        if at % ID_BYTES == 0:
            seen += 1
            if seen == cut.occurrence:
                return at // ID_BYTES + 1
        at = packed.find(needle, at + 1)
    return None


@dataclass(frozen=True, slots=True)
class HardTokens:
    """The added tokens of one vocabulary, and which of them are hard.

    ``added`` maps the content of every token of the first pass to its id: soft ones belong here
    too, for an occurrence of a soft or longer token swallows a hard one's text. ``late`` holds the
    tokens of the second pass, and only if text predicts that pass; otherwise it stays empty and
    none of them may be hard. ``hard`` are the ids that were shown to be hard.

    Raises ``ValueError`` for a hard id that neither map knows, or for an empty content.
    """

    added: Mapping[str, int]
    hard: frozenset[int]
    late: Mapping[str, int] = field(default_factory=dict)
    _first: _Matcher = field(init=False, repr=False, compare=False)
    _second: _Matcher = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        unknown = self.hard - set(self.added.values()) - set(self.late.values())
        if unknown:
            raise ValueError(f"hard ids without an added token: {sorted(unknown)}")
        object.__setattr__(self, "_first", _Matcher(self.added))
        object.__setattr__(self, "_second", _Matcher(self.late))

    def last_cut(self, text: str, start: int, end: int) -> Cut | None:
        """The last certain cut in ``text[start:end]``, or ``None``.

        ``start`` is where the unsampled run begins. The cut's position is in ``start + 1 … end``
        and holds for every text that equals this one up to ``end``, whatever follows there: an
        occurrence that some continuation would turn into a longer token is passed over.
        """
        if not self.hard:
            return None
        spans = [span for span in self._certain(text, start, end) if span[2] in self.hard]
        if not spans:
            return None
        _, position, token_id = spans[-1]
        occurrence = sum(1 for span in spans if span[2] == token_id)
        return Cut(position=position, token_id=token_id, occurrence=occurrence)

    def found(self, text: str) -> list[Span]:
        """Every occurrence in ``text``, a whole run, in order.

        This is what the library finds where no added token strips blanks or must be a single word,
        and where ``late`` holds all tokens of the second pass.
        """
        spans = self._first.closed(text, 0, len(text))
        if not self.late:
            return spans
        merged, begin = self._with_gaps(text, 0, spans)
        return merged + self._second.closed(text, begin, len(text))

    def split(self, text: str, size: int) -> list[str]:
        """``text``, a whole run, in pieces of about ``size`` characters where cuts allow it.

        The pieces' encodings, the later ones as tails, joined are the encoding of ``text``. A
        piece is longer than ``size`` where no hard token ends in time.
        """
        pieces, begin = [], 0
        if self.hard and len(text) > size:
            for _, stop, token_id in self._certain(text, 0, len(text)):
                if stop - begin >= size and token_id in self.hard and stop < len(text):
                    pieces.append(text[begin:stop])
                    begin = stop
        pieces.append(text[begin:])
        return pieces

    def _certain(self, text: str, start: int, end: int) -> list[Span]:
        """Every occurrence in ``text[start:end]`` that no continuation can undo, in order."""
        spans, limit = self._first.certain(text, start, end)
        if not self.late:
            return spans
        merged, begin = self._with_gaps(text, start, spans)
        # The last gap is open. Up to `limit` it is free of the first pass, and whether it ends
        # there or goes on is unknown; either way counts as a continuation.
        return merged + self._second.certain(text, begin, limit)[0]

    def _with_gaps(self, text: str, start: int, spans: list[Span]) -> tuple[list[Span], int]:
        """The occurrences of the first pass with those of the second between them, and their end.

        The gaps between them are closed: nothing beyond them counts.
        """
        merged: list[Span] = []
        for span in spans:
            merged += self._second.closed(text, start, span[0])
            merged.append(span)
            start = span[1]
        return merged, start


Span = tuple[int, int, int]
"""Start, end, id of one occurrence."""


class _Matcher:
    """Leftmost-longest search for a set of contents, and what it cannot decide yet."""

    __slots__ = ("_contents", "_ids", "_longest", "_pattern")

    def __init__(self, contents: Mapping[str, int]) -> None:
        if "" in contents:
            raise ValueError("an added token without content")
        self._ids: Final = dict(contents)
        self._contents: Final = sorted(contents)
        self._longest: Final = max(map(len, contents), default=0)
        self._pattern: Final = re.compile(_trie_pattern(contents)) if contents else None

    def closed(self, text: str, start: int, end: int) -> list[Span]:
        """The occurrences if the text begins at ``start`` and ends at ``end``."""
        if self._pattern is None:
            return []
        ids = self._ids
        return [
            (match.start(), match.end(), ids[match[0]])
            for match in self._pattern.finditer(text, start, end)
        ]

    def certain(self, text: str, start: int, end: int) -> tuple[list[Span], int]:
        """The occurrences that stand however ``text[:end]`` goes on, and how far that is known.

        The search goes wrong at the first place where it looks for a match and sees the beginning
        of some content run into ``end``: with another continuation a token would be found there.
        All before it is decided. A place inside an earlier occurrence is never looked at.
        """
        spans = self.closed(text, start, end)
        for doubtful in range(max(start, end - self._longest + 1), end):
            if self._may_go_on(text[doubtful:end]) and not _inside(spans, doubtful):
                return [span for span in spans if span[0] < doubtful], doubtful
        return spans, end

    def _may_go_on(self, fragment: str) -> bool:
        """Whether ``fragment`` is the beginning of a longer content."""
        at = bisect_right(self._contents, fragment)
        return at < len(self._contents) and self._contents[at].startswith(fragment)


def _inside(spans: Sequence[Span], position: int) -> bool:
    """Whether an occurrence covers ``position`` without beginning there."""
    for begin, stop, _ in reversed(spans):
        if begin < position:
            return position < stop
    return False


def _trie_pattern(contents: Collection[str]) -> str:
    """A regular expression that matches the longest of ``contents`` at a position.

    Alternatives that share beginnings are folded, so that a position costs the length of the
    match instead of the number of tokens (DeepSeek has 1283, nearly all of one beginning).
    """
    return _fold(sorted(contents), 0)


def _fold(contents: Sequence[str], depth: int) -> str:
    """The pattern of sorted ``contents``, equal in their first ``depth`` characters."""
    ends_here = len(contents[0]) == depth
    longer = contents[1:] if ends_here else contents
    if not longer:
        return ""
    branches = [_branch(group, depth) for group in _by_character(longer, depth)]
    if not ends_here and len(branches) == 1:
        return branches[0]
    # Greedy: the longer content is tried first, the shorter one is what remains.
    return f"(?:{'|'.join(branches)}){'?' if ends_here else ''}"


def _branch(group: Sequence[str], depth: int) -> str:
    """One branch: the characters its contents share, then what differs."""
    first, last = group[0], group[-1]
    shared = depth + 1
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return re.escape(first[depth:shared]) + _fold(group, shared)


def _by_character(contents: Iterable[str], depth: int) -> list[list[str]]:
    """Sorted contents grouped by the character at ``depth``."""
    groups: list[list[str]] = []
    for content in contents:
        if groups and groups[-1][0][depth] == content[depth]:
            groups[-1].append(content)
        else:
            groups.append([content])
    return groups
