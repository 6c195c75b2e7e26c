"""Random rollouts for the tests of the rules: agents that append, cut, branch and repeat.

A rollout is a list of :class:`Turn`, each with what the client sent and what was sampled, beside
the driver whose forest captured them. Nothing in a turn is read back from the forest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from slime_core.lookup import TextFound
from slime_core.segments import Outcome
from slime_core.transitions import VersionSeen
from slime_core.types import Encoding, WorkerUrl, unpack_ids
from slime_core.versions import VersionRun
from tests.core.capture import Driver, Opened, Pieces, spread

__all__ = ["WORDS", "Rollout", "Turn", "play"]

WORDS: Final = (
    *("a", "b", "ab", "abc", " a", "c d", "<E>", "<", "E>", "#!", "#", "é", "好", "🙂", "\ufffd"),
    *("The quick brown fox", " jumps over", "\n", "\n\n", "  ", "!a", "<|im_end|>", "<|im_end"),
    *("<|im_start|>user\n", "<|eot_id|>", "</s>", "def f(x):\n    return x**2", "0.5", "e\u0301"),
)


@dataclass(kw_only=True)
class Turn:
    """One call: the prompt as the client sent it, and the answer as it was sampled."""

    call: str
    kind: str
    after: Turn | None
    """The turn whose trajectory the client went on from, or left midway."""
    text: str | None
    """The whole prompt, or ``None`` where ids were sent."""
    appended: str = ""
    sent: list[int] = field(default_factory=list)
    """All ids that the worker was given."""
    kept: int = 0
    """How many of them were held already."""
    run_start: int = 0
    answer: list[int] = field(default_factory=list)
    shown: str = ""
    logprobs: list[float] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    hidden: str | None = None
    outcome: Outcome = Outcome.COMPLETE
    parent: str | None = None
    cut: bool = False

    @property
    def ids(self) -> list[int]:
        return [*self.sent, *self.answer]

    @property
    def from_ids(self) -> bool:
        """Whether ids of a client are anywhere in this trajectory."""
        return self.text is None or (self.after is not None and self.after.from_ids)


@dataclass
class Rollout:
    """A driver with its turns, in the order of capture."""

    driver: Driver
    random: random.Random
    words: Sequence[str] = WORDS
    turns: list[Turn] = field(default_factory=list)
    encoding: Encoding = Encoding.RAW

    @property
    def pieces(self) -> Pieces:
        return self.driver.pieces

    def by_call(self) -> dict[str, Turn]:
        """Turns by their call."""
        return {turn.call: turn for turn in self.turns}

    def words_of(self, most: int) -> str:
        """Some text."""
        return "".join(self.random.choices(self.words, k=self.random.randint(0, most)))

    def start(self, text: str, *, kind: str = "root") -> tuple[Turn, Opened]:
        """Open a call from text without history of its own."""
        return self._open(Turn(call="", kind=kind, after=None, text=text), None)

    def append(self, after: Turn, text: str) -> tuple[Turn, Opened]:
        """Open a call that merely appends ``text`` to what ``after`` was given."""
        whole = after.text + after.shown + text if after.text is not None else None
        assert whole is not None
        turn = Turn(call="", kind="append", after=after, text=whole, appended=text)
        return self._open(turn, after.call)

    def cut(self, after: Turn, chars: int, text: str) -> tuple[Turn, Opened]:
        """Open a call that leaves the answer of ``after`` after ``chars`` characters."""
        assert after.text is not None
        whole = after.text + after.shown[:chars] + text
        turn = Turn(call="", kind="cut", after=after, text=whole, appended=text)
        return self._open(turn, after.call)

    def start_ids(self, ids: list[int], after: Turn | None = None) -> tuple[Turn, Opened]:
        """Open a call from ids."""
        turn = Turn(call=f"c{len(self.driver.journal)}", kind="ids", after=after, text=None)
        opened = self.driver.open_ids(turn.call, ids)
        turn.sent = list(ids)
        return self._opened(turn, opened)

    def _open(self, turn: Turn, named: str | None) -> tuple[Turn, Opened]:
        assert turn.text is not None
        turn.call = f"c{len(self.driver.journal)}"
        opened = self.driver.open_text(turn.call, turn.text, self.encoding, parent_call=named)
        self.driver.keep(opened)
        held = self._held(opened)
        turn.sent = [*held, *unpack_ids(opened.prompt_ids)]
        assert isinstance(opened.found, TextFound)
        turn.run_start = opened.found.run_start
        return self._opened(turn, opened)

    def _held(self, opened: Opened) -> list[int]:
        if opened.found.parent is None:
            return []
        key = self.driver.state.forest.ids.key(opened.found.parent.id_node)
        return unpack_ids(key)[: opened.found.token_start]

    def _opened(self, turn: Turn, opened: Opened) -> tuple[Turn, Opened]:
        found = opened.found
        turn.kept, turn.cut = found.token_start, found.cut
        if found.parent is not None:
            assert found.parent.answer is not None
            turn.parent = found.parent.answer.call
        return turn, opened

    def finish(
        self,
        turn: Turn,
        opened: Opened,
        ids: list[int],
        *,
        shown: str | None = None,
        matched: int | str | None = None,
        outcome: Outcome = Outcome.COMPLETE,
    ) -> Turn:
        """The call is answered with ``ids``."""
        number = int(turn.call[1:]) + 1
        half = self.random.randint(0, len(ids))
        runs = (VersionRun(f"{number}", 0, half), VersionRun(f"{number + 1}", half, len(ids)))
        fact = self.driver.captured(
            opened,
            ids,
            shown,
            logprobs=spread(number, len(ids)),
            matched=matched,
            outcome=outcome,
            runs=runs,
        )
        turn.answer, turn.shown, turn.outcome = list(ids), fact.answer_text, outcome
        turn.logprobs = spread(number, len(ids))
        turn.versions = [run.version or "" for run in runs for _ in range(run.end - run.start)]
        turn.hidden = next(iter(fact.answer.endings), None)
        self.driver.apply(fact)
        self.turns.append(turn)
        return turn

    def sample(self, turn: Turn, opened: Opened) -> Turn:
        """The call is answered at random, in one of the ways in which answers end."""
        pick, text = self.random, self.words_of(4)
        ids = list(self.pieces.encode(text, encoding=Encoding.RENDERED, first=False))
        if pick.random() < 0.4:  # not as the tokenizer would have spelled it; maybe no UTF-8
            ids += [pick.randrange(256) for _ in range(pick.randint(1, 3))]
        vocabulary = self.pieces.vocabulary
        ending = pick.choice(("length", "token", "string", "overhang", "broken"))
        hard = sorted(self.pieces.hard_tokens.hard)
        if ending == "token" and hard:
            return self.finish(turn, opened, [*ids, hard[0]], matched=hard[0])
        plain = vocabulary.decode(ids, skip_special=True, at_start=False)
        if ending in ("string", "overhang") and plain:
            at = pick.randrange(len(plain))
            stop = plain[at : at + pick.randint(1, 2)] if ending == "overhang" else plain[at:]
            return self.finish(turn, opened, ids, shown=plain[:at], matched=stop)
        if ending == "broken" and ids:
            kept = ids[: pick.randint(1, len(ids))]
            shown = vocabulary.decode(kept, skip_special=True, at_start=False)
            shown = shown if plain.startswith(shown) else ""
            return self.finish(turn, opened, ids, shown=shown, outcome=Outcome.PARTIAL)
        return self.finish(turn, opened, ids)

    def step(self) -> None:
        """Some agent does something."""
        pick = self.random
        texts = [turn for turn in self.turns if turn.text is not None]
        choice = pick.random()
        if not texts or choice < 0.15:
            group = pick.choice((1, 1, 3))
            text = self.words_of(4)
            opened = [self.start(text) for _ in range(group)]
            pick.shuffle(opened)
            alike = pick.random() < 0.5
            for turn, one in opened:
                if alike and turn is not opened[0][0]:
                    self.finish(turn, one, self.turns[-1].answer)
                else:
                    self.sample(turn, one)
            return
        after = pick.choice(texts)
        if choice < 0.55:
            hidden = after.hidden if after.hidden and pick.random() < 0.6 else ""
            self.sample(*self.append(after, hidden + self.words_of(3)))
        elif choice < 0.8:
            self.sample(*self.cut(after, pick.randint(0, len(after.shown)), self.words_of(3)))
        elif choice < 0.9:
            self.sample(*self.start((after.text or "") + self.words_of(2)))
        else:
            ids = pick.choice(self.turns).ids
            keep = pick.randint(0, len(ids))
            self.sample(*self.start_ids(ids[:keep] + [pick.randrange(256) for _ in range(2)]))


def play(
    pieces: Pieces,
    chance: random.Random,
    steps: int = 8,
    *,
    words: Sequence[str] = WORDS,
    encoding: Encoding = Encoding.RAW,
) -> Rollout:
    """A rollout of some steps."""
    rollout = Rollout(Driver(pieces), chance, words, encoding=encoding)
    rollout.driver.apply(VersionSeen(worker=WorkerUrl("w"), version="1"))
    for _ in range(steps):
        rollout.step()
    return rollout
