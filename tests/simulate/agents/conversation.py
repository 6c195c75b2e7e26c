"""An agent with a conversation, or with a group of them that begin alike."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from tests.simulate.agents.chatting import ChatMaker
from tests.simulate.agents.composing import CHAT, COMPLETIONS, GENERATE, Composer
from tests.simulate.agents.habits import draw_conduct, retry_headers
from tests.simulate.agents.held import Held, held_of
from tests.simulate.agents.prompts import IdsMaker, Maker, Prompt, TextMaker
from tests.simulate.agents.retrieving import retrievals_of
from tests.simulate.agents.script import Agent, Retrieve, Send, Step
from tests.simulate.agents.wording import Wording
from tests.simulate.chance import derive
from tests.simulate.knobs import Knobs
from tests.simulate.story import Ask, Ending, Exchange, Kind
from tests.simulate.tokens import Tokens

__all__ = ["Conversation"]

_ATTEMPTS: Final = 3
_PATIENCE_S: Final = 0.2
"""A client waits up to so long before it tries again, and longer each time."""
_MOST_LINES: Final = 6
"""Branches beyond this are not gone on with."""
_RETRIED: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
"""What SDKs try again after."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request under way. ``lines`` has the line of each sample."""

    ask: Ask
    lines: tuple[int, ...]
    attempt: int = 1
    wait_s: float = 0.0
    """What the router asked to wait, before it is sent again."""


