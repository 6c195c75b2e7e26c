"""Ids to text while they are being sampled: nothing shown is ever taken back.

Text is held back for two reasons only: bytes that are not a character yet, and an end that may
become a stop string. What was shown plus what :meth:`IncrementalDetokenizer.finish` gives is the
decoding of all the ids at once, whatever pieces the ids came in.

The rule for stop strings is SGLang's, which looks after every token: the first token after which
any stop string stands in the text ends the answer. If several stand there by then, the first in the
order of the request is the one that matched, and the text ends before its first occurrence. The
text looked at is what the client sees: special tokens that are left out cannot match, and a
character that is not complete does not count.

Stop strings are matched by Knuth, Morris and Pratt's automaton, one step per character: however
long a stop string and however often it nearly matches, the cost stays linear, and the automaton's
state is the number of characters to hold back.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from slime_core.vocabulary import Vocabulary

__all__ = ["IncrementalDetokenizer"]

_REPLACEMENT: Final = "\ufffd"
_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class IncrementalDetokenizer:
    """The text of an answer, piece by piece.

    Call :meth:`push` with the ids as they come and :meth:`finish` once at the end. ``at_start``
    says that the text starts here and does not continue a prompt (:mod:`slime_core.vocabulary`).
    Raises ``ValueError`` for an empty stop string, which stands in every text.
    """

    __slots__ = (
        "_at_start",
        "_consumed",
        "_plain",
        "_reader",
        "_shown",
        "_skip_special",
        "_text",
        "_vocabulary",
        "stop_at",
        "stopped",
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        skip_special: bool,
        stop: tuple[str, ...] = (),
        at_start: bool = True,
    ) -> None:
        if "" in stop:
            raise ValueError("a stop string must not be empty")
        self._vocabulary = vocabulary
        self._skip_special = skip_special
        self._at_start = at_start
        self._text = _HeldText(stop, lead_spaces=vocabulary.lead_spaces if at_start else 0)
        utf8 = None if vocabulary.byte_fallback else _Utf8Reader()
        self._reader: _Reader = utf8 or _RunReader(vocabulary, skip_special=skip_special)
        # Where whatever is text may be shown at once, nothing is held and nothing is looked for.
        self._plain = None if stop or at_start else utf8
        self._consumed = 0
        self._shown: list[str] = []
        self.stopped: str | None = None
        """The stop string that was met."""
        self.stop_at: int | None = None
        """How many ids had been consumed when it was met; any later ones are ignored."""

    @property
    def text(self) -> str:
        """Everything shown so far."""
        return "".join(self._shown)

    def push(self, ids: Sequence[int]) -> str:
        """The text that these ids make safe to show; empty once a stop string was met."""
        if self.stopped is not None:
            return ""
        if self._plain is not None:
            return self._push_plain(ids, self._plain)
        vocabulary, skip_special = self._vocabulary, self._skip_special
        pieces = vocabulary.pieces(ids, skip_special=skip_special, at_start=self._at_start)
        if self._at_start:
            self._at_start = not any(
                vocabulary.is_shown(token, skip_special=skip_special) for token in ids
            )
        hit, count = self._reader.read(self._text, ids, pieces)
        self._consumed += count
        return self._show(hit, self._reader.safe_end(self._text))

    def finish(self) -> str:
        """The rest: what was held back, with bytes that never became a character as U+FFFD."""
        if self.stopped is not None:
            return ""
        hit = self._reader.finish(self._text)
        return self._show(hit, self._text.end)

    def _push_plain(self, ids: Sequence[int], reader: _Utf8Reader) -> str:
        pieces = self._vocabulary.pieces(ids, skip_special=self._skip_special, at_start=False)
        text = reader.decode(b"".join(pieces))
        if text:
            self._shown.append(text)
        return text

    def _show(self, hit: _Hit | None, end: int) -> str:
        if hit is not None:
            self.stopped, self.stop_at = hit.stop, self._consumed
            end = hit.start
        text = self._text.take_until(end)
        if text:
            self._shown.append(text)
        return text


@dataclass(frozen=True, slots=True)
class _Hit:
    stop: str
    start: int
    """Where the match begins, in characters from the start of the text."""


class _Mark(NamedTuple):
    """A point that :class:`_HeldText` can be taken back to while it has not been shown."""

    end: int
    lead_spaces: int
    states: tuple[int, ...]


class _Pattern:
    """A stop string, searched in a text that comes in pieces."""

    __slots__ = ("_borders", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        # For each prefix, its longest proper prefix that is also its suffix.
        self._borders = [0]
        border = 0
        for char in stop[1:]:
            while border and stop[border] != char:
                border = self._borders[border - 1]
            border += stop[border] == char
            self._borders.append(border)

    def search(self, text: str, state: int) -> tuple[int, int | None]:
        """The new state, and where in ``text`` the first match ends.

        The state is the length of the longest prefix of the stop string that ends the text so far.
        """
        stop, at = self.stop, 0
        while at < len(text):
            if state == 0:
                at = text.find(stop[0], at)
                if at < 0:
                    return 0, None
            if stop[state] == text[at]:
                state += 1
                at += 1
                if state == len(stop):
                    return state, at
            else:
                state = self._borders[state - 1]
        return state, None


class _HeldText:
    """Decoded text that is not shown yet. Positions count from the start of the whole text."""

    __slots__ = ("_lead_spaces", "_parts", "_patterns", "_start", "_states", "end")

    def __init__(self, stop: tuple[str, ...], *, lead_spaces: int) -> None:
        self._patterns = tuple(map(_Pattern, stop))
        self._states = (0,) * len(stop)
        self._lead_spaces = lead_spaces
        self._parts: deque[str] = deque()
        self._start = 0
        self.end = 0

    def append(self, text: str) -> _Hit | None:
        """More text; the stop string that it completes."""
        while self._lead_spaces and text:
            if text[0] != " ":
                self._lead_spaces = 0
                break
            self._lead_spaces -= 1
            text = text[1:]
        if not text:
            return None
        found = [
            pattern.search(text, state)
            for pattern, state in zip(self._patterns, self._states, strict=True)
        ]
        self._states = tuple(state for state, _ in found)
        begin = self.end
        self._parts.append(text)
        self.end += len(text)
        for pattern, (_, at) in zip(self._patterns, found, strict=True):
            if at is not None:
                return _Hit(pattern.stop, begin + at - len(pattern.stop))
        return None

    @property
    def safe_end(self) -> int:
        """Up to where text may be shown: no stop string can begin before."""
        return self.end - max(self._states, default=0)

    def mark(self) -> _Mark:
        return _Mark(self.end, self._lead_spaces, self._states)

    def rewind(self, mark: _Mark) -> None:
        """Forget what was appended since."""
        while self.end > mark.end:
            part = self._parts.pop()
            self.end -= len(part)
        self._lead_spaces, self._states = mark.lead_spaces, mark.states

    def take_until(self, end: int) -> str:
        """What was not shown of the text before ``end``."""
        taken = []
        while self._start < end:
            part = self._parts.popleft()
            if len(part) > end - self._start:
                self._parts.appendleft(part[end - self._start :])
                part = part[: end - self._start]
            self._start += len(part)
            taken.append(part)
        return "".join(taken)


class _Reader(Protocol):
    """Tokens to text, by the rules of one family of vocabularies."""

    def read(
        self, text: _HeldText, ids: Sequence[int], pieces: Sequence[bytes]
    ) -> tuple[_Hit | None, int]:
        """Append the tokens' text up to a match; the match, and how many tokens that took.

        ``pieces`` are the bytes of ``ids``, empty for those that are not shown.
        """
        ...

    def finish(self, text: _HeldText) -> _Hit | None:
        """Append what was waiting for more bytes."""
        ...

    def safe_end(self, text: _HeldText) -> int:
        """Up to where the text can neither change nor become a stop string."""
        ...


class _Utf8Reader:
    """Bytes are UTF-8 across all tokens; what is not becomes U+FFFD."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""
        """Bytes that are no character yet."""

    def decode(self, data: bytes, *, final: bool = False) -> str:
        """Their text. (What the library's own incremental decoder does, without its layers.)"""
        data = self._rest + data
        text, used = codecs.utf_8_decode(data, "replace", final)
        self._rest = data[used:]
        return text

    def read(
        self, text: _HeldText, ids: Sequence[int], pieces: Sequence[bytes]
    ) -> tuple[_Hit | None, int]:
        mark, rest = text.mark(), self._rest
        hit = text.append(self.decode(b"".join(pieces)))
        count = len(pieces)
        if hit is not None and count > 1:
            # Once per answer at most: which token completed it, and which string was first then?
            text.rewind(mark)
            self._rest = rest
            for count, piece in enumerate(pieces, 1):  # noqa: B007 - the count is the result
                hit = text.append(self.decode(piece))
                if hit is not None:
                    break
        return hit, count

    def finish(self, text: _HeldText) -> _Hit | None:
        return text.append(self.decode(b"", final=True))

    def safe_end(self, text: _HeldText) -> int:
        return text.safe_end


