"""Logs: who a line is about, in which form it is written, and what stands in none."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from slime_trio.observability.logs import configure_logging, server_logger
from tests.server.harness import (
    embedded_worker,
    fake_worker,
    json_answer,
    raw_client,
    router_with,
    settled,
    until,
)

PARAMS = {"max_new_tokens": 4, "ignore_eos": True}


def lines_of(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def told(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


async def test_every_line_of_json_is_an_object_with_level_and_time(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with (
        embedded_worker() as worker,
        router_with(worker.url, verbose=True, log_format="json") as served,
    ):
        await served.generate(text="Hello", sampling_params=PARAMS)
    lines = lines_of(capfd)
    assert len(lines) > 5
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)


async def test_a_verbose_line_names_request_call_session_and_worker(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with (
        embedded_worker() as worker,
        router_with(worker.url, verbose=True, log_format="json") as served,
    ):
        response = await served.client.post(
            "/generate",
            json={"text": "Hello", "sampling_params": PARAMS},
            headers={"x-request-id": "mine", "x-session-id": "rollout-1"},
        )
        call = response.headers["x-slime-call-id"]
    lines = lines_of(capfd)
    (sent,) = told(lines, "sent")
    assert (sent["worker"], sent["calls"]) == (worker.url, [call])
    (captured,) = told(lines, "captured")
    assert (captured["call"], captured["sampled"]) == (call, 4)
    (request,) = [one for one in told(lines, "request") if one["path"] == "/generate"]
    assert (request["status"], request["calls"]) == ("200", [call])
    for line in (sent, captured, request):
        assert (line["request"], line["session"]) == ("mine", "rollout-1")


async def test_without_verbose_a_request_leaves_no_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with embedded_worker() as worker, router_with(worker.url, log_format="json") as served:
        await settled(served)
        capfd.readouterr()
        await served.generate(text="Hello", sampling_params=PARAMS)
        assert lines_of(capfd) == []


async def test_a_refusal_names_its_request_and_not_its_words(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with router_with(verbose=True, log_format="json") as served:
        await served.client.post("/generate?api_key=hidden-word", content=b'{"text": "secret')
    (line,) = told(lines_of(capfd), "request")
    assert (line["status"], line["path"]) == ("400", "/generate")
    assert "secret" not in json.dumps(line)
    assert "hidden-word" not in json.dumps(line)


async def test_no_key_and_no_text_is_ever_logged(capfd: pytest.CaptureFixture[str]) -> None:
    hidden = ["admin-key-word", "tenant-key-word", "worker-key-word", "PromptWord", "AnswerWord"]

    def answer(arrived: Any) -> Any:
        if b"nothing" in arrived.body:
            return {"error": {"message": "AnswerWord"}}
        return {"text": "AnswerWord", "meta_info": {"finish_reason": {"type": "stop"}}}

    async with (
        fake_worker(json_answer(answer)) as worker,
        embedded_worker(weight_version="1") as true_worker,
        router_with(
            verbose=True,
            admin_key="admin-key-word",
            api_key=("tenant-key-word",),
            worker_api_key="worker-key-word",
        ) as served,
    ):
        admin = {"authorization": "Bearer admin-key-word"}
        tenant = {"authorization": "Bearer tenant-key-word"}
        for url in (worker.url, true_worker.url):
            await served.client.post("/add_worker", params={"url": url}, headers=admin)
        opened = await served.client.post("/sessions", headers=tenant, json={})
        key = opened.json()["session_key"]
        hidden.append(key)
        message = [{"role": "user", "content": "PromptWord"}]
        for headers in (admin, tenant, {"authorization": "Bearer guessed-word"}, {}):
            for text in ("PromptWord", "PromptWord nothing"):
                await served.client.post("/generate", json={"text": text}, headers=headers)
            await served.client.post(
                "/v1/chat/completions", json={"messages": message}, headers=headers
            )
            await served.client.post(
                "/retrieve_from_text", json={"text": "PromptWord"}, headers=headers
            )
            await served.client.get("/get_server_info", headers=headers)
            await served.client.get("/metrics", headers=headers)
        await served.client.post(
            f"/sessions/{opened.json()['session_id']}/v1/chat/completions",
            json={"messages": message, "stream": True},
            headers={"authorization": f"Bearer {key}"},
        )
        async with raw_client(served) as raw:
            await raw.post("/generate", b'{"text": "PromptWord', more="x-key: tenant-key-word\r\n")
            await raw.until(b"HTTP/1.1")
        await settled(served)
    logged = "".join(capfd.readouterr())
    assert "request" in logged
    assert [word for word in [*hidden, "guessed-word"] if word in logged] == []


async def test_a_path_cannot_write_lines_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    async with router_with(verbose=True) as served:
        await served.client.get("/sessions/%0aevent%1b[31m" + "x" * 500)
    logged = capfd.readouterr().err
    (line,) = [one for one in logged.splitlines() if "/sessions/" in one]
    assert "\x1b[31m" + "x" not in line
    assert len(line) < 600


async def test_a_client_that_leaves_is_an_unfinished_request(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with (
        embedded_worker(ms_per_token=5) as worker,
        router_with(worker.url, verbose=True, log_format="json") as served,
    ):
        body = {"text": "x", "stream": True, "sampling_params": {"max_new_tokens": 4000}}
        async with raw_client(served) as raw:
            await raw.post("/generate", body)
            await raw.until(b"data: ")
        await settled(served)
        counts = served.router.shared.counts.requests
        await until(lambda: ("generate", "unfinished") in counts)
    statuses = [one["status"] for one in told(lines_of(capfd), "request")]
    assert "unfinished" in statuses


async def test_what_becomes_of_a_worker_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    async with router_with(log_format="json") as served:
        async with embedded_worker() as worker:
            for _ in range(2):
                await served.client.post("/add_worker", params={"url": worker.url})
            await until(lambda: served.router.state.fleet.fit())
        for _ in range(2):
            await served.client.post("/remove_worker", params={"url": worker.url})
    lines = lines_of(capfd)
    for event in ("worker added", "worker takes work", "worker removed"):
        assert [line["worker"] for line in told(lines, event)] == [worker.url]


def test_the_server_writes_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(verbose=False, format="json")
    server_logger().warning("a warning %s", "of the server")
    server_logger().info("nothing of interest")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "a warning of the server"
    assert json.loads(line)["level"] == "warning"


def test_an_error_is_logged_without_what_it_held(capsys: pytest.CaptureFixture[str]) -> None:
    import structlog

    configure_logging(verbose=False, format="json")
    held = "PromptWord"
    try:
        trio.run(_fail, len(held))
    except ZeroDivisionError:
        structlog.get_logger("slime_router").exception("internal error")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError" in json.loads(line)["exception"]
    assert "PromptWord" not in line


async def _fail(number: int) -> None:
    number / 0
