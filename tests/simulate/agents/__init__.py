"""The simulated agents: what clients of the router do, as scripts without I/O.

An agent says its next step, and is told what became of it. It knows what a client sees (texts, ids
where the dialect shows them, flags and call ids from headers) and nothing of the router's inside.
Each draws from generators of its own name, one for every turn, so that a shorter run says the same
as the beginning of a longer one.
"""

from tests.simulate.agents.casting import cast
from tests.simulate.agents.script import Agent, Retrieve, Send, Step

__all__ = ["Agent", "Retrieve", "Send", "Step", "cast"]
