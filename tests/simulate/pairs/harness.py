"""The shell's harness with pairs: the same application, world and rules, and two workers a call."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import h11
import trio
import trio.testing

from slime_core.engine import Role
from slime_core.types import WorkerUrl
from slime_trio import pairs
from slime_trio.config import Settings
from slime_trio.config.kinds import Prefill
from slime_trio.exchange import Headers
from slime_trio.pairs import PairExchange, PrefillWorker
from slime_trio.pairs.response import Flowing
from slime_trio.pairs.workers import Addressed
from slime_trio.router import Router
from slime_trio.upstream import STREAM_FAILURES, GivenAnswer, parse_origin
from tests.simulate.chance import derive
from tests.simulate.knobs import Knobs
from tests.simulate.pairs.courier import Courier
from tests.simulate.pairs.world import PORT, PairWorld, role_of
from tests.simulate.run import Run
from tests.simulate.shell.harness import ShellHarness
from tests.simulate.shell.scheduling import seeded
from tests.simulate.shell.seams import Logs, chatting_of, owned
from tests.simulate.story import EXCHANGE, Story

__all__ = ["PairHarness", "run"]

_PAIR_S = 120.0


class PairHarness(ShellHarness):
    """``knobs.workers`` counts both kinds."""

    def __init__(self, knobs: Knobs, clock: trio.testing.MockClock) -> None:
        self.pairs = PairWorld(knobs)
        self._carrying = trio.CancelScope()
        self._chores: dict[str, deque[str]] = {}
        self._busy: dict[str, trio.Lock] = {}
        self._passed: dict[int, GivenAnswer | Flowing] = {}
        super().__init__(knobs, clock, self.pairs)

    def _build(self, nursery: trio.Nursery) -> None:
        super()._build(nursery)
        courier = Courier(
            self.pairs.halves,
            self.story,
            derive(self.knobs.seed, "courier"),
            lambda url: self.ends[url].changed(),
        )
        nursery.start_soon(self._run, courier)

    @asynccontextmanager
    async def exchange(
        self,
        router: Router,
        prefill: PrefillWorker,
        decode: Addressed,
        method: str,
        target: bytes,
        headers_for: Callable[[WorkerUrl], Headers],
        body: bytes,
    ) -> AsyncIterator[GivenAnswer | Flowing]:
        """The router's own, looked on at: whose answer is passed on."""
        pair = PairExchange(router, prefill, decode, method, target, headers_for, body)
        number = dict(headers_for(prefill.url)).get(EXCHANGE.encode())
        if number is not None:
            self._passed.pop(int(number), None)
        async with pair as answer:
            if number is not None:
                self._passed[int(number)] = answer
            yield answer

    async def _run(self, courier: Courier) -> None:
        with self._carrying:
            await courier.run()

    async def _shut_down(self) -> None:
        self._carrying.cancel()
        await super()._shut_down()

    def _settings(self) -> Settings:
        urls = list(self.world.workers)
        return replace(
            super()._settings(),
            worker_urls=(),
            pd_disaggregation=True,
            pd_timeout_s=_PAIR_S,
            allow_worker=tuple(parse_origin(url).host for url in urls),
            prefill=tuple(Prefill(url, PORT) for url in urls if role_of(url) is Role.PREFILL),
            decode=tuple(url for url in urls if role_of(url) is Role.DECODE),
            prefill_policy=self.knobs.policy,
            decode_policy=self.knobs.policy,
        )

    def _later(self, nursery: trio.Nursery, path: str, url: str) -> None:
        self._chores.setdefault(url, deque()).append(path)
        nursery.start_soon(self._administer_next, url)

    async def _administer_next(self, url: str) -> None:
        """Whoever removes and adds a worker awaits the first answer: else the last of its kind may
        stay away."""
        async with self._busy.setdefault(url, trio.Lock()):
            await self._administer(self._chores[url].popleft(), url)

    async def _administer(self, path: str, url: str) -> None:
        if path != "/add_worker":
            await super()._administer(path, url)
            return
        body: dict[str, Any] = {"url": url, "worker_type": role_of(url).value}
        if role_of(url) is Role.PREFILL:
            body["bootstrap_port"] = PORT
        try:
            status, told = await self.control.call("POST", "/workers", body)
        except (*STREAM_FAILURES, h11.RemoteProtocolError) as error:
            self._complain(f"/workers broke off: {error}")
        else:
            if status != 202:
                self._complain(f"/workers was answered {status}: {told}")

    def _at_rest(self) -> None:
        super()._at_rest()
        if self.router.shared.rooms:
            self._complain(f"rooms were kept: {sorted(self.router.shared.rooms)}")
        for url, worker in self.pairs.halves.items():
            if not worker.engine.idle:
                self._complain(f"{url} still runs {worker.engine.load}")

    def _told(self) -> Run:
        _give_credit(self.story, self._passed)
        _forgive_lost_versions(self.story)
        return super()._told()


def _give_credit(story: Story, passed: Mapping[int, GivenAnswer | Flowing]) -> None:
    """Where the prefill worker's answer was passed on, its sample is what was sampled.

    The decode worker's request may not even have arrived by then. ``passed`` is for each exchange
    what the relay was given in the end. It may be the prefill worker's if that tells of an abort,
    or refuses the request.
    """
    wholes = {(one.exchange, one.place): at for at, one in enumerate(story.sampled)}
    lasts = {(one.exchange, one.place): one for one in story.prefilled}
    for first in lasts.values():
        answer = None if first.exchange is None else passed.get(first.exchange)
        if answer is None or answer.worker_url != first.worker:
            continue
        if answer.status == 200 and b'"abort"' not in first.wire:
            story.complaints.append(f"{first.worker} has aborted nothing, and was passed on")
            continue
        at = wholes.get((first.exchange, first.place))
        if at is None or story.sampled[at].told:
            story.sampled.append(first)
        else:
            story.sampled[at] = first
        story.marks["pairs:aborted_at_prefill"] += 1


def _forgive_lost_versions(story: Story) -> None:
    """The first token has prefill's weights, which only the event that brings it tells before the
    end: where that event was dropped, nobody can know of them."""
    for one in story.sampled:
        later = set(one.versions[1:])
        if one.lies != "dropped" or len(later) != 1 or one.versions[0] in later:
            continue
        events = [event for event in bytes(one.wire).split(b"\n\n") if one.rid.encode() in event]
        if not any(b'"completion_tokens":1,' in event for event in events):
            one.claimed_versions = (one.versions[1],)


def run(knobs: Knobs) -> Run:
    """One run of the shell with pairs."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    harness = PairHarness(knobs, clock)
    chatting_of(harness.world.tokens)
    with (
        seeded(derive(knobs.seed, "scheduler")),
        owned(Logs(harness.story.complaints.append), derive(knobs.seed, "seams")),
        patch.object(pairs, "exchange", harness.exchange),
    ):
        return trio.run(harness.run, clock=clock, restrict_keyboard_interrupt_to_checkpoints=True)
