"""Retrievals, as trainers ask for them: by text, by call, by messages; also wrong ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

from tests.simulate.agents.held import Held, held_of, names_of
from tests.simulate.agents.script import Agent, Retrieve, Step
from tests.simulate.chance import derive
from tests.simulate.knobs import Knobs
from tests.simulate.story import Ending, Exchange
from tests.simulate.tokens import Tokens

__all__ = ["BY_CALL", "BY_MESSAGES", "BY_TEXT", "Trainer", "retrievals_of"]

BY_TEXT: Final = "/retrieve_from_text"
BY_MESSAGES: Final = "/retrieve_from_messages_template"
BY_CALL: Final = "/trajectories/"

_WRONG: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    (BY_TEXT, {"text": ""}),
    (BY_TEXT, {"text": "nobody ever said this"}),
    (BY_TEXT, {"text": "nobody ever said this", "id": "f" * 32}),
    (BY_TEXT, {}),
    (BY_TEXT, {"text": 5}),
    (BY_MESSAGES, {"messages": []}),
    (BY_MESSAGES, {"messages": [{"role": "user", "content": "nobody ever said this"}]}),
    (BY_CALL + "f" * 32, {}),
    (BY_CALL + "chatcmpl-" + "f" * 32, {}),
)


def retrievals_of(
    held: Held, tokens: Tokens, knobs: Knobs, chance: random.Random
) -> list[Retrieve]:
    """One or two retrievals of an answer that an agent holds."""
    asked = _by_call(held.call) + _by_text(held, chance) + _by_messages(held, chance)
    if not asked:
        return []
    picks = [chance.choice(asked) for _ in range(chance.randint(1, 2))]
    return [
        Retrieve(path=path, body=body, think_s=round(chance.uniform(0, knobs.think_s), 4))
        for path, body in picks
    ]


def _by_call(call: str | None) -> list[tuple[str, dict[str, Any]]]:
    return [] if call is None else [(BY_CALL + call, {})]


def _by_text(held: Held, chance: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """The text so far; maybe with the call's id, with words after it, or cut."""
    text = held.text
    if text is None:
        return []
    way = chance.random()
    if way < 0.15:
        text += chance.choice(("<|im_end|>", "<|im_end|>\n", " and more", "\n"))
    elif way < 0.25:
        text = text[: chance.randint(0, len(text))]
    body: dict[str, Any] = {"text": text}
    if held.call is not None and chance.random() < 0.5:
        body["id"] = held.call
    return [(BY_TEXT, body)]


def _by_messages(held: Held, chance: random.Random) -> list[tuple[str, dict[str, Any]]]:
    if held.ask.chat is None or not held.message:
        return []
    chat = held.chat
    body: dict[str, Any] = {"messages": [*chat.messages, held.message]}
    if chat.tools:
        body["tools"] = list(chat.tools)
    if chat.arguments:
        body["chat_template_kwargs"] = chat.arguments
    if held.call is not None and chance.random() < 0.5:
        body["id"] = held.call
    if chance.random() < 0.2:
        body["add_generation_prompt"] = True
    return [(BY_MESSAGES, body)]


class Trainer(Agent):
    """Retrieves what any agent got or is just getting: early, late, twice, and nonsense."""

    def __init__(
        self, name: str, knobs: Knobs, tokens: Tokens, exchanges: Sequence[Exchange]
    ) -> None:
        super().__init__(name)
        self._knobs = knobs
        self._tokens = tokens
        self._exchanges = exchanges
        chance = derive(knobs.seed, "agent", name)
        self._rounds = chance.randint(2, 10)
        self._round = 0
        self._last: Retrieve | None = None

    def next(self) -> Step | None:
        """A retrieval of an exchange that is picked at random among all so far."""
        if self._round >= self._rounds:
            return None
        chance = derive(self._knobs.seed, "agent", self.name, "round", self._round)
        self._round += 1
        think_s = round(
            chance.choice((0.0, 0.01, 0.1, 1.0, self._knobs.heal_s)) * chance.random(), 4
        )
        path, body = self._asked(chance)
        self._last = Retrieve(path=path, body=body, think_s=think_s)
        return self._last

    def _asked(self, chance: random.Random) -> tuple[str, dict[str, Any]]:
        way = chance.random()
        if way < 0.1 and self._last is not None:
            return self._last.path, self._last.body
        known = [one for one in self._exchanges if one.ask.malformed is None]
        if way < 0.25 or not known:
            return chance.choice(_WRONG)
        exchange = chance.choice(known)
        asked: list[tuple[str, dict[str, Any]]]
        asked = [(BY_CALL + name, {}) for name in names_of(exchange)[:4]]
        if exchange.ask.text and chance.random() < 0.3:
            asked.append((BY_TEXT, {"text": exchange.ask.text}))
        if exchange.ending is not Ending.OPEN:
            sample = chance.randrange(exchange.ask.samples)
            held = held_of(exchange, sample)
            if held is not None:
                asked += _by_text(held, chance) + _by_messages(held, chance)
        if not asked:
            return chance.choice(_WRONG)
        path, body = chance.choice(asked)
        if path == BY_TEXT and chance.random() < 0.1:
            body = {**body, "id": chance.choice(known).headers.get("x-slime-call-id", "f" * 32)}
        return path, body
