"""One family after the other: their vocabularies take a second and a hundred megabytes each."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from slime_trio.tokenizer import Tokenizer
from tests.chat_families import Family, family
from tests.hard_cases.serving import Agent, Model, agent_of
from tests.hard_cases.writing import FORMS


@pytest.fixture(params=list(FORMS), scope="package")
def model(request: pytest.FixtureRequest) -> Model:
    """A family with its real vocabulary."""
    chosen = family(request.param, "real")
    return Model.of(chosen, _tokenizer(chosen))


@pytest.fixture
async def agent(model: Model) -> AsyncIterator[Agent]:
    """A router for the family, and a worker that follows the test's script."""
    async with agent_of(model) as served:
        yield served


_last: dict[tuple[int, frozenset[int]], Tokenizer] = {}


def _tokenizer(chosen: Family) -> Tokenizer:
    """That of the family before, if both have the same."""
    key = (id(chosen.raw), chosen.eos_ids)
    if key not in _last:
        _last.clear()
        _last[key] = Tokenizer(chosen.raw.to_str().encode(), eos_ids=chosen.eos_ids)
    return _last[key]


@pytest.fixture
async def small() -> AsyncIterator[Agent]:
    """One family with a small vocabulary, for what has nothing to do with either."""
    chosen = family("qwen3")
    async with agent_of(Model.of(chosen, chosen.tokenizer)) as served:
        yield served
