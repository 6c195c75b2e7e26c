"""Pydantic AI, which dumps arguments anew, without any blank, and sends reasoning back."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import openai
import pytest

from tests.clients.support import (
    ANSWER,
    CARRIERS,
    QUESTION,
    RUN_BY,
    Rollout,
    clock,
    needs_the_group,
    rollout,
    weather,
)

needs_the_group()
pydantic_ai = pytest.importorskip("pydantic_ai")
models = pytest.importorskip("pydantic_ai.models.openai")
providers = pytest.importorskip("pydantic_ai.providers.openai")

Run = Callable[[Any, str, Any], Coroutine[Any, Any, Any]]


async def _whole(agent: Any, said: str, history: Any) -> Any:
    result = await agent.run(said, message_history=history)
    return result.output, result.all_messages()


async def _streamed(agent: Any, said: str, history: Any) -> Any:
    async def drain(_context: Any, events: Any) -> None:
        async for _ in events:
            pass

    result = await agent.run(said, message_history=history, event_stream_handler=drain)
    return result.output, result.all_messages()


RUNS: dict[str, Run] = {"whole": _whole, "streamed": _streamed}


def _client(play: Rollout) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=play.base_url, api_key=play.api_key, max_retries=0, timeout=15
    )


def _agent(client: Any, tools: list[Any] | None = None) -> Any:
    provider = providers.OpenAIProvider(openai_client=client)
    return pydantic_ai.Agent(models.OpenAIChatModel("m", provider=provider), tools=tools or [])


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("way", RUNS)
async def test_a_run_with_tools_is_one_trajectory(way: str, carrier: str) -> None:
    async with rollout(carrier=carrier) as play:
        run_by: list[Any] = []

        def note_weather(city: str, unit: str = "C", days: float = 1.0) -> str:
            run_by.append(("weather", {"city": city, "unit": unit, "days": days}))
            return weather(city, unit, days)

        def note_clock(place: str) -> str:
            run_by.append(("clock", {"place": place}))
            return clock(place)

        tools = [
            pydantic_ai.Tool(note_weather, name="weather"),
            pydantic_ai.Tool(note_clock, name="clock"),
        ]

        async def use() -> Any:
            async with _client(play) as client:
                return (await RUNS[way](_agent(client, tools), QUESTION, None))[0]

        assert await play.run_async(use) == ANSWER
        assert sorted(name for name, _ in run_by) == sorted(name for name, _ in RUN_BY)
        for name, arguments in RUN_BY:
            assert any(name == one and arguments.items() <= given.items() for one, given in run_by)
        await play.check()


@pytest.mark.parametrize("way", RUNS)
async def test_a_second_run_goes_on_behind_the_first(way: str) -> None:
    said = ("<think>\nHm.\n</think>\n\n Two words. ", "<think>\nAgain.\n</think>\n\nTwo more.\n")
    async with rollout(*said, carrier="key") as play:

        async def use() -> None:
            async with _client(play) as client:
                agent = _agent(client)
                _, history = await RUNS[way](agent, QUESTION, None)
                await RUNS[way](agent, "And now?", history)

        await play.run_async(use)
        await play.check(rounds=2)


async def test_reasoning_that_stays_in_the_content_is_wrapped_anew_and_known_again() -> None:
    async with rollout("<think>\nHm.\n</think>\n\nYes.", "Welcome.", carrier="key") as play:

        async def use() -> None:
            async with _client(play) as client:
                agent = _agent(client)
                whole = {"extra_body": {"separate_reasoning": False}}
                first = await agent.run(QUESTION, model_settings=whole)
                await agent.run(
                    "Thanks.", message_history=first.all_messages(), model_settings=whole
                )

        await play.run_async(use)
        await play.check(rounds=2)
