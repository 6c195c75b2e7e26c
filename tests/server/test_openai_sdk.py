"""The official OpenAI client against the real server, over real sockets."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import openai
import pytest
import trio

from tests.server.harness import (
    EmbeddedWorker,
    Served,
    embedded_worker,
    fake_worker,
    http_response,
    router_with,
    scripted,
    settled,
    template,
)

T = TypeVar("T")
Chat = list[dict[str, Any]]
USER: Chat = [{"role": "user", "content": "Tell me something."}]


class Sdk:
    """The synchronous client, driven in threads."""

    def __init__(self, served: Served, worker: EmbeddedWorker) -> None:
        self.served, self.worker = served, worker

    async def __call__(self, use: Callable[[Any], T]) -> T:
        def run() -> T:
            with openai.OpenAI(
                base_url=self.served.url + "/v1", api_key="none", max_retries=0, timeout=15
            ) as client:
                return use(client)

        return await trio.to_thread.run_sync(run)


@asynccontextmanager
async def sdk(**options: Any) -> AsyncIterator[Sdk]:
    async with embedded_worker(**options) as worker, router_with(worker.url) as served:
        yield Sdk(served, worker)
        await settled(served)


async def test_a_chat_completion_is_answered_and_captured() -> None:
    async with sdk(script=scripted("Well then.")) as ask:
        done = await ask(lambda c: c.chat.completions.create(model="any", messages=USER))
        assert done.choices[0].message.content == "Well then."
        assert done.choices[0].finish_reason == "stop"
        (record,) = ask.worker.records
        assert done.usage.prompt_tokens == len(record.prompt_ids)
        assert done.usage.completion_tokens == len(record.output_ids)
        assert done.model == "any"
        found = await ask.served.trajectory(done.id)
        assert found["tokens"] == list(record.prompt_ids) + list(record.output_ids)


async def test_a_streamed_chat_says_the_same_as_the_worker() -> None:
    async with sdk(script=scripted("Well then, 你好 🙂.")) as ask:

        def use(client: Any) -> list[Any]:
            return list(
                client.chat.completions.create(
                    model="any", messages=USER, stream=True, stream_options={"include_usage": True}
                )
            )

        chunks = await ask(use)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "Well then, 你好 🙂."
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == len(ask.worker.records[0].output_ids)
        assert len({chunk.id for chunk in chunks}) == 1
        found = await ask.served.trajectory(chunks[0].id)
        assert found["answer_text"] == text


async def test_the_stream_helper_accumulates() -> None:
    async with sdk(script=scripted("One two three.")) as ask:

        def use(client: Any) -> Any:
            with client.chat.completions.stream(model="any", messages=USER) as stream:
                for _ in stream:
                    pass
                return stream.get_final_completion()

        final = await ask(use)
        assert final.choices[0].message.content == "One two three."
        assert final.choices[0].message.role == "assistant"


@pytest.mark.parametrize("stream", [False, True])
async def test_two_choices_are_two_calls(stream: bool) -> None:
    async with sdk(script=scripted("First.", "Second.")) as ask:

        def use(client: Any) -> tuple[str, list[str]]:
            made = client.chat.completions.create(model="m", messages=USER, n=2, stream=stream)
            if not stream:
                return made.id, [choice.message.content for choice in made.choices]
            texts, name = ["", ""], ""
            for chunk in made:
                name = chunk.id
                for choice in chunk.choices:
                    texts[choice.index] += choice.delta.content or ""
            return name, texts

        name, texts = await ask(use)
        assert sorted(texts) == ["First.", "Second."]
        for index, text in enumerate(texts):
            assert (await ask.served.trajectory(f"{name}:{index}"))["answer_text"] == text
        shared = await ask.served.client.get(f"/trajectories/{name}")
        assert shared.status_code == 409


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_is_never_shown(stream: bool) -> None:
    async with sdk(script=scripted("alpha STOP omega")) as ask:

        def use(client: Any) -> tuple[str, Any]:
            made = client.chat.completions.create(
                model="m", messages=USER, stop=["STOP"], stream=stream
            )
            if not stream:
                return made.choices[0].message.content, made.choices[0].finish_reason
            chunks = list(made)
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
            return text, chunks[-1].choices[0].finish_reason

        assert await ask(use) == ("alpha ", "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_are_the_workers(stream: bool) -> None:
    # This seed's answer does not end with a hidden token, whose entry would be left out.
    async with sdk(seed=3) as ask:

        def use(client: Any) -> list[float]:
            made = client.chat.completions.create(
                model="m", messages=USER, logprobs=True, top_logprobs=2, max_tokens=6,
                stream=stream, extra_body={"ignore_eos": True},
            )  # fmt: skip
            parts = [made] if not stream else [chunk for chunk in made if chunk.choices]
            content = [one for part in parts if part.choices[0].logprobs
                       for one in part.choices[0].logprobs.content or ()]  # fmt: skip
            assert all(len(one.top_logprobs) == 2 for one in content)
            return [one.logprob for one in content]

        shown = await ask(use)
        (record,) = ask.worker.records
        assert shown == pytest.approx(record.logprobs)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_of_three_turns_is_one_trajectory_found_in_every_way(stream: bool) -> None:
    async with sdk(script=scripted("Answer one.", "你好 two", " three\n\n")) as ask:

        def use(client: Any) -> tuple[Chat, str]:
            messages: Chat = [{"role": "system", "content": "Be brief."}]
            name = ""
            for turn in range(3):
                messages.append({"role": "user", "content": f"Turn {turn}?"})
                made = client.chat.completions.create(model="m", messages=messages, stream=stream)
                if stream:
                    chunks = list(made)
                    name = chunks[0].id
                    text = "".join(c.choices[0].delta.content or "" for c in chunks)
                else:
                    name, text = made.id, made.choices[0].message.content
                messages.append({"role": "assistant", "content": text})
            return messages, name

        messages, name = await ask(use)
        records = ask.worker.records
        expected = list(records[-1].prompt_ids) + list(records[-1].output_ids)
        sampled = [token for one in records for token in one.output_ids]
        for before, after in itertools.pairwise(records):
            held = list(before.prompt_ids) + list(before.output_ids)
            assert list(after.prompt_ids)[: len(held)] == held
        by_call = await ask.served.trajectory(name)
        text = template().render(messages, add_generation_prompt=False)
        by_text = await ask.served.retrieve(text)
        response = await ask.served.client.post(
            "/retrieve_from_messages_template", json={"messages": messages}
        )
        for found in (by_call, by_text, response.json()):
            assert found["tokens"][: len(expected)] == expected
            masked = [t for t, m in zip(found["tokens"], found["loss_mask"], strict=True) if m]
            assert masked == sampled
        assert response.json()["response"] == text


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"temperature": 9}, openai.BadRequestError),
        ({"messages": []}, openai.BadRequestError),
        ({"n": 0}, openai.BadRequestError),
        ({"stop": ["a", "b", "c", "d", "e"]}, openai.BadRequestError),
    ],
)
async def test_a_bad_request_is_the_sdks_own_exception(
    fields: dict[str, Any], error: type[openai.APIStatusError]
) -> None:
    async with sdk() as ask:
        asked = {"model": "m", "messages": USER, **fields}

        def use(client: Any) -> openai.APIStatusError:
            with pytest.raises(error) as caught:
                client.chat.completions.create(**asked)
            return caught.value

        raised = await ask(use)
        assert raised.param == next(iter(fields))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "error"),
    [("400 Bad", openai.BadRequestError), ("429 Busy", openai.RateLimitError),
     ("503 No", openai.InternalServerError), ("500 No", openai.InternalServerError)],
)  # fmt: skip
async def test_a_workers_refusal_is_the_sdks_own_exception(
    status: str, error: type[openai.APIStatusError], stream: bool
) -> None:
    async def answer(arrived: Any, connection: Any) -> bytes:
        return http_response(b'{"object":"error","message":"because"}', status=status)

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        ask = Sdk(served, None)  # type: ignore[arg-type]

        def use(client: Any) -> str:
            with pytest.raises(error) as caught:
                client.chat.completions.create(model="m", messages=USER, stream=stream)
            return str(caught.value)

        assert "because" in await ask(use)


async def test_a_stream_that_breaks_off_raises_in_the_sdk() -> None:
    from slime_trio.worker import Fault

    async with sdk(faults=(Fault("cut-stream", 2),)) as ask:

        def use(client: Any) -> None:
            with pytest.raises(openai.APIError):
                list(
                    client.chat.completions.create(
                        model="m", messages=USER, stream=True, extra_body={"ignore_eos": True}
                    )
                )

        await ask(use)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_text_completion_is_answered_and_captured(stream: bool) -> None:
    async with sdk(script=scripted("and so on")) as ask:

        def use(client: Any) -> tuple[str, str]:
            made = client.completions.create(model="m", prompt="Once", max_tokens=20, stream=stream)
            if not stream:
                return made.id, made.choices[0].text
            chunks = list(made)
            return chunks[0].id, "".join(c.choices[0].text for c in chunks if c.choices)

        name, text = await ask(use)
        assert text == "and so on"
        assert (await ask.served.trajectory(name))["response"].startswith("Onceand so on")
        assert (await ask.served.retrieve("Once" + text))["loss_mask"][-1] == 1


async def test_a_batch_of_completions_comes_in_order() -> None:
    async with sdk() as ask:

        def use(client: Any) -> Any:
            return client.completions.create(
                model="m", prompt=["One", "Two"], n=2, max_tokens=3, echo=True
            )

        made = await ask(use)
        assert [one.index for one in made.choices] == [0, 1, 2, 3]
        assert [one.text[:3] for one in made.choices] == ["One", "One", "Two", "Two"]


async def test_models_are_listed_and_found() -> None:
    async with sdk() as ask:
        models = await ask(lambda c: list(c.models.list()))
        assert (await ask(lambda c: c.models.retrieve(models[0].id))).id == models[0].id

        def missing(client: Any) -> None:
            with pytest.raises(openai.NotFoundError):
                client.models.retrieve("nobody")

        await ask(missing)
