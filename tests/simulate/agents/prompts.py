"""Prompts, and how one comes of what an agent holds: in text and in ids.

A maker knows how its kind of prompt begins, goes on, leaves an answer midway and echoes history
altered. What a prompt then *is* (:class:`Kind`) is told by comparing it with what was held and
never by what was meant, for an alteration may by accident change nothing.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass

from tests.simulate.agents.held import Held
from tests.simulate.agents.wording import EDITS, Wording
from tests.simulate.story import Chat, Kind
from tests.simulate.tokens import Tokens

__all__ = ["IdsMaker", "Maker", "Prompt", "TextMaker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """As the fields of these names in :class:`~tests.simulate.story.Ask`."""

    kind: Kind
    text: str | None = None
    ids: tuple[int, ...] | None = None
    chat: Chat | None = None
    held: Held | None = None
    appended: str = ""


class Maker(ABC):
    """Makes prompts of one kind."""

    def __init__(self, wording: Wording, tokens: Tokens) -> None:
        self._wording = wording
        self._tokens = tokens

    @abstractmethod
    def root(self, chance: random.Random) -> Prompt:
        """A first turn."""

    @abstractmethod
    def append(self, held: Held, chance: random.Random) -> Prompt:
        """A turn that only adds."""

    @abstractmethod
    def cut(self, held: Held, chance: random.Random) -> Prompt:
        """A turn that leaves the answer midway."""

    @abstractmethod
    def edit(self, held: Held, chance: random.Random) -> Prompt:
        """A turn whose history is altered, shortened, or gone."""


def _of_text(text: str, held: Held) -> Prompt:
    """A prompt of that text, which came of ``held``, and what it is."""
    before, shown = held.ask.text, held.shown
    if before is None or not text.startswith(before):
        kind = Kind.EDITED
    elif held.whole and text.startswith(shown, len(before)):
        kind = Kind.APPEND
    else:
        kind = Kind.CUT
    whole = len(before or "") + len(shown)
    return Prompt(
        kind=kind,
        text=text,
        held=held,
        appended=text[whole:] if kind is Kind.APPEND else "",
    )


class TextMaker(Maker):
    """Raw text."""

    def root(self, chance: random.Random) -> Prompt:
        """Words."""
        return Prompt(kind=Kind.ROOT, text=self._wording.first(chance))

    def append(self, held: Held, chance: random.Random) -> Prompt:
        """The text so far, as it was shown, and more: maybe nothing."""
        more = self._wording.more(chance, held.matched if held.trimmed else None)
        return self._going_on(held, held.shown + more, chance)

    def cut(self, held: Held, chance: random.Random) -> Prompt:
        """The beginning of the answer, maybe nothing of it, and other words."""
        kept = held.shown[: chance.randint(0, len(held.shown))]
        return self._going_on(held, kept + self._wording.words(chance), chance)

    def edit(self, held: Held, chance: random.Random) -> Prompt:
        """The text so far, altered."""
        text = held.ask.text or ""
        if chance.random() < 0.5:
            altered = text + chance.choice(EDITS)(held.shown, chance)
        else:
            altered = chance.choice(EDITS)(text + held.shown, chance)
        altered += self._wording.more(chance, None)
        return _of_text(altered or self._wording.words(chance, 1), held)

    def _going_on(self, held: Held, rest: str, chance: random.Random) -> Prompt:
        text = held.ask.text
        if text is None:
            # It was sent as ids, which an agent can say as text, if they are text.
            text = self._wording.decoded(held.ask.ids or ())
        if not text:
            return self.root(chance)
        return _of_text(text + rest, held)


class IdsMaker(Maker):
    """Token ids: those that the agent made, and those that it was given."""

    def root(self, chance: random.Random) -> Prompt:
        """Words, encoded by the agent."""
        ids = self._wording.encoded(self._wording.first(chance), chance, first=True)
        return Prompt(kind=Kind.IDS, ids=ids)

    def append(self, held: Held, chance: random.Random) -> Prompt:
        """All ids so far and those of some words."""
        more = self._wording.more(chance, None)
        return self._going_on(held, self._answer(held, chance), more, chance)

    def cut(self, held: Held, chance: random.Random) -> Prompt:
        """The first ids of the answer."""
        answer = self._answer(held, chance)
        kept = answer[: chance.randint(0, len(answer))]
        return self._going_on(held, kept, self._wording.words(chance), chance)

    def edit(self, held: Held, chance: random.Random) -> Prompt:
        """The answer spelled by the agent itself, or ids left out or changed."""
        if chance.random() < 0.4:
            own = self._wording.encoded(held.shown, chance)
            return self._going_on(held, own, self._wording.words(chance), chance)
        ids = [*(held.ask.ids or ()), *self._answer(held, chance)]
        if ids:
            start = chance.randrange(len(ids))
            end = chance.randint(start, len(ids))
            ids[start:end] = self._wording.encoded(self._wording.words(chance), chance)
        return Prompt(kind=Kind.IDS, ids=tuple(ids) or self.root(chance).ids, held=held)

    def _answer(self, held: Held, chance: random.Random) -> tuple[int, ...]:
        """What was sampled; an agent that was not told spells what it was shown."""
        return self._wording.encoded(held.shown, chance) if held.ids is None else held.ids

    def _going_on(
        self, held: Held, answer: tuple[int, ...], more: str, chance: random.Random
    ) -> Prompt:
        ids = (*(held.ask.ids or ()), *answer, *self._wording.encoded(more, chance))
        return Prompt(kind=Kind.IDS, ids=ids, held=held) if ids else self.root(chance)
