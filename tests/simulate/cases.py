"""What the rules look at, and their list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from slime_core.decide import Limits
from slime_core.state import RouterState
from tests.simulate.naive import Book, Call
from tests.simulate.naive_chat import Talks
from tests.simulate.story import Exchange, Story
from tests.simulate.tokens import Tokens
from tests.simulate.watch import Watch

__all__ = ["RULES", "Case", "Rule", "Run", "rule"]


class Settings(Protocol):
    """What the rules need to know of a run's knobs."""

    @property
    def history(self) -> str: ...
    def limits(self) -> Limits: ...


class Run(Protocol):
    """A run that has ended."""

    @property
    def story(self) -> Story: ...
    @property
    def state(self) -> RouterState: ...
    @property
    def knobs(self) -> Settings: ...
    @property
    def tokens(self) -> Tokens: ...
    @property
    def watch(self) -> Watch: ...
    def journal_state(self) -> RouterState:
        """A fresh state, as the run's router began with."""


@dataclass(frozen=True)
class Case:
    """What the rules look at: a run and its naive book."""

    run: Run
    book: Book
    talks: Talks

    @property
    def history(self) -> str:
        """The router's policy for history that a template writes anew."""
        return self.run.knobs.history

    @property
    def story(self) -> Story:
        return self.run.story

    def exchanges(self) -> Iterator[tuple[Exchange, list[Call]]]:
        """Exchanges with the calls that their heads named."""
        for one in self.story.exchanges:
            yield one, [self.book.calls[name] for name in one.calls if name in self.book.calls]

    def note(self, situation: str) -> None:
        """A rule met a case: over a corpus, each must."""
        self.story.marks[f"checked:{situation}"] += 1

    def captured(self) -> list[Call]:
        return [one for one in self.book.calls.values() if one.captured is not None]


Rule = Callable[[Case], Iterator[str]]
RULES: Final[list[tuple[str, Rule]]] = []


def rule(name: str) -> Callable[[Rule], Rule]:
    """Register a rule."""

    def register(check: Rule) -> Rule:
        RULES.append((name, check))
        return check

    return register
