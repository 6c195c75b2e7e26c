"""Pairs of embedded workers behind a router, on real sockets: what is answered and kept."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import trio

from slime_core.engine import ExpertShape, PauseMode, Role
from slime_trio.config.kinds import Prefill
from slime_trio.worker.model import load_model
from tests.server.harness import (
    EmbeddedWorker,
    Raw,
    Served,
    embedded_worker,
    events_of,
    router_with,
    settled,
    until,
)

_load_model = functools.cache(load_model)


@pytest.fixture(autouse=True)
def _one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many workers of one checkpoint: counting its model for each would take most of the time."""
    monkeypatch.setattr("slime_trio.worker.service.load_model", _load_model)


PROMPT = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
SAMPLING = {"max_new_tokens": 12, "sampling_seed": 5}
EXPERTS = ExpertShape(2, 2)


@dataclass
class Fleet:
    """A router with two workers of each kind."""

    served: Served
    prefill: list[EmbeddedWorker]
    decode: list[EmbeddedWorker]

    @property
    def is_at_rest(self) -> bool:
        workers = [*self.prefill, *self.decode]
        idle = all(one.is_idle for one in workers)
        return idle and self.served.at_rest and not self.served.router.shared.rooms

    @property
    def records(self) -> list[Any]:
        """What the decode workers sampled."""
        return [record for one in self.decode for record in one.records]

    async def settle(self) -> None:
        await until(lambda: self.is_at_rest)
        await settled(self.served)


@asynccontextmanager
async def fleet_of(
    *, pairs: int = 2, worker: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Fleet]:
    options = {"experts": EXPERTS} | (worker or {})
    async with AsyncExitStack() as stack:
        prefill, decode = [], []
        for number in range(pairs):
            first = options | {"role": Role.PREFILL, "bootstrap_port": 0, "seed": number}
            second = options | {"role": Role.DECODE, "seed": 100 + number}
            prefill.append(await stack.enter_async_context(embedded_worker(**first)))
            decode.append(await stack.enter_async_context(embedded_worker(**second)))
        chosen: dict[str, Any] = {
            "pd_disaggregation": True,
            "prefill": tuple(Prefill(one.url, one.worker.bootstrap_port) for one in prefill),
            "decode": tuple(one.url for one in decode),
        }
        served = await stack.enter_async_context(router_with(**chosen | settings))
        fleet = Fleet(served, prefill, decode)
        await until(lambda: all(one.is_fit for one in served.router.state.fleet.listed()))
        yield fleet


async def test_a_generation_through_a_pair_is_captured_exactly() -> None:
    async with fleet_of() as fleet:
        answer = await fleet.served.generate(text=PROMPT, sampling_params=SAMPLING)
        assert answer.status_code == 200, answer.text
        text = PROMPT + answer.json()["text"]
        told = await fleet.served.retrieve(text)
        await fleet.settle()
    (record,) = fleet.records
    length = len(record.prompt_ids)
    assert answer.json()["output_ids"] == list(record.output_ids)
    assert told["tokens"] == [*record.prompt_ids, *record.output_ids]
    assert told["loss_mask"] == [0] * length + [1] * len(record.output_ids)
    assert told["rollout_logp"][length:] == list(record.logprobs)


async def test_the_router_is_ready_while_there_is_a_fit_worker_on_each_side() -> None:
    async with fleet_of(pairs=1) as fleet:
        client = fleet.served.client
        assert (await client.get("/readiness")).status_code == 200
        await client.post("/remove_worker", params={"url": fleet.decode[0].url})
        told = await client.get("/readiness")
    assert told.status_code == 503
    assert told.json()["workers"] == {fleet.prefill[0].url: None}


async def lone_answer(body: dict[str, Any]) -> Any:
    """What one worker that does everything answers."""
    async with (
        embedded_worker(experts=EXPERTS, seed=1) as worker,
        httpx.AsyncClient(trust_env=False) as client,
    ):
        return (await client.post(worker.url + "/generate", json=body)).json()


FULL: dict[str, Any] = {
    "text": PROMPT,
    "sampling_params": SAMPLING,
    "return_logprob": True,
    "logprob_start_len": 0,
    "top_logprobs_num": 1,
    "return_routed_experts": True,
}
_SAME = (
    "input_token_logprobs",
    "output_token_logprobs",
    "input_top_logprobs",
    "output_top_logprobs",
    "routed_experts",
)


