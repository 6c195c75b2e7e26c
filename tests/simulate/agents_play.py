"""Agents without a router: a fake one answers them, in any way in which exchanges end."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from slime_core.types import Encoding
from tests.simulate import tokens
from tests.simulate.agents import Agent, Retrieve, Send, cast
from tests.simulate.chance import derive
from tests.simulate.knobs import Knobs
from tests.simulate.story import Ask, Ending, Exchange, Got

__all__ = ["SEEDS", "Play", "play", "played"]

SEEDS: Final = range(150)
_ANSWERS: Final = (
    "The quick",
    " jumps<|im_end|> no",
    "",
    "é 好",
    "<think>12</think> is 144",
    "a b c d e f",
)


@dataclass
class Play:
    """What the agents of one seed did when a fake router answered them."""

    knobs: Knobs
    exchanges: list[Exchange] = field(default_factory=list)
    retrieved: list[tuple[str, Retrieve]] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    together: list[int] = field(default_factory=list)
    """How many requests each step sent side by side."""

    @property
    def asks(self) -> list[Ask]:
        """All requests, in the order in which they were sent."""
        return [exchange.ask for exchange in self.exchanges]


def _answer(play: Play, exchange: Exchange) -> None:
    """Answer as the router may, in any way in which exchanges end."""
    chance = derive(play.knobs.seed, "answer", exchange.agent, exchange.number)
    ask = exchange.ask
    exchange.ending = chance.choice((Ending.COMPLETE,) * 5 + (Ending.BROKEN, Ending.ERROR))
    leaves = (ask.conduct.leave_after_pieces, ask.conduct.leave_after_s)
    if leaves != (None, None):
        exchange.ending = Ending.LEFT
    exchange.samples = [Got() for _ in range(ask.samples)]
    exchange.status = 200
    calls = [f"{exchange.number:020}{place:012}" for place in range(ask.samples)]
    if exchange.ending is Ending.ERROR or ask.malformed:
        exchange.status = 404 if ask.malformed else 503
        exchange.ending = Ending.ERROR
        return
    exchange.headers = {"x-slime-call-id": ",".join(calls)}
    exchange.body = bytearray(b'{"id": "chatcmpl-%s"}' % calls[0].encode())
    vocabulary = tokens.of(play.knobs.tokenizer)
    for got in exchange.samples:
        got.text = chance.choice(_ANSWERS)
        if ask.path == "/generate":
            got.ids = vocabulary.encode(got.text, encoding=Encoding.RENDERED, first=False)
        if ask.chat is not None:
            got.message = _message(got.text, chance, calls[0])
        if exchange.ending is Ending.COMPLETE:
            got.finish = {"type": "stop", "matched": chance.choice(("x", 5, None))}
        else:
            got.text = got.text[: chance.randint(0, len(got.text))]


def _message(text: str, chance: random.Random, call: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if chance.random() < 0.3:
        message["reasoning_content"] = "hm"
    if chance.random() < 0.3:
        function = {"name": "add", "arguments": chance.choice(('{"b": 1.0, "a": "é"}', "{", ""))}
        message["tool_calls"] = [{"id": f"call_{call}", "type": "function", "function": function}]
    return message


def play(knobs: Knobs) -> Play:
    """All agents in turn, one step each, until all are done."""
    played = Play(knobs)
    agents = cast(knobs, tokens.of(knobs.tokenizer), played.exchanges)
    while agents:
        agents = [agent for agent in agents if _goes_on(agent, played)]
    return played


def _goes_on(agent: Agent, played: Play) -> bool:
    step = agent.next()
    if step is None:
        return False
    played.pauses.append(step.think_s)
    if isinstance(step, Retrieve):
        played.retrieved.append((agent.name, step))
        return True
    assert isinstance(step, Send)
    begun = [
        Exchange(number=len(played.exchanges) + place, agent=agent.name, ask=ask, asked_at=0)
        for place, ask in enumerate(step.asks)
    ]
    played.together.append(len(begun))
    played.exchanges += begun
    for exchange in begun:
        _answer(played, exchange)
        agent.ended(exchange)
    return True


@cache
def played(seed: int) -> Play:
    """What the agents of a seed do; played once."""
    return play(Knobs.draw(seed))
