"""The text of an answer, read from its front while it arrives.

Grammars are written as plain sequential code over the primitives of this module: generators that
yield, nothing, whenever they need more text than has come. Each primitive takes the same
characters and gives the same answer however the text is cut into pieces, so whatever is built of
them does too. None of them looks further ahead than the longest tag, and none goes back: reading
is linear in the text.

A tag is either an added token of the vocabulary, and then it counts only where a mark says that
this very token stands there, or it is not, and then it is looked for in the text between marks.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Final, TypeAlias, TypeVar

from slime_core.parsing.events import Mark
from slime_core.parsing.json_scan import JsonScanner

__all__ = ["SPACE", "Broken", "Sink", "Source", "Steps", "Tags"]

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
"""Reading that pauses for more text and ends in a value."""
Sink: TypeAlias = Callable[[str, int], None]
"""Takes a piece of text and the offset at which it stands in the answer."""

SPACE: Final = " \t\n\r"
"""What counts as whitespace around tags: that of JSON."""
_BLANK: Final = re.compile(r"[ \t\n\r]*")
# What the name of a function or of a call may hold: whatever ends one in some family
# (brackets, quotes, whitespace) and what could not be sent (halves of surrogate pairs) is out.
_WORD: Final = re.compile(r"[^\s<>\"'{}\[\]()|;,=\x00-\x1f\ud800-\udfff]*")


# The name of an argument, which a schema may spell with almost anything.
_KEY: Final = re.compile(r"[^\n\r<>\"\x00-\x1f\ud800-\udfff]*")


class Broken(Exception):
    """The text is none of the grammar's; ``problem`` is the word for it. Never leaves a parser."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class Tags:
    """A set of tags to look for, split into those known by id and those found in the text."""

    __slots__ = ("_pattern", "_prefixes", "by_id", "longest")

    def __init__(self, tags: Sequence[str], added: Collection[str]) -> None:
        spelled = [tag for tag in tags if tag not in added]
        self.by_id = frozenset(tag for tag in tags if tag in added)
        self._pattern = re.compile("|".join(map(re.escape, spelled))) if spelled else None
        self._prefixes = frozenset(tag[:n] for tag in spelled for n in range(1, len(tag)))
        self.longest = max(map(len, spelled), default=0)

    def search(self, text: str, start: int, end: int) -> re.Match[str] | None:
        """The first spelled tag in this part of the text."""
        return self._pattern.search(text, start, end) if self._pattern else None

    def match(self, text: str, start: int, end: int) -> re.Match[str] | None:
        """The spelled tag right at the start of this part of the text."""
        return self._pattern.match(text, start, end) if self._pattern else None

    def may_begin(self, piece: str) -> bool:
        """Whether more text may make a spelled tag of this piece."""
        return piece in self._prefixes

    def undecided(self, text: str, start: int) -> int:
        """Where the longest ending of the text begins that more text may make a spelled tag of."""
        for at in range(max(start, len(text) - self.longest + 1), len(text)):
            if text[at:] in self._prefixes:
                return at
        return len(text)


