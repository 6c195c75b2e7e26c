"""The part of an event that its worker has sent before, cut out of the bytes.

A worker that streams cumulatively repeats text, ids and logprobs from the beginning on every event.
So once an event was read, its own bytes tell what stands in the next one and behind which bytes:
where that is so, it is cut out by ``memcmp``, and what is parsed is only what is new. JSON allows
it. Within a string every quotation mark is escaped, so ``"output_ids":[`` is found as a key or not
at all; and where a string or a list begins with the same bytes as one that was whole, it goes on
behind them with characters, or elements, of its own.

What does not repeat itself this way is none of this module's: then there is no cut, and the event
is read whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["Cut", "Repetition"]

_TEXT: Final = re.compile(rb'\{"text": ?"')
_IDS: Final = re.compile(rb'", ?"output_ids": ?\[')
_LONE_IDS: Final = re.compile(rb'"output_ids": ?\[')
_LOGPROBS: Final = (
    re.compile(rb'"output_token_logprobs": ?\['),
    re.compile(rb'"output_top_logprobs": ?\['),
)


class _Span(NamedTuple):
    """The inside of a list of an event, behind ``opener``."""

    opener: bytes
    start: int
    end: int


class Cut(NamedTuple):
    """An event without what it repeats."""

    rest: bytes
    """What is left: the event, with a shorter text and shorter lists."""
    text_end: int
    """Where in the event its text ends; 0 without one."""
    joints: tuple[tuple[int, int], ...]
    """Where in the event each list begins, and where what is new in it does."""
    rest_head: int
    """How much of the rest stands before what is new in the first list."""


class Repetition:
    """What the next event of one sample is expected to repeat.

    ``data`` is the event before it, ``text`` where its text is, if it has one, ``lists`` where its
    lists are.
    """

    __slots__ = ("_data", "_lists", "_text")

    def __init__(self, data: bytes, text: tuple[int, int] | None, lists: list[_Span]) -> None:
        self._data = data
        self._text = text
        self._lists = lists

    @classmethod
    def after(cls, data: bytes, values: Sequence[bytes], *, has_text: bool) -> Repetition | None:
        """As an event tells it; ``None`` if that is not written as expected.

        ``values`` are those of ``output_ids``, ``output_token_logprobs`` and
        ``output_top_logprobs``, without the last ones where there are none.
        """
        text = _TEXT.match(data) if has_text else None
        if has_text and text is None:
            return None
        at = begin = 0 if text is None else text.end()
        lists: list[_Span] = []
        for opener, value in zip(
            (_IDS if has_text else _LONE_IDS, *_LOGPROBS), values, strict=False
        ):
            found = opener.search(data, at)
            if found is None or not data.startswith(value, found.end() - 1):
                return None
            at = found.end() + len(value) - 2
            lists.append(_Span(found[0], found.end(), at))
        text_end = lists[0].start - len(lists[0].opener)
        return cls(data, (begin, text_end) if has_text else None, lists)

    def cut(self, data: bytes) -> Cut | None:
        """The next event without what it repeats; ``None`` where it does not."""
        before = memoryview(self._data)
        pieces: list[bytes] = []
        joints: list[tuple[int, int]] = []
        at = text_end = rest_head = 0
        if self._text is not None:
            begin, at = self._text
            if not data.startswith(before[:at]):
                return None
            pieces.append(data[:begin])
        for opener, start, end in self._lists:
            found = data.find(opener, at)
            begin = found + len(opener)
            if found < 0 or not data.startswith(before[start:end], begin):
                return None
            pieces.append(data[at:begin])
            at = _behind(data, begin + end - start) if start < end else begin
            if at < 0:
                return None
            if not joints:
                text_end = found
                rest_head = sum(map(len, pieces))
            joints.append((begin, at))
        pieces.append(data[at:])
        rest = b"".join(pieces)
        if _says_twice(rest):
            return None  # A parser reads the last of equal keys, and cut was the first.
        return Cut(rest, text_end, tuple(joints), rest_head)

    def values(self) -> list[bytes]:
        """The lists as the event before had them, in JSON."""
        return [b"[" + self._data[start:end] + b"]" for _, start, end in self._lists]

    def go_on(self, data: bytes, cut: Cut, values: Sequence[bytes]) -> None:
        """Expect what follows this event, the lists of whose rest are ``values``."""
        self._data = data
        if self._text is not None:
            self._text = self._text[0], cut.text_end
        for place, ((begin, joint), value) in enumerate(zip(cut.joints, values, strict=True)):
            self._lists[place] = _Span(self._lists[place].opener, begin, joint + len(value) - 2)


def _says_twice(rest: bytes) -> bool:
    """Whether one of the keys stands there more than once."""
    return (
        rest.count(b'"text"') > 1
        or rest.count(b'"output_ids"') > 1
        or rest.count(b'"output_token_logprobs"') > 1
        or rest.count(b'"output_top_logprobs"') > 1
    )


def _behind(data: bytes, at: int) -> int:
    """Where a list goes on, or ends, behind elements that end at ``at``; -1: they do not end."""
    behind = data[at : at + 2]
    if behind.startswith(b","):
        return at + 1 if behind not in (b",", b",]") else -1
    return at if behind.startswith(b"]") else -1
