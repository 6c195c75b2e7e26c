"""Random rollouts through the whole shell, against what the workers themselves recorded."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio

from tests.server.harness import (
    EmbeddedWorker,
    Served,
    embedded_worker,
    encode,
    router_with,
    settled,
)

PIECES = ["\nNext:", " and", "你好，", "🙂", "   ", "\n\n", "42 ", "<|im_end|>", "\t", "'s", "é"]


class Rollout:
    """One rollout by text, by ids, or turning from one into the other."""

    def __init__(self, served: Served, chance: random.Random, number: int) -> None:
        self._served, self._chance = served, chance
        self.text = f"Rollout {number % 3}:"
        self.calls: list[str] = []
        self.session = f"s{number}"
        self._was_empty = False

    async def turn(self) -> None:
        chance = self._chance
        params: dict[str, Any] = {"max_new_tokens": chance.randint(1, 9), "ignore_eos": True}
        if chance.random() < 0.3:
            params["skip_special_tokens"] = False
        if chance.random() < 0.3:
            params["stop"] = ["e", "\n"]
        body: dict[str, Any] = {"text": self.text, "sampling_params": params}
        body["stream"] = chance.random() < 0.4
        headers = {"x-session-id": self.session}
        if self._was_empty:
            # An answer without text is continued by whoever names it: text alone cannot tell.
            headers["x-slime-parent-id"] = self.calls[-1]
        response = await self._served.client.post("/generate", json=body, headers=headers)
        assert response.status_code == 200, response.text
        self.calls.append(response.headers["x-slime-call-id"])
        shown = await self._served.trajectory(self.calls[-1])
        self._was_empty = not shown["answer_text"]
        self.text += shown["answer_text"] + chance.choice(PIECES)


@pytest.mark.parametrize("seed", range(4))
async def test_every_trajectory_is_what_the_workers_recorded(seed: int) -> None:
    chance = random.Random(seed)
    async with (
        embedded_worker(weight_version="1", seed=seed) as one,
        embedded_worker(
            weight_version="1", seed=seed + 100, incremental_streaming_output=True
        ) as two,
        router_with(one.url, two.url) as served,
    ):
        rollouts = [Rollout(served, random.Random(seed * 100 + n), n) for n in range(8)]
        for turn in range(4):
            async with trio.open_nursery() as nursery:
                for rollout in rollouts:
                    nursery.start_soon(rollout.turn)
            if chance.random() < 0.5:
                for worker in (one, two):
                    worker.worker.engine.update_version(str(turn + 2))
        records = _by_call(one, two)
        for rollout in rollouts:
            await _check(served, rollout, records)
        await settled(served)


def _by_call(*workers: EmbeddedWorker) -> dict[str, Any]:
    return {record.rid: record for worker in workers for record in worker.records}


async def _check(served: Served, rollout: Rollout, records: dict[str, Any]) -> None:
    """Rules 1 to 3 for one rollout, from the records alone."""
    last = records[rollout.calls[-1]]
    found = await served.trajectory(rollout.calls[-1])
    assert found["tokens"] == list(last.prompt_ids) + list(last.output_ids)
    mask, logprobs, versions = [], [], []
    held: list[int] = []
    for call in rollout.calls:
        record = records[call]
        prompt, sampled = list(record.prompt_ids), list(record.output_ids)
        assert prompt[: len(held)] == held
        fresh = len(prompt) - len(held)
        mask += [0] * fresh + [1] * len(sampled)
        logprobs += [0.0] * fresh + list(record.logprobs)
        versions += [-1] * fresh + [int(one) for one in record.versions]
        held = prompt + sampled
    assert found["loss_mask"] == mask
    assert found["rollout_logp"] == pytest.approx(logprobs, rel=1e-6)
    assert found["generation_versions"] == versions
    assert len(encode(found["response"])) > 0
