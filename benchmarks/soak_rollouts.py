"""Rollouts as trainers have them: several turns, retried as slime does, settled at the end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import trio

from benchmarks.prose import prose
from benchmarks.soak_ledger import Ledger
from slime_core import sse
from slime_trio.upstream import Pool, UpstreamError

__all__ = ["Rollouts", "settle"]

_JSON: Final = (b"content-type", b"application/json")
_MOST: Final = 2**26
_TRIES: Final = 60
_AGAIN_S: Final = 1.0
_SETTLE_S: Final = 0.5
_SETTLE_TRIES: Final = 40


class Left(Exception):
    """The client left before its answer was complete."""


@dataclass(slots=True)
class Rollouts:
    """Everybody's rollouts, and what came of their requests."""

    pool: Pool
    router: str
    ledger: Ledger
    turns: int
    answer_tokens: int
    think_s: float
    leaving: float
    collect: Callable[[], None]
    """Has the workers' records entered into the ledger."""
    answers: Counter[str] = field(default_factory=Counter)
    rollouts: int = 0
    concurrent: int = 0
    most_concurrent: int = 0

    async def keep_going(self, number: int, seed: int, is_over: Callable[[], bool]) -> None:
        """One rollout after the other until time is over."""
        chance = random.Random(f"{seed}/{number}")
        await trio.sleep(chance.random() * self.think_s)
        turn = 0
        while not is_over():
            turn += 1
            self.concurrent += 1
            self.most_concurrent = max(self.most_concurrent, self.concurrent)
            try:
                await self._roll(f"{number}-{turn}", chance)
                self.rollouts += 1
            finally:
                self.concurrent -= 1

    async def _roll(self, name: str, chance: random.Random) -> None:
        """One rollout: some turns with thought between them, then all of it is retrieved."""
        text = _said("You are a helpful assistant. " + prose(0, 400), "system")
        calls: list[str] = []
        try:
            for turn in range(chance.randint(2, max(2, self.turns))):
                await trio.sleep(self._thought(chance))
                question = prose(chance.randrange(500) if turn else 7, 120)
                text += _said(question, "user") + "<|im_start|>assistant\n"
                text += await self._answer(name, text, chance, calls) + "\n"
        except Left:
            self.answers["client left"] += 1
        for call in reversed(calls):
            await settle(self, call, "retrieved")

    def _thought(self, chance: random.Random) -> float:
        """Seconds of an agent's own work between turns; very long ones would delay the end."""
        if not self.think_s:
            return 0.0
        return min(chance.expovariate(1 / self.think_s), 3 * self.think_s)

    async def _answer(self, name: str, text: str, chance: random.Random, calls: list[str]) -> str:
        """The text of an answer, asked for as often as slime asks. Raises :class:`Left`."""
        params = {
            "max_new_tokens": chance.randint(1, 2 * self.answer_tokens),
            "temperature": 1.0,
            "skip_special_tokens": False,
        }
        stream = chance.random() < 0.3
        body = {"text": text, "sampling_params": params, "return_logprob": True, "stream": stream}
        headers = [_JSON, (b"x-smg-routing-key", name.encode())]
        leaves = chance.random() < self.leaving
        patience = chance.expovariate(1 / 2.0) if leaves else float("inf")
        for _ in range(_TRIES):
            with trio.move_on_after(patience) as scope:
                answer = await self._ask(headers, msgspec.json.encode(body), calls)
            if scope.cancelled_caught:
                raise Left
            if answer is not None:
                return answer
            await trio.sleep(_AGAIN_S)
        self.answers["given up"] += 1
        raise Left

    async def _ask(
        self, headers: list[tuple[bytes, bytes]], body: bytes, calls: list[str]
    ) -> str | None:
        """The answer's text; ``None`` if it is to be asked for again."""
        try:
            async with self.pool.request(
                "POST", self.router, b"/generate", headers, body
            ) as response:
                named = response.header(b"x-slime-call-id")
                if named is not None:
                    calls += named.decode().split(",")
                if (response.header(b"content-type") or b"").startswith(b"text/event-stream"):
                    return await self._streamed(response)
                data = await response.read(max_bytes=_MOST)
        except UpstreamError as error:
            self.answers[f"connection: {error.code}"] += 1
            return None
        if response.status != 200:
            code = msgspec.json.decode(data).get("error", {}).get("code", "")
            self.answers[f"{response.status} {code}"] += 1
            return None
        return self._finished(msgspec.json.decode(data))

    async def _streamed(self, response: Any) -> str | None:
        decoder, last = sse.Decoder(), None
        async for data in response.iter_bytes():
            for event in decoder.receive(data):
                if event.data != b"[DONE]":
                    last = msgspec.json.decode(event.data)
        if last is None or "error" in last:
            self.answers["stream ended by an error"] += 1
            return None
        return self._finished(last)

    def _finished(self, answer: dict[str, Any]) -> str:
        self.answers[f"finished: {answer['meta_info']['finish_reason']['type']}"] += 1
        text: str = answer["text"]
        return text


def _said(text: str, role: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


async def settle(rollouts: Rollouts, call: str, fate: str) -> None:
    """Ask the router for ``call`` and enter its answer, unless that was done with a later call."""
    ledger = rollouts.ledger
    for _ in range(_SETTLE_TRIES):
        rollouts.collect()
        if not ledger.knows(call):
            return  # nothing was sampled for it, or it is settled already
        target = f"/trajectories/{call}".encode()
        try:
            async with rollouts.pool.request("GET", rollouts.router, target) as response:
                told = msgspec.json.decode(await response.read(max_bytes=_MOST))
        except UpstreamError as error:
            rollouts.answers[f"retrieval: {error.code}"] += 1
            await trio.sleep(_AGAIN_S)
            continue
        if response.status == 200:
            for run in told["origins"]:
                if run["call"] is not None and ledger.knows(run["call"]):
                    ledger.delivered(run["call"], fate, told, run["start"], run["end"])
            if ledger.knows(call):
                # No token of it came: it was aborted, or its worker died, while it waited.
                ledger.lost(call, told["outcome"])
            return
        if response.status != 409:
            ledger.lost(call, told["error"]["code"])
            return
        await trio.sleep(_SETTLE_S)
    ledger.faults.append(f"{call}: in flight for ever")
