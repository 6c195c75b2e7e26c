"""``POST /v1/completions`` on the wire."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.harness import (
    answer_item,
    embedded_worker,
    encode,
    events_of,
    fake_worker,
    json_answer,
    router_with,
    scripted,
    settled,
)

PATH = "/v1/completions"


async def _ask(served: Any, **fields: Any) -> Any:
    response = await served.client.post(PATH, json={"model": "m", **fields})
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [("Hi", [encode("Hi")]), (["Hi"], [encode("Hi")]), ([5, 6], [[5, 6]]),
     ([[5, 6], [7]], [[5, 6], [7]]), (["Hi", "Ho"], [encode("Hi"), encode("Ho")])],
)  # fmt: skip
async def test_every_form_of_a_prompt_reaches_the_worker_as_ids(
    prompt: Any, ids: list[list[int]]
) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await _ask(served, prompt=prompt, max_tokens=2)
        assert len(response.json()["choices"]) == len(ids)
        assert sorted(list(one.prompt_ids) for one in worker.records) == sorted(ids)
        await settled(served)


async def test_sixteen_tokens_are_the_standard() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await _ask(served, prompt="Hi", ignore_eos=True)
        assert response.json()["usage"]["completion_tokens"] == 16


async def test_text_offsets_are_computed() -> None:
    async with (
        embedded_worker(script=scripted("one two")) as worker,
        router_with(worker.url) as served,
    ):
        made = (await _ask(served, prompt="Hi", logprobs=1)).json()["choices"][0]["logprobs"]
        assert made["text_offset"][0] == 0
        assert made["text_offset"] == sorted(made["text_offset"])
        assert len(made["tokens"]) == len(made["token_logprobs"]) == len(made["text_offset"])


async def test_an_echo_has_the_logprobs_that_the_worker_gives_the_prompt() -> None:
    async with (
        embedded_worker(script=scripted("one", "one", "one")) as worker,
        router_with(worker.url) as served,
    ):
        asked = {"prompt": "So say ", "echo": True, "logprobs": 1}
        (choice,) = (await _ask(served, **asked)).json()["choices"]
        native = await served.generate(
            text="So say ", return_logprob=True, logprob_start_len=0, sampling_params={}
        )
        scored = native.json()["meta_info"]["input_token_logprobs"]
        known = [logprob for logprob, _, _ in scored]
        assert known[0] is None
        assert choice["logprobs"]["token_logprobs"][: len(known)] == known
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"] == "So say one"
        events = events_of((await _ask(served, **asked, stream=True)).text)
        told = [c["logprobs"] for one in events if one != "[DONE]" for c in one["choices"]]
        offsets = [at for each in told if each is not None for at in each["text_offset"]]
        assert offsets == choice["logprobs"]["text_offset"]


async def test_every_choice_of_a_streamed_batch_is_captured() -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        response = await _ask(
            served, prompt=["Hi", "Ho"], n=2, max_tokens=4, stream=True, ignore_eos=True
        )
        chunks = [one for one in events_of(response.text) if one != "[DONE]"]
        name = chunks[0]["id"]
        for index in range(4):
            text = "".join(
                c["text"] for one in chunks for c in one["choices"] if c["index"] == index
            )
            assert (await served.trajectory(f"{name}:{index}"))["answer_text"] == text
        await settled(served)


async def test_a_turn_by_completion_is_extended_by_generate() -> None:
    async with (
        embedded_worker(script=scripted("well", "done")) as worker,
        router_with(worker.url) as served,
    ):
        await _ask(served, prompt="Hi")
        await served.generate(text="Hiwell and", sampling_params={"max_new_tokens": 5})
        one, two = worker.records
        held = list(one.prompt_ids) + list(one.output_ids)
        assert list(two.prompt_ids) == held + encode(" and")


async def test_an_answer_that_cannot_be_captured_says_so() -> None:
    item = answer_item([5, 6], "ab", completion_tokens=9)
    async with fake_worker(json_answer(item)) as worker, router_with(worker.url) as served:
        response = await _ask(served, prompt="Hi")
        assert response.headers["x-slime-captured"] == "false"
        await settled(served)