class _RunReader:
    """Some tokens are single bytes, and a run of them is UTF-8 or every byte of it is U+FFFD.

    So nothing of a run can be shown before its end. A stop string in it ends the answer at once all
    the same (the line feed is such a byte in many vocabularies), which is why a run's text is
    appended byte by byte and taken back if the run breaks.
    """

    __slots__ = ("_broken", "_decoder", "_mark", "_size", "_skip_special", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary, *, skip_special: bool) -> None:
        self._vocabulary = vocabulary
        self._skip_special = skip_special
        self._decoder = _utf8_decoder("strict")
        self._mark: _Mark | None = None
        """Where the run began; ``None`` outside a run."""
        self._size = 0
        self._broken = False

    def read(
        self, text: _HeldText, ids: Sequence[int], pieces: Sequence[bytes]
    ) -> tuple[_Hit | None, int]:
        vocabulary = self._vocabulary
        for count, (token, piece) in enumerate(zip(ids, pieces, strict=True), 1):
            if not vocabulary.is_shown(token, skip_special=self._skip_special):
                continue
            if token in vocabulary.byte_fallback:
                hit = self._read_byte(text, piece)
            else:
                hit = text.append(self._close(text) + piece.decode("utf-8", "replace"))
            if hit is not None:
                return hit, count
        return None, len(ids)

    def finish(self, text: _HeldText) -> _Hit | None:
        return text.append(self._close(text))

    def safe_end(self, text: _HeldText) -> int:
        mark = self._mark
        return text.safe_end if mark is None else mark.end - max(mark.states, default=0)

    def _read_byte(self, text: _HeldText, byte: bytes) -> _Hit | None:
        if self._mark is None:
            self._mark, self._size, self._broken = text.mark(), 0, False
        self._size += 1
        if self._broken:
            return text.append(_REPLACEMENT)
        try:
            return text.append(self._decoder.decode(byte))
        except UnicodeDecodeError:
            self._broken = True
            self._decoder.reset()
            text.rewind(self._mark)
            return text.append(_REPLACEMENT * self._size)

    def _close(self, text: _HeldText) -> str:
        """End the run, if there is one; what stands in its place if it was cut off."""
        mark, self._mark = self._mark, None
        is_cut = bool(self._decoder.getstate()[0])
        self._decoder.reset()
        if mark is None or not is_cut:
            return ""
        text.rewind(mark)
        return _REPLACEMENT * self._size
