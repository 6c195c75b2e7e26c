"""Who takes part in a run."""

from __future__ import annotations

from collections.abc import Sequence

from tests.simulate.agents.conversation import Conversation
from tests.simulate.agents.retrieving import Trainer
from tests.simulate.agents.script import Agent
from tests.simulate.agents.vandal import Vandal
from tests.simulate.knobs import Knobs
from tests.simulate.story import Exchange
from tests.simulate.tokens import Tokens

__all__ = ["cast"]


def cast(knobs: Knobs, tokens: Tokens, exchanges: Sequence[Exchange] = ()) -> list[Agent]:
    """All agents of a run. ``exchanges`` is the story's own list: trainers look at what was
    answered so far, and at what is just being answered.
    """
    agents: list[Agent] = [
        Conversation(f"agent{place}", knobs, tokens, exchanges) for place in range(knobs.agents)
    ]
    agents += [Trainer(f"trainer{n}", knobs, tokens, exchanges) for n in range(knobs.trainers)]
    agents += [Vandal(f"vandal{n}", knobs) for n in range(knobs.vandals)]
    return [agent for agent in agents if agent.name not in knobs.absent]
