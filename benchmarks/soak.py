"""A soak: rollouts by the thousand while workers die and return and weights change; all adds up.

A router in a process of its own; workers that are killed and restarted on their ports, some with
old weights; weights updated through the router and beside it; everything aborted now and then,
through the router and straight at the workers; clients that leave. At the end every token that a
worker sampled must be accounted for: given to the trainer exactly, or named as lost with a word. No
slot is taken, nobody waits, and memory has not grown over the second half. The exit status is 1 if
anything of this is not so.
"""

from __future__ import annotations

import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import trio

from benchmarks.report import Cell, Table, median, run
from benchmarks.soak_ledger import Ledger
from benchmarks.soak_rollouts import Rollouts, settle
from benchmarks.soak_workers import FIRST_VERSION, SoakWorker
from slime_trio.upstream import Pool, UpstreamError
from slime_trio.worker import SHIPPED_CHECKPOINT

__all__ = ["FATES", "Options", "measure", "soak"]

FATES: Final = ("what became of sampled tokens", "calls", "tokens")
_JSON: Final = (b"content-type", b"application/json")
_START_S: Final = 60.0
_QUIET_S: Final = 60.0
_JUDGED_S: Final = 180.0
"""Memory is judged from so long a run on; before that it still fills."""
_ROUTER: Final = (
    *("serve", "--host", "127.0.0.1", "--port", "0", "--hf-checkpoint", str(SHIPPED_CHECKPOINT)),
    # A probe is a generation that no rollout asked for.
    *("--probe-logprobs", "off", "--poll-interval-s", "2", "--health-check-interval-s", "5"),
    *("--quarantine-s", "5", "--radix-tree-max-size", "500000", "--capture-max-mb", "512"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``leaving``: the share of turns whose client leaves; ``flat_percent``: by how much the
    router's memory may grow over the second half."""

    minutes: float = 10.0
    rollouts: int = 2000
    workers: int = 4
    turns: int = 5
    answer_tokens: int = 12
    ms_per_token: float = 150.0
    think_s: float = 15.0
    leaving: float = 0.03
    kill_every_s: float = 12.0
    update_every_s: float = 20.0
    abort_every_s: float = 30.0
    flat_percent: float = 10.0
    seed: int = 1


@dataclass(slots=True)
class Soaked:
    """What a soak came to."""

    ledger: Ledger
    rollouts: Rollouts
    events: dict[str, int] = field(default_factory=dict)
    memory: list[float] = field(default_factory=list)
    """The router's memory in MiB, once a second."""
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    growth_percent: float = 0.0


def measure(options: Options) -> list[Table]:
    """The fates of all tokens, and what happened meanwhile. Exits with 1 if anything is wrong."""
    soaked = soak(options)
    tables = [_fates(soaked), _events(options, soaked)]
    if soaked.faults:
        for fault in soaked.faults[:50]:
            print(f"FAULT {fault}", file=sys.stderr)
        raise SystemExit(f"{len(soaked.faults)} faults")
    return tables


def soak(options: Options) -> Soaked:
    """Run one, and judge it."""
    with _router() as (url, process, log):
        soaked = trio.run(_Soak(options, url, process.pid).run)
        if process.poll() is not None:
            soaked.faults.append(f"the router ended with {process.returncode}")
        log.seek(0)
        broken = [line for line in log.read().splitlines() if "internal error" in line]
        soaked.faults += [f"the router's log: {line}" for line in broken[:10]]
    return soaked


@contextmanager
def _router() -> Iterator[tuple[str, subprocess.Popen[str], IO[str]]]:
    """A router's URL, its process, and what it logs."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as log,
        subprocess.Popen(
            [sys.executable, "-m", "slime_trio", *_ROUTER],
            cwd=Path(__file__).resolve().parent.parent,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        try:
            yield _url(process, log), process, log
        finally:
            process.terminate()
            process.wait()


def _url(process: subprocess.Popen[str], log: IO[str]) -> str:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        log.seek(0)
        said = log.read()
        if "listens on " in said and said.endswith("\n"):
            return said.split("listens on ")[1].split()[0]
        time.sleep(0.05)
    raise RuntimeError("the router did not start")


class _Soak:
    """One run."""

    def __init__(self, options: Options, router: str, pid: int) -> None:
        self._options = options
        self._url = router
        self._pid = pid
        self._chance = random.Random(options.seed)
        self._pool = Pool(connect_timeout_s=60.0)
        self._workers: list[SoakWorker] = []
        self._version = int(FIRST_VERSION)
        self._is_over = False
        ledger = Ledger()
        rollouts = Rollouts(
            pool=self._pool,
            router=router,
            ledger=ledger,
            turns=options.turns,
            answer_tokens=options.answer_tokens,
            think_s=options.think_s,
            leaving=options.leaving,
            collect=self._collect,
        )
        self._soaked = Soaked(ledger, rollouts)

    async def run(self) -> Soaked:
        """Soak, let everything come to rest, and judge."""
        options, soaked = self._options, self._soaked
        async with trio.open_nursery() as fleet:
            await self._start(fleet)
            began = trio.current_time()
            async with trio.open_nursery() as driven:
                async with trio.open_nursery() as chaos:
                    chaos.start_soon(self._watch_memory)
                    for number in range(options.rollouts):
                        driven.start_soon(
                            soaked.rollouts.keep_going, number, options.seed, lambda: self._is_over
                        )
                    chaos.start_soon(self._every, options.kill_every_s, self._kill)
                    chaos.start_soon(self._every, options.update_every_s, self._update)
                    chaos.start_soon(self._every, options.abort_every_s, self._abort)
                    await trio.sleep(options.minutes * 60)
                    self._is_over = True
                    chaos.cancel_scope.cancel()
                await self._revive()
            soaked.seconds = trio.current_time() - began
            await self._come_to_rest()
            await self._settle_the_rest()
            fleet.cancel_scope.cancel()
        await self._pool.aclose()
        self._judge_memory()
        soaked.faults += soaked.ledger.faults
        return soaked

    # -- the fleet -----------------------------------------------------------------------------

    async def _start(self, fleet: trio.Nursery) -> None:
        chosen = {"ms_per_token": self._options.ms_per_token}
        for _ in range(self._options.workers):
            worker = SoakWorker(fleet, self._soaked.ledger, chosen)
            self._workers.append(worker)
            await worker.start(FIRST_VERSION)
            await self._post(self._url, "/workers", {"url": worker.url})

    def _collect(self) -> None:
        for worker in self._workers:
            worker.collect()

    async def _every(self, seconds: float, what: Any) -> None:
        while True:
            await trio.sleep(seconds * self._chance.uniform(0.5, 1.5))
            await what()

    def _count(self, event: str) -> None:
        self._soaked.events[event] = self._soaked.events.get(event, 0) + 1

    async def _kill(self) -> None:
        """A worker dies, and comes back: with the weights it began with, or with the newest."""
        worker = self._chance.choice(self._workers)
        await worker.kill()
        await trio.sleep(self._chance.uniform(0, 3))
        is_old = self._chance.random() < 0.5
        # Not to be cancelled half way: the port must be served again.
        with trio.CancelScope(shield=True):
            await worker.start(FIRST_VERSION if is_old else str(self._version))
        self._count("workers killed and restarted" + (" with old weights" if is_old else ""))
        if self._chance.random() < 0.5:
            await self._post(self._url, "/workers", {"url": worker.url})
            self._count("registered again")
        if is_old:
            await trio.sleep(self._chance.uniform(1, 4))
            await self._name_weights(worker.url)

    async def _revive(self) -> None:
        """At the end every worker serves, with the newest weights."""
        for worker in self._workers:
            if not worker.is_up:
                await worker.start(str(self._version))
            await self._name_weights(worker.url)

    async def _name_weights(self, url: str) -> None:
        body = {"new_version": str(self._version), "abort_all_requests": False}
        await self._post(url, "/update_weight_version", body)

    async def _update(self) -> None:
        """New weights: through the router, or beside it."""
        self._version += 1
        if self._chance.random() < 0.5:
            await self._post(
                self._url, "/update_weight_version", {"new_version": str(self._version)}
            )
            self._count("weights updated through the router")
            return
        for worker in self._workers:
            await self._name_weights(worker.url)
        self._count("weights updated beside the router")

    async def _abort(self) -> None:
        """Everything is aborted: through the router, or at each worker."""
        everything = {"abort_all": True}
        if self._chance.random() < 0.5:
            await self._post(self._url, "/abort_request", everything)
            self._count("everything aborted through the router")
            return
        for worker in self._workers:
            await self._post(worker.url, "/abort_request", everything)
        self._count("everything aborted at the workers")

    async def _post(self, url: str, path: str, body: Any) -> None:
        """Ask for something that may fail: a worker may be dead just now."""
        began = trio.current_time()
        try:
            async with self._pool.request(
                "POST", url, path.encode(), [_JSON], msgspec.json.encode(body)
            ) as response:
                await response.read(max_bytes=2**20)
        except UpstreamError:
            self._count("trainer's calls to dead workers")
        if url == self._url:
            took = math.ceil(trio.current_time() - began)
            longest = f"longest {path} of the router, s"
            self._soaked.events[longest] = max(took, self._soaked.events.get(longest, 0))

    # -- the end -------------------------------------------------------------------------------

    async def _watch_memory(self) -> None:
        while True:
            self._soaked.memory.append(_resident_mb(self._pid))
            await trio.sleep(1)

    async def _come_to_rest(self) -> None:
        """No slot is taken and nobody waits."""
        with trio.move_on_after(_QUIET_S):
            while await self._busy():  # noqa: ASYNC110 - nothing to wait on
                await trio.sleep(0.2)
            return
        self._soaked.faults.append(f"not at rest: {await self._busy()}")

    async def _busy(self) -> dict[str, float]:
        """What is still at work: workers, and the router's own numbers."""
        at_work = {worker.url: 1.0 for worker in self._workers if not worker.is_idle}
        return at_work or await self._busy_in_router()

    async def _busy_in_router(self) -> dict[str, float]:
        target = b"/metrics?format=prometheus"
        async with self._pool.request("GET", self._url, target) as response:
            text = (await response.read(max_bytes=2**24)).decode()
        watched = ("slime_open_calls", "slime_running", "slime_waiting", "slime_worker_in_flight")
        return {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith(watched) and float(line.rpartition(" ")[2])
        }

    async def _settle_the_rest(self) -> None:
        """Calls whose clients never learnt their names."""
        self._collect()
        for call in list(self._soaked.ledger.open):
            await settle(self._soaked.rollouts, call, "still held")
        self._soaked.ledger.silent()

    def _judge_memory(self) -> None:
        soaked, options = self._soaked, self._options
        half = soaked.memory[len(soaked.memory) // 2 :]
        first, last = half[: len(half) // 2], half[len(half) // 2 :]
        if not first or not last:
            return
        soaked.growth_percent = 100 * (median(last) / median(first) - 1)
        if options.minutes * 60 >= _JUDGED_S and soaked.growth_percent > options.flat_percent:
            soaked.faults.append(f"memory grew by {soaked.growth_percent:.1f} % in the second half")


def _resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _fates(soaked: Soaked) -> Table:
    ledger = soaked.ledger
    rows: list[tuple[Cell, ...]] = [
        (fate, ledger.calls[fate], tokens) for fate, tokens in ledger.fates.most_common()
    ]
    rows.append(("all", sum(ledger.calls.values()), sum(ledger.fates.values())))
    return Table(
        title="What workers sampled, and what became of it",
        columns=FATES,
        rows=tuple(rows),
        notes=(f"the workers' own records hold {ledger.sampled:,} tokens",),
    )


def _events(options: Options, soaked: Soaked) -> Table:
    rollouts, memory = soaked.rollouts, soaked.memory
    rows: list[tuple[Cell, ...]] = [
        ("seconds", soaked.seconds),
        ("rollouts finished", rollouts.rollouts),
        ("rollouts at once, at most", rollouts.most_concurrent),
        *sorted(rollouts.answers.items()),
        *sorted(soaked.events.items()),
        ("router's memory at the end, MiB", memory[-1] if memory else 0.0),
        ("growth over the second half, %", soaked.growth_percent),
        ("faults", len(soaked.faults)),
    ]
    return Table(
        title=f"{options.rollouts} rollouts at once for {options.minutes:g} minutes",
        columns=("what happened", "how often"),
        rows=tuple(rows),
        notes=("at the end no slot was taken and nobody waited",) if not soaked.faults else (),
    )


if __name__ == "__main__":
    run(Options, measure)