class Source:
    """An answer's text: pushed in at the end, taken from the front.

    ``added`` are the contents of the vocabulary's added tokens.
    """

    __slots__ = (
        "_added",
        "_at",
        "_base",
        "_held",
        "_held_at",
        "_marks",
        "_tags",
        "_text",
        "closed",
    )

    def __init__(self, added: Collection[str]) -> None:
        self._added = added
        self._text = ""
        self._at = 0
        """How much of ``_text`` was taken."""
        self._base = 0
        """The offset of ``_text`` in the answer."""
        self._marks: deque[Mark] = deque()
        self._tags: dict[tuple[str, ...], Tags] = {}
        self._held: list[str] | None = None
        self._held_at = 0
        self.closed = False
        """No more text will come."""

    @property
    def at(self) -> int:
        """The offset in the answer of the next character."""
        return self._base + self._at

    @property
    def exhausted(self) -> bool:
        """Whether the answer has ended and all of it was taken."""
        return self.closed and self._at == len(self._text)

    def push(self, text: str, marks: Sequence[Mark]) -> None:
        """Add text; marks come with the text of their first character, in order.

        A mark of no text marks nothing.
        """
        self._text = self._text[self._at :] + text
        self._base += self._at
        self._at = 0
        self._marks.extend(mark for mark in marks if mark.end > mark.start)

    def is_added(self, tag: str) -> bool:
        """Whether the tag is an added token, known by its id."""
        return tag in self._added

    def broken(self) -> Broken:
        """The error to raise for what stands here."""
        return Broken("unfinished" if self.exhausted else "malformed")

    # What a head that turns out to be none needs: the text since its start.

    def hold(self) -> None:
        """Remember what is taken from here on."""
        self._held, self._held_at = [], self.at

    def forget(self) -> None:
        """Remember no longer."""
        self._held = None

    def release(self) -> tuple[str, int]:
        """What was taken since :meth:`hold`, and where it began; remember no longer."""
        text = "".join(self._held or ())
        self._held = None
        return text, self._held_at

    # The primitives.

    def take(self, length: int) -> str:
        """Take characters that have come."""
        piece = self._text[self._at : self._at + length]
        self._at += length
        if self._held is not None:
            self._held.append(piece)
        return piece

    def peek(self) -> Steps[str]:
        """The next character; empty at the answer's end."""
        while self._at == len(self._text):
            if self.closed:
                return ""
            yield
        return self._text[self._at]

    def space(self) -> Steps[None]:
        """Take whitespace."""
        yield from self._run(_BLANK)

    def word(self) -> Steps[str]:
        """Take a name. Raises :class:`Broken` if there is none."""
        return (yield from self._named(_WORD))

    def key(self) -> Steps[str]:
        """Take the name of an argument. Raises :class:`Broken` if there is none."""
        return (yield from self._named(_KEY))

    def expect(self, text: str) -> Steps[None]:
        """Take exactly this text. Raises :class:`Broken` if another stands here."""
        for character in text:
            if (yield from self.peek()) != character:
                raise self.broken()
            self.take(1)

    def until(self, names: tuple[str, ...], sink: Sink) -> Steps[str | None]:
        """Give out the text before the next of these tags; the tag, not taken.

        ``None``: the answer ended before one came, and all text was given out.
        """
        tags = self._tags_of(names)
        while True:
            mark = self._next_mark()
            limit = len(self._text) if mark is None else mark.start - self._base
            found = tags.search(self._text, self._at, limit)
            if found is not None:
                self._give(found.start(), sink)
                return found.group()
            if mark is not None:
                self._give(limit, sink)
                token = yield from self._token(mark)
                if token in tags.by_id:
                    return token
                self._give(self._at + len(token), sink)
            elif self.closed:
                self._give(limit, sink)
                return None
            else:
                self._give(tags.undecided(self._text, self._at), sink)
                yield

    def here(self, names: tuple[str, ...]) -> Steps[str | None]:
        """Which of these tags stands right here, not taken; ``None`` if none does."""
        tags = self._tags_of(names)
        while (yield from self.peek()):
            mark = self._next_mark()
            limit = len(self._text) if mark is None else mark.start - self._base
            if mark is not None and limit == self._at:
                token = yield from self._token(mark)
                return token if token in tags.by_id else None
            found = tags.match(self._text, self._at, limit)
            if found is not None:
                return found.group()
            rest = self._text[self._at : self._at + tags.longest]
            if self.closed or mark is not None or not tags.may_begin(rest):
                return None
            yield
        return None

    def tag(self, name: str) -> Steps[None]:
        """Take exactly this tag. Raises :class:`Broken` if another text stands here."""
        if (yield from self.here((name,))) is None:
            raise self.broken()
        self.take(len(name))

    def value(self, sink: Sink) -> Steps[None]:
        """Take one JSON value, given out as it comes. Raises :class:`Broken` where it is none.

        Tags inside it are text: a model may write about them in a string, by id as well.
        """
        scanner = JsonScanner()
        while True:
            self._give(scanner.feed(self._text, self._at), sink)
            if scanner.done:
                return
            if scanner.broken or self.closed:
                raise self.broken()
            yield

    def _tags_of(self, names: tuple[str, ...]) -> Tags:
        tags = self._tags.get(names)
        if tags is None:
            tags = self._tags[names] = Tags(names, self._added)
        return tags

    def _give(self, end: int, sink: Sink) -> None:
        if end > self._at:
            at = self.at
            sink(self.take(end - self._at), at)

    def _run(self, pattern: re.Pattern[str]) -> Steps[str]:
        pieces: list[str] = []
        while True:
            found = pattern.match(self._text, self._at)
            pieces.append(self.take(found.end() - self._at if found else 0))
            if self._at < len(self._text) or self.closed:
                return "".join(pieces)
            yield

    def _named(self, pattern: re.Pattern[str]) -> Steps[str]:
        name = yield from self._run(pattern)
        if not name:
            raise self.broken()
        return name

    def _next_mark(self) -> Mark | None:
        """The first mark that begins here or later."""
        while self._marks and self._marks[0].start < self.at:
            self._marks.popleft()
        return self._marks[0] if self._marks else None

    def _token(self, mark: Mark) -> Steps[str]:
        """The whole text of the added token that begins here; what there is of it at the end."""
        length = mark.end - mark.start
        while len(self._text) - self._at < length and not self.closed:
            yield
        return self._text[self._at : self._at + length]
