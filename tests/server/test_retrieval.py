"""Retrieval: by text, by messages, by call, and in words where there is nothing to give."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from slime_core.alignment import TokenBytes
from slime_core.decide import Untold, tell
from slime_core.transitions import PromptTold
from slime_core.types import CallId
from slime_trio import retrieval, router
from tests.server.harness import (
    answer_item,
    embedded_worker,
    encode,
    fake_worker,
    json_answer,
    router_with,
    scripted,
    until,
)

COLUMNS = ("tokens", "loss_mask", "rollout_logp", "generation_versions")


async def test_every_list_has_one_length() -> None:
    async with (
        fake_worker(json_answer(answer_item([5, 6], "ab"))) as worker,
        router_with(worker.url) as served,
    ):
        await served.generate(text="Hello")
        found = await served.retrieve("Helloab and more")
        lengths = {len(found[name]) for name in COLUMNS}
        assert lengths == {found["token_length"]} == {found["loss_mask_length"]}
        assert found["response"] == "Helloab and more"


async def test_a_tail_nobody_sampled_is_encoded_and_masked_out() -> None:
    async with (
        fake_worker(json_answer(answer_item([5, 6], "ab"))) as worker,
        router_with(worker.url) as served,
    ):
        await served.generate(text="Hello")
        found = await served.retrieve("Helloab and more")
        head, tail = encode("Hello"), encode(" and more")
        assert found["tokens"] == [*head, 5, 6, *tail]
        assert found["loss_mask"] == [0] * len(head) + [1, 1] + [0] * len(tail)
        assert found["rollout_logp"] == [0.0] * len(head) + [-0.25, -0.5] + [0.0] * len(tail)
        assert found["generation_versions"] == [-1] * len(head) + [1, 1] + [-1] * len(tail)
        assert found["matched_length"] == len(head) + 2


async def test_an_empty_text_gives_empty_lists() -> None:
    async with router_with() as served:
        found = await served.retrieve("")
        assert all(found[name] == [] for name in COLUMNS)
        assert (found["token_length"], found["response"]) == (0, "")


async def test_further_keys_are_tolerated() -> None:
    async with router_with() as served:
        assert await served.retrieve("", return_logp=True, return_logprob=True)


async def test_what_was_never_captured_is_unknown() -> None:
    async with router_with() as served:
        response = await served.client.post("/retrieve_from_text", json={"text": "what"})
        assert (response.status_code, response.json()["error"]["code"]) == (
            404, "unknown_or_evicted")  # fmt: skip


async def test_twins_of_one_text_are_counted_and_told_apart_by_id() -> None:
    items = iter([answer_item(encode("a") + encode("b"), "ab"), answer_item(encode("ab"), "ab")])
    async with (
        fake_worker(json_answer(lambda _: next(items))) as worker,
        router_with(worker.url) as served,
    ):
        first = (await served.generate(text="Hi:")).headers["x-slime-call-id"]
        second = (await served.generate(text="Hi:")).headers["x-slime-call-id"]
        latest = await served.retrieve("Hi:ab")
        assert (latest["id"], latest["ambiguous"]) == (second, 1)
        named = await served.retrieve("Hi:ab", id=first)
        assert named["tokens"] == encode("Hi:") + encode("a") + encode("b")


async def test_an_id_that_is_not_on_the_path_is_refused() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        await served.generate(text="One")
        other = (await served.generate(text="Two")).headers["x-slime-call-id"]
        response = await served.client.post(
            "/retrieve_from_text", json={"text": "Onea", "id": other}
        )
        assert (response.status_code, response.json()["error"]["code"]) == (400, "id_mismatch")


async def test_an_alias_of_several_calls_names_the_candidates() -> None:
    async with (
        fake_worker(json_answer(answer_item([5], "a", rid="same"))) as worker,
        router_with(worker.url) as served,
    ):
        calls = [(await served.generate(text="x")).headers["x-slime-call-id"] for _ in "ab"]
        response = await served.client.get("/trajectories/same")
        assert response.status_code == 409
        assert all(call in response.text for call in calls)


async def test_what_was_evicted_says_so() -> None:
    def item(_: Any) -> Any:
        return answer_item([5] * 30, "a" * 30)

    async with (
        fake_worker(json_answer(item)) as worker,
        router_with(worker.url, radix_tree_max_size=40) as served,
    ):
        first = (await served.generate(text="One")).headers["x-slime-call-id"]
        await served.trajectory(first)
        for text in ("Two", "Three"):
            call = (await served.generate(text=text)).headers["x-slime-call-id"]
            await served.trajectory(call)
        gone = await served.client.get(f"/trajectories/{first}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (410, "evicted")
        by_text = await served.client.post("/retrieve_from_text", json={"text": "One" + "a" * 30})
        assert by_text.json()["error"]["code"] == "evicted"


async def test_what_was_not_retrieved_outlives_the_bound_on_reuse() -> None:
    async with (
        fake_worker(json_answer(answer_item([5] * 30, "a" * 30))) as worker,
        router_with(worker.url, radix_tree_max_size=1) as served,
    ):
        calls = [
            (await served.generate(text=f"Prompt {n}")).headers["x-slime-call-id"] for n in range(5)
        ]
        for call in calls:
            assert (await served.trajectory(call))["answer_length"] == 30


async def test_a_call_in_flight_says_so() -> None:
    import trio

    from tests.server.harness import Arrived

    async def hang(arrived: Arrived, stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with (
        fake_worker(hang) as worker,
        router_with(worker.url) as served,
        trio.open_nursery() as nursery,
    ):

        async def ask() -> None:
            await served.generate(text="x")

        nursery.start_soon(ask)
        await until(lambda: worker.arrived)
        response = await served.client.get(f"/trajectories/{worker.arrived[0].json['rid']}")
        assert (response.status_code, response.json()["error"]["code"]) == (409, "in_flight")
        nursery.cancel_scope.cancel()


async def test_a_text_that_leaves_an_answer_midway_is_marked_cut() -> None:
    async with (
        embedded_worker(script=scripted("one two three four")) as worker,
        router_with(worker.url) as served,
    ):
        await served.generate(text="Count:", sampling_params={"max_new_tokens": 50})
        (record,) = worker.records
        found = await served.retrieve("Count:one two and so on")
        assert found["cut"] is True
        kept = sum(found["loss_mask"])
        assert 0 < kept < len(record.output_ids)
        start = len(record.prompt_ids)
        assert found["tokens"][start : start + kept] == list(record.output_ids)[:kept]


async def test_a_rollout_by_ids_is_found_by_its_text() -> None:
    async with (
        embedded_worker(script=scripted("well")) as worker,
        router_with(worker.url) as served,
    ):
        ids = encode("By ids:")
        await served.generate(input_ids=ids, sampling_params={"max_new_tokens": 50})
        found = await served.retrieve("By ids:well")
        assert found["tokens"] == ids + list(worker.records[0].output_ids)


@pytest.mark.parametrize("inline_bytes", [0, 2**14])
async def test_prompts_by_ids_are_decoded_once_however_many_wait_for_their_text(
    inline_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[int]()

    def tells(untold: Untold, vocabulary: TokenBytes | None) -> PromptTold:
        told.append(untold.segment)
        return tell(untold, vocabulary)

    monkeypatch.setattr(router, "tell", tells)
    monkeypatch.setattr(router, "_TELL_INLINE_BYTES", inline_bytes)
    async with (
        fake_worker(json_answer(answer_item([5, 6], "ab"))) as worker,
        router_with(worker.url) as served,
    ):
        for words in ("By ids:", "Other words", "And a third"):
            await served.generate(input_ids=encode(words))
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(served.router.tell_all)
    assert len(told) == len(set(told)) == 3


async def test_messages_with_tools_are_rendered_as_for_a_chat() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    messages = [{"role": "user", "content": "x"}]
    async with (
        embedded_worker(script=scripted("fine")) as worker,
        router_with(worker.url) as served,
    ):
        chat = {"model": "m", "messages": messages, "tools": tools}
        asked = await served.client.post("/v1/chat/completions", json=chat)
        assert asked.status_code == 200, asked.text
        reply = {"role": "assistant", "content": "fine"}
        response = await served.client.post(
            "/retrieve_from_messages_template",
            json={"messages": [*messages, reply], "tools": tools},
        )
        (record,) = worker.records
        expected = list(record.prompt_ids) + list(record.output_ids)
        assert response.json()["tokens"][: len(expected)] == expected


async def test_a_generation_prompt_is_rendered_only_when_asked_for() -> None:
    async with (
        embedded_worker(script=scripted("fine")) as worker,
        router_with(worker.url) as served,
    ):
        messages = [{"role": "user", "content": "x"}]
        chat = {"model": "m", "messages": messages}
        await served.client.post("/v1/chat/completions", json=chat)
        body = {"messages": [*messages, {"role": "assistant", "content": "fine"}]}
        path = "/retrieve_from_messages_template"
        without = (await served.client.post(path, json=body)).json()["response"]
        body["add_generation_prompt"] = True  # type: ignore[assignment]
        with_it = (await served.client.post(path, json=body)).json()["response"]
        assert with_it.startswith(without)
        assert with_it.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("by_call", [True, False])
async def test_an_answer_that_could_not_be_made_counts_as_not_retrieved(
    by_call: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> bytes:
        raise RuntimeError("planted")

    async with (
        fake_worker(json_answer(answer_item([5], "a"))) as worker,
        router_with(worker.url) as served,
    ):
        call = (await served.generate(text="x")).headers["x-slime-call-id"]
        monkeypatch.setattr(retrieval, "_encoded", broken)
        if by_call:
            response = await served.client.get(f"/trajectories/{call}")
        else:
            response = await served.client.post("/retrieve_from_text", json={"text": "xa"})
        assert response.status_code == 500
        assert not served.router.state.forest.calls[CallId(call)].retrieved
