"""Logprobs that are read after the reply: what clients and trainers see of it."""

from __future__ import annotations

from typing import Any

import pytest

from slime_core import unread
from slime_trio import router
from tests.server.harness import (
    answer_item,
    encode,
    fake_worker,
    json_answer,
    router_with,
    until,
)

pytestmark = pytest.mark.usefixtures("late")


@pytest.fixture(params=["in between", "in a thread"])
def late(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have even the shortest logprobs wait until the client has its answer."""
    monkeypatch.setattr(unread, "UNREAD_FROM", 0)
    if request.param == "in a thread":
        monkeypatch.setattr(router, "_READ_INLINE_BYTES", 0)


@pytest.fixture
def never_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody read them but who looks."""
    monkeypatch.setattr(router.Router, "settle_soon", lambda _: None)


def wrong_item() -> dict[str, Any]:
    item = answer_item([5, 6, 7], "abc")
    item["meta_info"]["output_token_logprobs"][1][1] = 9
    return item


async def test_they_are_read_soon_without_anybody_s_asking() -> None:
    async with (
        fake_worker(json_answer(answer_item([5, 6], "ab"))) as worker,
        router_with(worker.url) as served,
    ):
        await served.generate(text="Hello")
        await until(lambda: not served.router.state.forest.unread)
        (segment,) = served.router.state.forest.calls.values()
        assert segment.answer is not None
        assert len(segment.answer.logprobs) == 8


@pytest.mark.usefixtures("never_by_itself")
async def test_a_retrieval_reads_them() -> None:
    async with (
        fake_worker(json_answer(answer_item([5, 6], "ab"))) as worker,
        router_with(worker.url) as served,
    ):
        await served.generate(text="Hello")
        assert served.router.state.forest.unread
        found = await served.retrieve("Helloab")
        assert found["rollout_logp"][-2:] == [-0.25, -0.5]
        assert not served.router.state.forest.unread


@pytest.mark.usefixtures("never_by_itself")
async def test_a_trajectory_by_its_id_and_a_session_read_them() -> None:
    async with (
        fake_worker(json_answer(answer_item([5, 6], "ab"))) as worker,
        router_with(worker.url) as served,
    ):
        for look in ("/trajectories/{}", "/sessions/s"):
            answer = await served.client.post(
                "/generate", json={"text": "Hello"}, headers={"x-session-id": "s"}
            )
            assert served.router.state.forest.unread
            found = await served.client.get(look.format(answer.headers["x-slime-call-id"]))
            assert found.status_code == 200
            assert not served.router.state.forest.unread


@pytest.mark.usefixtures("never_by_itself")
async def test_samples_hold_them() -> None:
    async with (
        fake_worker(json_answer(answer_item([5, 6], "ab"))) as worker,
        router_with(worker.url) as served,
    ):
        await served.client.post("/generate", json={"text": "Hello"}, headers={"x-session-id": "s"})
        assert served.router.state.forest.unread
        (sample,) = (await served.client.post("/sessions/s/samples", json={})).json()["samples"]
        assert not served.router.state.forest.unread
        assert sample["rollout_log_probs"][-2:] == [-0.25, -0.5]


@pytest.mark.usefixtures("never_by_itself")
async def test_the_next_turn_reads_them() -> None:
    async with (
        fake_worker(json_answer(answer_item([5, 6], "ab"))) as worker,
        router_with(worker.url) as served,
    ):
        await served.generate(text="Hello")
        await served.generate(text="Helloab and")
        first, second = served.router.state.forest.calls.values()
        assert first.answer is not None
        assert len(first.answer.logprobs) == 8
        assert second.lineage()[1] is first


async def test_what_turns_out_wrong_is_withdrawn_and_counted() -> None:
    async with (
        fake_worker(json_answer(wrong_item())) as worker,
        router_with(worker.url) as served,
    ):
        answer = await served.client.post("/generate", json={"text": "Hello"})
        assert (answer.status_code, answer.json()["text"]) == (200, "abc")
        call = answer.headers["x-slime-call-id"]
        for path, asked in (("/retrieve_from_text", {"text": "Helloabc"}), (None, None)):
            found = (
                await served.client.get(f"/trajectories/{call}")
                if path is None
                else await served.client.post(path, json=asked)
            )
            assert (found.status_code, found.json()["error"]["code"]) == (410, "corrupt")
        metrics = await served.client.get("/metrics?format=prometheus")
        assert 'slime_calls_lost_total{reason="corrupt"} 1.0' in metrics.text
        assert "slime_answers_not_captured_total 1.0" in metrics.text


async def test_what_goes_on_from_a_withdrawn_answer_says_so() -> None:
    async with (
        fake_worker(json_answer(wrong_item())) as worker,
        router_with(worker.url) as served,
    ):
        await served.generate(text="Hello")
        answer = await served.client.post("/generate", json={"text": "Helloabc and"})
        assert answer.headers["x-slime-flags"] == "history_corrupt"


async def test_a_chat_that_shows_logprobs_has_them_at_once() -> None:
    async with (
        fake_worker(json_answer(answer_item(encode("ab cd"), "ab cd"))) as worker,
        router_with(worker.url) as served,
    ):
        messages = [{"role": "user", "content": "Hi"}]
        asked = {"model": "m", "messages": messages, "logprobs": True}
        answer = await served.client.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 200, answer.text
        shown = answer.json()["choices"][0]["logprobs"]["content"]
        places = range(len(encode("ab cd")))
        assert [one["logprob"] for one in shown] == [-(place + 1) / 4 for place in places]
