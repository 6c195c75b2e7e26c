"""Unmodified slime, at its newest and at its slime-router age, and miles: what they send works.

Real workers over real sockets; :mod:`tests.server.slime_trainer` is the trainer.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from slime_core.engine import ExpertShape
from tests.server.harness import (
    Arrived,
    EmbeddedWorker,
    Served,
    answer_item,
    embedded_worker,
    fake_worker,
    http_response,
    json_answer,
    router_with,
    settled,
    until,
)
from tests.server.slime_trainer import SAMPLING, Engine, Trainer, trainer

PROMPT = [151, 872, 198, 40, 41, 42]
LONG = {"sampling_params": {"max_new_tokens": 4000, "ignore_eos": True}}
_NAMES = ("return_routed_experts", "return_indexer_topk")


@asynccontextmanager
async def run_of(
    *workers: EmbeddedWorker, **settings: Any
) -> AsyncIterator[tuple[Served, Trainer]]:
    """A router that knows no worker yet, and a trainer that registers these."""
    async with router_with(**settings) as served, trainer(served.url) as slime:
        for worker in workers:
            await slime.register(worker.url)
        await until(lambda: len(served.router.state.fleet.fit()) == len(workers))
        yield served, slime


class Pending:
    """Generations in the background, and what came of them."""

    def __init__(self, nursery: trio.Nursery, slime: Trainer, count: int, **body: Any) -> None:
        self.answers: list[Any] = []
        self.count = count
        for _ in range(count):
            nursery.start_soon(self._one, slime, body)

    async def _one(self, slime: Trainer, body: dict[str, Any]) -> None:
        self.answers.append(await slime.generate(PROMPT, **body))

    async def all(self) -> list[Any]:
        await until(lambda: len(self.answers) == self.count)
        return self.answers


def reason(answer: Any) -> str:
    kind: str = answer["meta_info"]["finish_reason"]["type"]
    return kind


def sampled(answer: Any) -> list[int]:
    return [triple[1] for triple in answer["meta_info"]["output_token_logprobs"]]


# -- registration --------------------------------------------------------------------------------


async def test_a_worker_registers_is_listed_with_its_url_and_removed_by_its_id() -> None:
    async with embedded_worker() as worker, run_of(worker) as (_, slime):
        entry = (await slime.listed())[worker.url]
        assert entry["id"]
        await slime.remove(worker.url)
        assert await slime.listed() == {}


async def test_prefill_and_decode_workers_register_with_their_ports() -> None:
    async with router_with() as served, trainer(served.url) as slime:
        await slime.register("http://127.0.0.1:9", "prefill", bootstrap_port=8998)
        await slime.register("http://127.0.0.1:10", "decode")
        listed = await slime.listed()
        prefill, decode = listed["http://127.0.0.1:9"], listed["http://127.0.0.1:10"]
        assert (prefill["worker_type"], prefill["bootstrap_port"]) == ("prefill", 8998)
        assert decode["worker_type"] == "decode"


async def test_the_slime_router_age_registers_by_query_and_removes_by_it() -> None:
    async with embedded_worker() as worker, router_with() as served, trainer(served.url) as slime:
        await slime.add(worker.url)
        assert await slime.urls() == [worker.url]
        assert reason(await slime.generate(PROMPT)) in ("stop", "length")
        await slime.take_out(worker.url)
        assert await slime.urls() == []


async def test_a_worker_is_removed_by_its_percent_encoded_url() -> None:
    async with embedded_worker() as worker, run_of(worker) as (_, slime):
        await slime.remove_by_url(worker.url)
        assert await slime.listed() == {}


async def test_a_worker_that_died_is_listed_and_removed_all_the_same() -> None:
    async with router_with() as served, trainer(served.url) as slime:
        async with embedded_worker() as worker:
            await slime.register(worker.url)
            await until(lambda: served.router.state.fleet.fit())
        assert worker.url in await slime.listed()
        await slime.remove(worker.url)
        assert await slime.listed() == {}


async def test_a_worker_that_nobody_knows_is_removed_with_success_in_the_old_way() -> None:
    async with router_with() as served, trainer(served.url) as slime:
        await slime.take_out("http://127.0.0.1:9")


async def test_a_worker_that_registers_again_is_one_worker() -> None:
    async with embedded_worker() as worker, run_of(worker) as (_, slime):
        before = (await slime.listed())[worker.url]["id"]
        await slime.register(worker.url)
        await slime.add(worker.url)
        listed = await slime.listed()
        assert list(listed) == [worker.url]
        assert listed[worker.url]["id"] == before


async def test_urls_are_given_back_exactly_as_they_were_registered() -> None:
    async with router_with() as served, trainer(served.url) as slime:
        for url in ("http://[::1]:9", "http://127.0.0.1:10"):
            await slime.register(url)
        assert await slime.urls() == ["http://[::1]:9", "http://127.0.0.1:10"]


async def test_workers_that_get_no_work_are_listed_too() -> None:
    async with embedded_worker() as worker, run_of(worker) as (served, slime):
        await Engine(slime.client, worker.url).post("/pause_generation")
        async with embedded_worker() as gone:
            await slime.register(gone.url)
        assert set(await slime.listed()) == {worker.url, gone.url}
        assert len(served.router.state.fleet.listed()) == 2


# -- generate ------------------------------------------------------------------------------------


async def test_a_rollout_s_request_reaches_the_worker_as_it_was_written() -> None:
    answer = json_answer(answer_item([5, 6], "ab"))
    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        body = {
            "sampling_params": SAMPLING
            | {"sampling_seed": 2**62 + 1, "custom_params": {"return_top_p_token_ids": True}},
            "input_ids": PROMPT,
            "return_logprob": True,
            "return_routed_experts": True,
        }
        written = json.dumps(body, separators=(", ", " : ")).encode()
        response = await served.client.post(
            "/generate",
            content=written,
            headers={"content-type": "application/json", "X-SMG-Routing-Key": "sample-1"},
        )
        assert response.status_code == 200
        (arrived,) = [one for one in worker.arrived if one.target == "/generate"]
        assert {**arrived.json, "rid": None} == {**body, "rid": None}
        assert arrived.headers["x-smg-routing-key"] == "sample-1"


@pytest.mark.parametrize(
    "prompt",
    [
        {"text": "What is this? <image>", "image_data": ["data:image/png;base64,iVBORw0KGgo="]},
        {"input_ids": PROMPT, "image_data": ["data:image/png;base64,iVBORw0KGgo="]},
    ],
    ids=["today", "slime-router age"],
)
async def test_images_pass_untouched(prompt: dict[str, Any]) -> None:
    answer = json_answer(answer_item([5], "a"))
    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        written = json.dumps(prompt | {"sampling_params": SAMPLING}).encode()
        response = await served.client.post(
            "/generate", content=written, headers={"content-type": "application/json"}
        )
        assert response.status_code == 200
        assert [one.body for one in worker.arrived if one.target == "/generate"] == [written]


async def test_what_a_patched_engine_adds_comes_through_byte_for_byte() -> None:
    info: dict[str, Any] = {
        "top_p_token_ids": "AQAAAA==",
        "top_p_token_offsets": "AAAAAAEAAAA=",
        "spec_ct": 1e-07,
    }
    body = json.dumps(answer_item([5], "a", **info), separators=(",", " : ")).encode()

    async def answer(_: Arrived, __: trio.SocketStream) -> bytes:
        return http_response(body)

    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        response = await served.client.post(
            "/generate", json={"input_ids": PROMPT, "return_logprob": True}
        )
        assert response.content == body


async def test_routed_experts_fit_prompt_and_answer() -> None:
    shape = ExpertShape(3, 2)
    async with embedded_worker(experts=shape) as worker, run_of(worker) as (_, slime):
        answer = await slime.generate(PROMPT, return_routed_experts=True)
        rows = base64.b64decode(answer["meta_info"]["routed_experts"])
        assert len(rows) == (len(PROMPT) + len(sampled(answer)) - 1) * 3 * 2 * 4


async def test_miles_names_both_of_its_extras_whether_the_engine_has_them_or_not() -> None:
    answer = json_answer(answer_item([5], "a"))
    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        async with trainer(served.url) as miles:
            await miles.generate(PROMPT, return_routed_experts=False, return_indexer_topk=False)
        (arrived,) = [one for one in worker.arrived if one.target == "/generate"]
        assert [arrived.json[name] for name in _NAMES] == [False, False]


async def test_an_engine_that_tells_little_is_enough() -> None:
    item = {"text": "a", "meta_info": {"finish_reason": {"type": "stop"}}}
    async with (
        fake_worker(json_answer(item)) as worker,
        router_with(worker.url) as served,
        trainer(served.url) as slime,
    ):
        assert await slime.generate(PROMPT) == item


async def test_a_sample_s_turns_stay_with_one_worker() -> None:
    async with embedded_worker() as one, embedded_worker() as two, run_of(one, two) as (_, slime):
        key = {"X-SMG-Routing-Key": "sample-7"}
        for _ in range(6):
            await slime.generate(PROMPT, headers=key)
        assert sorted([len(one.records), len(two.records)]) == [0, 6]


async def test_the_streaming_variant_reads_everything_so_far_in_each_line() -> None:
    async with embedded_worker() as worker, run_of(worker) as (_, slime):
        lines = await slime.stream(PROMPT, sampling_params={"ignore_eos": True})
        counts = [len(sampled(line)) for line in lines]
        assert counts == sorted(counts)
        assert counts[-1] == SAMPLING["max_new_tokens"]
        (record,) = worker.records
        assert sampled(lines[-1]) == list(record.output_ids)


async def test_a_stream_dropped_on_abort_ends_at_the_worker_too() -> None:
    async with embedded_worker(ms_per_token=5) as worker, run_of(worker) as (served, slime):
        lines = await slime.stream(PROMPT, stop_after=2, **LONG)
        await settled(served)
        await until(lambda: worker.is_idle)
        (record,) = worker.records
        assert sampled(lines[-1]) == list(record.output_ids)[: len(sampled(lines[-1]))]
        assert len(record.output_ids) < LONG["sampling_params"]["max_new_tokens"]


# -- the helper that posts sixty times -----------------------------------------------------------


async def test_a_request_that_is_wrong_is_wrong_sixty_times_and_leaves_nothing() -> None:
    async with embedded_worker() as worker, run_of(worker) as (served, slime):
        with pytest.raises(AssertionError, match="60 times"):
            await slime.post("/generate", {"input_ids": PROMPT, "sampling_params": {"nope": 1}})
        assert worker.records == []
        await settled(served)
        forest = served.router.state.forest
        assert len(forest.segments) == 0


async def test_a_rollout_goes_on_once_there_is_a_worker() -> None:
    async with embedded_worker() as worker, router_with() as served, trainer(served.url) as slime:

        async def register(attempt: int) -> None:
            if attempt == 3:
                await slime.register(worker.url)
                await until(lambda: served.router.state.fleet.fit())

        body = {"input_ids": PROMPT, "sampling_params": SAMPLING}
        answer = await slime.post("/generate", body, before=register)
        assert reason(answer) in ("stop", "length")


async def test_the_same_body_posted_again_is_another_sample() -> None:
    async with embedded_worker() as worker, run_of(worker) as (served, slime):
        for _ in range(3):
            await slime.generate(PROMPT)
        assert len(worker.records) == 3
        assert served.router.state.counters.calls_captured == 3


# -- abort and partial rollouts ------------------------------------------------------------------


async def test_an_abort_sent_straight_to_the_workers_ends_every_pending_request() -> None:
    async with (
        embedded_worker(ms_per_token=5, max_running_requests=2) as one,
        embedded_worker(ms_per_token=5, max_running_requests=2) as two,
        run_of(one, two) as (served, slime),
        trio.open_nursery() as nursery,
    ):
        pending = Pending(nursery, slime, 10, **LONG)
        await until(lambda: served.router.state.fleet.total_in_flight == 10)
        await slime.abort([Engine(slime.client, worker.url) for worker in (one, two)])
        answers = await pending.all()
        assert {reason(answer) for answer in answers} == {"abort"}
        await settled(served)


async def test_what_waits_in_the_router_is_aborted_with_the_rest() -> None:
    async with (
        embedded_worker(ms_per_token=5) as worker,
        run_of(worker, max_concurrent_requests=2) as (served, slime),
        trio.open_nursery() as nursery,
    ):
        pending = Pending(nursery, slime, 6, **LONG)
        await until(lambda: len(served.router.state.open_calls) == 6)
        await until(lambda: served.router.state.fleet.total_in_flight == 2)
        await slime.abort([Engine(slime.client, worker.url)])
        answers = await pending.all()
        assert {reason(answer) for answer in answers} == {"abort"}
        await settled(served)


async def test_a_partial_rollout_goes_on_under_new_weights() -> None:
    async with (
        embedded_worker(ms_per_token=5, weight_version="1") as worker,
        run_of(worker) as (served, slime),
        trio.open_nursery() as nursery,
    ):
        engine = Engine(slime.client, worker.url)
        pending = Pending(nursery, slime, 1, **LONG)
        await until(lambda: worker.worker.engine.records or not worker.is_idle)
        await trio.sleep(0.05)
        await slime.abort([engine])
        (partial,) = await pending.all()
        assert reason(partial) == "abort"
        await engine.new_weights("2")
        rest = await slime.generate(
            PROMPT + sampled(partial), sampling_params={"max_new_tokens": 4, "ignore_eos": True}
        )
        assert rest["meta_info"]["weight_version"] == "2"
        kept = await served.trajectory(rest["meta_info"]["id"])
        answer = kept["generation_versions"][len(PROMPT) :]
        assert answer == [1] * len(sampled(partial)) + [2] * len(sampled(rest))
        assert kept["tokens"] == PROMPT + sampled(partial) + sampled(rest)


async def test_an_agent_s_abort_by_name_reaches_its_worker() -> None:
    async with (
        embedded_worker(ms_per_token=5) as one,
        embedded_worker(ms_per_token=5) as two,
        run_of(one, two) as (served, slime),
        trio.open_nursery() as nursery,
    ):
        named = Pending(nursery, slime, 1, rid="turn-1", **LONG)
        other = Pending(nursery, slime, 1, rid="turn-2", **LONG)
        await until(lambda: served.router.state.fleet.total_in_flight == 2)
        await until(lambda: not one.is_idle and not two.is_idle)
        response = await slime.client.post(f"{slime.router}/abort_request", json={"rid": "turn-1"})
        assert response.status_code == 200
        assert reason((await named.all())[0]) == "abort"
        assert other.answers == []
        await slime.client.post(f"{slime.router}/abort_request", json={"abort_all": True})
        await other.all()


async def test_a_name_reaches_the_worker_as_it_was_given_for_aborts_by_prefix_there() -> None:
    answer = json_answer(answer_item([5], "a", rid="adapter-1_sample-3"))
    async with fake_worker(answer) as worker, router_with(worker.url) as served:
        async with trainer(served.url) as miles:
            await miles.generate(PROMPT, rid="adapter-1_sample-3")
        (arrived,) = [one for one in worker.arrived if one.target == "/generate"]
        assert arrived.json["rid"] == "adapter-1_sample-3"


async def test_an_abort_of_what_nobody_knows_is_a_success() -> None:
    async with embedded_worker() as worker, run_of(worker) as (_, slime):
        response = await slime.client.post(f"{slime.router}/abort_request", json={"rid": "gone"})
        assert response.status_code == 200


# -- weights beside the router -------------------------------------------------------------------


async def test_new_weights_are_learnt_from_what_workers_answer() -> None:
    async with embedded_worker(weight_version="1") as worker, run_of(worker) as (served, slime):
        await slime.generate(PROMPT)
        await Engine(slime.client, worker.url).new_weights("2")
        await slime.generate(PROMPT)
        assert served.router.state.versions.newest == "2"


async def test_a_generation_over_an_update_tells_both_weights() -> None:
    async with (
        embedded_worker(ms_per_token=4, weight_version="1") as worker,
        run_of(worker) as (served, slime),
        trio.open_nursery() as nursery,
    ):
        pending = Pending(
            nursery, slime, 1, sampling_params={"max_new_tokens": 60, "ignore_eos": True}
        )
        await until(lambda: not worker.is_idle)
        await trio.sleep(0.08)
        await Engine(slime.client, worker.url).post(
            "/update_weight_version", {"new_version": "2", "abort_all_requests": False}
        )
        (answer,) = await pending.all()
        kept = await served.trajectory(answer["meta_info"]["id"])
        assert [run["version"] for run in kept["weight_versions"]] == ["1", "2"]


# -- the slime-router age's own ------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"return_logp": True}, {"return_logprob": True}])
async def test_what_was_sampled_is_retrieved_by_its_text(more: dict[str, Any]) -> None:
    async with embedded_worker() as worker, router_with(worker.url) as served:
        body = {"text": "Hello", "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
        answer = (await served.client.post("/generate", json=body)).json()
        text = "Hello" + answer["text"]
        told = await served.retrieve(text, **more)
        assert told["response"] == text
        assert told["token_length"] == told["loss_mask_length"] == len(told["tokens"])
        assert len(told["rollout_logp"]) == len(told["tokens"]) == len(told["loss_mask"])
        (record,) = worker.records
        assert told["tokens"] == [*record.prompt_ids, *record.output_ids]
        assert sum(told["loss_mask"]) == len(record.output_ids)


async def test_an_empty_text_is_empty_lists() -> None:
    async with router_with() as served:
        told = await served.retrieve("")
        assert (told["tokens"], told["loss_mask"], told["rollout_logp"]) == ([], [], [])


# -- a whole run ---------------------------------------------------------------------------------


async def test_rollouts_abort_update_and_go_on_until_shutdown() -> None:
    async with (
        embedded_worker(ms_per_token=2, weight_version="1") as one,
        embedded_worker(ms_per_token=2, weight_version="1") as two,
        run_of(one, two) as (served, slime),
    ):
        engines = [Engine(slime.client, worker.url) for worker in (one, two)]
        for version in ("2", "3"):
            async with trio.open_nursery() as nursery:
                short = Pending(nursery, slime, 8)
                pending = Pending(nursery, slime, 4, **LONG)
                await short.all()
                await slime.abort(engines)
                assert {reason(one) for one in await pending.all()} == {"abort"}
            for engine in engines:
                await engine.new_weights(version)
        assert reason(await slime.generate(PROMPT)) in ("stop", "length")
        await settled(served)
        for engine in engines:
            await slime.remove(engine.url)
        assert await slime.listed() == {}
        books = served.router.state.counters
        assert (books.calls_captured, books.answers_not_captured) == (25, 0)
