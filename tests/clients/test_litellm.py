"""LiteLLM, which leaves out keys, splits inline reasoning and keeps fields of its own."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients.support import (
    ANSWER,
    CARRIERS,
    ODD_ANSWERS,
    QUESTION,
    RUN_BY,
    TOOLS,
    Rollout,
    clock,
    constrained_rollout,
    needs_the_group,
    rollout,
    weather,
)

needs_the_group()
# Otherwise it asks the network for prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
litellm = pytest.importorskip("litellm")
litellm.telemetry = False
litellm.suppress_debug_info = True

# It keeps clients of its own open and leaves them to the garbage collector; some of what it
# imports and dumps is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """Close what it keeps while nobody minds, and not in the middle of another module's test."""
    yield
    litellm.in_memory_llm_clients_cache.flush_cache()
    gc.collect()


Chat = list[Any]
HANDS: dict[str, Callable[..., str]] = {"weather": weather, "clock": clock}


def _options(play: Rollout) -> dict[str, Any]:
    return {
        "model": "openai/m",
        "api_base": play.base_url,
        "api_key": play.api_key,
        "max_retries": 0,
        "timeout": 15,
    }


def _completed(**asked: Any) -> Any:
    return litellm.completion(**asked)


def _streamed(**asked: Any) -> Any:
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    return litellm.stream_chunk_builder(chunks, messages=asked["messages"])


WAYS: dict[str, Callable[..., Any]] = {"completion": _completed, "stream": _streamed}
ECHOES: dict[str, Callable[[Any], Any]] = {
    "object": lambda message: message,
    "dump": lambda message: message.model_dump(),
    "json": lambda message: message.json(),
}


def _run_tools(message: Any, run_by: list[Any]) -> Chat:
    results: Chat = []
    for call in message.tool_calls or ():
        arguments = json.loads(call.function.arguments)
        run_by.append((call.function.name, arguments))
        result = HANDS[call.function.name](**arguments)
        results.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return results


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("echo", ECHOES)
async def test_a_tool_loop_is_one_trajectory(echo: str, way: str, carrier: str) -> None:
    async with rollout(carrier=carrier) as play:

        def use() -> tuple[Any, list[Any]]:
            messages: Chat = [{"role": "user", "content": QUESTION}]
            run_by: list[Any] = []
            while True:
                made = WAYS[way](**_options(play), messages=messages, tools=TOOLS)
                (*_, record) = play.worker.records
                assert made.usage.completion_tokens == len(record.output_ids)
                message = made.choices[0].message
                results = _run_tools(message, run_by)
                messages += [ECHOES[echo](message), *results]
                if not results:
                    return made.choices[0], run_by

        last, run_by = await play.run(use)
        assert run_by == RUN_BY
        assert last.finish_reason == "stop"
        assert last.message.content == ANSWER
        assert last.message.reasoning_content.strip() == "Now I know."
        await play.check()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_the_asynchronous_tool_loop_is_one_trajectory(carrier: str) -> None:
    async with rollout(carrier=carrier) as play:

        async def use() -> list[Any]:
            messages: Chat = [{"role": "user", "content": QUESTION}]
            run_by: list[Any] = []
            results: Chat = [{}]
            while results:
                made = await litellm.acompletion(
                    **_options(play), messages=messages, tools=TOOLS, stream=True
                )
                chunks = [chunk async for chunk in made]
                message = litellm.stream_chunk_builder(chunks).choices[0].message
                results = _run_tools(message, run_by)
                messages += [message, *results]
            return run_by

        assert await play.run_async(use) == RUN_BY
        await play.check()


async def test_reasoning_that_stays_in_the_content_is_split_off_there_and_known_again() -> None:
    async with rollout("<think>\nHm.\n</think>\n\nYes.", "You are welcome.") as play:

        def use() -> tuple[Any, Any]:
            messages: Chat = [{"role": "user", "content": QUESTION}]
            whole = {"extra_body": {"separate_reasoning": False}}
            answer = litellm.completion(**_options(play), messages=messages, **whole)
            message = answer.choices[0].message
            messages += [message, {"role": "user", "content": "Thank you."}]
            litellm.completion(**_options(play), messages=messages, **whole)
            return message.reasoning_content, message.content

        reasoning, content = await play.run(use)
        assert (reasoning.strip(), content.strip()) == ("Hm.", "Yes.")
        await play.check(rounds=2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("odd", ODD_ANSWERS)
async def test_an_odd_answer_is_known_again(odd: str, way: str) -> None:
    async with rollout(ODD_ANSWERS[odd], " Second. ", "Third.") as play:

        def use() -> None:
            messages: Chat = [{"role": "user", "content": QUESTION}]
            for _ in range(3):
                made = WAYS[way](**_options(play), messages=messages, tools=TOOLS)
                message = made.choices[0].message
                messages.append(message)
                messages += [
                    {"role": "tool", "tool_call_id": call.id, "content": "?"}
                    for call in message.tool_calls or ()
                ] or [{"role": "user", "content": "Go on."}]

        await play.run(use)
        await play.check(rounds=3)


async def test_structured_output_comes_as_it_was_sampled() -> None:
    said = '{"city": "Zürich",  "degrees":21.0}'
    async with constrained_rollout(said) as play:

        def use() -> Any:
            kind = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}
            return litellm.completion(
                **_options(play),
                messages=[{"role": "user", "content": QUESTION}],
                response_format=kind,
            )

        assert (await play.run(use)).choices[0].message.content == said


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


async def test_a_refused_request_is_a_typed_exception() -> None:
    async with rollout("Never said.") as play:

        def use() -> Any:
            with pytest.raises(litellm.BadRequestError) as caught:
                litellm.completion(
                    **_options(play), messages=[{"role": "user", "content": "x"}], temperature=7
                )
            return caught.value

        error = await play.run(use)
        assert not isinstance(error, litellm.ContextWindowExceededError)
        assert "temperature" in str(error)


@pytest.mark.parametrize("stream", [False, True])
async def test_too_long_a_conversation_is_its_own_kind_of_error(stream: bool) -> None:
    async with rollout("Never said.") as play:

        def use() -> None:
            words = "word " * 33_000
            with pytest.raises(litellm.ContextWindowExceededError):
                litellm.completion(
                    **_options(play), messages=[{"role": "user", "content": words}], stream=stream
                )

        await play.run(use)


async def test_a_key_of_no_session_is_an_authentication_error() -> None:
    async with rollout("Never said.") as play:

        def use() -> None:
            wrong = _options(play) | {"api_key": "sk-slime-" + "0" * 43}
            with pytest.raises(litellm.AuthenticationError):
                litellm.completion(**wrong, messages=[{"role": "user", "content": "x"}])

        await play.run(use)