def same_of(answer: Any) -> list[Any]:
    return [answer["output_ids"], *(answer["meta_info"][name] for name in _SAME)]


async def test_a_pair_s_answer_is_a_lone_worker_s_in_ids_logprobs_and_experts() -> None:
    alone = await lone_answer(FULL)
    async with fleet_of(pairs=1) as fleet:
        together = (await fleet.served.generate(**FULL)).json()
        await fleet.settle()
    assert same_of(together) == same_of(alone)
    assert together["text"] == alone["text"]


@pytest.mark.parametrize("incremental", [False, True])
async def test_a_pair_s_stream_has_the_prompt_s_logprobs_and_all_rows_of_experts(
    incremental: bool,
) -> None:
    alone = await lone_answer(FULL)
    worker = {"incremental_streaming_output": incremental}
    async with fleet_of(pairs=1, worker=worker) as fleet:
        answer = await fleet.served.generate(**FULL, stream=True)
        await fleet.settle()
    *events, done = events_of(answer.text)
    assert done == "[DONE]"
    assert len(events) > 1
    expected = alone["meta_info"]
    for event in events:
        assert event["meta_info"]["input_token_logprobs"] == expected["input_token_logprobs"]
    last = events[-1]["meta_info"]
    assert base64.b64decode(last["routed_experts"]) == base64.b64decode(expected["routed_experts"])


async def test_the_elements_of_a_batch_are_merged_and_captured_one_by_one() -> None:
    texts = [PROMPT, "The cat"]
    body = FULL | {"text": texts}
    alone = await lone_answer(body)
    async with fleet_of() as fleet:
        together = (await fleet.served.generate(**body)).json()
        told = [
            await fleet.served.retrieve(text + answer["text"])
            for text, answer in zip(texts, together, strict=True)
        ]
        await fleet.settle()
    assert list(map(same_of, together)) == list(map(same_of, alone))
    records = {tuple(record.output_ids): record for record in fleet.records}
    for answer, kept in zip(together, told, strict=True):
        record = records[tuple(answer["output_ids"])]
        assert kept["tokens"] == [*record.prompt_ids, *record.output_ids]


async def test_several_samples_of_one_prompt_take_a_pair_too() -> None:
    params = SAMPLING | {"n": 3}
    alone = await lone_answer({"text": PROMPT, "sampling_params": params})
    async with fleet_of(pairs=1) as fleet:
        together = (await fleet.served.generate(text=PROMPT, sampling_params=params)).json()
        await fleet.settle()
    assert [one["output_ids"] for one in together] == [one["output_ids"] for one in alone]


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_s_dialects_go_through_pairs_and_are_captured(stream: bool) -> None:
    chat = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, "seed": 5}
    async with fleet_of() as fleet:
        client = fleet.served.client
        body = chat | {"model": "m", "stream": stream}
        answers = [
            await client.post("/v1/chat/completions", json=body),
            await client.post(
                "/v1/completions",
                json={"model": "m", "prompt": PROMPT, "max_tokens": 8, "echo": True, "logprobs": 1}
                | {"stream": stream},
            ),
        ]
        assert [answer.status_code for answer in answers] == [200, 200], answers[1].text
        kept = [
            await fleet.served.trajectory(answer.headers["x-slime-call-id"]) for answer in answers
        ]
        await fleet.settle()
    records = [[*record.prompt_ids, *record.output_ids] for record in fleet.records]
    assert sorted(one["tokens"] for one in kept) == sorted(records)


async def test_chats_pass_through_pairs_where_nothing_is_captured() -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "input_ids": [5, 6], "max_tokens": 4}
    async with fleet_of(pairs=1, capture=False) as fleet:
        answer = await fleet.served.client.post("/v1/chat/completions", json=body)
        await fleet.settle()
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["finish_reason"] in ("length", "stop")
    assert len(fleet.records) == 1


async def test_media_pass_with_a_room_of_their_own() -> None:
    body = {"text": PROMPT, "image_data": ["data:image/png;base64,AA=="]}
    async with fleet_of(pairs=1) as fleet:
        answer = await fleet.served.generate(**body, sampling_params=SAMPLING)
        await fleet.settle()
    assert answer.status_code == 200
    assert answer.headers["x-slime-captured"] == "false"


async def test_a_refused_request_has_the_worker_s_own_words() -> None:
    async with fleet_of(pairs=1) as fleet:
        answer = await fleet.served.generate(text=PROMPT, sampling_params={"no_such_key": 1})
        await fleet.settle()
    assert answer.status_code == 400
    assert "no_such_key" in answer.text


