"""The official OpenAI client for Python: synchronous, asynchronous, and its helpers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pydantic
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.clients.support import (
    ANSWER,
    CARRIERS,
    ODD_ANSWERS,
    QUESTION,
    ROUNDS,
    RUN_BY,
    TOOLS,
    clock,
    constrained_rollout,
    needs_the_group,
    openai_options,
    rollout,
    round_of,
    spelled,
    weather,
    with_openai,
)

needs_the_group()

Chat = list[Any]
HANDS: dict[str, Callable[..., str]] = {"weather": weather, "clock": clock}


class weather_of(pydantic.BaseModel):
    """The weather of a city."""

    city: str
    unit: str
    days: float


class Weather(pydantic.BaseModel):
    """An answer in a given form."""

    city: str
    degrees: float


def _called(call: Any, run_by: list[Any]) -> dict[str, Any]:
    """Run a tool as a harness would."""
    arguments = json.loads(call.function.arguments)
    run_by.append((call.function.name, arguments))
    result = HANDS[call.function.name](**arguments)
    return {"role": "tool", "tool_call_id": call.id, "content": result}


def _play(ask: Callable[[Chat], Any], echo: Callable[[Any], Any]) -> tuple[Any, list[Any]]:
    """The loop that everybody writes around the client."""
    messages: Chat = [{"role": "user", "content": QUESTION}]
    run_by: list[Any] = []
    while True:
        choice = ask(messages).choices[0]
        messages.append(echo(choice.message))
        if not choice.message.tool_calls:
            return choice, run_by
        assert choice.finish_reason == "tool_calls"
        messages += [_called(call, run_by) for call in choice.message.tool_calls]


ECHOES: dict[str, Callable[[Any], Any]] = {
    "object": lambda message: message,
    "dump": lambda message: message.model_dump(),
    "dump_without_none": lambda message: message.model_dump(exclude_none=True),
    "no_reasoning": lambda message: message.model_dump(
        include={"role", "content", "tool_calls"}, exclude_none=True
    ),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("echo", ECHOES)
async def test_a_tool_loop_is_one_trajectory_however_the_message_is_sent_back(
    echo: str, carrier: str
) -> None:
    async with rollout(carrier=carrier) as play:

        def use(client: Any) -> tuple[Any, list[Any]]:
            def ask(messages: Chat) -> Any:
                return client.chat.completions.create(model="m", messages=messages, tools=TOOLS)

            return _play(ask, ECHOES[echo])

        last, run_by = await with_openai(play, use)
        assert run_by == RUN_BY
        assert last.finish_reason == "stop"
        assert last.message.content == ANSWER
        assert last.message.reasoning_content.strip() == "Now I know."
        await play.check()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_the_stream_helper_plays_a_tool_loop(carrier: str) -> None:
    async with rollout(carrier=carrier) as play:

        def use(client: Any) -> tuple[Any, list[Any]]:
            def ask(messages: Chat) -> Any:
                with client.chat.completions.stream(
                    model="m",
                    messages=messages,
                    tools=TOOLS,
                    stream_options={"include_usage": True},
                ) as stream:
                    for _ in stream:
                        pass
                    final = stream.get_final_completion()
                (*_, record) = play.worker.records
                assert final.usage.completion_tokens == len(record.output_ids)
                return final

            return _play(ask, ECHOES["object"])

        last, run_by = await with_openai(play, use)
        assert run_by == RUN_BY
        assert last.message.content == ANSWER
        await play.check()


async def test_the_stream_helper_tells_of_arguments_as_they_come() -> None:
    async with rollout(ROUNDS[1]) as play:

        def use(client: Any) -> list[Any]:
            with client.chat.completions.stream(
                model="m", messages=[{"role": "user", "content": QUESTION}], tools=TOOLS
            ) as stream:
                return list(stream)

        events = await with_openai(play, use)
        pieces = [one for one in events if one.type == "tool_calls.function.arguments.delta"]
        done = [one for one in events if one.type == "tool_calls.function.arguments.done"]
        assert len(pieces) > len(done) == 2
        for index, call in enumerate(done):
            mine = [one.arguments_delta for one in pieces if one.index == index]
            assert "".join(mine) == call.arguments
            assert (call.name, json.loads(call.arguments)) == RUN_BY[1 + index]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_asynchronous_client_plays_four_rollouts_at_once(stream: bool) -> None:
    """As in a group: the same prompts at the same time, each in its own session, by its key."""
    async with rollout() as play:
        opened = [(await play.served.client.post("/sessions")).json() for _ in range(4)]

        async def one(key: str) -> list[Any]:
            async with openai.AsyncOpenAI(**openai_options(play) | {"api_key": key}) as client:
                return await _play_async(client, stream)

        async def use() -> list[list[Any]]:
            return await asyncio.gather(*(one(session["session_key"]) for session in opened))

        for run_by in await play.run_async(use):
            assert run_by == RUN_BY
        kept = []
        for session in opened:
            name = session["session_id"]
            response = await play.served.client.post(f"/sessions/{name}/samples", json={})
            (sample,) = response.json()["samples"]
            calls = [await play.served.trajectory(call) for call in sample["call_ids"]]
            assert [call["session_id"] for call in calls] == [name] * 3
            assert [call["flags"] for call in calls] == [[]] * 3
            kept.append((sample["tokens"], sum(sample["loss_mask"])))
        sampled = sum(len(spelled(text)) for text in ROUNDS)
        last = [one for one in play.worker.records if round_of(one.prompt_ids) == 2]
        assert kept == [([*one.prompt_ids, *one.output_ids], sampled) for one in last]


async def _play_async(client: Any, stream: bool) -> list[Any]:
    messages: Chat = [{"role": "user", "content": QUESTION}]
    run_by: list[Any] = []
    for _ in ROUNDS:
        asked = {"model": "m", "messages": messages, "tools": TOOLS}
        if stream:
            async with client.chat.completions.stream(**asked) as events:
                answer = (await events.get_final_completion()).choices[0].message
        else:
            answer = (await client.chat.completions.create(**asked)).choices[0].message
        messages.append(answer)
        messages += [_called(call, run_by) for call in answer.tool_calls or ()]
    return run_by


# The SDK warns of the very objects that it makes, when they are sent back.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_parsed_into_a_model(stream: bool) -> None:
    said = ('{"city": "Zürich",\n "degrees":21.0}', "You are welcome.")
    async with constrained_rollout(*said) as play:

        def use(client: Any) -> Any:
            messages: Chat = [{"role": "user", "content": QUESTION}]
            asked = {"model": "m", "messages": messages, "response_format": Weather}
            if stream:
                with client.chat.completions.stream(**asked) as events:
                    message = events.get_final_completion().choices[0].message
            else:
                message = client.chat.completions.parse(**asked).choices[0].message
            messages += [message, {"role": "user", "content": "Thank you."}]
            client.chat.completions.create(model="m", messages=messages)
            return message.parsed

        assert await with_openai(play, use) == Weather(city="Zürich", degrees=21.0)
        (first, _) = play.worker.records
        assert json.loads(first.asked["sampling_params"]["json_schema"])["properties"].keys() == {
            "city",
            "degrees",
        }
        await play.check(rounds=2)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_made_of_a_model_gets_its_arguments_parsed(stream: bool) -> None:
    call = '{"name": "weather_of", "arguments": {"unit":"C", "city":"Zürich", "days":1}}'
    async with rollout(f"<tool_call>\n{call}\n</tool_call>", ANSWER) as play:

        def use(client: Any) -> Any:
            messages: Chat = [{"role": "user", "content": QUESTION}]
            tools = [openai.pydantic_function_tool(weather_of)]
            asked = {"model": "m", "messages": messages, "tools": tools}
            if stream:
                with client.chat.completions.stream(**asked) as events:
                    message = events.get_final_completion().choices[0].message
            else:
                message = client.chat.completions.parse(**asked).choices[0].message
            (made,) = message.tool_calls
            messages += [message, {"role": "tool", "tool_call_id": made.id, "content": "21"}]
            client.chat.completions.parse(**asked)
            return made.function.parsed_arguments

        assert await with_openai(play, use) == weather_of(city="Zürich", unit="C", days=1.0)
        await play.check(rounds=2)


async def test_an_answer_cut_by_its_length_is_gone_on_with() -> None:
    """As slime's rollout buffer does: the partial answer goes back, and is continued."""
    whole = "<think>\nA long way.\n</think>\n\nTo Zürich."
    async with rollout(whole, " And back.") as play:

        def use(client: Any) -> list[str]:
            messages: Chat = [{"role": "user", "content": QUESTION}]
            first = client.chat.completions.create(
                model="custom", messages=messages, seed=1, max_tokens=12
            ).choices[0]
            assert first.finish_reason == "length"
            messages.append(first.message)
            second = client.chat.completions.create(
                model="custom",
                messages=messages,
                seed=1,
                extra_body={"continue_final_message": True},
            ).choices[0]
            return [first.message.content or "", second.message.content or ""]

        await with_openai(play, use)
        before, after = play.worker.records
        assert list(after.prompt_ids) == [*before.prompt_ids, *before.output_ids]
        await play.check(rounds=2)


@pytest.mark.parametrize("echo", ["object", "no_reasoning"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("odd", ODD_ANSWERS)
async def test_an_odd_answer_is_known_again(odd: str, stream: bool, echo: str) -> None:
    async with rollout(ODD_ANSWERS[odd], " Second. ", "Third.") as play:

        def use(client: Any) -> None:
            messages: Chat = [{"role": "user", "content": QUESTION}]
            for _ in range(3):
                asked = {"model": "m", "messages": messages, "tools": TOOLS, "stream": stream}
                made = client.chat.completions.create(**asked)
                if stream:
                    state = ChatCompletionStreamState()
                    for chunk in made:
                        state.handle_chunk(chunk)
                    made = state.get_final_completion()
                message = made.choices[0].message
                calls = message.tool_calls or ()
                messages.append(ECHOES[echo](message))
                messages += [
                    {"role": "tool", "tool_call_id": call.id, "content": "?"} for call in calls
                ] or [{"role": "user", "content": "Go on."}]

        await with_openai(play, use)
        await play.check(rounds=3)
