"""Where a text spells added tokens of a vocabulary.

Found as the ``tokenizers`` library finds them: leftmost, the longest of those that begin there,
without overlap. Tokens of a single character and those of blanks only (some vocabularies have runs
of spaces) are text like any other and are not looked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from .rendering import Ranges

__all__ = ["Spellings"]

_HEAD: Final = 2
"""Characters by which a place is recognised as worth a closer look; no content is shorter."""


class Spellings:
    """The contents of some added tokens, ready to be looked for. Immutable."""

    __slots__ = ("_edges", "_heads", "_known", "_lengths", "contents")

    def __init__(self, contents: Collection[str]) -> None:
        kept = sorted({text for text in contents if len(text) >= _HEAD and not text.isspace()})
        self.contents: Final[tuple[str, ...]] = tuple(kept)
        self._known: Final = frozenset(kept)
        lengths: dict[str, set[int]] = {}
        for text in kept:
            lengths.setdefault(text[:_HEAD], set()).add(len(text))
        self._lengths: Final = {
            head: tuple(sorted(found, reverse=True)) for head, found in lengths.items()
        }
        self._heads: Final = re.compile("|".join(map(re.escape, lengths))) if lengths else None
        self._edges: Final = _Edges(kept)

    def found(self, text: str, start: int = 0, end: int | None = None) -> Ranges:
        """The occurrences in ``text[start:end]``."""
        stop = len(text) if end is None else end
        return tuple(_apart(self._everywhere(text, start, stop, stop), start))

    def found_outside(self, text: str, plain: Ranges) -> Ranges:
        """The occurrences in what lies between the ranges ``plain``: the control tokens."""
        spans: list[tuple[int, int]] = []
        at = 0
        for start, end in (*plain, (len(text), len(text))):
            spans += self.found(text, at, start)
            at = end
        return tuple(spans)

    def beside(self, text: str, control: Ranges) -> Ranges:
        """What of ``text`` must be plain for :meth:`found_outside` to find just ``control``.

        That is every occurrence between the control tokens, and of those that reach into a control
        token, or go on behind one, the part that is not its own.
        """
        spans: list[tuple[int, int]] = []
        at = over = 0
        for start, end in (*control, (len(text), len(text))):
            if over > at:
                spans.append((at, min(over, start)))
            at = max(at, min(over, start))
            inside = _apart(self._everywhere(text, at, start, len(text)), at)
            spans += ((begin, min(stop, start)) for begin, stop in inside)
            at, over = end, self._longest(text, start, len(text)) or end
        return tuple(span for span in spans if span[0] < span[1])

    def at(self, text: str, position: int) -> str | None:
        """The longest content that ``text`` spells at ``position``."""
        over = self._longest(text, position, len(text))
        return None if over is None else text[position:over]

    def breaks(self, text: str, *, seams: Spellings | None = None) -> list[int]:
        """Positions in ``text``, ascending; whatever token it spells, or could spell together with
        a neighbour, has one of them inside or at the seam to the neighbour. ``seams`` are the
        tokens that it may not spell together with a neighbour, if they are others than these.

        A text that ends like a token begins counts, and one that begins like a token ends:
        ``<|im_end`` is harmless until a template writes ``|>`` behind it. A text that a template
        puts into the middle of a token (``'<|' + name + '|>'``) is not recognised.
        """
        if seams is None and not self._may_break(text):
            return []
        inside = [begin + 1 for begin, _ in self._everywhere(text, 0, len(text), len(text))]
        edges = set(self._edges.breaks(text))
        if seams is not None and (others := set(seams._edges.breaks(text)) - edges):
            whole = seams.found(text)
            edges |= {at for at in others if not any(begin < at < end for begin, end in whole)}
        return sorted({*inside, *edges})

    def _may_break(self, text: str) -> bool:
        """Whether there is anything to look at, as in few texts."""
        return self._edges.may_break(text) or (
            self._heads is not None and self._heads.search(text) is not None
        )

    def _everywhere(self, text: str, start: int, last: int, end: int) -> Iterator[tuple[int, int]]:
        """Every position in ``text[start:last]`` where a content begins, overlapping ones too, and
        where it ends, at ``end`` at the latest."""
        if self._heads is None:
            return
        at, stop = start, min(last + _HEAD - 1, end)
        while (match := self._heads.search(text, at, stop)) is not None:
            over = self._longest(text, match.start(), end)
            if over is not None:
                yield match.start(), over
            at = match.start() + 1

    def _longest(self, text: str, position: int, end: int) -> int | None:
        for length in self._lengths.get(text[position : position + _HEAD], ()):
            over = position + length
            if over <= end and text[position:over] in self._known:
                return over
        return None


def _apart(spans: Iterable[tuple[int, int]], at: int) -> Iterator[tuple[int, int]]:
    """The spans from ``at`` on that do not overlap with the one before."""
    for begin, end in spans:
        if begin >= at:
            yield begin, end
            at = end


class _Edges:
    """Beginnings and ends of contents, to be recognised at the edges of a text."""

    __slots__ = ("_beginnings", "_ends", "_first", "_last", "_longest")

    def __init__(self, contents: Collection[str]) -> None:
        self._beginnings: Final = _by_length(text[:n] for text in contents for n in _proper(text))
        self._ends: Final = _by_length(text[-n:] for text in contents for n in _proper(text))
        self._longest: Final = max(self._ends, default=0)
        # Most texts have neither character near an edge, and need no closer look.
        self._first: Final = _any_of(text[0] for text in contents)
        self._last: Final = _any_of(text[-1] for text in contents)

    def may_break(self, text: str) -> bool:
        """Whether :meth:`breaks` has to be asked."""
        return (
            self._first.search(text, max(0, len(text) - self._longest)) is not None
            or self._last.search(text, 0, self._longest) is not None
        )

    def breaks(self, text: str) -> Iterator[int]:
        if self._first.search(text, max(0, len(text) - self._longest)):
            for length, known in self._beginnings.items():
                if length <= len(text) and text[-length:] in known:
                    yield len(text) - length + 1
        if self._last.search(text, 0, self._longest):
            for length, known in self._ends.items():
                if length <= len(text) and text[:length] in known:
                    yield length - 1


def _proper(text: str) -> range:
    """The lengths of the proper parts of a text."""
    return range(1, len(text))


def _by_length(parts: Iterator[str]) -> dict[int, frozenset[str]]:
    found: dict[int, set[str]] = {}
    for part in parts:
        found.setdefault(len(part), set()).add(part)
    return {length: frozenset(known) for length, known in found.items()}


def _any_of(characters: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the characters; nothing, if there are none."""
    return re.compile("|".join(map(re.escape, sorted(set(characters)))) or r"(?!)")
