"""Embedded workers as the two halves of a pair, over real sockets."""

from __future__ import annotations

import argparse
import base64
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from slime_core.engine import ExpertShape, Role
from slime_trio.worker import WorkerOptions
from slime_trio.worker.model import load_model
from slime_trio.worker.options import add_arguments, options_from
from tests.server.worker_support import (
    PROMPT,
    events_of,
    has_records,
    is_running,
    is_waiting,
    running_worker,
    until,
)

_load_model = functools.cache(load_model)


@pytest.fixture(autouse=True)
def _one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many workers of one checkpoint: counting its model for each would take most of the time."""
    monkeypatch.setattr("slime_trio.worker.service.load_model", _load_model)


BODY = {
    "text": PROMPT,
    "sampling_params": {"max_new_tokens": 12, "sampling_seed": 5},
    "return_logprob": True,
    "logprob_start_len": 0,
    "top_logprobs_num": 1,
    "return_routed_experts": True,
}
Client = httpx.AsyncClient


@asynccontextmanager
async def running_pair(**options: Any) -> AsyncIterator[tuple[Client, Client, dict[str, Any]]]:
    """A prefill and a decode worker, and the fields that lead from the one to the other."""
    shared = {"experts": ExpertShape(2, 2)} | options
    first = shared | {"role": Role.PREFILL, "bootstrap_port": 0}
    async with running_worker(**first) as prefill:
        info = (await prefill.get("/server_info")).json()
        room = {
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": info["disaggregation_bootstrap_port"],
            "bootstrap_room": 2**63 - 1,
        }
        async with running_worker(**shared | {"role": Role.DECODE, "seed": 2}) as decode:
            yield prefill, decode, room


async def both(
    prefill: Client, decode: Client, body: dict[str, Any], path: str = "/generate"
) -> tuple[httpx.Response, httpx.Response]:
    answers: dict[str, httpx.Response] = {}

    async def ask(name: str, client: Client) -> None:
        answers[name] = await client.post(path, json=body)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "prefill", prefill)
        nursery.start_soon(ask, "decode", decode)
    return answers["prefill"], answers["decode"]


async def test_a_pair_gives_what_a_lone_worker_gives() -> None:
    async with running_worker(experts=ExpertShape(2, 2)) as lone:
        expected = (await lone.post("/generate", json=BODY)).json()
    async with running_pair() as (prefill, decode, room):
        first, whole = (one.json() for one in await both(prefill, decode, BODY | room))
    meta, own, alone = first["meta_info"], whole["meta_info"], expected["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 0}
    assert first["output_ids"] == expected["output_ids"][:1]
    assert meta["input_token_logprobs"] == alone["input_token_logprobs"]
    assert meta["input_top_logprobs"] == alone["input_top_logprobs"]
    assert whole["output_ids"] == expected["output_ids"]
    assert whole["text"] == expected["text"]
    assert own["output_token_logprobs"] == alone["output_token_logprobs"]
    assert own["input_token_logprobs"] == []
    assert own["input_top_logprobs"] == []
    rows, theirs, mine = (base64.b64decode(one["routed_experts"]) for one in (alone, meta, own))
    assert mine != rows
    assert theirs + mine[len(theirs) :] == rows


async def test_a_batch_takes_a_room_for_each_prompt() -> None:
    body = BODY | {"text": [PROMPT, "Hello"], "bootstrap_room": [3, 4]}
    async with running_pair() as (prefill, decode, room):
        first, whole = await both(prefill, decode, room | body)
    assert [len(one["output_ids"]) for one in first.json()] == [1, 1]
    assert [one["output_ids"][0] for one in whole.json()] == [
        one["output_ids"][0] for one in first.json()
    ]


async def test_a_chat_and_a_stream_go_through_a_pair() -> None:
    # With ids of its own a chat needs no template, which takes long to load.
    chat: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Hello!"}],
        "input_ids": [5, 6],
    }
    chat |= {"max_tokens": 4, "seed": 3}
    async with running_pair() as (prefill, decode, room):
        first, whole = await both(prefill, decode, chat | room, "/v1/chat/completions")
        assert (first.status_code, whole.status_code) == (200, 200)
        events: dict[str, list[dict[str, Any]]] = {}

        async def stream(name: str, client: Client) -> None:
            events[name] = await events_of(client, "/generate", BODY | room | {"stream": True})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream, "prefill", prefill)
            nursery.start_soon(stream, "decode", decode)
    assert len(events["prefill"]) == 1
    assert events["decode"][-1]["output_ids"][0] == events["prefill"][0]["output_ids"][0]


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
async def test_half_a_pair_refuses_a_request_without_a_room(role: Role) -> None:
    async with running_worker(role=role, bootstrap_port=0) as worker:
        answer = await worker.post("/generate", json=BODY)
        assert answer.status_code == 400
        assert "bootstrap room" in answer.json()["error"]["message"]
        assert (await worker.get("/health")).status_code == 200
        info = (await worker.get("/model_info")).json()
        assert info["disaggregation_mode"] == role.value


async def test_decode_fails_at_once_where_no_prefill_worker_is() -> None:
    async with running_worker(role=Role.DECODE, bootstrap_port=1) as decode:
        room = {"bootstrap_host": "127.0.0.1", "bootstrap_port": None, "bootstrap_room": 1}
        answer = await decode.post("/generate", json=BODY | room)
    assert answer.status_code == 500
    assert "KV transfer failed" in answer.json()["message"]


async def test_prefill_fails_when_its_decode_worker_has_gone() -> None:
    answers: list[httpx.Response] = []
    async with running_pair() as (prefill, decode, room), trio.open_nursery() as nursery:
        await prefill.post("/pause_generation", json={"mode": "in_place"})
        nursery.start_soon(_ask, prefill, BODY | room, answers)
        async with trio.open_nursery() as leaving:
            leaving.start_soon(_ask, decode, BODY | room, [])
            await until(is_waiting, decode)
            leaving.cancel_scope.cancel()
        await until(has_records, decode)
        await prefill.post("/continue_generation", json={})
    assert answers[0].status_code == 500
    assert "KV transfer failed" in answers[0].json()["message"]


async def test_an_abort_at_prefill_ends_decode_s_wait() -> None:
    first: list[httpx.Response] = []
    whole: list[httpx.Response] = []
    body = BODY | {"rid": "r"}
    async with (
        running_pair(prefill_tokens_per_s=0.01) as (prefill, decode, room),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_ask, prefill, body | room, first)
        nursery.start_soon(_ask, decode, body | room, whole)
        await until(is_running, prefill)
        await until(is_waiting, decode)
        await prefill.post("/abort_request", json={"rid": "r"})
    assert first[0].json()["meta_info"]["finish_reason"]["type"] == "abort"
    assert whole[0].status_code == 500


async def _ask(client: Client, body: dict[str, Any], answers: list[httpx.Response]) -> None:
    answers.append(await client.post("/generate", json=body))


def test_the_flags_are_sglang_s() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", "9000"]
    assert options_from(parser.parse_args(words)) == WorkerOptions(
        role=Role.PREFILL, bootstrap_port=9000
    )
