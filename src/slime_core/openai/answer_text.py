"""The text of an answer, read from its own ids: what a worker would show, before it is parsed.

Special tokens are shown, since parsers look for them; where the added tokens stand is known by
their ids, so that text which only spells one is not taken for it. What stopped the answer is
trimmed by SGLang's rule (0.5.23, ``trim_matched_stop``): the worker's own word for what matched
decides, and a string ends the text before its first occurrence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from slime_core.detokenize import IncrementalDetokenizer
from slime_core.parsing import Mark
from slime_core.vocabulary import Vocabulary

__all__ = ["AnswerText"]


class AnswerText:
    """Ids to text with marks, piece by piece; offsets count characters of the whole answer.

    Nothing leaves that may be part of a string of ``stop``, nor half a character. ``holds``: all
    is kept to the end, because what stops the answer is not known as a string (a stop regex). Call
    :meth:`push` with ids as they come and :meth:`finish` once.
    """

    __slots__ = (
        "_added",
        "_given",
        "_guard",
        "_holds",
        "_is_plain",
        "_kept",
        "_known",
        "_marks",
        "_safe",
        "_shown",
        "_vocabulary",
        "specials",
    )

    def __init__(self, vocabulary: Vocabulary, *, stop: tuple[str, ...], holds: bool) -> None:
        self._vocabulary = vocabulary
        self._shown = IncrementalDetokenizer(vocabulary, skip_special=False, at_start=False)
        # A second reading guards the stop strings: the first must know where every token stands,
        # also where the text is not shown yet.
        self._guard = (
            IncrementalDetokenizer(vocabulary, skip_special=False, stop=stop, at_start=False)
            if stop and not holds
            else None
        )
        self._holds = holds
        self._is_plain = self._guard is None and not holds
        self._added = vocabulary.added.keys()
        self._known = 0
        self._safe = 0
        self._given: list[str] = []
        self._kept: list[str] = []
        self._marks: deque[Mark] = deque()
        self.specials: list[Mark] = []
        """Where special tokens stand in the text so far, what is kept back included."""

    @property
    def text(self) -> str:
        """All text so far, what is kept back included; after :meth:`finish` the whole answer."""
        return "".join(self._given) + "".join(self._kept)

    def push(self, ids: Sequence[int]) -> tuple[str, list[Mark]]:
        """The text that these ids make safe to show, and the marks that begin in it."""
        if self._is_plain and self._added.isdisjoint(ids):
            return self._push_plain(ids)
        self._decode(ids)
        if self._holds:
            return "", []
        if self._guard is None:
            return self._give(self._known)
        self._safe += len(self._guard.push(ids))
        return self._give(self._safe)

    def _push_plain(self, ids: Sequence[int]) -> tuple[str, list[Mark]]:
        """Tokens without marks where nothing is kept back: all their text may leave."""
        text = self._shown.push(ids)
        if text:
            self._known += len(text)
            self._given.append(text)
        return text, []

    def finish(self, matched: str | None) -> tuple[str, list[Mark]]:
        """The rest, cut before ``matched``, the string that stopped the answer.

        A limit that is reached in the very token that completes a stop string comes first, so a
        text may end in what would have stopped it.
        """
        self._append(self._shown.finish())
        rest = "".join(self._kept)
        at = rest.find(matched) if matched else -1
        if at >= 0:
            self._kept = [rest[:at]]
            self._known -= len(rest) - at
            self.specials[:] = [mark for mark in self.specials if mark.end <= self._known]
            self._marks = deque(mark for mark in self._marks if mark.end <= self._known)
        return self._give(self._known)

    def _decode(self, ids: Sequence[int]) -> None:
        """Decode up to each added token in turn: behind it, all text before it is known."""
        added, start = self._vocabulary.added, 0
        for place, token in enumerate(ids, 1):
            if token not in added or token in self._vocabulary.byte_fallback:
                continue
            self._append(self._shown.push(ids[start:place]))
            start = place
            size = len(self._vocabulary.bytes_of(token).decode("utf-8", "replace"))
            mark = Mark(start=self._known - size, end=self._known)
            self._marks.append(mark)
            if self._vocabulary.is_special(token):
                self.specials.append(mark)
        self._append(self._shown.push(ids[start:]))

    def _append(self, text: str) -> None:
        if text:
            self._known += len(text)
            self._kept.append(text)

    def _give(self, end: int) -> tuple[str, list[Mark]]:
        """What was not given of the text before ``end``."""
        kept = "".join(self._kept)
        size = len(kept) - (self._known - end)
        if size <= 0:
            return "", []
        text = kept[:size]
        self._given.append(text)
        self._kept = [kept[size:]] if size < len(kept) else []
        marks = []
        while self._marks and self._marks[0].start < end:
            marks.append(self._marks.popleft())
        return text, marks