@asynccontextmanager
async def killable(**options: Any) -> AsyncIterator[tuple[EmbeddedWorker, trio.CancelScope]]:
    """A worker, and the scope whose cancellation kills it."""

    async def serve(*, task_status: trio.TaskStatus[Any]) -> None:
        with trio.CancelScope() as scope:
            async with embedded_worker(**options) as worker:
                task_status.started((worker, scope))
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        yield await nursery.start(serve)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("side", [Role.PREFILL, Role.DECODE])
async def test_a_worker_killed_in_the_middle_costs_no_answer(side: Role) -> None:
    slow = {"prefill_tokens_per_s": 0.01} if side is Role.PREFILL else {}
    victim = {"role": side, "bootstrap_port": 0, "seed": 9, "experts": EXPERTS} | slow
    async with killable(**victim) as (dying, scope), fleet_of(pairs=1) as fleet:
        worker_type = "prefill" if side is Role.PREFILL else "decode"
        body: dict[str, Any] = {"url": dying.url, "worker_type": worker_type}
        if side is Role.PREFILL:
            body["bootstrap_port"] = dying.worker.bootstrap_port
        added = await fleet.served.client.post("/workers", json=body)
        assert added.status_code == 202
        workers = fleet.served.router.state.fleet
        await until(lambda: all(one.is_fit for one in workers.listed()))
        if side is Role.DECODE:
            # What it waits for does not come before it dies.
            dying.worker.engine.pause(PauseMode.IN_PLACE)
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await fleet.served.generate(text=PROMPT, sampling_params=SAMPLING))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask)
            await until(lambda: dying.worker.engine.load.running or dying.worker.engine.load.held)
            scope.cancel()
        assert [answer.status_code for answer in answers] == [200] * 8
        await fleet.settle()


async def test_a_client_that_goes_frees_both_workers() -> None:
    async with fleet_of(pairs=1, worker={"ms_per_token": 5}) as fleet:
        stream = await trio.open_tcp_stream("127.0.0.1", fleet.served.port)
        async with stream:
            client = Raw(stream)
            sampling = {"max_new_tokens": 10_000, "ignore_eos": True}
            await client.post(
                "/generate", {"text": PROMPT, "sampling_params": sampling, "stream": True}
            )
            await client.until(b"data: ", step=4096)
        await fleet.settle()
    (record,) = fleet.records
    assert len(record.output_ids) < 10_000


async def test_an_abort_reaches_what_waits_for_its_prompt() -> None:
    async with fleet_of(pairs=1, worker={"prefill_tokens_per_s": 0.01}) as fleet:
        async with trio.open_nursery() as nursery:
            answers: list[httpx.Response] = []

            async def ask() -> None:
                answers.append(await fleet.served.generate(text=PROMPT, rid="mine"))

            nursery.start_soon(ask)
            await until(lambda: fleet.prefill[0].worker.engine.load.running)
            await until(lambda: fleet.decode[0].worker.engine.load.waiting)
            await fleet.served.client.post("/abort_request", json={"rid": "mine"})
        await fleet.settle()
    assert answers[0].status_code == 200
    assert answers[0].json()["meta_info"]["finish_reason"]["type"] == "abort"


async def test_a_generation_without_one_side_is_a_503() -> None:
    async with fleet_of(pairs=1) as fleet:
        await fleet.served.client.post("/remove_worker", params={"url": fleet.decode[0].url})
        answer = await fleet.served.generate(text=PROMPT, sampling_params=SAMPLING)
    assert answer.status_code == 503
    assert json.loads(answer.text)["error"]["code"] == "no_pair"


async def test_information_is_told_of_both_sides() -> None:
    async with fleet_of() as fleet:
        client = fleet.served.client
        server = (await client.get("/get_server_info")).json()
        model = (await client.get("/get_model_info")).json()
        health = await client.get("/health_generate")
        flush = await client.post("/flush_cache")
    assert [one["disaggregation_mode"] for one in server["prefill"]] == ["prefill"] * 2
    assert [one["disaggregation_mode"] for one in server["decode"]] == ["decode"] * 2
    assert len(server["internal_states"]) == 2
    assert server["slime_router"]["version"]
    assert model["disaggregation_mode"] == "prefill"
    assert (health.status_code, flush.status_code) == (200, 200)
