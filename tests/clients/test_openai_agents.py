"""The OpenAI Agents SDK over chat completions: its runner plays the tool loop by itself."""

from __future__ import annotations

import asyncio
import os
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
# It sends traces to OpenAI unless told not to.
os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"
agents = pytest.importorskip("agents")

Run = Callable[[Any, Any], Coroutine[Any, Any, Any]]


class Hands:
    """The tools, which note what they were called with."""

    def __init__(self) -> None:
        self.run_by: list[Any] = []

    def tools(self) -> list[Any]:
        def note_weather(city: str, unit: str = "C", days: float = 1.0) -> str:
            self.run_by.append(("weather", {"city": city, "unit": unit, "days": days}))
            return weather(city, unit, days)

        def note_clock(place: str) -> str:
            self.run_by.append(("clock", {"place": place}))
            return clock(place)

        named = {"weather": note_weather, "clock": note_clock}
        return [
            agents.function_tool(hand, name_override=name, strict_mode=False)
            for name, hand in named.items()
        ]


async def _whole(agent: Any, said: Any) -> Any:
    return await agents.Runner.run(agent, said)


async def _streamed(agent: Any, said: Any) -> Any:
    result = agents.Runner.run_streamed(agent, said)
    async for _ in result.stream_events():
        pass
    return result


RUNS: dict[str, Run] = {"run": _whole, "run_streamed": _streamed}


def _agent(client: Any, tools: list[Any], **more: Any) -> Any:
    model = agents.OpenAIChatCompletionsModel(model="m", openai_client=client)
    return agents.Agent(name="Weather", model=model, tools=tools, **more)


def _client(play: Rollout) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=play.base_url, api_key=play.api_key, max_retries=0, timeout=15
    )


def _noted() -> list[Any]:
    """What the tools note, whichever comes first: defaults are filled in before they are called."""
    defaults: dict[str, dict[str, Any]] = {"weather": {"unit": "C", "days": 1.0}, "clock": {}}
    return sorted(((name, defaults[name] | arguments) for name, arguments in RUN_BY), key=_order)


def _order(noted: tuple[str, dict[str, Any]]) -> tuple[str, str]:
    name, arguments = noted
    return name, arguments.get("city", "")


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("way", RUNS)
async def test_the_runner_plays_one_trajectory(way: str, carrier: str) -> None:
    async with rollout(carrier=carrier) as play:
        hands = Hands()

        async def use() -> Any:
            async with _client(play) as client:
                agent = _agent(client, hands.tools(), instructions="Be brief.")
                return (await RUNS[way](agent, QUESTION)).final_output

        assert await play.run_async(use) == ANSWER
        assert sorted(hands.run_by, key=_order) == _noted()
        await play.check()


@pytest.mark.parametrize("way", RUNS)
async def test_a_second_question_goes_on_behind_the_first(way: str) -> None:
    said = ("<think>\nHm.\n</think>\n\nTwo words. ", "<think>\nAgain.\n</think>\n\n Two more.\n")
    async with rollout(*said, carrier="key") as play:

        async def use() -> None:
            async with _client(play) as client:
                agent = _agent(client, [])
                first = await RUNS[way](agent, QUESTION)
                thanks = {"role": "user", "content": "And now?"}
                await RUNS[way](agent, [*first.to_input_list(), thanks])

        await play.run_async(use)
        await play.check(rounds=2)


async def test_the_synchronous_runner_plays_one_trajectory() -> None:
    async with rollout(carrier="path") as play:
        hands = Hands()

        def use() -> Any:
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            client = _client(play)
            try:
                agent = _agent(client, hands.tools())
                return agents.Runner.run_sync(agent, QUESTION).final_output
            finally:
                loop.run_until_complete(client.close())
                loop.close()
                asyncio.set_event_loop(None)

        assert await play.run(use) == ANSWER
        assert sorted(hands.run_by, key=_order) == _noted()
        await play.check()


async def test_a_handoff_between_agents_keeps_every_sampled_token() -> None:
    """Another agent has other tools and other instructions: its calls are another branch."""
    said = (
        '<tool_call>\n{"name": "transfer_to_clock", "arguments": {}}\n</tool_call>',
        "It is 9:30.",
    )
    async with rollout(*said, carrier="key") as play:

        async def use() -> Any:
            async with _client(play) as client:
                other = _agent(client, [], instructions="Tell the time.")
                other.name = "clock"
                first = _agent(client, [], instructions="Hand over.", handoffs=[other])
                return (await agents.Runner.run(first, QUESTION)).final_output

        assert await play.run_async(use) == "It is 9:30."
        response = await play.served.client.post(f"/sessions/{play.session}/samples", json={})
        told = response.json()
        sampled = [list(one.output_ids) for one in play.worker.records]
        kept = [
            [t for t, m in zip(s["tokens"][s["prompt_length"] :], s["loss_mask"], strict=True) if m]
            for s in told["samples"]
        ]
        assert kept == sampled
        assert told["accounting"]["used"] == sum(map(len, sampled))


async def test_too_long_a_conversation_is_a_typed_exception() -> None:
    async with rollout("Never said.") as play:

        async def use() -> openai.BadRequestError:
            async with _client(play) as client:
                with pytest.raises(openai.BadRequestError) as caught:
                    await agents.Runner.run(_agent(client, []), "word " * 33_000)
                return caught.value

        assert (await play.run_async(use)).code == "context_length_exceeded"
