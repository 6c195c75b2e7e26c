"""What the official OpenAI client for Python makes of refusals, and of the list of models."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.clients.support import CARRIERS, needs_the_group, rollout, with_openai
from tests.server.harness import encode

needs_the_group()


async def test_a_refused_request_is_a_typed_exception_that_names_the_parameter() -> None:
    async with rollout("Never said.") as play:

        def use(client: Any) -> openai.BadRequestError:
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(
                    model="m", messages=[{"role": "tool", "content": "x"}]
                )
            return caught.value

        error = await with_openai(play, use)
        assert (error.status_code, error.type) == (400, "invalid_request_error")
        assert (error.param, error.code) == (
            "messages[0].tool_call_id",
            "missing_required_parameter",
        )
        assert error.request_id
        assert play.worker.records == []


@pytest.mark.parametrize("stream", [False, True])
async def test_too_long_a_conversation_is_a_context_overflow(stream: bool) -> None:
    async with rollout("Never said.") as play:
        words = "word " * 33_000
        assert len(encode(words)) > 32_768

        def use(client: Any) -> openai.BadRequestError:
            with pytest.raises(openai.BadRequestError) as caught:
                client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": words}], stream=stream
                )
            return caught.value

        error = await with_openai(play, use)
        assert (error.code, error.param) == ("context_length_exceeded", "messages")
        assert "This model's maximum context length is" in error.message


async def test_a_key_of_no_session_is_an_authentication_error() -> None:
    async with rollout("Never said.") as play:

        def use(client: Any) -> None:
            other = client.with_options(api_key="sk-slime-" + "0" * 43)
            with pytest.raises(openai.AuthenticationError):
                other.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "x"}]
                )

        await with_openai(play, use)


async def test_a_key_does_not_open_another_session() -> None:
    async with rollout("Never said.", carrier="key") as play:
        other = (await play.served.client.post("/sessions")).json()["session_id"]

        def use(client: Any) -> None:
            elsewhere = client.with_options(base_url=f"{play.served.url}/sessions/{other}/v1")
            with pytest.raises(openai.PermissionDeniedError):
                elsewhere.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "x"}]
                )

        await with_openai(play, use)


async def test_a_session_that_was_deleted_refuses_late_calls() -> None:
    async with rollout("Never said.", carrier="path") as play:
        await play.served.client.delete(f"/sessions/{play.session}")

        def use(client: Any) -> openai.APIStatusError:
            with pytest.raises(openai.APIStatusError) as caught:
                client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "x"}]
                )
            return caught.value

        assert (await with_openai(play, use)).status_code in (404, 410)


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_the_models_are_listed_and_unknown_ones_are_not_found(carrier: str) -> None:
    async with rollout("Never said.", carrier=carrier, served_model_name="org/small") as play:

        def use(client: Any) -> Any:
            (model,) = client.models.list().data
            return model

        model = await with_openai(play, use)
        assert (model.id, model.object) == ("org/small", "model")


async def test_a_model_with_a_slash_is_retrieved_and_another_is_not_found() -> None:
    async with rollout("Never said.", served_model_name="org/small") as play:

        def use(client: Any) -> Any:
            with pytest.raises(openai.NotFoundError) as caught:
                client.models.retrieve("org/large")
            assert caught.value.code == "model_not_found"
            return client.models.retrieve("org/small")

        assert (await with_openai(play, use)).id == "org/small"
