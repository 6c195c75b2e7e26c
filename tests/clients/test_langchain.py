"""LangChain's ``ChatOpenAI``, which dumps arguments anew and drops reasoning from history."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import openai
import pydantic
import pytest

from tests.clients.support import (
    ANSWER,
    CARRIERS,
    ODD_ANSWERS,
    QUESTION,
    ROUNDS,
    RUN_BY,
    Rollout,
    clock,
    constrained_rollout,
    needs_the_group,
    rollout,
    weather,
)

needs_the_group()
langchain_openai = pytest.importorskip("langchain_openai")
messages = pytest.importorskip("langchain_core.messages")
tools = pytest.importorskip("langchain_core.tools")

Message = Any
HANDS = {one.name: one for one in (tools.tool(weather), tools.tool(clock))}
RESPELLED = '{"city": "Zürich", "degrees": 21.0}'


class Weather(pydantic.BaseModel):
    """An answer in a given form."""

    city: str
    degrees: float


def _options(play: Rollout) -> dict[str, Any]:
    return {
        "model": "m",
        "base_url": play.base_url,
        "api_key": play.api_key,
        "max_retries": 0,
        "timeout": 15,
    }


@contextmanager
def _model(play: Rollout, **more: Any) -> Iterator[Any]:
    with httpx.Client(trust_env=False) as client:
        yield langchain_openai.ChatOpenAI(**_options(play), http_client=client, **more)


@asynccontextmanager
async def _async_model(play: Rollout) -> AsyncIterator[Any]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield langchain_openai.ChatOpenAI(**_options(play), http_async_client=client)


def _run_tools(answer: Message, run_by: list[Any]) -> list[Message]:
    """Each tool called by its own run method, which makes the ``ToolMessage``."""
    run_by += [(call["name"], call["args"]) for call in answer.tool_calls]
    return [HANDS[call["name"]].invoke(call) for call in answer.tool_calls]


def _streamed(model: Any, history: list[Message]) -> Message:
    whole: Any = None
    for chunk in model.stream(history):
        whole = chunk if whole is None else whole + chunk
    return whole


WAYS: dict[str, Callable[[Any, list[Message]], Message]] = {
    "invoke": lambda model, history: model.invoke(history),
    "stream": _streamed,
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("way", WAYS)
async def test_the_tool_loop_is_one_trajectory(way: str, carrier: str) -> None:
    async with rollout(carrier=carrier) as play:

        def use() -> tuple[Message, list[Any]]:
            run_by: list[Any] = []
            with _model(play, stream_usage=True) as bare:
                model = bare.bind_tools(list(HANDS.values()))
                history: list[Message] = [messages.HumanMessage(QUESTION)]
                for _ in ROUNDS:
                    answer = WAYS[way](model, history)
                    (*_, record) = play.worker.records
                    assert answer.usage_metadata["output_tokens"] == len(record.output_ids)
                    history += [answer, *_run_tools(answer, run_by)]
            return answer, run_by

        last, run_by = await play.run(use)
        assert run_by == RUN_BY
        assert last.content == ANSWER
        assert last.response_metadata["finish_reason"] == "stop"
        assert last.response_metadata["model_name"] == "m"
        await play.check()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_the_asynchronous_tool_loop_is_one_trajectory(carrier: str) -> None:
    async with rollout(carrier=carrier) as play:

        async def use() -> list[Any]:
            run_by: list[Any] = []
            async with _async_model(play) as bare:
                model = bare.bind_tools(list(HANDS.values()))
                history: list[Message] = [messages.HumanMessage(QUESTION)]
                for _ in ROUNDS:
                    answer: Any = None
                    async for chunk in model.astream(history):
                        answer = chunk if answer is None else answer + chunk
                    history += [answer, *_run_tools(answer, run_by)]
            return run_by

        assert await play.run_async(use) == RUN_BY
        await play.check()


async def test_a_conversation_that_went_through_its_serialisation_is_still_known() -> None:
    async with rollout(carrier="key") as play:

        def use() -> None:
            with _model(play) as bare:
                model = bare.bind_tools(list(HANDS.values()))
                history: list[Message] = [
                    messages.SystemMessage("Be brief."),
                    messages.HumanMessage([{"type": "text", "text": QUESTION}]),
                ]
                for _ in ROUNDS:
                    answer = model.invoke(history)
                    history += [answer, *_run_tools(answer, [])]
                    history = messages.messages_from_dict(messages.messages_to_dict(history))

        await play.run(use)
        await play.check()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("odd", ODD_ANSWERS)
async def test_an_odd_answer_is_known_again(odd: str, way: str) -> None:
    async with rollout(ODD_ANSWERS[odd], " Second. ", "Third.") as play:

        def use() -> None:
            with _model(play) as bare:
                model = bare.bind_tools(list(HANDS.values()))
                history: list[Message] = [messages.HumanMessage(QUESTION)]
                for _ in range(3):
                    answer = WAYS[way](model, history)
                    calls = [*answer.tool_calls, *answer.invalid_tool_calls]
                    results = [messages.ToolMessage("?", tool_call_id=one["id"]) for one in calls]
                    history += [answer, *(results or [messages.HumanMessage("Go on.")])]

        await play.run(use)
        await play.check(rounds=3)


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
async def test_structured_output_is_parsed(method: str) -> None:
    async with constrained_rollout('{"city":"Zürich",  "degrees":21}') as play:

        def use() -> Any:
            with _model(play) as model:
                return model.with_structured_output(Weather, method=method).invoke(QUESTION)

        assert await play.run(use) == Weather(city="Zürich", degrees=21.0)


async def test_structured_output_by_a_forced_call_is_parsed_and_known_again() -> None:
    """The model is made to write an array of calls, and not the form it was taught."""
    forced = '[{"name": "Weather", "parameters": {"city":"Zürich",  "degrees":21}}]'
    async with constrained_rollout(forced, ANSWER) as play:

        def use() -> Any:
            with _model(play) as bare:
                model = bare.bind_tools([Weather], tool_choice="Weather")
                history: list[Message] = [messages.HumanMessage(QUESTION)]
                answer = model.invoke(history)
                (call,) = answer.tool_calls
                history += [answer, messages.ToolMessage("Noted.", tool_call_id=call["id"])]
                last = bare.bind_tools([Weather], tool_choice="auto").invoke(history)
                return call["name"], call["args"], last.content

        assert await play.run(use) == ("Weather", {"city": "Zürich", "degrees": 21}, ANSWER)
        await play.check(rounds=2)


async def test_a_refused_request_keeps_its_type() -> None:
    async with rollout("Never said.") as play:

        def use() -> openai.BadRequestError:
            with _model(play) as model, pytest.raises(openai.BadRequestError) as caught:
                model.invoke([messages.ToolMessage("x", tool_call_id="")], temperature=7.0)
            return caught.value

        assert (await play.run(use)).param == "temperature"


async def test_too_long_a_conversation_is_its_own_kind_of_error() -> None:
    async with rollout("Never said.") as play:

        def use() -> None:
            with _model(play) as model, pytest.raises(openai.BadRequestError) as caught:
                model.invoke("word " * 33_000)
            assert type(caught.value).__name__ == "OpenAIContextOverflowError"

        await play.run(use)


@pytest.mark.parametrize("way", WAYS)
async def test_a_loop_in_text_that_stops_at_a_word_is_one_trajectory(way: str) -> None:
    """What was cut off at the stop word was sampled all the same, and stays in the context."""
    said = (
        "Thought: look.\nAction: weather[Zürich]\nObservation: I make it up.",
        "Thought: I know.\n\nAnswer: 21 °C. ",
    )
    async with rollout(*said, carrier="key") as play:

        def use() -> list[str]:
            with _model(play) as bare:
                model = bare.bind(stop=["Observation:", "</code>"])
                history: list[Message] = [messages.HumanMessage(QUESTION)]
                first = WAYS[way](model, history)
                history += [first, messages.HumanMessage("Observation: 21 °C")]
                return [first.content, WAYS[way](model, history).content]

        assert await play.run(use) == [said[0].partition("Observation:")[0], said[1]]
        await play.check(rounds=2)
