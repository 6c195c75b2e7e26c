"""Bad input: a clear error in the dialect of its path, no slot taken, nothing half written."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.harness import embedded_worker, raw_client, router_with, settled

MESSAGES = [{"role": "user", "content": "x"}]
GENERATE, CHAT, TEXT = "/generate", "/v1/chat/completions", "/v1/completions"

# path, body, status, param of the error (None: it names none).
REFUSED: list[tuple[str, Any, int, str | None]] = [
    (GENERATE, b"", 400, None),
    (GENERATE, b"{", 400, None),
    (GENERATE, b"[]", 400, None),
    (GENERATE, b"nul", 400, None),
    (GENERATE, b'{"text": "\xff"}', 400, None),
    (GENERATE, b'{"text": "\\ud800"}', 400, None),
    (GENERATE, b"[" * 100_000, 400, None),
    (GENERATE, b'{"text":"a","x":' + b"[" * 100_000, 400, None),
    (GENERATE, {}, 400, "text"),
    (GENERATE, {"text": ""}, 400, "text"),
    (GENERATE, {"text": None}, 400, "text"),
    (GENERATE, {"text": 5}, 400, "text"),
    (GENERATE, {"text": []}, 400, "text"),
    (GENERATE, {"text": ["a", ""]}, 400, "text[1]"),
    (GENERATE, {"text": ["a", 5]}, 400, "text[1]"),
    (GENERATE, {"text": "a", "input_ids": [1]}, 400, "input_ids"),
    (GENERATE, {"input_ids": []}, 400, "input_ids"),
    (GENERATE, {"input_ids": [1, "a"]}, 400, "input_ids[1]"),
    (GENERATE, {"input_ids": [-1]}, 400, "input_ids[0]"),
    (GENERATE, {"input_ids": [2**40]}, 400, "input_ids[0]"),
    (GENERATE, {"input_ids": [1.5]}, 400, "input_ids[0]"),
    (GENERATE, {"input_ids": [[1], []]}, 400, "input_ids[1]"),
    (GENERATE, {"text": "a", "sampling_params": 5}, 400, "sampling_params"),
    (GENERATE, {"text": "a", "sampling_params": {"n": 0}}, 400, "sampling_params.n"),
    (GENERATE, {"text": "a", "sampling_params": {"n": "2"}}, 400, "sampling_params.n"),
    (GENERATE, {"text": "a", "sampling_params": [{}]}, 400, "sampling_params"),
    (GENERATE, {"text": "a", "stream": "yes"}, 400, "stream"),
    (GENERATE, {"text": "a", "return_logprob": 2}, 400, "return_logprob"),
    (GENERATE, {"text": "a", "rid": 5}, 400, "rid"),
    (GENERATE, {"text": "a", "parent_id": 5}, 400, "parent_id"),
    (GENERATE, {"text": "a", "parent_id": "nobody"}, 404, "parent_id"),
    (GENERATE, {"text": "a", "session_params": 5}, 400, "session_params"),
    (CHAT, b"{", 400, None),
    (CHAT, {}, 400, "messages"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": 5}, 400, "messages"),
    (CHAT, {"messages": [5]}, 400, "messages[0]"),
    (CHAT, {"messages": [{"content": "x"}]}, 400, "messages[0].role"),
    (CHAT, {"messages": [{"role": "alien", "content": "x"}]}, 400, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
    (CHAT, {"model": "m", "messages": MESSAGES, "temperature": "hot"}, 400, "temperature"),
    (CHAT, {"model": "m", "messages": MESSAGES, "temperature": 3}, 400, "temperature"),
    (CHAT, {"model": "m", "messages": MESSAGES, "n": 0}, 400, "n"),
    (CHAT, {"model": "m", "messages": MESSAGES, "stop": 5}, 400, "stop"),
    (CHAT, {"model": "m", "messages": MESSAGES, "stream": 1}, 400, "stream"),
    (CHAT, {"model": "m", "messages": MESSAGES, "logprobs": "x"}, 400, "logprobs"),
    (CHAT, {"model": "m", "messages": MESSAGES, "max_tokens": -1}, 400, "max_tokens"),
    (TEXT, {"model": "m"}, 400, "prompt"),
    (TEXT, {"model": "m", "prompt": 5}, 400, "prompt"),
    (TEXT, {"model": "m", "prompt": []}, 400, "prompt"),
    (TEXT, {"model": "m", "prompt": ""}, 400, "prompt"),
    (TEXT, {"model": "m", "prompt": "a", "temperature": "hot"}, 400, "temperature"),
    ("/retrieve_from_text", b"{", 400, None),
    ("/retrieve_from_text", {}, 400, "text"),
    ("/retrieve_from_text", {"text": 5}, 400, "text"),
    ("/retrieve_from_text", {"text": "never seen"}, 404, "text"),
    ("/retrieve_from_text", {"text": "x", "id": "nobody"}, 404, "id"),
    ("/retrieve_from_messages_template", {}, 400, "messages"),
    ("/retrieve_from_messages_template", {"messages": 5}, 400, "messages"),
    ("/retrieve_from_messages_template", {"messages": [{"content": "x"}]}, 400, "messages[0].role"),
    ("/retrieve_from_messages_template", {"messages": [{"role": "user", "content": 5}]}, 400,
     "messages[0].content"),
    ("/add_worker", {}, 400, "url"),
    ("/add_worker", {"url": 5}, 400, "url"),
    ("/add_worker", {"url": "ftp://x"}, 400, "url"),
    ("/add_worker", b"[1]", 400, None),
]  # fmt: skip


async def test_every_bad_input_is_refused_by_name_and_changes_nothing() -> None:
    wrong = []
    async with embedded_worker() as worker, router_with(worker.url) as served:
        before = served.router.state.forest
        for path, body, status, param in REFUSED:
            kind = {"content": body} if isinstance(body, bytes) else {"json": body}
            response = await served.client.post(path, **kind)
            try:
                error = response.json()["error"]
                assert response.status_code == status
                assert set(error) == {"message", "type", "param", "code"}
                assert error["param"] == param
                assert served.at_rest
                assert not before.segments
            except (AssertionError, KeyError, ValueError):
                wrong.append((path, str(body)[:80], status, param, response.status_code,
                              response.text[:200]))  # fmt: skip
        assert not wrong, "\n".join(map(str, wrong))
        assert not worker.records
        await settled(served)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unknown_sampling_parameter_is_the_workers_to_refuse(stream: bool) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.generate(text="a", stream=stream, sampling_params={"warmth": 1})
        assert "warmth" in response.text
        assert stream or response.status_code == 400
        await settled(served)
        assert not served.router.state.forest.segments
        assert served.router.state.counters.answers_not_captured == 0


@pytest.mark.parametrize("path", [GENERATE, CHAT, TEXT, "/retrieve_from_text", "/other"])
async def test_a_body_over_the_limit_is_a_413(path: str) -> None:
    async with embedded_worker() as worker, router_with(worker.url, max_body_mb=1) as served:
        response = await served.client.post(path, content=b" " * (2**20 + 1))
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        await settled(served)


async def test_a_client_that_sends_half_a_body_and_leaves_costs_nothing() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        async with raw_client(served) as client:
            await client.stream.send_all(
                b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"
            )
        assert (await served.generate(text="a", sampling_params={"max_new_tokens": 1})).is_success
        await settled(served)
        assert served.router.state.counters.calls_opened == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/generate"), ("GET", CHAT), ("DELETE", TEXT), ("GET", "/add_worker"),
     ("GET", "/remove_worker"), ("POST", "/list_workers"), ("GET", "/retrieve_from_text"),
     ("POST", "/metrics"), ("POST", "/health")],
)  # fmt: skip
async def test_a_wrong_method_on_a_path_of_ours_is_a_405_and_reaches_no_worker(
    method: str, path: str
) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.client.request(method, path)
        assert response.status_code == 405
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        assert response.headers["allow"]


@pytest.mark.parametrize("path", ["/generate/", "/v1/chat/completions/", "//generate"])
async def test_a_path_of_ours_spelled_otherwise_never_generates_unseen(path: str) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await served.client.post(
            f"{served.url}{path}", json={"text": "a", "messages": MESSAGES, "max_tokens": 2}
        )
        assert response.status_code in (200, 404)
        assert len(served.router.state.forest.calls) == len(worker.records)
