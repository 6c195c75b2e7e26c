"""The application as a whole: errors, threads, and what a caller of it relies on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio

from slime_trio.app import create_app
from slime_trio.config import ConfigurationError, Settings
from slime_trio.router import Router
from slime_trio.tokenizer import load_checkpoint
from slime_trio.worker import SHIPPED_CHECKPOINT
from tests.server.harness import (
    CHECKPOINT,
    answer_item,
    fake_worker,
    json_answer,
    raw_client,
    router_with,
    settled,
)


def test_a_missing_checkpoint_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError, match="--hf-checkpoint is missing"):
        create_app(Settings())


def test_an_application_is_made_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIME_ROUTER_HF_CHECKPOINT", CHECKPOINT)
    app = create_app()
    assert isinstance(app.extensions["slime_router"], Router)


async def test_a_long_text_is_encoded_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []
    run_sync = trio.to_thread.run_sync

    async def noted(function: object, *args: object, **more: object) -> object:
        used.append(function)
        return await run_sync(function, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(trio.to_thread, "run_sync", noted)
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        used.clear()
        await served.generate(text="short")
        assert not used
        await served.generate(text="long enough " * 20_000)
        assert used


async def test_a_bug_is_a_500_without_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr("slime_trio.dispatch.place.place", broken)
        for path, body in (("/generate", {"text": "x"}), ("/v1/completions",
                           {"model": "m", "prompt": "x"})):  # fmt: skip
            response = await served.client.post(path, json=body)
            assert response.status_code == 500
            assert "secret" not in response.text
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            await settled(served)


async def test_template_arguments_that_are_no_object_are_refused() -> None:
    async with router_with() as served:
        response = await served.client.post(
            "/v1/chat/completions",
            json={
                "model": "m",
                "messages": [{"role": "user", "content": "x"}],
                "chat_template_kwargs": 5,
            },
        )
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "chat_template_kwargs"


async def test_a_checkpoint_without_chat_template_serves_text_and_says_so_of_chat(
    tmp_path: Path,
) -> None:
    shutil.copy(SHIPPED_CHECKPOINT / "tokenizer.json", tmp_path)
    settings = Settings(hf_checkpoint=str(tmp_path))
    router = Router(settings, checkpoint=load_checkpoint(tmp_path))
    client = create_app(settings, router=router).test_client()
    response = await client.post(
        "/v1/chat/completions",
        json={"model": "m", "messages": [{"role": "user", "content": "x"}]},
    )
    assert (await response.get_json())["error"]["code"] == "no_chat_template"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("path", ["/health", "/server_info", "/get_model_info", "/generate"])
async def test_a_client_that_asks_for_it_sees_its_connection_closed(
    version: str, path: str
) -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
        raw_client(served) as client,
    ):
        body = b'{"text":"x"}' if path == "/generate" else b""
        method = "POST" if body else "GET"
        head = f"{method} {path} HTTP/{version}\r\nhost: x\r\nconnection: close\r\n"
        head += f"content-length: {len(body)}\r\n\r\n"
        await client.stream.send_all(head.encode() + body)
        with trio.fail_after(3):
            assert b" 200 " in await client.rest()