class Conversation(Agent):
    """Some turns. A *line* is a chain of answers that are gone on with; a group has several."""

    def __init__(
        self, name: str, knobs: Knobs, tokens: Tokens, exchanges: Sequence[Exchange]
    ) -> None:
        super().__init__(name)
        self._knobs = knobs
        chance = derive(knobs.seed, "agent", name)
        path = _path(knobs, chance)
        by_ids = chance.random() < knobs.ids_share
        in_group = chance.random() < knobs.group_share
        self._turns = chance.randint((knobs.turns + 1) // 2, max(1, knobs.turns))
        self._group = chance.randint(2, knobs.group) if in_group and knobs.group > 1 else 1
        wording = Wording(knobs, tokens, chance)
        self._maker: Maker = (
            IdsMaker(wording, tokens)
            if by_ids
            else ChatMaker(wording, tokens, knobs, chance)
            if path == CHAT
            else TextMaker(wording, tokens)
        )
        self._other_maker = TextMaker(wording, tokens) if by_ids and path != CHAT else self._maker
        self._takes_lists = path != CHAT
        self._composer = Composer(name, path, knobs, tokens, exchanges, chance)
        self._tokens = tokens
        self._lines: list[list[Held]] = [[]]
        self._sent: list[_Sent] = []
        self._again: list[_Sent] = []
        self._owed: list[Retrieve] = []
        self._turn = 0
        self._retries = 0

    def next(self) -> Step | None:
        """Retries first, then retrievals, then the next turn."""
        if self._again:
            return self._try_again()
        if self._owed:
            return self._owed.pop(0)
        if self._turn >= self._turns:
            return None
        chance = derive(self._knobs.seed, "agent", self.name, "turn", self._turn)
        self._turn += 1
        self._sent = self._first_turn(chance) if self._turn == 1 else self._next_turn(chance)
        return self._sending(chance)

    def ended(self, exchange: Exchange) -> None:
        """Take what was given; decide whether to ask again, and what to retrieve."""
        sent = next(one for one in self._sent if one.ask is exchange.ask)
        chance = derive(self._knobs.seed, "agent", self.name, "ended", exchange.number)
        if sent.ask.parent is not None and exchange.status in (404, 410):
            self._composer.names_parents = False
        for sample, line in enumerate(sent.lines):
            held = held_of(exchange, sample)
            if held is not None:
                self._lines[line].append(held)
                if chance.random() < self._knobs.retrieve:
                    self._owed += retrievals_of(held, self._tokens, self._knobs, chance)
        if _failed(exchange) and chance.random() < self._knobs.retry and sent.attempt < _ATTEMPTS:
            wait_s = float(exchange.headers.get("retry-after", 0))
            self._again.append(replace(sent, attempt=sent.attempt + 1, wait_s=wait_s))

    def _try_again(self) -> Send:
        chance = derive(self._knobs.seed, "agent", self.name, "again", self._retries)
        self._retries += 1
        again, self._again = self._again, []
        self._sent = [
            replace(
                one,
                ask=replace(
                    one.ask,
                    kind=Kind.REPEAT,
                    original=one.ask.meant,
                    headers=retry_headers(one.ask, one.attempt - 1, chance),
                    conduct=draw_conduct(self._knobs, chance, stays=chance.random() < 0.5),
                ),
            )
            for one in again
        ]
        return self._sending(chance, _PATIENCE_S * self._sent[0].attempt)

    def _sending(self, chance: random.Random, pause_s: float = 0.0) -> Send:
        pause = round(chance.uniform(0, self._knobs.think_s + pause_s), 4)
        pause += max(one.wait_s for one in self._sent)
        for one in tuple(self._sent):
            twice, delay = chance.random() < self._knobs.twice * 0.5, chance.random() * 0.1
            if twice and one.ask.malformed is None:
                self._sent.append(replace(one, ask=_sent_twice(one.ask, round(delay, 4))))
        return Send(asks=tuple(one.ask for one in self._sent), think_s=pause)

    # -- what the turns are ----------------------------------------------------------------

    def _first_turn(self, chance: random.Random) -> list[_Sent]:
        prompt = self._maker.root(chance)
        wants_n, wants_list = (chance.random() < share for share in self._shares)
        self._lines = [[] for _ in range(self._group)]
        lines = tuple(range(self._group))
        if self._group > 1 and wants_n:
            return [_Sent(self._composer.ask([prompt], chance, n=self._group), lines)]
        return self._asked([(line, prompt) for line in lines], chance, as_list=wants_list)

    def _next_turn(self, chance: random.Random) -> list[_Sent]:
        wants_n, wants_list = (chance.random() < share for share in self._shares)
        prompts: list[tuple[int, Prompt]] = []
        for line in range(len(self._lines)):
            prompts.append((line, self._prompt(line, chance)))
            branches, count = chance.random() < self._knobs.branch, chance.randint(1, 2)
            for _ in range(count if branches else 0):
                if len(self._lines) < _MOST_LINES:
                    prompts.append((self._new_line(line), self._branch(line, prompts[-1], chance)))
        if wants_n and len(prompts) == 1 and self._knobs.branch and len(self._lines) < _MOST_LINES:
            lines = (prompts[0][0], self._new_line(prompts[0][0]))
            return [_Sent(self._composer.ask([prompts[0][1]], chance, n=2), lines)]
        return self._asked(prompts, chance, as_list=wants_list)

    @property
    def _shares(self) -> tuple[float, float]:
        return self._knobs.n_share, self._knobs.batch_share

    def _asked(
        self, prompts: list[tuple[int, Prompt]], chance: random.Random, *, as_list: bool
    ) -> list[_Sent]:
        """As one request with a list, or as one request each."""
        alike = len({prompt.ids is None for _, prompt in prompts}) == 1
        if as_list and self._takes_lists and len(prompts) > 1 and alike:
            lines = tuple(line for line, _ in prompts)
            return [_Sent(self._composer.ask([prompt for _, prompt in prompts], chance), lines)]
        return [
            _Sent(self._composer.ask([prompt], chance, line=line), (line,))
            for line, prompt in prompts
        ]

    def _new_line(self, line: int) -> int:
        """A line that branches off another."""
        self._lines.append(list(self._lines[line]))
        return len(self._lines) - 1

    def _branch(self, line: int, beside: tuple[int, Prompt], chance: random.Random) -> Prompt:
        """Another continuation: the same once more, another one, or one of an earlier turn."""
        way = chance.random()
        if way < 0.3:
            return beside[1]
        return self._prompt(line, chance, earlier=way > 0.8)

    def _prompt(self, line: int, chance: random.Random, *, earlier: bool = False) -> Prompt:
        knobs, held = self._knobs, self._lines[line]
        cuts, edits = chance.random() < knobs.cut, chance.random() < knobs.edit
        forgets, changes_form = chance.random() < 0.25, chance.random() < knobs.edit * 0.5
        if not held or (edits and forgets):
            return self._maker.root(chance)
        last = held[chance.randrange(len(held))] if earlier else held[-1]
        maker = self._other_maker if changes_form else self._maker
        if changes_form:
            return maker.append(last, chance)
        if edits:
            return maker.edit(last, chance)
        return maker.cut(last, chance) if cuts else maker.append(last, chance)


def _path(knobs: Knobs, chance: random.Random) -> str:
    chats, completes = chance.random() < knobs.chat_share, chance.random()
    if chats:
        return CHAT
    return COMPLETIONS if completes < knobs.completions_share else GENERATE


def _sent_twice(ask: Ask, delay_s: float) -> Ask:
    """The same request again, while the first one runs."""
    conduct = replace(ask.conduct, delay_s=delay_s)
    return replace(ask, kind=Kind.REPEAT, original=ask.meant, conduct=conduct)


def _failed(exchange: Exchange) -> bool:
    if exchange.ending is Ending.ERROR:
        return exchange.status in _RETRIED or exchange.status == 200
    return exchange.ending is not Ending.COMPLETE
